"""Radial bases, the polynomial cutoff, and radial networks."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from e3nn import nn as e3nn_nn
from torch import Tensor, nn

from eac_model.network.config import RadialBasis


def polynomial_cutoff(r: Tensor, cutoff: float, power: int) -> Tensor:
    """Fall from 1 at r = 0 to 0 at the cutoff; first and second derivatives vanish there.

    1 − (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) − p(p+1)/2 x^(p+2), x = r/r_c (DimeNet, eq. 8).
    """
    p = power
    x = (r / cutoff).clamp(max=1.0)
    return 1 - x**p * ((p + 1) * (p + 2) / 2 - x * (p * (p + 2) - x * (p * (p + 1) / 2)))


class BesselBasis(nn.Module):
    """√(2/3) r_c sin(kπr/r_c)/r, k = 1 … size: finite at r = 0, mean square 1 in the sphere."""

    def __init__(self, size: int, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        frequencies = math.pi * torch.arange(1, size + 1, dtype=torch.float64) / cutoff
        self.register_buffer("frequencies", frequencies.to(torch.get_default_dtype()))

    def forward(self, r: Tensor) -> Tensor:
        """Map distances (…,) in Å to basis values (…, size)."""
        x = r.unsqueeze(-1) * self.frequencies
        # sinc(x/π) = sin(x)/x needs no care at r = 0.
        return math.sqrt(2 / 3) * self.cutoff * self.frequencies * torch.sinc(x / math.pi)


class GaussianBasis(nn.Module):
    """exp(−(r − μ_k)²/(2σ_k²)) with learned centres and widths."""

    def __init__(self, size: int, cutoff: float) -> None:
        super().__init__()
        self.centers = nn.Parameter(torch.linspace(0.0, cutoff, size))
        self.log_widths = nn.Parameter(torch.full((size,), math.log(cutoff / max(size - 1, 1))))

    def forward(self, r: Tensor) -> Tensor:
        """Map distances (…,) in Å to basis values (…, size)."""
        return torch.exp(
            -0.5 * ((r.unsqueeze(-1) - self.centers) * torch.exp(-self.log_widths)) ** 2
        )


class SignedGaussianBasis(nn.Module):
    """exp(−a_k (r − μ_k)²) with learned centres and exponents; these may turn negative."""

    def __init__(self, size: int, cutoff: float) -> None:
        super().__init__()
        self.centers = nn.Parameter(torch.linspace(0.0, cutoff, size))
        self.exponents = nn.Parameter(torch.full((size,), 0.5 * (max(size - 1, 1) / cutoff) ** 2))

    def forward(self, r: Tensor) -> Tensor:
        """Map distances (…,) in Å to basis values (…, size)."""
        return torch.exp(-self.exponents * (r.unsqueeze(-1) - self.centers) ** 2)


class SplineBasis(nn.Module):
    """Cubic B-splines on knots uniform in x(r) = ln(1 + (r/a)²)/2, a the core radius.

    Polynomials of r² inside the core, steps that grow with r outside; even and smooth in r at
    r = 0, twice continuously differentiable everywhere.

    Parameters
    ----------
    natural
        Leave out what has a second derivative with respect to x at the nucleus.
    """

    def __init__(
        self, size: int, cutoff: float, core_radius: float, *, natural: bool = False
    ) -> None:
        super().__init__()
        self.core_radius = core_radius
        if size < 4:
            raise ValueError("a cubic spline basis needs at least 4 functions")
        self.size = size
        self.natural = natural
        self.intervals = size - 2 if natural else size - 3
        """Number of intervals between knots."""
        self.scale = self.intervals / (0.5 * math.log1p((cutoff / core_radius) ** 2))

    def local(self, r: Tensor) -> tuple[Tensor, Tensor]:
        """The four functions that differ from zero at r.

        Returns
        -------
        first
            (…,) index of the first of them.
        values
            (…, 4) their values.
        """
        x = (0.5 * self.scale) * torch.log1p((r / self.core_radius) ** 2)
        interval = x.detach().floor().clamp(max=self.intervals - 1)
        t = x - interval
        u = 1 - t
        pieces = (u * u * u, 4 + t * t * (3 * t - 6), 4 + u * u * (3 * u - 6), t * t * t)
        values = torch.stack(pieces, dim=-1) / 6
        if not self.natural:
            return interval.long(), values
        # The coefficient of the first B-spline is 2 c1 - c2: its neighbours take it with them.
        b0, b1, b2, b3 = values.unbind(-1)
        innermost = torch.stack([b1 + 2 * b0, b2 - b0, b3, torch.zeros_like(b3)], dim=-1)
        values = torch.where((interval == 0).unsqueeze(-1), innermost, values)
        return (interval.long() - 1).clamp(min=0), values

    def unconstrained(self, coefficients: Tensor) -> Tensor:
        """Coefficients (…, size, c) as those of all B-splines, (…, intervals + 3, c)."""
        if not self.natural:
            return coefficients
        first = 2 * coefficients[..., :1, :] - coefficients[..., 1:2, :]
        return torch.cat([first, coefficients], dim=-2)

    def forward(self, r: Tensor) -> Tensor:
        """Map distances (…,) in Å to basis values (…, size)."""
        first, values = self.local(r)
        index = first.unsqueeze(-1) + torch.arange(4, device=r.device)
        return values.new_zeros(*r.shape, self.size).scatter(-1, index, values)


def radial_basis(config: RadialBasis, cutoff: float) -> nn.Module:
    """The basis a configuration names, on 0 … cutoff (Å)."""
    match config.kind:
        case "bessel":
            return BesselBasis(config.size, cutoff)
        case "gaussian":
            return GaussianBasis(config.size, cutoff)
        case "signed-gaussian":
            return SignedGaussianBasis(config.size, cutoff)
        case "spline" | "natural-spline":
            natural = config.kind == "natural-spline"
            return SplineBasis(config.size, cutoff, config.core_radius, natural=natural)


class CutoffBasis(nn.Module):
    """A radial basis times its polynomial cutoff: zero, with two derivatives, at the cutoff."""

    def __init__(self, config: RadialBasis, cutoff: float) -> None:
        super().__init__()
        self.basis = radial_basis(config, cutoff)
        self.cutoff = cutoff
        self.power = config.cutoff_power
        self.size = config.size

    def envelope(self, r: Tensor) -> Tensor:
        """The cutoff function S(r), (…,) → (…,)."""
        return polynomial_cutoff(r, self.cutoff, self.power)

    def forward(self, r: Tensor) -> Tensor:
        """Map distances (…,) in Å to B(r)·S(r), (…, size)."""
        return self.basis(r) * self.envelope(r).unsqueeze(-1)


def regularized(vectors: Tensor, radius: float) -> Tensor:
    """r/√(r² + a²): solid harmonics of it are smooth at a nucleus and like r^l inside a."""
    square = (vectors * vectors).sum(-1, keepdim=True)
    return vectors * torch.rsqrt(square + radius**2)


def lengths(vectors: Tensor) -> Tensor:
    """|r|, with a zero instead of an undefined gradient at r = 0."""
    square = (vectors * vectors).sum(-1)
    positive = square > 0
    return torch.where(positive, torch.sqrt(torch.where(positive, square, 1.0)), 0.0)


def dense_network(sizes: tuple[int, ...]) -> nn.Sequential:
    """Fully connected network with SiLU between its layers."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


def radial_network(sizes: tuple[int, ...], biases: bool) -> nn.Module:
    """From a radial basis to weights of tensor-product paths.

    Without biases zero stays zero: messages vanish at the cutoff as the basis does.
    """
    if biases:
        return dense_network(sizes)
    return e3nn_nn.FullyConnectedNet(list(sizes), nn.functional.silu)
