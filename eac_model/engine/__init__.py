"""Fast evaluation of a trained network."""

from eac_model.engine.inference import (
    EncodedAtoms,
    encode,
    evaluate_grid,
    evaluate_points,
    integrate_contributions,
)

__all__ = [
    "EncodedAtoms",
    "encode",
    "evaluate_grid",
    "evaluate_points",
    "integrate_contributions",
]
