"""Densities of one structure at any points, in blocks of neighbouring points.

Only the pairs of one block are ever known; no neighbour list of a whole grid exists. In float32
they are evaluated on shells around the atoms (:mod:`eac_model.engine.value_weight`,
:mod:`eac_model.engine.linear`), or, the linear decoder on CPUs, in one compiled loop
(:mod:`eac_model.engine.fused`); otherwise, and where they are few, by the network itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from eac_model.engine.descriptors import descriptors_in_blocks
from eac_model.engine.devices import Devices, full_precision, replicas, share
from eac_model.engine.fused import AtomTables
from eac_model.engine.kernels import Kernels, shell_kernels
from eac_model.engine.memory import free_memory
from eac_model.engine.symmetry import unique_points
from eac_model.engine.tiles import TilePairs, sort_pairs, tile_pairs
from eac_model.errors import ConfigurationError, GridError
from eac_model.graph import AtomGraph, PointPairs
from eac_model.lattice import checked_shape, periodic_images, wrap_points
from eac_model.neighbors import atom_graph, check_structure
from eac_model.network import DensityNetwork, EACNet

Progress = Callable[[int], None]
"""Called after every block with the number of points it held."""

BLOCK_WIDTH = 12.0
"""Å. Scattered points are cut into blocks no wider than this."""

PAIRS_AN_ATOM = 100
"""Below this mean number of pairs an atom the network itself is faster than its tables."""

BYTES_A_PAIR = 400
"""What places, vectors, distances, keys and values of a pair take, copies in order included."""


@dataclass(frozen=True)
class EncodedAtoms:
    """Descriptors of one structure on the device, and what evaluation needs of the structure."""

    atoms: Atoms
    """A copy of the structure the descriptors belong to."""
    numbers: Tensor
    """(n,) int64 | atomic numbers."""
    descriptors: Tensor
    """(1 or 2, n, …) | of the given moments and, where a spin model meets moments that are not
    zero, of the flipped ones. Of EAC-Net: (1 or 2, n, (l_max+1)², channels)."""
    image_atoms: NDArray[np.int64]
    """(images,) | the atom of every periodic image in reach of the cell."""
    image_positions: NDArray[np.float64]
    """(images, 3) | Å."""
    image_tree: cKDTree
    """Finds the images near a place."""

    def neighbors_in_reach(self, cutoff: float) -> float:
        """Images within the cutoff (Å) of an atom: the largest number among some atoms."""
        step = -(-len(self.atoms) // 64)
        wrapped = wrap_points(self.atoms.positions[::step], self.atoms)
        counts = self.image_tree.query_ball_point(wrapped, cutoff, return_length=True)
        return float(np.max(counts))

    def to(self, device: torch.device) -> EncodedAtoms:
        """The same on another device."""
        if self.descriptors.device == device:
            return self
        return replace(
            self, numbers=self.numbers.to(device), descriptors=self.descriptors.to(device)
        )


def encode(network: DensityNetwork, atoms: Atoms) -> EncodedAtoms:
    """Compute the descriptors of a structure once, for any number of evaluations.

    Raises
    ------
    StructureError, UnknownElementError
        The structure cannot be used; see :func:`eac_model.neighbors.check_structure`.
    """
    config = network.config
    check_structure(atoms, config.elements, spin=config.spin)
    if atoms.get_initial_magnetic_moments().ndim != 1:
        # Of a non-collinear calculation; this network has no spin.
        atoms = atoms.copy()
        atoms.set_initial_magnetic_moments(None)
    graph = atom_graph(atoms, config.atom_cutoff, network.dtype, network.device)
    with torch.no_grad():
        if isinstance(network, EACNet):
            # Without moments both spin channels are the same.
            by_moments = config.spin and network.config.spin_from == "moments"
            polarized = by_moments and graph.magnetic
            spins = [graph, graph.flipped()] if polarized else [graph]
            found = descriptors_in_blocks(network, AtomGraph.concatenate(spins))
            descriptors = found.unflatten(0, (len(spins), len(atoms)))
        else:
            descriptors = network.spin_descriptors(graph)
    image_atoms, image_positions = periodic_images(atoms, config.point_cutoff)
    copy = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    copy.set_initial_magnetic_moments(atoms.get_initial_magnetic_moments())
    return EncodedAtoms(
        atoms=copy,
        numbers=graph.numbers,
        descriptors=descriptors,
        image_atoms=image_atoms,
        image_positions=image_positions,
        image_tree=cKDTree(image_positions),
    )


def evaluate_points(
    network: DensityNetwork,
    encoded: EncodedAtoms,
    points: NDArray,
    *,
    contributions: bool = False,
    of_atoms: NDArray[np.bool_] | None = None,
    block_size: int | None = None,
    devices: Devices = (),
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
    devices
        Devices that share the points; empty for the network's own alone.

    Returns
    -------
    ndarray
        Shape (n_spin, p), or (n_spin, p, n_atoms), e/Å³. Points out of every atom's reach get 0.

    Raises
    ------
    GridError
        Points of another shape, or not finite.
    ConfigurationError
        Contributions of atoms are asked of a network that has none; `of_atoms` is no mask of the
        atoms; `block_size` is not positive.
    """
    points = np.asarray(points, dtype=float)
    if points.ndim != 2 or points.shape[1] != 3:
        raise GridError(f"Points have the shape (p, 3), not {points.shape}.")
    if not np.isfinite(points).all():
        raise GridError("Some points are not finite numbers.")
    if (contributions or of_atoms is not None) and not isinstance(network, EACNet):
        raise ConfigurationError(
            f"The architecture {network.config.architecture} has no contributions."
        )
    _check_choices(encoded, of_atoms, block_size)
    # Farther away neighbouring numbers are no longer neighbouring points, and squares overflow.
    wrapped = wrap_points(np.clip(points, -1e12, 1e12), encoded.atoms)
    wanted = _Wanted(contributions, of_atoms)
    shape = (network.n_spin, len(points), len(encoded.atoms))[: 3 if contributions else 2]
    result: NDArray[np.floating] = np.zeros(shape, dtype=_numpy_dtype(network))
    workers = _workers(network, encoded, devices)
    size = block_size or _default_block(workers, wanted)

    def evaluate(worker: _Worker, chosen: NDArray[np.int64]) -> int:
        for some, sums in _sums_in_memory(worker, wrapped[chosen], wanted):
            result[:, chosen[some]] = sums.density
        return len(chosen)

    share(_blocks_of_points(wrapped, size), workers, evaluate, progress)
    return result


