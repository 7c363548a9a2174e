"""The linear decoder: densities linear in the descriptors, radial functions learned."""

from __future__ import annotations

import torch
from e3nn import o3
from torch import Tensor, nn

from eac_model.graph import PointPairs
from eac_model.network.config import NetworkConfig
from eac_model.network.interaction import by_irrep, natural_irreps
from eac_model.network.radial import CutoffBasis, SplineBasis, lengths, regularized


class LinearDecoder(nn.Module):
    """ρ_i(r) = Σ_lc R_c^l(r; Z_i) Y^l(r̂)·D_ic^l, everything nonlinear sits in D.

    R_c^l(r; Z) = Σ_k M_lck f_lk(r; Z) mixes a few functions of each element and angular momentum,
    which are learned as splines f_lk = Σ_b F_lkb(Z) B_b(r); Y^l is taken of r/√(r² + a²), which
    makes the density smooth at nuclei. Channels are summed once an atom:
    A_i[lm, b] = Σ_ck D_icm M_lck F_lkb(Z_i), then ρ_i(r) = Σ_lm Y_lm Σ_b B_b(r) A_i[lm, b].
    """

    def __init__(self, config: NetworkConfig, attributes: int) -> None:
        super().__init__()
        self.l_max = config.l_max
        self.channels = config.channels
        self.basis = CutoffBasis(config.linear_basis, config.point_cutoff)
        self.core_radius = config.linear_basis.core_radius
        n_l, k = self.l_max + 1, config.linear_functions
        self.mixing = nn.Parameter(self.channels**-0.5 * torch.randn(n_l, self.channels, k))
        # Small: the density starts at the superposition (or at zero), not at noise.
        self.functions = nn.Parameter(1e-4 * torch.randn(attributes, n_l, k, self.basis.size))
        self.register_buffer(
            "l_of_component",
            torch.tensor([l for l in range(self.l_max + 1) for _ in range(2 * l + 1)]),
            persistent=False,
        )
        self.harmonics = o3.SphericalHarmonics(
            list(range(self.l_max + 1)), normalize=False, normalization="component"
        )
        irreps = natural_irreps(self.channels, self.l_max)
        self.contraction = o3.TensorProduct(
            irreps,
            o3.Irreps.spherical_harmonics(self.l_max),
            "0e",
            [(l, l, 0, "uvw", True) for l in range(self.l_max + 1)],
            shared_weights=False,
            internal_weights=False,
            irrep_normalization="none",
            path_normalization="none",
        )

    def coefficients(self, descriptors: Tensor, attributes: Tensor) -> Tensor:
        """A_i[lm, b]: (n, (l_max+1)², channels) → (n, (l_max+1)², basis).

        Of the parameters' precision: in mixed one products come in half of it, and densities need
        more.
        """
        functions = torch.einsum("nt,tlkb->nlkb", attributes, self.functions)
        parts = [
            torch.bmm(descriptors[:, l * l : (l + 1) ** 2] @ self.mixing[l], functions[:, l])
            for l in range(self.l_max + 1)
        ]
        return torch.cat(parts, dim=1).to(self.functions.dtype)

    def forward(
        self,
        descriptors: Tensor,
        attributes: Tensor,
        pairs: PointPairs,
        spherical: Tensor | None = None,
    ) -> Tensor:
        """Contributions of all pairs, (m, k), e/Å³; padding gives zero.

        Parameters
        ----------
        spherical
            (n, basis) coefficients of a spherical density to add, of free atoms for instance.
        """
        coefficients = self.coefficients(descriptors, attributes)
        if spherical is not None:
            coefficients = with_spherical(coefficients, spherical)
        coefficients = coefficients[pairs.atom]
        distances = lengths(pairs.vectors)
        if isinstance(self.basis.basis, SplineBasis) and not torch.is_grad_enabled():
            radial = self._from_splines(self.basis.basis, coefficients, distances)
        else:
            radial = torch.bmm(self.basis.basis(distances), coefficients.transpose(1, 2))
        harmonics = self.harmonics(regularized(pairs.vectors, self.core_radius))
        values = torch.einsum("mkc,mkc->mk", radial, harmonics)
        return values * self.basis.envelope(distances) * pairs.mask

    @staticmethod
    def _from_splines(basis: SplineBasis, coefficients: Tensor, distances: Tensor) -> Tensor:
        """Σ_b B_b(r) A[lm, b] over the four splines at r; for inference, a third of the time."""
        m, components, size = coefficients.shape
        first, values = basis.local(distances)
        rows = size * torch.arange(m, device=first.device).unsqueeze(-1)
        index = (first + rows).unsqueeze(-1) + torch.arange(4, device=first.device)
        radial = nn.functional.embedding_bag(
            index.reshape(-1, 4),
            coefficients.transpose(1, 2).reshape(m * size, components),
            per_sample_weights=values.reshape(-1, 4),
            mode="sum",
        )
        return radial.reshape(*distances.shape, components)

    def forward_e3nn(self, descriptors: Tensor, attributes: Tensor, pairs: PointPairs) -> Tensor:
        """The definition of :meth:`forward`: an e3nn tensor product on every pair."""
        rows, columns = pairs.mask.nonzero(as_tuple=True)
        vectors = pairs.vectors[rows, columns]
        atom = pairs.atom[rows]
        weights = torch.einsum("nt,lck,tlkb->nlcb", attributes, self.mixing, self.functions)
        radial = torch.einsum("plcb,pb->plc", weights[atom], self.basis(lengths(vectors)))
        # e3nn's 3j symbol of (l, l, 0) is δ/√(2l+1).
        norm = radial.new_tensor([(2 * l + 1) ** 0.5 for l in range(self.l_max + 1)])
        values = self.contraction(
            by_irrep(descriptors)[atom],
            self.harmonics(regularized(vectors, self.core_radius)),
            (radial * norm[:, None]).flatten(1),
        )
        return torch.zeros_like(pairs.vectors[..., 0]).index_put(
            (rows, columns), values.squeeze(-1)
        )


def with_spherical(coefficients: Tensor, spherical: Tensor) -> Tensor:
    """Coefficients (n, (l_max+1)², basis) with those of spherical densities (n, basis) added."""
    # The harmonic of l = 0 is 1.
    return torch.cat([coefficients[:, :1] + spherical.unsqueeze(1), coefficients[:, 1:]], dim=1)
