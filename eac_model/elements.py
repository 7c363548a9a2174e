"""Electron shells of the elements, as network inputs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SUBSHELLS: tuple[str, ...] = (
    *("1s", "2s", "2p", "3s", "3p", "3d", "4s", "4p", "4d", "4f"),
    *("5s", "5p", "5d", "5f", "6s", "6p", "6d", "7s", "7p"),
)
"""Subshells of the shell-filling embedding, 1s … 7p."""

_CAPACITY = {"s": 2, "p": 6, "d": 10, "f": 14}

_MADELUNG = (
    *("1s", "2s", "2p", "3s", "3p", "4s", "3d", "4p", "5s", "4d", "5p", "6s", "4f"),
    *("5d", "6p", "7s", "5f", "6d", "7p"),
)

# Ground states that break the Madelung order (NIST Atomic Spectra Database).
_EXCEPTIONS: dict[int, dict[str, int]] = {
    24: {"4s": 1, "3d": 5},
    29: {"4s": 1, "3d": 10},
    41: {"5s": 1, "4d": 4},
    42: {"5s": 1, "4d": 5},
    44: {"5s": 1, "4d": 7},
    45: {"5s": 1, "4d": 8},
    46: {"5s": 0, "4d": 10},
    47: {"5s": 1, "4d": 10},
    57: {"4f": 0, "5d": 1},
    58: {"4f": 1, "5d": 1},
    64: {"4f": 7, "5d": 1},
    78: {"6s": 1, "5d": 9},
    79: {"6s": 1, "5d": 10},
    89: {"5f": 0, "6d": 1},
    90: {"5f": 0, "6d": 2},
    91: {"5f": 2, "6d": 1},
    92: {"5f": 3, "6d": 1},
    93: {"5f": 4, "6d": 1},
    96: {"5f": 7, "6d": 1},
    103: {"6d": 0, "7p": 1},
}


def occupations(number: int) -> dict[str, int]:
    """Ground-state occupation of every subshell of the neutral atom.

    Parameters
    ----------
    number
        Atomic number, 1 … 118.

    Returns
    -------
    dict
        Electrons in each of :data:`SUBSHELLS`; they sum to ``number``.
    """
    if not 1 <= number <= 118:
        raise ValueError(f"{number} is not the atomic number of a known element (1 … 118).")
    filled = dict.fromkeys(SUBSHELLS, 0)
    left = number
    for shell in _MADELUNG:
        filled[shell] = min(left, _CAPACITY[shell[1]])
        left -= filled[shell]
    return filled | _EXCEPTIONS.get(number, {})


def shell_filling(numbers: tuple[int, ...]) -> NDArray[np.float64]:
    """Occupations over their maxima, the shell-filling embedding of arXiv 2508.04052.

    Returns
    -------
    ndarray
        Shape (elements, 19), values in [0, 1].
    """
    capacities = [_CAPACITY[shell[1]] for shell in SUBSHELLS]
    rows = [[occupations(z)[shell] for shell in SUBSHELLS] for z in numbers]
    return np.array(rows, dtype=float) / np.array(capacities)