def evaluate_grid(
    network: DensityNetwork,
    encoded: EncodedAtoms,
    shape: tuple[int, int, int],
    *,
    cell: NDArray | None = None,
    origin: NDArray | None = None,
    of_atoms: NDArray[np.bool_] | None = None,
    symmetry: bool = True,
    block_size: int | None = None,
    devices: Devices = (),
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
    of_atoms, devices
        As in :func:`evaluate_points`.
    symmetry
        Of points of a crystal's cell that its symmetry makes equivalent, evaluate one and copy it:
        the density is then exactly symmetric. Without effect on other grids.

    Returns
    -------
    ndarray
        Shape (n_spin, n1, n2, n3), e/Å³.

    Raises
    ------
    GridError
        The shape, the cell or the origin is none.
    ConfigurationError
        As in :func:`evaluate_points`.
    """
    shape = checked_shape(shape)
    for name, value, form in (("cell", cell, (3, 3)), ("origin", origin, (3,))):
        if value is not None and (np.shape(value) != form or not np.isfinite(value).all()):
            raise GridError(f"{name}: finite numbers of shape {form} are needed, not {value!r}.")
    _check_choices(encoded, of_atoms, block_size)
    whole = cell is None or np.array_equal(cell, encoded.atoms.cell)
    if symmetry and whole and of_atoms is None and (origin is None or not np.any(origin)):
        unique = unique_points(encoded.atoms, shape, mirrors=network.mirror_images_have_one_density)
        if unique is not None:
            points = (unique.indices / np.array(shape)) @ np.asarray(encoded.atoms.cell)
            found = evaluate_points(
                network,
                encoded,
                points,
                block_size=block_size,
                devices=devices,
                progress=_scaled(progress, len(points), unique.which.size),
            )
            return found[:, unique.which]
    result: NDArray[np.floating] = np.zeros((network.n_spin, *shape), dtype=_numpy_dtype(network))
    wanted = _Wanted(of_atoms=of_atoms)
    workers = _workers(network, encoded, devices)
    size = block_size or _default_block(workers, wanted)

    def evaluate(worker: _Worker, block: _Window) -> int:
        window, points = block
        values = np.empty((network.n_spin, len(points)), dtype=result.dtype)
        for some, sums in _sums_in_blocks(worker, points, wanted, size):
            values[:, some] = sums.density
        result[:, *window] = values.reshape(network.n_spin, *result[0][window].shape)
        return len(points)

    share(_blocks_of_grid(encoded, shape, cell, origin, size), workers, evaluate, progress)
    return result


class Integrals(NamedTuple):
    """Moments of the density; electrons count positive."""

    populations: NDArray[np.float64]
    """∫ρ_i dr, electrons, (n_spin, n_atoms), or ∫ρ dr, (n_spin, 1)."""
    dipoles: NDArray[np.float64]
    """∫ρ_i (r − R_i) dr or ∫ρ r dr, e·Å, (…, 3)."""
    seconds: NDArray[np.float64]
    """∫ρ_i (r − R_i)(r − R_i) dr or ∫ρ r r dr, e·Å², (…, 3, 3)."""


def integrate_density(
    network: DensityNetwork,
    encoded: EncodedAtoms,
    shape: tuple[int, int, int],
    *,
    by_atom: bool = False,
    cell: NDArray | None = None,
    origin: NDArray | None = None,
    block_size: int | None = None,
    devices: Devices = (),
    progress: Progress | None = None,
) -> Integrals:
    """Electrons, dipoles and second moments of the density, summed on a regular grid.

    Parameters
    ----------
    shape, cell, origin, devices
        The grid, as in :func:`evaluate_grid`.
    by_atom
        Integrate the contribution of every atom, with moments about the atom, R_i, instead of the
        density as a whole, with moments about the origin.

    Raises
    ------
    GridError
        The shape is none.
    ConfigurationError
        Contributions of atoms are asked of a network that has none.
    """
    shape = checked_shape(shape)
    spanned = np.asarray(encoded.atoms.cell.complete() if cell is None else cell)
    voxel = abs(np.linalg.det(spanned)) / np.prod(shape)
    wanted = _Wanted(integrals=by_atom)
    workers = _workers(network, encoded, devices)
    size = block_size or _default_block(workers, wanted)
    totals: list[Any] = [0.0] * len(workers)

    def integrate(worker: _Worker, block: _Window) -> int:
        points = block[1]
        for some, sums in _sums_in_blocks(worker, points, wanted, size):
            found = sums.integrals
            if not by_atom:
                weights = _monomials(torch.from_numpy(points[some].T)).numpy()
                found = sums.density[:, None].astype(np.float64) @ weights.T
            totals[workers.index(worker)] = totals[workers.index(worker)] + found
        return len(points)

    share(_blocks_of_grid(encoded, shape, cell, origin, size), workers, integrate, progress)
    # A worker that had nothing to do left 0.
    total = sum(totals) * voxel
    xx, yy, zz, xy, xz, yz = np.moveaxis(total[..., 4:], -1, 0)
    tensors = np.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], axis=-1)
    return Integrals(total[..., 0], total[..., 1:4], tensors.reshape(*xx.shape, 3, 3))


def _monomials(vectors: Tensor) -> Tensor:
    """1, x, y, z, xx, yy, zz, xy, xz, yz of vectors (3, p), (10, p)."""
    x, y, z = vectors
    return torch.stack([torch.ones_like(x), x, y, z, x * x, y * y, z * z, x * y, x * z, y * z])


_Window = tuple[tuple[slice, slice, slice], NDArray[np.float64]]
"""A piece of a grid, and the positions of its points, Å."""


@dataclass(frozen=True, eq=False)
class _Worker:
    """A network, on a device, and a structure: what evaluates blocks."""

    network: DensityNetwork
    encoded: EncodedAtoms
    kernels: Kernels
    tables: AtomTables | None
    """Of the structure's atoms, for the linear decoder in one loop."""

    @classmethod
    def of(cls, network: DensityNetwork, encoded: EncodedAtoms) -> _Worker:
        """On the network's device."""
        encoded = encoded.to(network.device)
        if not isinstance(network, EACNet):
            return cls(network, encoded, Kernels(), None)
        kernels = shell_kernels(network)
        tables = None
        if kernels.fused is not None:
            elements = network.element_index[encoded.numbers]
            tables = AtomTables(kernels.fused, encoded.descriptors, elements)
        return cls(network, encoded, kernels, tables)


@dataclass(frozen=True)
class _Wanted:
    """What is asked for of every block."""

    contributions: bool = False
    """Of every atom, instead of the sum."""
    of_atoms: NDArray[np.bool_] | None = None
    """(n,) | atoms whose contributions count; None for all."""
    integrals: bool = False
    """Integrals of contributions, too."""


@dataclass(frozen=True)
class _Sums:
    """Sums over the pairs of a block of points."""

    density: NDArray[np.floating]
    """(n_spin, p), or (n_spin, p, n_atoms)."""
    integrals: NDArray[np.float64]
    """(n_spin, n_atoms, 10) | Σ ρ_i over the points, times 1 and what :func:`_monomials` makes of
    r − R_i; (n_spin, 0, 10) if they are not wanted."""


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

    def of(self, chosen: NDArray[np.bool_]) -> _Contributions:
        """Those of some atoms; ``chosen`` is a mask."""
        kept = torch.as_tensor(chosen, device=self.atom.device)[self.atom]
        return _Contributions(
            self.atom[kept], self.point[kept], self.vectors[:, kept], self.values[:, kept]
        )

    def add_to(self, sums: _Sums, wanted: _Wanted) -> None:
        """Add what is wanted of them."""
        n_spin, n_points = sums.density.shape[:2]
        if wanted.contributions:
            n_atoms = sums.density.shape[2]
            flat = self.values.new_zeros(n_spin, n_points * n_atoms)
            flat.index_add_(1, self.point * n_atoms + self.atom, self.values)
            np.add(sums.density, flat.unflatten(1, (-1, n_atoms)).cpu().numpy(), out=sums.density)
        else:
            total = self.values.new_zeros(n_spin, n_points).index_add_(1, self.point, self.values)
            np.add(sums.density, total.cpu().numpy(), out=sums.density)
        if wanted.integrals:
            weights = _monomials(self.vectors.double())
            for spin, value in enumerate(self.values.double()):
                of_atoms = weights.new_zeros(10, sums.integrals.shape[1])
                of_atoms.index_add_(1, self.atom, weights * value)
                sums.integrals[spin] += of_atoms.T.cpu().numpy()


def _scaled(progress: Progress | None, part: int, whole: int) -> Progress | None:
    """Progress of ``part`` points as that of the ``whole`` they stand for."""
    if progress is None:
        return None
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        before, done = done, done + count
        progress(done * whole // part - before * whole // part)

    return advance


def _workers(network: DensityNetwork, encoded: EncodedAtoms, devices: Devices) -> list[_Worker]:
    return [_Worker.of(replica, encoded) for replica in replicas(network, devices)]


def _sums_in_blocks(
    worker: _Worker, points: NDArray, wanted: _Wanted, block_size: int
) -> Iterator[tuple[NDArray[np.int64], _Sums]]:
    """Sums at any points, and which points they are, block by block."""
    wrapped = wrap_points(points, worker.encoded.atoms)
    for chosen in _blocks_of_points(wrapped, block_size):
        for some, sums in _sums_in_memory(worker, wrapped[chosen], wanted):
            yield chosen[some], sums


def _sums_in_memory(
    worker: _Worker, points: NDArray, wanted: _Wanted
) -> Iterator[tuple[NDArray[np.int64], _Sums]]:
    """Sums at neighbouring wrapped points; fewer points at once where memory runs out."""
    pending = [np.arange(len(points))]
    while pending:
        chosen = pending.pop()
        try:
            yield chosen, _sums(worker, points[chosen], wanted)
        except (MemoryError, RuntimeError) as error:
            if len(chosen) == 1 or not _out_of_memory(error):
                raise
            if worker.network.device.type == "cuda":
                torch.cuda.empty_cache()
            half = len(chosen) // 2
            pending += [chosen[half:], chosen[:half]]


def _sums(worker: _Worker, points: NDArray, wanted: _Wanted) -> _Sums:
    """What is wanted at neighbouring points."""
    network, encoded, kernels = worker.network, worker.encoded, worker.kernels
    n_atoms = len(encoded.atoms)
    shape = (network.n_spin, len(points), n_atoms)[: 3 if wanted.contributions else 2]
    integrals = np.zeros((network.n_spin, n_atoms if wanted.integrals else 0, 10))
    sums = _Sums(np.zeros(shape, _numpy_dtype(network)), integrals)
    cutoff = network.config.point_cutoff
    low, high = _box(points)
    reach = float(np.linalg.norm(high - low)) / 2 + cutoff
    near = encoded.image_tree.query_ball_point((low + high) / 2, reach, return_sorted=True)
    if kernels.shells or kernels.fused is None:
        positions = encoded.image_positions[near]
        pairs = tile_pairs(points, positions, cutoff, network.dtype, network.device)
        atom = torch.as_tensor(encoded.image_atoms[near], device=network.device)[pairs.image]
        if not isinstance(network, EACNet):
            if wanted.contributions or wanted.integrals or wanted.of_atoms is not None:
                raise ConfigurationError(f"{type(network).__name__} has no contributions of atoms.")
            np.add(sums.density, _density(worker, pairs, atom, len(points)), out=sums.density)
            return sums
        atoms = int((torch.bincount(atom) > 0).sum())
        itself = not kernels or len(pairs) <= PAIRS_AN_ATOM * atoms
        if itself:
            parts = [_network_contributions(network, encoded, pairs, atom, len(points))]
        else:
            parts = _shell_contributions(worker, pairs, atom, len(points))
        for part in parts:
            (part if wanted.of_atoms is None else part.of(wanted.of_atoms)).add_to(sums, wanted)
        if itself:
            return sums
    if kernels.fused is not None:
        _add_fused(worker, points, np.asarray(near, dtype=np.int64), wanted, sums)
    return sums


def _add_fused(
    worker: _Worker,
    points: NDArray,
    near: NDArray[np.int64],
    wanted: _Wanted,
    sums: _Sums,
) -> None:
    """Add what the linear decoder gives in one loop."""
    encoded, fused = worker.encoded, worker.kernels.fused
    assert fused is not None
    assert worker.tables is not None
    atoms = encoded.image_atoms[near]
    if wanted.of_atoms is not None:
        kept = wanted.of_atoms[atoms]
        near, atoms = near[kept], atoms[kept]
    found = fused.sums(
        worker.tables,
        points,
        encoded.image_positions[near],
        atoms,
        of_each=wanted.contributions,
        integrals=wanted.integrals,
    )
    density = found.density.transpose(0, 2, 1) if wanted.contributions else found.density[:, 0]
    np.add(sums.density, density, out=sums.density)
    if wanted.integrals:
        sums.integrals[:, found.atoms] += found.integrals


def _shell_contributions(
    worker: _Worker, pairs: TilePairs, atom: Tensor, n_points: int
) -> list[_Contributions]:
    """Lists of contributions that add up, one a kernel."""
    network, encoded = worker.network, worker.encoded
    assert isinstance(network, EACNet)
    elements = network.element_index[encoded.numbers]
    found = []
    for kernel in worker.kernels.shells:
        ordered = sort_pairs(pairs, atom, kernel.shells, kernel.l_max, kernel.core_radius)
        with torch.no_grad(), full_precision:
            values = kernel.contributions(encoded.descriptors, elements, ordered, n_points)
        values = values.expand(network.n_spin, -1)
        found.append(_Contributions(ordered.atom, ordered.point, ordered.vectors, values))
    return found


def _network_contributions(
    network: EACNet, encoded: EncodedAtoms, pairs: TilePairs, atom: Tensor, n_points: int
) -> _Contributions:
    """The network itself on a list of pairs: few of them, or in float64."""
    present, local, order = _local_pairs(pairs, atom, n_points)
    with torch.no_grad(), full_precision:
        found = [
            network.contributions(descriptors[present], encoded.numbers[present], local)
            for descriptors in encoded.descriptors
        ]
    # With an axis for the spins where they are outputs.
    values = torch.cat(
        [
            part[..., local.mask].view(-1, len(order)) if len(order) else part.new_zeros(1, 0)
            for part in found
        ]
    )
    return _Contributions(
        atom[order], pairs.point[order], pairs.vectors[:, order], values.expand(network.n_spin, -1)
    )


def _density(
    worker: _Worker, pairs: TilePairs, atom: Tensor, n_points: int
) -> NDArray[np.floating] | float:
    """What a network without contributions predicts, (n_spin, p)."""
    network, encoded = worker.network, worker.encoded
    if not len(pairs):
        return 0.0
    present, local, _ = _local_pairs(pairs, atom, n_points)
    with torch.no_grad(), full_precision:
        found = network.density(encoded.descriptors[:, present], encoded.numbers[present], local)
    values: NDArray[np.floating] = found.cpu().numpy()
    return values


def _local_pairs(
    pairs: TilePairs, atom: Tensor, n_points: int
) -> tuple[Tensor, PointPairs, Tensor]:
    """Atoms that have pairs, their pairs in one row an atom, and the order of these."""
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
    return present, local, order


def _check_choices(
    encoded: EncodedAtoms, of_atoms: NDArray[np.bool_] | None, block_size: int | None
) -> None:
    # Numbers would be taken for indices.
    if of_atoms is not None and (
        np.shape(of_atoms) != (len(encoded.atoms),) or np.asarray(of_atoms).dtype != bool
    ):
        raise ConfigurationError(
            f"of_atoms: a mask is needed, True or False for each of {len(encoded.atoms)} atoms."
        )
    if block_size is not None and block_size < 1:
        raise ConfigurationError(f"block_size={block_size}: a positive number of points.")


def _blocks_of_points(points: NDArray, block_size: int) -> Iterator[NDArray[np.int64]]:
    """Indices of neighbouring points, at most ``block_size`` at a time."""
    pending = [np.arange(len(points))] if len(points) else []
    while pending:
        members = pending.pop()
        low, high = _box(points[members])
        extent = high - low
        axis = int(extent.argmax())
        if len(members) <= block_size and extent[axis] <= BLOCK_WIDTH:
            yield members
            continue
        # Halves by number: blocks come out equally full, whatever the points' distribution.
        half = len(members) // 2
        order = np.argpartition(points[members, axis], half)
        pending += [members[order[half:]], members[order[:half]]]


def _box(points: NDArray) -> tuple[NDArray, NDArray]:
    """Lowest and highest coordinates, (3,) each."""
    # Rows of their own: along contiguous memory it takes a tenth of the time.
    columns = np.ascontiguousarray(points.T)
    return columns.min(axis=1), columns.max(axis=1)


def _blocks_of_grid(
    encoded: EncodedAtoms,
    shape: tuple[int, int, int],
    cell: NDArray | None,
    origin: NDArray | None,
    block_size: int,
) -> Iterator[tuple[tuple[slice, slice, slice], NDArray[np.float64]]]:
    """Windows of a grid, as cubic as they can be, and the positions of their points."""
    vectors = np.asarray(encoded.atoms.cell.complete() if cell is None else cell, dtype=float)
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


def _default_block(workers: list[_Worker], wanted: _Wanted) -> int:
    """Points a block, so that what is known of its pairs fits into memory everywhere."""
    return min(_block_of(worker, wanted) for worker in workers)


def _block_of(worker: _Worker, wanted: _Wanted) -> int:
    network, kernels = worker.network, worker.kernels
    on_gpu = network.device.type == "cuda"
    if not isinstance(network, EACNet):
        return network.block_points * (16 if on_gpu else 1)
    decoder = network.value_weight
    if not kernels:
        return (2048 if decoder is None else 256) * (16 if on_gpu else 1)
    # Softmaxes keep the features of all pairs at a block's points.
    softmax = decoder is not None and decoder.kind not in ("I", "S")
    if not on_gpu:
        if not kernels.shells and not wanted.contributions:
            # One loop holds nothing of a pair; many points fill the intervals of radial functions.
            return 65536
        return 8192 if softmax else 16384
    room = free_memory(network.device) // 4
    pairs = max(1.0, worker.encoded.neighbors_in_reach(network.config.point_cutoff))
    features = network.config.bottleneck[-1] if softmax else 0
    return int(np.clip(room / (pairs * (BYTES_A_PAIR + 4 * features)), 1024, 2**20))


def _out_of_memory(error: Exception) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)


def _numpy_dtype(network: DensityNetwork) -> type[np.floating]:
    return np.float64 if network.dtype == torch.float64 else np.float32
