"""Superposed free-atom densities, the starting point of Δ-learning."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eac_model.graph import PointPairs
from eac_model.network.config import RadialBasis
from eac_model.network.radial import CutoffBasis, lengths


class Superposition(nn.Module):
    """Spherical densities of free atoms as spline coefficients carried in the model file.

    The table is data, not a parameter: it is fitted or computed once
    (:meth:`~eac_model.network.density_network.DensityNetwork.fit_superposition`) and training
    leaves it alone. The linear decoder of EAC-Net expands its own functions in the same basis and
    adds the free atoms to its coefficients at no cost.

    Parameters
    ----------
    basis
        Radial functions the densities are expanded in.
    cutoff
        Where they end, Å.
    elements
        Number of elements.
    """

    def __init__(self, basis: RadialBasis, cutoff: float, elements: int) -> None:
        super().__init__()
        self.basis = CutoffBasis(basis, cutoff)
        self.register_buffer("table", torch.zeros(elements, self.basis.size))

    def forward(self, elements: Tensor, distances: Tensor) -> Tensor:
        """Free-atom densities, e/Å³.

        Parameters
        ----------
        elements
            (m,) index of each row's element.
        distances
            (m, k) distances to the nucleus, Å.

        Returns
        -------
        Tensor
            (m, k).
        """
        return torch.bmm(self.basis(distances), self.table[elements].unsqueeze(-1)).squeeze(-1)

    def at_points(self, elements: Tensor, pairs: PointPairs) -> Tensor:
        """Sum of the free atoms at every point, (n_points,), e/Å³.

        Parameters
        ----------
        elements
            (n,) index of each atom's element.
        """
        densities = self(elements[pairs.atom], lengths(pairs.vectors))
        return pairs.sum_over_atoms(densities * pairs.mask)
