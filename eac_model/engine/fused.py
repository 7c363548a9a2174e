"""The linear decoder in one compiled loop over pairs, where numba is installed."""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eac_model.compiled import compiled_module, in_shares
from eac_model.engine.linear import linear_coefficients, radial_basis_of
from eac_model.engine.shells import TERMS, Pieces, fit_pieces
from eac_model.network import EACNet
from eac_model.network.harmonics import recursion_tables
from eac_model.network.radial import SplineBasis

TOLERANCE = 1e-7
"""Bound on the error of the basis functions, relative to the largest of their values. Some are
large at nuclei only, and tens of atoms add up at a point."""

BINS = 1024
"""Steps of r at which the search for an interval begins."""

MEMORY = 2**27
"""Bytes of tables of atoms that are kept, those of one block's atoms at the least."""

POINTS_A_THREAD = 2048
"""Fewer are not worth another thread."""


@functools.cache
def compiled_loop() -> Callable[..., None] | None:
    """The loop over pairs; None without numba, or if EAC_COMPILED=0 forbids it."""
    loops = compiled_module("eac_model.network.linear_loops")
    return None if loops is None else loops.add_contributions


@dataclass(frozen=True)
class FusedSums:
    """Sums over the pairs of points with atoms."""

    density: NDArray[np.float32]
    """(spins, slots, p) | e/Å³."""
    atoms: NDArray[np.int64]
    """(n,) | atoms in reach, ascending."""
    integrals: NDArray[np.float64]
    """(spins, n, 10) | Σ ρ_i over the points, Σ ρ_i (r − R_i), and the products xx, yy, zz, xy, xz,
    yz in place of r − R_i, of each of them; (spins, 0, 10) if they are not wanted."""


