"""Loops compiled by numba, where it is installed and wanted."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def compilation_allowed() -> bool:
    """Whether EAC_COMPILED=0 does not forbid compiled loops."""
    return os.environ.get("EAC_COMPILED", "1") != "0"


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
