"""The linear decoder in one compiled loop over pairs, where numba is installed."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eac_model.compiled import compilation_allowed
from eac_model.engine.linear import linear_coefficients, radial_basis_of
from eac_model.engine.shells import TERMS, Pieces, fit_pieces, recursion, sectoral
from eac_model.network import EACNet
from eac_model.network.radial import SplineBasis

TOLERANCE = 1e-7
"""Bound on the error of the basis functions, relative to the largest of their values. Some are
large at nuclei only, and tens of atoms add up at a point."""

BINS = 1024
"""Steps of r at which the search for an interval begins."""


@functools.cache
def compiled_loop() -> Callable[..., None] | None:
    """The loop over pairs; None without numba, or if EAC_COMPILED=0 forbids it."""
    if not compilation_allowed():
        return None
    try:
        from eac_model.engine.loops import sum_pairs
    except ImportError:
        return None
    return sum_pairs


@dataclass(frozen=True)
class FusedSums:
    """Sums over the pairs of points with atoms."""

    density: NDArray[np.float32]
    """(spins, slots, p) | e/Å³."""
    atoms: NDArray[np.int64]
    """(n,) | atoms in reach, ascending."""
    integrals: NDArray[np.float64]
    """(spins, n, 4) | Σ ρ_i over the points, and Σ ρ_i (r − R_i), of each of them."""


class FusedLinear:
    """A network's linear decoder and free atoms, prepared for the compiled loop.

    On an interval of r, ρ_i(r) = Σ_lm Y_lm(r/√(r² + a²)) Σ_j H[lm, j] t^j: channels and basis
    functions are summed once an atom.

    Parameters
    ----------
    network
        With a linear decoder or a superposition, float32, on the CPU.
    tolerance
        Bound on the error of the radial functions, relative to the largest of their values.

    Raises
    ------
    ToleranceError
        The radial functions are too rough.
    """

    def __init__(self, network: EACNet, tolerance: float = TOLERANCE) -> None:
        self.network = network
        self.l_max = 0 if network.linear is None else network.config.l_max
        self.core_radius = network.config.linear_basis.core_radius
        self.cutoff = network.config.point_cutoff
        exact = copy.deepcopy(radial_basis_of(network)).double().cpu()

        def functions(distance: Tensor) -> Tensor:
            with torch.no_grad():
                values: Tensor = exact(distance)
            return values

        self.pieces: Pieces = fit_pieces(functions, _first_edges(network), tolerance)
        # (basis, intervals · terms)
        table = self.pieces.coefficients.permute(2, 0, 1).flatten(1)
        self.table = table.to(network.dtype).contiguous()
        steps = np.arange(BINS + 1) * (self.cutoff / BINS)
        # One early: rounding must not begin behind the interval.
        found = np.searchsorted(self.pieces.edges[1:-1], steps - 1e-9, side="right")
        self.bins = found.astype(np.int64)
        self.sectoral = np.array([sectoral(m) for m in range(self.l_max + 1)], np.float32)
        self.recursion = np.zeros((self.l_max + 1, self.l_max + 1, 2), np.float32)
        for m in range(self.l_max + 1):
            for l in range(m + 1, self.l_max + 1):
                self.recursion[l, m] = recursion(l, m)

    def tables(self, descriptors: Tensor, elements: Tensor) -> NDArray[np.float32]:
        """H of atoms, (spins, n, intervals, (l_max+1)², TERMS)."""
        spins = []
        for of_spin in descriptors:
            coefficients = linear_coefficients(self.network, of_spin, elements)
            by_interval = (coefficients @ self.table).unflatten(-1, (-1, TERMS))
            spins.append(by_interval.transpose(1, 2))
        return torch.stack(spins).contiguous().numpy()

    def sums(
        self,
        descriptors: Tensor,
        elements: Tensor,
        points: NDArray[np.float64],
        positions: NDArray[np.float64],
        atoms: NDArray[np.int64],
        *,
        of_each: bool = False,
    ) -> FusedSums:
        """Sums over all pairs within the cutoff, on as many threads as torch uses.

        Parameters
        ----------
        descriptors
            (spins, n, (l_max+1)², channels) of the structure.
        elements
            (n,) int64, index of every atom's element.
        points
            (p, 3) Å.
        positions
            (m, 3) of the atoms that contribute, periodic images included, Å.
        atoms
            (m,) which atom each is.
        of_each
            Keep the densities of the atoms apart: slots are atoms. Otherwise there is one slot.
        """
        loop = compiled_loop()
        assert loop is not None
        n_spin, n_atoms = descriptors.shape[:2]
        low, high = points.min(axis=0), points.max(axis=0)
        outside = np.maximum(np.maximum(low - positions, positions - high), 0.0)
        near = np.flatnonzero((outside**2).sum(axis=1) < self.cutoff**2)
        present, rows = np.unique(atoms[near], return_inverse=True)
        chosen = torch.as_tensor(present)
        tables = self.tables(descriptors[:, chosen], elements[chosen])
        columns = np.ascontiguousarray(points.T)

        def part(images: NDArray[np.int64]) -> FusedSums:
            slots = n_atoms if of_each else 1
            density = np.zeros((n_spin, slots, len(points)), np.float32)
            integrals = np.zeros((n_spin, len(present), 4))
            loop(
                columns,
                positions[near[images]],
                rows[images],
                atoms[near[images]] if of_each else np.zeros(len(images), np.int64),
                self.cutoff,
                self.pieces.edges,
                self.bins,
                tables,
                self.l_max,
                self.core_radius,
                self.sectoral,
                self.recursion,
                density,
                integrals,
            )
            return FusedSums(density, present, integrals)

        threads = 1 if of_each else torch.get_num_threads()
        shares = [np.arange(len(near))[first::threads] for first in range(threads)]
        if threads == 1:
            return part(shares[0])
        with ThreadPoolExecutor(threads) as pool:
            parts = list(pool.map(part, shares))
        return FusedSums(
            np.sum([p.density for p in parts], axis=0),
            present,
            np.sum([p.integrals for p in parts], axis=0),
        )


def _first_edges(network: EACNet) -> NDArray[np.float64]:
    """Knots of splines, or a few equal steps."""
    basis, cutoff = radial_basis_of(network).basis, network.config.point_cutoff
    if not isinstance(basis, SplineBasis):
        return np.linspace(0.0, cutoff, 9)
    # The splines' coordinate is ln(1 + (r/a)²).
    end = np.log1p((cutoff / basis.core_radius) ** 2)
    knots = np.linspace(0.0, end, basis.size - 2)
    return np.append(basis.core_radius * np.sqrt(np.expm1(knots[:-1])), cutoff)
