"""Loops compiled by numba, where it is installed and wanted."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


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
