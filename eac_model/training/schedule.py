"""The learning rate at every step."""

from __future__ import annotations

from eac_model.training.config import OptimisationSection


def learning_rate(config: OptimisationSection, step: int) -> float:
    """Learning rate of a step (counted from 0): linear warm-up, then stages of exponential decay.

    During the warm-up of W steps it is lr·(step + 1)/W. A stage of n steps from a to b has
    a·(b/a)^(i/n) at its i-th step, so the next stage begins at b; after the last one it stays.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    start, rate = config.warmup_steps, config.learning_rate
    for stage in config.decay:
        length = config.steps - start if stage.steps is None else stage.steps
        if step < start + length:
            return rate * (stage.final / rate) ** ((step - start) / length)
        start, rate = start + length, stage.final
    return rate
