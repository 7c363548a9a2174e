"""Functions of the distance as polynomials on spherical shells.

Around an atom every radial function of a trained network is a fixed function of r. On each of a
few shells r_k ≤ r < r_{k+1} it is replaced by its Chebyshev interpolant, so that a sum of radial
functions times anything becomes a product with a constant matrix a shell. The number of shells is
the smallest that meets a bound on the error. Chebyshev polynomials of degree 5 on some sixteen
shells are as accurate as cubic Hermite tables on some two hundred intervals, and leave every shell
enough points to fill matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eac_model.errors import EACError
from eac_model.network.radial import SplineBasis

TERMS = 6
"""Chebyshev polynomials a shell, T_0 … T_5."""

TOLERANCE = 4e-7
"""Bound on the error of tabulated functions, relative to the largest value among them."""

MOST_PIECES = 512
"""Intervals of :class:`Pieces` at most."""

NUMBERS_OF_SHELLS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""What is tried, in this order."""


class ToleranceError(EACError):
    """Radial functions are too rough to be tabulated."""


Radial = Callable[[Tensor], Tensor]
"""Functions of the distance: (n,) float64, Å → (n, …) float64."""


@dataclass(frozen=True)
class Shells:
    """Shells of equal width in r, or in the coordinate of a spline basis."""

    count: int
    """Number of shells."""
    cutoff: float
    """Outer radius of the last one, Å."""
    knots: SplineBasis | None = None
    """Its coordinate x(r) takes the place of r: functions that are piecewise polynomials of x are
    met exactly where ``count`` is a multiple of the number of its intervals."""

    def coordinate(self, distance: Tensor) -> Tensor:
        """Position in units of shells: the integer part is the shell, the rest 0 … 1 inside it."""
        if self.knots is None:
            return distance * (self.count / self.cutoff)
        core = self.knots.core_radius
        x = torch.log1p((distance / core) ** 2)
        return x * (self.count / float(np.log1p((self.cutoff / core) ** 2)))

    def number(self, distance: Tensor) -> Tensor:
        """The shell (n,) int64 in which a distance (n,) below r_c lies."""
        return self.coordinate(distance).long().clamp_(max=self.count - 1)

    def polynomials(self, distance: Tensor, dtype: torch.dtype) -> Tensor:
        """T_0 … T_5 (:data:`TERMS`, n) of the places of distances (n,) float64 in their shells."""
        x = self.coordinate(distance)
        x -= x.floor().clamp_(max=self.count - 1)
        return chebyshev(x.to(dtype).mul_(2).sub_(1))

    def nodes(self) -> Tensor:
        """Radii at which functions are tabulated, (count · TERMS,), Å."""
        roots = torch.cos(torch.pi * (torch.arange(TERMS, dtype=torch.float64) + 0.5) / TERMS)
        return self._radius(((roots + 1) / 2 + torch.arange(self.count)[:, None]).flatten())

    def probes(self) -> Tensor:
        """Radii at which interpolants are tested: ends, and between the nodes of all shells."""
        extrema = torch.cos(torch.pi * torch.arange(TERMS + 1, dtype=torch.float64) / TERMS)
        inside = extrema.clamp(-1 + 1e-9, 1 - 1e-9)
        return self._radius(((inside + 1) / 2 + torch.arange(self.count)[:, None]).flatten())

    def coefficients(self, function: Radial) -> Tensor:
        """Chebyshev coefficients of functions, (count, TERMS, …) float64."""
        values = function(self.nodes())
        values = values.reshape(self.count, TERMS, -1)
        order = torch.arange(TERMS, dtype=torch.float64)
        transform = torch.cos(torch.pi * order[:, None] * (order + 0.5) / TERMS) * (2 / TERMS)
        transform[0] /= 2
        return torch.einsum("jn,snf->sjf", transform, values)

    def error(self, function: Radial) -> float:
        """Largest error of the interpolants between nodes, relative to the largest value."""
        coefficients = self.coefficients(function)
        probes = self.probes()
        shell, polynomials = self.number(probes), self.polynomials(probes, probes.dtype)
        exact = function(probes).reshape(len(probes), -1)
        found = torch.einsum("jn,njf->nf", polynomials, coefficients[shell])
        largest = float(exact.abs().max())
        return float((found - exact).abs().max()) / largest if largest > 0 else 0.0

    def _radius(self, x: Tensor) -> Tensor:
        if self.knots is None:
            return x * (self.cutoff / self.count)
        core = self.knots.core_radius
        step = float(np.log1p((self.cutoff / core) ** 2)) / self.count
        return core * torch.sqrt(torch.expm1(x * step))


