"""Superposed free-atom densities, the starting point of Δ-learning."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eac_model.network.config import NetworkConfig
from eac_model.network.radial import CutoffBasis


class Superposition(nn.Module):
    """Spherical densities of free atoms as spline coefficients carried in the model file.

    They are expanded in the basis of the linear decoder, which adds them to its own coefficients
    at no cost. The table is data, not a parameter: it is fitted or computed once
    (:meth:`~eac_model.network.eacnet.EACNet.fit_superposition`) and training leaves it alone.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.basis = CutoffBasis(config.linear_basis, config.point_cutoff)
        self.register_buffer("table", torch.zeros(len(config.elements), self.basis.size))

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
