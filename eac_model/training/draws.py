"""Which structures and points a step sees: pure functions of the seed, the step and the rank.

Nothing is remembered between steps, so a run that was killed at any moment draws, after resuming,
exactly what it would have drawn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# Streams of random numbers that must not coincide.
_POINTS, _ORDER, _SPLIT = 0, 1, 2


def point_generator(seed: int, step: int, rank: int = 0) -> np.random.Generator:
    """The generator from which the points of a step are drawn."""
    return np.random.default_rng([seed, _POINTS, step, rank])


def structures_of_step(
    seed: int, step: int, n_structures: int, per_rank: int, rank: int = 0, world_size: int = 1
) -> list[int]:
    """Indices of the structures of a step on one rank.

    The draws of all steps and ranks, one after the other, go through random permutations of all
    structures, so every structure is seen equally often.
    """
    first = (step * world_size + rank) * per_rank
    draws = range(first, first + per_rank)
    return [
        int(_permutation(seed, draw // n_structures, n_structures)[draw % n_structures])
        for draw in draws
    ]


def left_out(seed: int, elements: Sequence[set[str]], count: int) -> list[int]:
    """Structures left out for validation, ascending, given the elements of all.

    ``count`` of them, or fewer: of every element a structure remains to train on.
    """
    remaining = Counter(symbol for of_one in elements for symbol in of_one)
    chosen: list[int] = []
    for index in np.random.default_rng([seed, _SPLIT]).permutation(len(elements)):
        if len(chosen) == count:
            break
        if all(remaining[symbol] > 1 for symbol in elements[index]):
            remaining.subtract(elements[index])
            chosen.append(int(index))
    return sorted(chosen)


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, n_structures: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, _ORDER, epoch]).permutation(n_structures)
