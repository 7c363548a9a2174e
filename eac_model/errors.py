"""Every error this project raises on purpose.

All of them derive from :class:`EACError`, which is a ``ValueError``: the input was wrong, the
message says how, and what to do about it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class EACError(ValueError):
    """Base class: something the user handed us cannot be used as it is."""


class StructureError(EACError):
    """The atoms cannot be used: NaN positions, coinciding atoms, no cell where one is needed."""


class UnknownElementError(StructureError):
    """The structure holds an element the model was not built for."""


class DensityFileError(EACError):
    """A density file is damaged or not of the announced format; the message names the place."""


class ModelFileError(EACError):
    """A model file is damaged, of another kind, or written by a newer version."""


class ConfigurationError(EACError):
    """A configuration (network, training run, recipe) contradicts itself or the data."""


class GridError(EACError):
    """Two grids do not match, or a grid cannot be built for this cell."""


class UnfamiliarStructureWarning(UserWarning):
    """A structure is unlike all that a model was trained on."""


class AnalysisError(EACError):
    """A partition, a dipole or a potential means nothing for this density, or lacks an input."""


def list_problems(error: ValidationError, key_of: Callable[[tuple[int | str, ...]], str]) -> str:
    """Every problem of a configuration on a line of its own.

    Parameters
    ----------
    key_of
        What the user would call the place that pydantic gives.
    """
    lines = []
    for problem in error.errors():
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "there is no such key"
        line = f"{key_of(problem['loc'])}: {message}"
        if problem["type"] not in ("missing", "extra_forbidden", "value_error"):
            line += f" (got {problem['input']!r})"
        if problem["type"] == "string_type" and isinstance(problem["input"], bool):
            line += ". YAML reads NO, ON and YES as truth values: put them in quotes"
        if line not in lines:
            lines.append(line)
    return "\n".join(lines)
