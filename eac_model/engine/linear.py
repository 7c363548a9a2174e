"""The linear decoder on shells around atoms, superposed free atoms included."""

from __future__ import annotations

import copy
import weakref

import torch
from torch import Tensor

from eac_model.engine.shells import TERMS, fit_shells
from eac_model.engine.tiles import ShellPairs
from eac_model.network import EACNet
from eac_model.network.linear import with_spherical
from eac_model.network.radial import CutoffBasis, SplineBasis

TOLERANCE = 1e-6
"""Bound on the error of the basis functions, relative to the largest of their values. Kinks in the
third derivative at the knots of splines and at the cutoff leave some 5e-7."""


class ShellLinear:
    """A network's linear decoder and free atoms, prepared for the evaluation of many pairs.

    On one shell ρ_i(r) = Σ_lm Y_lm(r/√(r² + a²)) Σ_j H[lm, j] T_j(r): channels and basis functions
    are summed once an atom.

    Parameters
    ----------
    network
        With a linear decoder or a superposition.

    Raises
    ------
    ToleranceError
        No number of shells meets the bound.
    """

    def __init__(self, network: EACNet) -> None:
        # It is kept as long as the network, and must not keep the network.
        self._network = weakref.ref(network)
        self._exact = copy.deepcopy(radial_basis_of(network)).double().cpu()
        self.l_max = 0 if network.linear is None else network.config.l_max
        self.core_radius = network.config.linear_basis.core_radius
        basis = self._exact.basis
        self.shells = fit_shells(
            [self._functions],
            network.config.point_cutoff,
            basis if isinstance(basis, SplineBasis) else None,
            TOLERANCE,
        )
        # (basis, shells · terms)
        table = self.shells.coefficients(self._functions).permute(2, 0, 1).flatten(1)
        self.table = table.to(network.device, network.dtype).contiguous()

    def _functions(self, distance: Tensor) -> Tensor:
        """(n,) → (n, basis)."""
        with torch.no_grad():
            values: Tensor = self._exact(distance)
        return values

    def tables(self, descriptors: Tensor, elements: Tensor) -> Tensor:
        """H of atoms, (n, shells, (l_max+1)², TERMS)."""
        network = self._network()
        assert network is not None
        coefficients = linear_coefficients(network, descriptors, elements)
        tables = (coefficients @ self.table).unflatten(-1, (-1, TERMS))
        return tables.transpose(1, 2).contiguous()

    def contributions(
        self, descriptors: Tensor, elements: Tensor, pairs: ShellPairs, n_points: int
    ) -> Tensor:
        """Contributions of all pairs, (spins, p); as those of the value × weight decoder."""
        chosen = torch.tensor(pairs.atoms, device=descriptors.device)
        row = torch.zeros(len(elements), dtype=torch.int64, device=chosen.device)
        row[chosen] = torch.arange(len(chosen), device=chosen.device)
        values = pairs.vectors.new_empty(len(descriptors), len(pairs.distance))
        for of_spin, found in zip(descriptors, values, strict=True):
            tables = self.tables(of_spin[chosen], elements[chosen])
            for batch in pairs.batches():
                polynomials = batch.polynomials.transpose(0, 1)
                radial = torch.bmm(tables[row[batch.atom], batch.shell], polynomials)
                radial *= batch.harmonics.transpose(0, 1)
                found[batch.pairs] = radial.sum(1)
        return values


def radial_basis_of(network: EACNet) -> CutoffBasis:
    """The basis of the linear decoder, in which free atoms are expanded, too."""
    if network.linear is not None:
        found: CutoffBasis = network.linear.basis
        return found
    assert network.superposition is not None
    return network.superposition.basis


def linear_coefficients(network: EACNet, descriptors: Tensor, elements: Tensor) -> Tensor:
    """A_i[lm, b] of atoms with free atoms added, (n, (l_max+1)² or 1, basis)."""
    with torch.no_grad():
        spherical = None
        if network.superposition is not None:
            spherical = network.superposition.table[elements] / network.n_spin
        if network.linear is None:
            assert spherical is not None
            return spherical.unsqueeze(1)
        attributes = network.decoder_attributes(elements)
        coefficients: Tensor = network.linear.coefficients(descriptors, attributes)
        return coefficients if spherical is None else with_spherical(coefficients, spherical)
