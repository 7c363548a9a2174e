"""Training: from densities to a model file."""

from eac_model.training.config import TrainingConfig
from eac_model.training.run import train

__all__ = ["TrainingConfig", "train"]
