"""Densities of one structure at any points, in blocks of neighbouring points.

A block of points is dense against the atoms (periodic images included) in its reach: distances are
one array, a mask tells pairs within the cutoff, no neighbour list of the whole grid exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray
from torch import Tensor

from eac_model.graph import AtomGraph, PointPairs
from eac_model.neighbors import (
    atom_graph,
    check_structure,
    complete_cell,
    periodic_images,
    wrap_points,
)
from eac_model.network import EACNet

Progress = Callable[[int], None]
"""Called after every block with the number of points it held."""

BIN_WIDTH = 2.0
"""Å. Scattered points are sorted into boxes of about this size before they are cut into blocks."""


@dataclass(frozen=True)
class EncodedAtoms:
    """Descriptors of one structure on the device, and what evaluation needs of the structure."""

    atoms: Atoms
    """A copy of the structure the descriptors belong to."""
    numbers: Tensor
    """(n,) int64 | atomic numbers."""
    descriptors: Tensor
    """(1 or 2, n, (l_max+1)², channels) | of the given moments and, where a spin model meets
    moments that are not zero, of the flipped ones."""
    image_atoms: NDArray[np.int64]
    """(images,) | the atom of every periodic image in reach of the cell."""
    image_positions: NDArray[np.float64]
    """(images, 3) | Å."""


def encode(network: EACNet, atoms: Atoms) -> EncodedAtoms:
    """Compute the descriptors of a structure once, for any number of evaluations.

    Raises
    ------
    StructureError, UnknownElementError
        The structure cannot be used; see :func:`eac_model.neighbors.check_structure`.
    """
    config = network.config
    check_structure(atoms, config.elements)
    graph = atom_graph(atoms, config.atom_cutoff, network.dtype, network.device)
    # Without moments both spin channels are the same.
    polarized = config.spin and bool(graph.magmoms.any())
    spins = [graph, graph.flipped()] if polarized else [graph]
    with torch.no_grad():
        descriptors = network.descriptors(AtomGraph.concatenate(spins))
    image_atoms, image_positions = periodic_images(atoms, config.point_cutoff)
    copy = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    copy.set_initial_magnetic_moments(atoms.get_initial_magnetic_moments())
    return EncodedAtoms(
        atoms=copy,
        numbers=graph.numbers,
        descriptors=descriptors.reshape(len(spins), len(atoms), *descriptors.shape[1:]),
        image_atoms=image_atoms,
        image_positions=image_positions,
    )


def evaluate_points(
    network: EACNet,
    encoded: EncodedAtoms,
    points: NDArray,
    *,
    contributions: bool = False,
    of_atoms: NDArray[np.bool_] | None = None,
    block_size: int | None = None,
    progress: Progress | None = None,
) -> NDArray[np.floating]:
    """Density at any points.

    Parameters
    ----------
    points
        Shape (p, 3), Å; periodic directions wrap.
    contributions
        Return the contribution of every atom (all its images together) instead of the sum.
    of_atoms
        (n_atoms,) mask: sum the contributions of these atoms only.
    block_size
        Points evaluated at once; None chooses. Halved and tried again when memory runs out.

    Returns
    -------
    ndarray
        Shape (n_spin, p), or (n_spin, p, n_atoms), e/Å³. Points out of every atom's reach get 0.

    Raises
    ------
    ValueError
        Points of another shape, or not finite.
    """
    points = np.asarray(points, dtype=float)
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"Points have the shape (p, 3), not {points.shape}.")
    if not np.isfinite(points).all():
        raise ValueError("Some points are not finite numbers.")
    wrapped = wrap_points(points, encoded.atoms)
    shape = (network.n_spin, len(points), len(encoded.atoms))[: 3 if contributions else 2]
    result: NDArray[np.floating] = np.zeros(shape, dtype=_numpy_dtype(network))
    for chosen in _blocks_of_points(wrapped, block_size or _default_block(network)):
        for part, pairs, values in _evaluate_block(network, encoded, wrapped[chosen]):
            rows = slice(None) if of_atoms is None else torch.as_tensor(of_atoms)[pairs.atom.cpu()]
            target = chosen[part]
            for spin, value in enumerate(values):
                if contributions:
                    by_atom = value.new_zeros(len(encoded.atoms), value.shape[1])
                    by_atom.index_add_(0, pairs.atom, value)
                    result[spin, target] = by_atom.T.cpu().numpy()
                else:
                    result[spin, target] = value[rows].sum(0).cpu().numpy()
        if progress is not None:
            progress(len(chosen))
    return result


def evaluate_grid(
    network: EACNet,
    encoded: EncodedAtoms,
    shape: tuple[int, int, int],
    *,
    cell: NDArray | None = None,
    origin: NDArray | None = None,
    of_atoms: NDArray[np.bool_] | None = None,
    block_size: int | None = None,
    progress: Progress | None = None,
) -> NDArray[np.floating]:
    """Density on a regular grid.

    Parameters
    ----------
    shape
        Points (n1, n2, n3) along the three vectors, no end point repeated.
    cell
        (3, 3) vectors the grid spans, Å; the structure's cell if None.
    origin
        (3,) position of the first point, Å; 0 if None.
    of_atoms
        As in :func:`evaluate_points`.

    Returns
    -------
    ndarray
        Shape (n_spin, n1, n2, n3), e/Å³.
    """
    result: NDArray[np.floating] = np.zeros((network.n_spin, *shape), dtype=_numpy_dtype(network))
    for window, points in _blocks_of_grid(network, encoded, shape, cell, origin, block_size):
        values = evaluate_points(
            network, encoded, points, of_atoms=of_atoms, block_size=len(points)
        )
        result[:, *window] = values.reshape(network.n_spin, *result[0][window].shape)
        if progress is not None:
            progress(len(points))
    return result


def integrate_contributions(
    network: EACNet,
    encoded: EncodedAtoms,
    shape: tuple[int, int, int],
    *,
    cell: NDArray | None = None,
    origin: NDArray | None = None,
    block_size: int | None = None,
    progress: Progress | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Electrons and dipoles of the atomic contributions, summed on a regular grid.

    Parameters
    ----------
    shape, cell, origin
        The grid, as in :func:`evaluate_grid`.

    Returns
    -------
    populations
        (n_spin, n_atoms) ∫ρ_i dr, electrons.
    dipoles
        (n_spin, n_atoms, 3) ∫ρ_i (r − R_i) dr, e·Å (electrons counted positive).
    """
    n = len(encoded.atoms)
    populations = torch.zeros(network.n_spin, n, dtype=torch.float64)
    dipoles = torch.zeros(network.n_spin, n, 3, dtype=torch.float64)
    spanned = np.asarray(complete_cell(encoded.atoms) if cell is None else cell)
    voxel = abs(np.linalg.det(spanned)) / np.prod(shape)
    for _, points in _blocks_of_grid(network, encoded, shape, cell, origin, block_size):
        wrapped = wrap_points(points, encoded.atoms)
        for _, pairs, values in _evaluate_block(network, encoded, wrapped):
            atom = pairs.atom.cpu()
            for spin, value in enumerate(values):
                moment = torch.bmm(value.unsqueeze(1), pairs.vectors).squeeze(1)
                populations[spin].index_add_(0, atom, value.sum(1).double().cpu())
                dipoles[spin].index_add_(0, atom, moment.double().cpu())
        if progress is not None:
            progress(len(points))
    return populations.numpy() * voxel, dipoles.numpy() * voxel


