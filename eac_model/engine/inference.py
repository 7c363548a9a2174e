"""Densities of one structure at any points, in blocks of neighbouring points.

Only the pairs of one block are ever known; no neighbour list of a whole grid exists. On CPUs in
float32 they are evaluated on shells around the atoms (:mod:`eac_model.engine.value_weight`,
:mod:`eac_model.engine.linear`), otherwise, and where they are few, by the network itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from eac_model.engine.descriptors import descriptors_in_blocks
from eac_model.engine.kernels import Kernels, shell_kernels
from eac_model.engine.symmetry import unique_points
from eac_model.engine.tiles import TilePairs, sort_pairs, tile_pairs
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

BLOCK_WIDTH = 12.0
"""Å. Scattered points are cut into blocks no wider than this."""

PAIRS_AN_ATOM = 100
"""Below this mean number of pairs an atom the network itself is faster than its tables."""


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
    image_tree: cKDTree
    """Finds the images near a place."""


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
        descriptors = descriptors_in_blocks(network, AtomGraph.concatenate(spins))
    image_atoms, image_positions = periodic_images(atoms, config.point_cutoff)
    copy = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    copy.set_initial_magnetic_moments(atoms.get_initial_magnetic_moments())
    return EncodedAtoms(
        atoms=copy,
        numbers=graph.numbers,
        descriptors=descriptors.reshape(len(spins), len(atoms), *descriptors.shape[1:]),
        image_atoms=image_atoms,
        image_positions=image_positions,
        image_tree=cKDTree(image_positions),
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
    n_atoms = len(encoded.atoms)
    mask = None if of_atoms is None else torch.as_tensor(of_atoms, device=network.device)
    kernels = shell_kernels(network)
    size = block_size or _default_block(network)
    for chosen, found in _all_contributions(network, encoded, wrapped, size, kernels):
        for part in found:
            kept = part if mask is None else part.of(mask)
            if contributions:
                flat = kept.values.new_zeros(network.n_spin, len(chosen) * n_atoms)
                flat.index_add_(1, kept.point * n_atoms + kept.atom, kept.values)
                result[:, chosen] += flat.unflatten(1, (-1, n_atoms)).cpu().numpy()
            else:
                total = kept.values.new_zeros(network.n_spin, len(chosen))
                result[:, chosen] += total.index_add_(1, kept.point, kept.values).cpu().numpy()
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
    symmetry: bool = True,
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
    symmetry
        Of points of a crystal's cell that its symmetry makes equivalent, evaluate one and copy it:
        the density is then exactly symmetric. Without effect on other grids.

    Returns
    -------
    ndarray
        Shape (n_spin, n1, n2, n3), e/Å³.
    """
    whole = cell is None or np.array_equal(cell, encoded.atoms.cell)
    if symmetry and whole and of_atoms is None and (origin is None or not np.any(origin)):
        unique = unique_points(encoded.atoms, shape)
        if unique is not None:
            points = (unique.indices / np.array(shape)) @ np.asarray(encoded.atoms.cell)
            found = evaluate_points(network, encoded, points, block_size=block_size)
            if progress is not None:
                progress(unique.which.size)
            return found[:, unique.which]
    result: NDArray[np.floating] = np.zeros((network.n_spin, *shape), dtype=_numpy_dtype(network))
    size = block_size or _default_block(network)
    for window, points in _blocks_of_grid(encoded, shape, cell, origin, size):
        values = evaluate_points(network, encoded, points, of_atoms=of_atoms, block_size=size)
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
    kernels = shell_kernels(network)
    size = block_size or _default_block(network)
    for _, points in _blocks_of_grid(encoded, shape, cell, origin, size):
        wrapped = wrap_points(points, encoded.atoms)
        for _, found in _all_contributions(network, encoded, wrapped, size, kernels):
            for part in found:
                atom = part.atom.cpu()
                for spin, value in enumerate(part.values.double().cpu()):
                    populations[spin].index_add_(0, atom, value)
                    moments = (value * part.vectors.double().cpu()).T
                    dipoles[spin].index_add_(0, atom, moments)
        if progress is not None:
            progress(len(points))
    return populations.numpy() * voxel, dipoles.numpy() * voxel


@dataclass(frozen=True)
class _Contributions:
    """Contributions of pairs of points and atoms."""

    atom: Tensor
    """(p,) int64 | index among the structure's atoms."""
    point: Tensor
    """(p,) int64 | index among the points of the block."""
    vectors: Tensor
    """(3, p) | from the atom's image to the point, Å."""
    values: Tensor
    """(n_spin, p) | e/Å³."""

    def of(self, chosen: Tensor) -> _Contributions:
        """Those of some atoms; ``chosen`` is a mask."""
        kept = chosen[self.atom]
        return _Contributions(
            self.atom[kept], self.point[kept], self.vectors[:, kept], self.values[:, kept]
        )


def _all_contributions(
    network: EACNet, encoded: EncodedAtoms, points: NDArray, block_size: int, kernels: Kernels
) -> Iterator[tuple[NDArray[np.int64], list[_Contributions]]]:
    """Contributions at wrapped points, and which points they are, block by block."""
    for block in _blocks_of_points(points, block_size):
        pending = [block]
        while pending:
            chosen = pending.pop()
            try:
                yield chosen, _contributions(network, encoded, points[chosen], kernels)
            except (MemoryError, RuntimeError) as error:
                if len(chosen) == 1 or not _out_of_memory(error):
                    raise
                if network.device.type == "cuda":
                    torch.cuda.empty_cache()
                half = len(chosen) // 2
                pending += [chosen[half:], chosen[:half]]


