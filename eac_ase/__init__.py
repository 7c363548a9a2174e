"""Electron densities for ASE: the calculator, density grids, pictures and the command line."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eac_ase.calculator import EACDensity
    from eac_ase.error_estimate import ErrorEstimate
    from eac_ase.evaluation import SampleErrors, evaluate_sample
    from eac_ase.grid import DensityGrid, LineCut, Plane, PlaneCut
    from eac_ase.plotting import plot_plane, save_plane

__all__ = [
    "DensityGrid",
    "EACDensity",
    "ErrorEstimate",
    "LineCut",
    "Plane",
    "PlaneCut",
    "SampleErrors",
    "evaluate_sample",
    "plot_plane",
    "save_plane",
]

_HOMES = {
    "EACDensity": "calculator",
    "ErrorEstimate": "error_estimate",
    "SampleErrors": "evaluation",
    "evaluate_sample": "evaluation",
    "plot_plane": "plotting",
    "save_plane": "plotting",
}


def __getattr__(name: str) -> Any:
    # Importing torch takes seconds, which `eac --help` should not.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'grid')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