def _evaluate_block(
    network: EACNet, encoded: EncodedAtoms, points: NDArray
) -> Iterator[tuple[slice, PointPairs, list[Tensor]]]:
    """Contributions at neighbouring points; in several parts where memory does not suffice."""
    pending = [slice(0, len(points))]
    while pending:
        part = pending.pop()
        try:
            yield part, *_contributions(network, encoded, points[part])
        except (MemoryError, RuntimeError) as error:
            count = part.stop - part.start
            if count == 1 or not _out_of_memory(error):
                raise
            if network.device.type == "cuda":
                torch.cuda.empty_cache()
            middle = part.start + count // 2
            pending += [slice(middle, part.stop), slice(part.start, middle)]


def _contributions(
    network: EACNet, encoded: EncodedAtoms, points: NDArray
) -> tuple[PointPairs, list[Tensor]]:
    cutoff = network.config.point_cutoff
    low, high = points.min(axis=0), points.max(axis=0)
    images = encoded.image_positions
    outside = np.maximum(np.maximum(low - images, images - high), 0.0)
    near = np.flatnonzero((outside**2).sum(axis=1) < cutoff**2)
    # Differences in float64, then rounded: positions far from the origin lose nothing.
    vectors = torch.as_tensor(
        points[None] - images[near, None], dtype=network.dtype, device=network.device
    )
    atoms, rows = np.unique(encoded.image_atoms[near], return_inverse=True)
    count = len(points)
    local = PointPairs(
        atom=torch.as_tensor(rows, device=network.device),
        vectors=vectors,
        mask=(vectors * vectors).sum(-1) < cutoff**2,
        point=torch.arange(count, device=network.device).expand(len(near), count),
        n_points=count,
    )
    chosen = torch.as_tensor(atoms, device=network.device)
    with torch.no_grad():
        values = [
            network.contributions(descriptors[chosen], encoded.numbers[chosen], local)
            for descriptors in encoded.descriptors
        ]
    values *= network.n_spin // len(values)
    pairs = PointPairs(
        atom=chosen[local.atom],
        vectors=local.vectors,
        mask=local.mask,
        point=local.point,
        n_points=count,
    )
    return pairs, values