class AtomTables:
    """Tables of one structure's atoms, computed when an atom is first in reach, and kept.

    Parameters
    ----------
    fused
        Computes them.
    descriptors
        (spins, n, (l_max+1)², channels) of the structure.
    elements
        (n,) int64, index of every atom's element.
    memory
        Bytes that are kept. Where atoms in reach are too many for the room that is left, all
        others are forgotten.
    """

    def __init__(
        self, fused: FusedLinear, descriptors: Tensor, elements: Tensor, memory: int = MEMORY
    ) -> None:
        self._fused = fused
        self._descriptors = descriptors
        self._elements = elements
        n_spin, n_atoms = descriptors.shape[:2]
        row = (n_spin, fused.intervals, (fused.l_max + 1) ** 2, TERMS)
        room = int(np.clip(memory // (4 * np.prod(row)), 1, n_atoms))
        # Memory that is not written to is not taken.
        self._kept = np.empty((n_spin, room, *row[1:]), np.float32)
        self._rows = np.full(n_atoms, -1)
        self._filled = 0

    @property
    def n_atoms(self) -> int:
        """Number of atoms of the structure."""
        return len(self._rows)

    def of(self, atoms: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Tables, (spins, rows, intervals, (l_max+1)², TERMS), and the row of each of the atoms."""
        missing = atoms[self._rows[atoms] < 0]
        if self._filled + len(missing) > self._kept.shape[1]:
            self._rows[:] = -1
            self._filled, missing = 0, atoms
            if len(atoms) > self._kept.shape[1]:
                shape = (len(self._kept), len(atoms), *self._kept.shape[2:])
                self._kept = np.empty(shape, np.float32)
        if len(missing):
            end = self._filled + len(missing)
            chosen = torch.as_tensor(missing)
            self._fused.write_tables(
                self._descriptors[:, chosen],
                self._elements[chosen],
                torch.from_numpy(self._kept[:, self._filled : end]),
            )
            self._rows[missing] = np.arange(self._filled, end)
            self._filled = end
        return self._kept, self._rows[atoms]


class FusedLinear:
    """A network's linear decoder and free atoms, prepared for the compiled loop.

    On an interval of r, ρ_i(r) = Σ_lm Y_lm(r/√(r² + a²)) Σ_j H[lm, j] t^j: channels and basis
    functions are summed once an atom.

    Parameters
    ----------
    network
        With a linear decoder or a superposition, float32, on the CPU.

    Raises
    ------
    ToleranceError
        The radial functions are too rough.
    """

    def __init__(self, network: EACNet) -> None:
        # It is kept as long as the network, and must not keep the network.
        self._network = weakref.ref(network)
        self.l_max = 0 if network.linear is None else network.config.l_max
        self.core_radius = network.config.linear_basis.core_radius
        self.cutoff = network.config.point_cutoff
        exact = copy.deepcopy(radial_basis_of(network)).double().cpu()

        def functions(distance: Tensor) -> Tensor:
            with torch.no_grad():
                values: Tensor = exact(distance)
            return values

        self.pieces: Pieces = fit_pieces(functions, _first_edges(network), TOLERANCE)
        # (basis, intervals · terms)
        table = self.pieces.coefficients.permute(2, 0, 1).flatten(1)
        self.table = table.to(network.dtype).contiguous()
        steps = np.arange(BINS + 1) * (self.cutoff / BINS)
        # One early: rounding must not begin behind the interval.
        found = np.searchsorted(self.pieces.edges[1:-1], steps - 1e-9, side="right")
        self.bins = found.astype(np.int64)
        self.sectoral, self.recursion = recursion_tables(self.l_max)

    @property
    def intervals(self) -> int:
        """Number of intervals of r."""
        return len(self.pieces.edges) - 1

    def write_tables(self, descriptors: Tensor, elements: Tensor, target: Tensor) -> None:
        """H of atoms into ``target``, (spins, n, intervals, (l_max+1)², TERMS)."""
        network = self._network()
        assert network is not None
        for of_spin, found in zip(descriptors, target, strict=True):
            coefficients = linear_coefficients(network, of_spin, elements)
            by_interval = (coefficients @ self.table).unflatten(-1, (-1, TERMS))
            found.copy_(by_interval.transpose(1, 2))

    def sums(
        self,
        tables: AtomTables,
        points: NDArray[np.float64],
        positions: NDArray[np.float64],
        atoms: NDArray[np.int64],
        *,
        of_each: bool = False,
        integrals: bool = False,
    ) -> FusedSums:
        """Sums over all pairs within the cutoff, on as many threads as torch uses.

        Parameters
        ----------
        tables
            Of the structure.
        points
            (p, 3) Å.
        positions
            (m, 3) of the atoms that contribute, periodic images included, Å.
        atoms
            (m,) which atom each is.
        of_each
            Keep the densities of the atoms apart: slots are atoms. Otherwise there is one slot.
        integrals
            Sum the contributions of every atom over the points, too.
        """
        loop = compiled_loop()
        assert loop is not None
        columns = np.ascontiguousarray(points.T)
        near = self._in_reach(columns, positions)
        present, order = np.unique(atoms[near], return_inverse=True)
        kept, places = tables.of(present)
        rows = places[order]
        positions, atoms = positions[near], atoms[near]
        n_spin, slots = len(kept), tables.n_atoms if of_each else 1

        def of_share(share: slice) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
            part = np.ascontiguousarray(columns[:, share])
            chosen = self._in_reach(part, positions)
            density = np.zeros((n_spin, slots, part.shape[1]), np.float32)
            sums = np.zeros((n_spin, kept.shape[1] if integrals else 0, 10))
            loop(
                part,
                positions[chosen],
                rows[chosen],
                atoms[chosen] if of_each else np.zeros(len(chosen), np.int64),
                self.cutoff,
                self.pieces.edges,
                self.bins,
                kept,
                self.l_max,
                self.core_radius,
                self.sectoral,
                self.recursion,
                density,
                sums,
            )
            return density, sums

        # Densities of each atom are large: one thread's at a time.
        most = 1 if of_each else torch.get_num_threads()
        threads = max(1, min(most, len(points) // POINTS_A_THREAD))
        parts = in_shares(of_share, len(points), threads)
        if threads == 1:
            density, total = parts[0]
        else:
            density = np.concatenate([part for part, _ in parts], axis=2)
            total = np.sum([sums for _, sums in parts], axis=0)
        return FusedSums(density, present, total[:, places] if integrals else total)

    def _in_reach(
        self, columns: NDArray[np.float64], positions: NDArray[np.float64]
    ) -> NDArray[np.int64]:
        """Which positions (m, 3) are within the cutoff of the box around points (3, p)."""
        low, high = columns.min(axis=1), columns.max(axis=1)
        outside = np.maximum(np.maximum(low - positions, positions - high), 0.0)
        return np.flatnonzero((outside**2).sum(axis=1) < self.cutoff**2)


def _first_edges(network: EACNet) -> NDArray[np.float64]:
    """Knots of splines, or a few equal steps."""
    basis, cutoff = radial_basis_of(network).basis, network.config.point_cutoff
    if not isinstance(basis, SplineBasis):
        return np.linspace(0.0, cutoff, 9)
    # The splines' coordinate is ln(1 + (r/a)²).
    end = np.log1p((cutoff / basis.core_radius) ** 2)
    knots = np.linspace(0.0, end, basis.intervals + 1)
    return np.append(basis.core_radius * np.sqrt(np.expm1(knots[:-1])), cutoff)