def fit_shells(
    functions: Sequence[Radial], cutoff: float, knots: SplineBasis | None, tolerance: float
) -> Shells:
    """The fewest shells on which all functions meet the bound.

    Raises
    ------
    ToleranceError
        None of :data:`NUMBERS_OF_SHELLS` suffices.
    """
    for number in NUMBERS_OF_SHELLS:
        shells = Shells(number if knots is None else number * knots.intervals, cutoff, knots)
        if all(shells.error(function) < tolerance for function in functions):
            return shells
        if shells.count >= NUMBERS_OF_SHELLS[-1]:
            break
    raise ToleranceError(
        f"The radial functions of this network cannot be tabulated to {tolerance:g} on "
        f"{shells.count} shells."
    )


@dataclass(frozen=True)
class Pieces:
    """Polynomials on intervals of r, each as narrow as it has to be."""

    edges: NDArray[np.float64]
    """(n + 1,) | ends of the intervals, from 0 to the cutoff, Å."""
    coefficients: Tensor
    """(n, TERMS, functions) float64 | of powers of t = −1 … 1 in the interval."""


def fit_pieces(function: Radial, edges: NDArray[np.float64], tolerance: float) -> Pieces:
    """Halve intervals until polynomials of degree 5 meet a bound on all of them.

    Parameters
    ----------
    function
        (n,) → (n, functions).
    edges
        Ends of the intervals to begin with.
    tolerance
        Bound on the error, relative to the largest value of all functions.

    Raises
    ------
    ToleranceError
        More than :data:`MOST_PIECES` would be needed.
    """
    nodes = np.cos(np.pi * (np.arange(TERMS) + 0.5) / TERMS)
    probes = np.cos(np.pi * np.arange(TERMS + 1) / TERMS) * (1 - 1e-9)
    inverse = torch.as_tensor(np.linalg.inv(np.vander(nodes, increasing=True)))
    powers = torch.as_tensor(np.vander(probes, TERMS, increasing=True))
    pending = np.stack([edges[:-1], edges[1:]], axis=1)
    starts: list[NDArray[np.float64]] = []
    found: list[Tensor] = []
    largest = 0.0
    while len(pending):
        center, half = pending.mean(axis=1), np.ptp(pending, axis=1) / 2
        at = torch.as_tensor(center[:, None] + half[:, None] * np.concatenate([nodes, probes]))
        values = function(at.flatten()).reshape(*at.shape, -1)
        largest = max(largest, float(values.abs().max()))
        coefficients = torch.einsum("jn,snf->sjf", inverse, values[:, :TERMS])
        interpolated = torch.einsum("pj,sjf->spf", powers, coefficients)
        error = (interpolated - values[:, TERMS:]).abs().amax(dim=(1, 2)).numpy()
        good = error <= tolerance * largest
        starts.append(pending[good, 0])
        found.append(coefficients[torch.as_tensor(good)])
        rough, middle = pending[~good], center[~good, None]
        pending = np.concatenate(
            [np.hstack([rough[:, :1], middle]), np.hstack([middle, rough[:, 1:]])]
        )
        if sum(map(len, starts)) + len(pending) > MOST_PIECES:
            raise ToleranceError(
                f"The radial functions of this network cannot be tabulated to {tolerance:g} on "
                f"{MOST_PIECES} intervals."
            )
    begins = np.concatenate(starts)
    order = np.argsort(begins)
    return Pieces(
        np.append(begins[order], edges[-1]), torch.cat(found)[torch.as_tensor(order.copy())]
    )


def chebyshev(x: Tensor) -> Tensor:
    """T_0 … T_5 at x in −1 … 1, (n,) → (:data:`TERMS`, n)."""
    result = x.new_empty(TERMS, len(x))
    result[0] = 1
    result[1] = x
    doubled = 2 * x
    for order in range(2, TERMS):
        torch.mul(doubled, result[order - 1], out=result[order])
        result[order] -= result[order - 2]
    return result


def sort_by(keys: NDArray[np.integer]) -> NDArray[np.int64]:
    """Stable order of non-negative integers, by counting where they are small."""
    small = keys.astype(np.uint16) if len(keys) and keys.max() < 2**16 else keys
    return np.argsort(small, kind="stable")
