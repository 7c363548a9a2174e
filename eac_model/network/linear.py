"""The linear decoder: densities linear in the descriptors, radial functions learned."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import numpy as np
import torch
from e3nn import o3
from torch import Tensor, nn

from eac_model.compiled import arrays, compiled_module, in_shares
from eac_model.graph import PointPairs
from eac_model.network.config import NetworkConfig
from eac_model.network.harmonics import recursion_tables
from eac_model.network.interaction import by_irrep, natural_irreps
from eac_model.network.radial import CutoffBasis, SplineBasis, lengths, regularized

PAIRS_PER_THREAD = 4096
"""Fewer pairs than this are not worth the start of threads."""


@functools.cache
def compiled_loops() -> ModuleType | None:
    """The compiled loops; None without numba, or if EAC_COMPILED=0 forbids them."""
    return compiled_module("eac_model.network.linear_loops")


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
        self.recursion = recursion_tables(self.l_max)
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
        return self.of_coefficients(coefficients, pairs)

    def of_coefficients(self, coefficients: Tensor, pairs: PointPairs) -> Tensor:
        """:meth:`forward` from A_i[lm, b], (n, (l_max+1)², basis)."""
        if self._is_compiled(coefficients, pairs.vectors):
            return self._from_loops(coefficients, pairs)
        return self.dense(coefficients, pairs)

    def dense(self, coefficients: Tensor, pairs: PointPairs) -> Tensor:
        """:meth:`of_coefficients` by batched products of torch: any device, basis, derivative."""
        distances = lengths(pairs.vectors)
        basis = self.basis.basis(distances)
        radial = torch.bmm(basis, coefficients[pairs.atom].transpose(1, 2))
        harmonics = self.harmonics(regularized(pairs.vectors, self.core_radius))
        values = torch.einsum("mkc,mkc->mk", radial, harmonics)
        return values * self.basis.envelope(distances) * pairs.mask

    def _is_compiled(self, coefficients: Tensor, vectors: Tensor) -> bool:
        return (
            coefficients.device.type == "cpu"
            # float64 is there for references.
            and coefficients.dtype == vectors.dtype == torch.float32
            and not vectors.requires_grad
            and isinstance(self.basis.basis, SplineBasis)
            and compiled_loops() is not None
        )

    def _from_loops(self, coefficients: Tensor, pairs: PointPairs) -> Tensor:
        splines = self.basis.basis
        assert isinstance(splines, SplineBasis)
        loops = compiled_loops()
        assert loops is not None
        by_spline = splines.unconstrained(coefficients.transpose(1, 2))
        tables = nn.functional.pad(by_spline, (0, -by_spline.shape[2] % loops.ROUND))
        sizes = (splines.core_radius, splines.scale, splines.intervals)
        envelope = (self.basis.cutoff, self.basis.power)
        shape = (self.l_max, self.core_radius, np.array((*sizes, *envelope), np.float32))
        known = (*arrays(pairs.atom, pairs.vectors, pairs.mask), (*shape, *self.recursion))
        values: Tensor = _Sum.apply(known, tables)
        return values

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


class _Sum(torch.autograd.Function):
    """Contributions (m, k) of pairs from tables (n, splines, c): linear, and compiled."""

    @staticmethod
    def forward(ctx: Any, known: tuple[Any, ...], tables: Tensor) -> Tensor:
        ctx.known, ctx.size = known, tables.shape
        loops = compiled_loops()
        assert loops is not None
        atoms, vectors, mask, shape = known
        values = tables.new_zeros(mask.shape)
        table, result = arrays(tables, values)

        def work(rows: slice) -> None:
            loops.sum_pairs(table, atoms[rows], vectors[rows], mask[rows], shape, result[rows])

        in_shares(work, len(mask), _threads(mask.shape))
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return None, _Spread.apply(ctx.known, gradients[0], ctx.size)


class _Spread(torch.autograd.Function):
    """The transpose of :class:`_Sum`: its gradient, and the other way about."""

    @staticmethod
    def forward(ctx: Any, known: tuple[Any, ...], values: Tensor, size: torch.Size) -> Tensor:
        ctx.known = known
        loops = compiled_loops()
        assert loops is not None
        atoms, vectors, mask, shape = known
        (value,) = arrays(values)

        def work(rows: slice) -> Tensor:
            # Its own: rows of one atom may go to several threads.
            tables = values.new_zeros(size)
            chosen = value[rows], atoms[rows], vectors[rows], mask[rows]
            loops.spread_pairs(*chosen, shape, tables.numpy())
            return tables

        parts = in_shares(work, len(mask), _threads(mask.shape))
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum(dim=0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return None, _Sum.apply(ctx.known, gradients[0]), None


def _threads(shape: tuple[int, int]) -> int:
    rows, width = shape
    return max(1, min(torch.get_num_threads(), rows, rows * width // PAIRS_PER_THREAD))