def _contributions(
    network: EACNet, encoded: EncodedAtoms, points: NDArray, kernels: Kernels
) -> list[_Contributions]:
    """All contributions at neighbouring points, in one or two lists that add up."""
    cutoff = network.config.point_cutoff
    low, high = points.min(axis=0), points.max(axis=0)
    reach = float(np.linalg.norm(high - low)) / 2 + cutoff
    near = encoded.image_tree.query_ball_point((low + high) / 2, reach, return_sorted=True)
    pairs = tile_pairs(points, encoded.image_positions[near], cutoff, network.dtype, network.device)
    of_image = torch.as_tensor(encoded.image_atoms[near], device=network.device)
    atom = of_image[pairs.image]
    atoms = int((torch.bincount(atom) > 0).sum())
    if not kernels or len(pairs) <= PAIRS_AN_ATOM * atoms:
        return [_network_contributions(network, encoded, pairs, atom, len(points))]
    elements = network.types.elements(encoded.numbers)
    found = []
    for kernel in kernels:
        ordered = sort_pairs(pairs, atom, kernel.shells, kernel.l_max, kernel.core_radius)
        with torch.no_grad():
            values = kernel.contributions(encoded.descriptors, elements, ordered, len(points))
        values = values.expand(network.n_spin, -1)
        found.append(_Contributions(ordered.atom, ordered.point, ordered.vectors, values))
    return found


def _network_contributions(
    network: EACNet, encoded: EncodedAtoms, pairs: TilePairs, atom: Tensor, n_points: int
) -> _Contributions:
    """The network itself on a list of pairs: few of them, float64, or a GPU."""
    present, rows = torch.unique(atom, return_inverse=True)
    order = torch.argsort(rows, stable=True)
    rows = rows[order]
    counts = torch.bincount(rows, minlength=len(present))
    columns = torch.arange(len(rows), device=rows.device)
    columns -= torch.repeat_interleave(torch.cumsum(counts, 0) - counts, counts)
    shape = (len(present), int(counts.max()) if len(counts) else 1)
    vectors = pairs.vectors.new_ones((*shape, 3))
    vectors[rows, columns] = pairs.vectors.T[order]
    mask = torch.zeros(shape, dtype=torch.bool, device=rows.device)
    mask[rows, columns] = True
    point = torch.zeros(shape, dtype=torch.int64, device=rows.device)
    point[rows, columns] = pairs.point[order]
    local = PointPairs(
        atom=torch.arange(len(present), device=rows.device),
        vectors=vectors,
        mask=mask,
        point=point,
        n_points=n_points,
    )
    with torch.no_grad():
        values = [
            network.contributions(descriptors[present], encoded.numbers[present], local)[mask]
            for descriptors in encoded.descriptors
        ]
    values *= network.n_spin // len(values)
    return _Contributions(present[rows], point[mask], vectors[mask].T, torch.stack(values))


def _blocks_of_points(points: NDArray, block_size: int) -> Iterator[NDArray[np.int64]]:
    """Indices of neighbouring points, at most ``block_size`` at a time."""
    pending = [np.arange(len(points))] if len(points) else []
    while pending:
        members = pending.pop()
        extent = np.ptp(points[members], axis=0)
        axis = int(extent.argmax())
        if len(members) <= block_size and extent[axis] <= BLOCK_WIDTH:
            yield members
            continue
        # Halves by number: blocks come out equally full, whatever the points' distribution.
        half = len(members) // 2
        order = np.argpartition(points[members, axis], half)
        pending += [members[order[half:]], members[order[:half]]]


def _blocks_of_grid(
    encoded: EncodedAtoms,
    shape: tuple[int, int, int],
    cell: NDArray | None,
    origin: NDArray | None,
    block_size: int,
) -> Iterator[tuple[tuple[slice, slice, slice], NDArray[np.float64]]]:
    """Windows of a grid, as cubic as they can be, and the positions of their points."""
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"A grid has three positive numbers of points, not {shape}.")
    vectors = np.asarray(complete_cell(encoded.atoms) if cell is None else cell, dtype=float)
    start = np.zeros(3) if origin is None else np.asarray(origin, dtype=float)
    steps = np.linalg.norm(vectors, axis=1) / shape
    width = np.cbrt(block_size * np.prod(steps))
    counts = np.clip((width / steps).astype(int), 1, shape)
    # As many windows, but of equal size.
    counts = -(-np.array(shape) // -(-np.array(shape) // counts))
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
    decoder = network.value_weight
    if shell_kernels(network):
        # Softmaxes keep the features of all pairs at a block's points.
        return 16384 if decoder is None or decoder.kind in ("I", "S") else 8192
    return (2048 if decoder is None else 256) * (16 if network.device.type == "cuda" else 1)


def _out_of_memory(error: Exception) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)


def _numpy_dtype(network: EACNet) -> type[np.floating]:
    return np.float64 if network.dtype == torch.float64 else np.float32
