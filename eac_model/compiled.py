"""Loops compiled by numba, where it is installed and wanted."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])
Result = TypeVar("Result")


def compiled_module(name: str) -> ModuleType | None:
    """A module of compiled loops; None without numba, or if EAC_COMPILED=0 forbids it."""
    if os.environ.get("EAC_COMPILED", "1") == "0":
        return None
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def compiled(function: Function) -> Function:
    """Compile a function at its first call; the machine code is kept beside its file.

    Raises
    ------
    ImportError
        numba is not installed.
    """
    import numba

    # Sums may be fused and reordered; NaN and infinity keep their meaning.
    settings = {
        "nogil": True,
        "fastmath": {"contract", "reassoc", "nsz"},
        "error_model": "numpy",
    }
    try:
        return numba.njit(cache=True, **settings)(function)
    except RuntimeError:  # there is no folder to keep machine code in
        return numba.njit(**settings)(function)


def arrays(*tensors: Tensor) -> list[NDArray[Any]]:
    """Tensors of the CPU as loops take them; they share memory where it is contiguous."""
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


def in_shares(work: Callable[[slice], Result], count: int, threads: int) -> list[Result]:
    """What ``work`` makes of equal shares of so many items, a thread each, in their order."""
    if threads <= 1:
        return [work(slice(0, count))]
    edges = np.linspace(0, count, threads + 1).astype(int).tolist()
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, [slice(begin, end) for begin, end in pairwise(edges)]))
