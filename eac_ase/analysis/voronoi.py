"""Every point to the nearest atom, voxels on the faces between cells to both."""

from __future__ import annotations

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from eac_ase.analysis.moments import Moments, Sums
from eac_ase.grid import DensityGrid
from eac_ase.progress import progress_bar
from eac_model.lattice import periodic_images, wrap_points

NEIGHBORS = 8
"""Atoms that can share a point."""

POINTS_AT_ONCE = 2**18


def voronoi(grid: DensityGrid, *, progress: bool | None = None) -> Moments:
    """Voronoi cells of all atoms and images, cut off by the grid's box along open directions.

    A point stands for its voxel. Where that reaches across the face to the cell of another atom,
    both get a part of it, so that errors fall with the square of the grid's spacing.
    """
    # The grid's cell repeats, which may be a box around a structure without one.
    atoms = Atoms(grid.atoms.numbers, grid.atoms.positions - grid.origin, cell=grid.cell)
    atoms.pbc = grid.pbc
    # No point is farther from some atom than half the sum of the edges.
    reach = float(np.linalg.norm(grid.cell, axis=1).sum()) / 2
    owner, places = periodic_images(atoms, reach)
    tree = cKDTree(places)
    k = min(NEIGHBORS, len(places))
    sums = Sums(grid)
    n1, n2, n3 = grid.shape
    edges = grid.cell / np.array([[n1], [n2], [n3]])
    slab = max(1, POINTS_AT_ONCE // (n2 * n3))
    with progress_bar("voronoi", grid.values.size, progress) as advance:
        for first in range(0, n1, slab):
            axes = [np.arange(first, min(first + slab, n1)) / n1, np.arange(n2) / n2]
            fractions = np.meshgrid(*axes, np.arange(n3) / n3, indexing="ij")
            plain = np.stack(fractions, axis=-1).reshape(-1, 3) @ grid.cell
            points = wrap_points(plain, atoms)
            distance, image = (x.reshape(-1, k) for x in tree.query(points, k=k))
            parts = _parts(distance, places[image], edges)
            row, column = np.nonzero(parts)
            chosen = image[row, column]
            sums.add(
                torch.from_numpy(owner[chosen]),
                torch.from_numpy(row + first * n2 * n3),
                torch.from_numpy(points[row] - places[chosen]),
                torch.from_numpy(parts[row, column]),
            )
            advance(len(points))
    return sums.result()


def _parts(
    distance: NDArray[np.floating], places: NDArray[np.floating], edges: NDArray[np.floating]
) -> NDArray[np.floating]:
    """Parts of voxels (p, k) by distance (p, k) and place (p, k, 3) of atoms, nearest first.

    Of two atoms, one gets all of a voxel whose middle is half the voxel's width away from the plane
    between them, and half of it on the plane.
    """
    between = places - places[:, :1]
    length = np.linalg.norm(between, axis=2)
    length[:, 0] = 1.0
    # From the middle of the voxel to the plane, over the width of the voxel along its normal.
    width = np.abs(between @ edges.T).sum(axis=2) / length
    to_plane = (distance**2 - distance[:, :1] ** 2) / (2 * length)
    far = np.divide(to_plane, width, out=np.zeros_like(width), where=width > 0)
    parts = np.clip(0.5 - far, 0.0, None) / (0.5 + far)
    found: NDArray[np.floating] = parts / parts.sum(axis=1, keepdims=True)
    return found
