"""Fast evaluation of a trained network."""

from eac_model.engine.fourier import evaluate_band_limited
from eac_model.engine.inference import (
    EncodedAtoms,
    Integrals,
    encode,
    evaluate_grid,
    evaluate_points,
    integrate_density,
)
from eac_model.engine.onsite import evaluate_onsite, total_and_spin
from eac_model.engine.streaming import Streamed, stream_grid

__all__ = [
    "EncodedAtoms",
    "Integrals",
    "Streamed",
    "encode",
    "evaluate_band_limited",
    "evaluate_grid",
    "evaluate_onsite",
    "evaluate_points",
    "integrate_density",
    "stream_grid",
    "total_and_spin",
]
