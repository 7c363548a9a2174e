"""Real solid harmonics by recursion, in e3nn's order and normalisation.

e3nn defines them; these run along contiguous points, and compiled loops share their constants.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def solid_harmonics(vectors: Tensor, l_max: int) -> Tensor:
    """Real harmonics |v|^l Y_lm(v̂) in e3nn's order and ``component`` normalisation.

    Parameters
    ----------
    vectors
        (3, n); unit vectors give spherical harmonics.

    Returns
    -------
    Tensor
        ((l_max+1)², n), one row a component: arithmetic runs along contiguous points.
    """
    # e3nn's polar axis is y, and φ runs from z to x.
    x, y, z = vectors
    square = x * x + y * y + z * z
    result = x.new_empty((l_max + 1) ** 2, len(x))
    cosine, sine = torch.ones_like(x), torch.zeros_like(x)
    for m in range(l_max + 1):
        if m:
            cosine, sine = cosine * z - sine * x, cosine * x + sine * z
        # Σ_m Y_lm² = 2l + 1; sectoral polynomials first, then upwards in l.
        before: Tensor | float | None = None
        last: Tensor | float = sectoral(m)
        for l in range(m, l_max + 1):
            polynomial = last
            if l > m:
                a, b = recursion(l, m)
                polynomial = (a * y) * last
                if before is not None:
                    polynomial -= (b * square) * before
                before, last = last, polynomial
            center = l * l + l
            torch.mul(cosine, polynomial, out=result[center + m])
            if m:
                torch.mul(sine, polynomial, out=result[center - m])
    return result


def sectoral(m: int) -> float:
    """Y_mm of e3nn's normalisation, without its dependence on φ."""
    value = 1.0
    for k in range(1, m + 1):
        value *= np.sqrt((2 * k + 1) / (2 * k))
    return float(value * (np.sqrt(2) if m else 1.0))


def recursion(l: int, m: int) -> tuple[float, float]:
    """P_l = a y P_{l−1} − b r² P_{l−2} for normalised associated Legendre polynomials."""
    a = np.sqrt((4 * l * l - 1) / (l * l - m * m))
    b = np.sqrt((2 * l + 1) * ((l - 1) ** 2 - m * m) / ((2 * l - 3) * (l * l - m * m)))
    return float(a), float(b)


def recursion_tables(l_max: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """:func:`sectoral` of every m, and :func:`recursion` of every l and m below l, (…, 2)."""
    factors = np.zeros((l_max + 1, l_max + 1, 2), np.float32)
    for m in range(l_max + 1):
        for l in range(m + 1, l_max + 1):
            factors[l, m] = recursion(l, m)
    return np.array([sectoral(m) for m in range(l_max + 1)], np.float32), factors
