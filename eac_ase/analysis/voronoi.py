"""Every point to the nearest atom."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial import cKDTree

from eac_ase.analysis.moments import Moments, Sums
from eac_ase.grid import DensityGrid
from eac_ase.progress import progress_bar
from eac_model.neighbors import periodic_images, wrap_points

TIE = 1e-6
"""Å. Atoms this much farther away than the nearest get an equal part of a point: cells of
equivalent atoms are then equal."""

NEIGHBORS = 8
"""Atoms that can share a point."""

POINTS_AT_ONCE = 2**18


def voronoi(grid: DensityGrid, *, progress: bool | None = None) -> Moments:
    """Voronoi cells of all atoms and images, cut off by the grid's box along open directions."""
    atoms = grid.atoms.copy()
    atoms.pbc = grid.pbc
    # No point is farther from some atom than half the sum of the edges.
    reach = float(np.linalg.norm(grid.cell, axis=1).sum()) / 2
    owner, places = periodic_images(atoms, reach)
    tree = cKDTree(places)
    k = min(NEIGHBORS, len(places))
    sums = Sums(grid)
    n1, n2, n3 = grid.shape
    slab = max(1, POINTS_AT_ONCE // (n2 * n3))
    with progress_bar("voronoi", grid.values.size, progress) as advance:
        for first in range(0, n1, slab):
            axes = [np.arange(first, min(first + slab, n1)) / n1, np.arange(n2) / n2]
            fractions = np.meshgrid(*axes, np.arange(n3) / n3, indexing="ij")
            plain = np.stack(fractions, axis=-1).reshape(-1, 3) @ grid.cell + grid.origin
            points = wrap_points(plain, atoms)
            distance, image = (x.reshape(-1, k) for x in tree.query(points, k=k))
            nearest = distance <= distance[:, :1] + TIE
            row, column = np.nonzero(nearest)
            chosen = image[row, column]
            sums.add(
                torch.from_numpy(owner[chosen]),
                torch.from_numpy(row + first * n2 * n3),
                torch.from_numpy(points[row] - places[chosen]),
                torch.from_numpy(1 / nearest.sum(axis=1)[row]),
            )
            advance(len(points))
    return sums.result()
