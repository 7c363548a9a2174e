"""Every error this project raises on purpose.

All of them derive from :class:`EACError`, which is a ``ValueError``: the input was wrong, the
message says how, and what to do about it.
"""

from __future__ import annotations


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