def _blocks_of_points(points: NDArray, block_size: int) -> Iterator[NDArray[np.int64]]:
    """Indices of neighbouring points, at most ``block_size`` at a time."""
    if len(points) == 0:
        return
    bins = np.floor((points - points.min(axis=0)) / BIN_WIDTH).astype(np.int64)
    order = np.lexsort(bins.T)
    changes = np.flatnonzero(np.any(np.diff(bins[order], axis=0) != 0, axis=1)) + 1
    for members in np.split(order, changes):
        for start in range(0, len(members), block_size):
            yield members[start : start + block_size]


def _blocks_of_grid(
    network: EACNet,
    encoded: EncodedAtoms,
    shape: tuple[int, int, int],
    cell: NDArray | None,
    origin: NDArray | None,
    block_size: int | None,
) -> Iterator[tuple[tuple[slice, slice, slice], NDArray[np.float64]]]:
    """Windows of a grid, as cubic as they can be, and the positions of their points."""
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"A grid has three positive numbers of points, not {shape}.")
    vectors = np.asarray(complete_cell(encoded.atoms) if cell is None else cell, dtype=float)
    start = np.zeros(3) if origin is None else np.asarray(origin, dtype=float)
    steps = np.linalg.norm(vectors, axis=1) / shape
    width = np.cbrt((block_size or _default_block(network)) * np.prod(steps))
    counts = np.clip((width / steps).astype(int), 1, shape)
    for first in np.ndindex(*(-(-n // c) for n, c in zip(shape, counts, strict=True))):
        x, y, z = (
            slice(i * c, min((i + 1) * c, n)) for i, c, n in zip(first, counts, shape, strict=True)
        )
        fractions = np.meshgrid(
            *(np.arange(w.start, w.stop) / n for w, n in zip((x, y, z), shape, strict=True)),
            indexing="ij",
        )
        yield (x, y, z), np.stack(fractions, axis=-1).reshape(-1, 3) @ vectors + start


def _default_block(network: EACNet) -> int:
    """Points a block, so that its pairs take some hundred MB at most."""
    points = 2048 if network.value_weight is None else 256
    return points * (16 if network.device.type == "cuda" else 1)


def _out_of_memory(error: Exception) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)


def _numpy_dtype(network: EACNet) -> type[np.floating]:
    return np.float64 if network.dtype == torch.float64 else np.float32
