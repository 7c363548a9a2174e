"""What happens between steps: averaging, validation, the log, checkpoints, the progress bar."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, TQDMProgressBar, WeightAveraging
from torch import Tensor

from eac_model.errors import ConfigurationError
from eac_model.network import DensityNetwork
from eac_model.training.config import TrainingConfig
from eac_model.training.files import (
    Row,
    RunFiles,
    append_metrics,
    draw_learning_curve,
    read_metrics,
    write_metrics,
)
from eac_model.training.module import TrainingModule, nmae_percents, onsite_percents

log = logging.getLogger(__name__)

MOST_BLOCKS = 200
"""Of on-site data that a card lists one by one: a dozen elements may have that many."""

SaveModel = Callable[[DensityNetwork, dict[str, Any]], None]
"""Writes the model file, given the averaged network and the summary of its training."""


class ExponentialAverage(WeightAveraging):
    """Exponential moving average of the weights that forgets faster in the first steps.

    Parameters
    ----------
    decay
        Weight of the past, reached after some steps: step n has min(decay, (1 + n)/(10 + n)), so
        that the average does not remember the random start of a short run.
    """

    def __init__(self, decay: float) -> None:
        def update(averaged: list[Tensor], current: list[Tensor], n_averaged: Tensor) -> None:
            n = float(n_averaged)
            torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

        # Buffers are constants: averaging would only round them.
        super().__init__(use_buffers=False, multi_avg_fn=torch.no_grad()(update))

    def network(self, module: TrainingModule) -> DensityNetwork:
        """The averaged network, or the trained one where there is no average (yet)."""
        if self._average_model is None:
            return module.network
        averaged = self._average_model.module
        assert isinstance(averaged, TrainingModule)
        return averaged.network


class Recorder(Callback):
    """Log, learning curve, best model and state of the run.

    It must come after the averaging callback. Files of a step are written in the order log,
    picture, model, state, so that a run killed in between repeats them after resuming.
    """

    def __init__(
        self,
        config: TrainingConfig,
        files: RunFiles,
        average: ExponentialAverage | None,
        save_model: SaveModel,
        *,
        validate: bool,
    ) -> None:
        self._config = config
        self._files = files
        self._average = average
        self._save_model = save_model
        self._validate = validate
        self._rows: list[Row] = []
        self._best = math.inf
        self._seconds_before = 0.0
        self._started = time.monotonic()
        self._first_step: int | None = None
        self._first_seconds = 0.0
        self.latest: dict[str, float] = {}
        """Latest ε_mae in percent, for the progress bar."""

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs beside the weights."""
        return {"best": self._best, "seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self._best = state_dict["best"]
        self._seconds_before = state_dict["seconds"]

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the sums that the next row of the log is made of."""
        assert isinstance(pl_module, TrainingModule)
        checkpoint["train_sums"] = pl_module.train_sums.cpu()

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore :meth:`on_save_checkpoint`."""
        assert isinstance(pl_module, TrainingModule)
        pl_module.train_sums = checkpoint["train_sums"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the log, or cut it back to the step at which the run resumes."""
        self._started = time.monotonic()
        if not trainer.is_global_zero:
            return
        kept = read_metrics(self._files.metrics) if trainer.global_step > 0 else []
        self._rows = [row for row in kept if (row["step"] or 0) <= trainer.global_step]
        write_metrics(self._files.metrics, self._rows)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log and save, unless a validation follows that does so."""
        assert isinstance(pl_module, TrainingModule)
        step, config = trainer.global_step, self._config
        if self._first_step is None:
            self._first_step, self._first_seconds = step, time.monotonic()
        at_end = step >= config.optimisation.steps
        if at_end:
            # Lightning validates at the end of a run only if the run was told to stop.
            trainer.should_stop = True
        if self.validation_follows(step):
            return
        if at_end or step % config.log_every == 0:
            self._record(trainer, pl_module, {})
        if at_end or step % config.checkpoint_every == 0:
            self.save(trainer, pl_module)

    def save(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        """Write the state of the run and, where no validation decides on it, the model."""
        if not self._validate:
            self._save_averaged(trainer, module, {})
        self.save_state(trainer, module)

    def validation_follows(self, step: int) -> bool:
        """Whether structures left out are evaluated after this step."""
        at_end = step >= self._config.optimisation.steps
        return self._validate and (at_end or step % self._config.validate_every == 0)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log, draw, keep the model if it is the best so far, save."""
        assert isinstance(pl_module, TrainingModule)
        sums = trainer.strategy.reduce(pl_module.validation_sums, reduce_op="sum")
        assert isinstance(sums, Tensor)
        total, spin = nmae_percents(sums.cpu())
        found: dict[str, float] = {"validation_nmae_percent": total}
        if spin is not None:
            found["validation_spin_nmae_percent"] = spin
        blocks: dict[str, float] = {}
        if pl_module.network.onsite is not None:
            onsite = trainer.strategy.reduce(pl_module.onsite_sums, reduce_op="sum")
            assert isinstance(onsite, Tensor)
            blocks = onsite_percents(onsite.cpu(), pl_module.network.onsite.block_names())
        if blocks:
            found["validation_onsite_percent"] = sum(blocks.values()) / len(blocks)
        self._record(trainer, pl_module, found)
        if trainer.is_global_zero:
            draw_learning_curve(self._files.picture, self._rows, self._config.card.name)
        if total < self._best:
            self._best = total
            onsite_summary = {"validation_onsite_blocks_percent": _readable(blocks)}
            self._save_averaged(trainer, pl_module, found | (onsite_summary if blocks else {}))
        self.save_state(trainer, pl_module)

    def _record(self, trainer: pl.Trainer, module: TrainingModule, found: dict[str, float]) -> None:
        steps, loss, error, reference = module.train_sums[:4].tolist()
        module.train_sums = torch.zeros_like(module.train_sums)
        row: dict[str, float | int | None] = {
            "step": trainer.global_step,
            "seconds": self._seconds(),
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            **found,
        }
        if steps > 0:
            row["train_loss"] = loss / steps
            row["train_nmae_percent"] = 100 * error / reference if reference else None
            if not math.isfinite(loss):
                raise ConfigurationError(_diverged(trainer.global_step, "loss"))
        if not all(math.isfinite(value) for value in found.values()):
            raise ConfigurationError(_diverged(trainer.global_step, "validation error"))
        self._rows.append(row)
        shown = {
            "train_nmae_percent": "train",
            "validation_nmae_percent": "left out",
            "validation_onsite_percent": "on-site",
        }
        new = {name: value for key, name in shown.items() if (value := row.get(key)) is not None}
        self.latest |= new
        if trainer.is_global_zero:
            append_metrics(self._files.metrics, row)
            text = ", ".join(f"{name} {value:.3f} %" for name, value in new.items())
            log.info("%s: errors %s", self._progress(trainer.global_step), text)

    def _progress(self, step: int) -> str:
        """The step, and how long the rest will take."""
        steps = self._config.optimisation.steps
        done = 0 if self._first_step is None else step - self._first_step
        if done <= 0 or step >= steps:
            return f"step {step} of {steps}"
        left = (time.monotonic() - self._first_seconds) * (steps - step) / done
        text = f"{left:.0f} s" if left < 100 else f"{left / 60:.0f} min"
        if left > 5400:
            text = f"{left / 3600:.1f} h"
        return f"step {step} of {steps}, {text} left"

    def _save_averaged(
        self, trainer: pl.Trainer, module: TrainingModule, found: Mapping[str, Any]
    ) -> None:
        _check_finite(trainer, module)
        if not trainer.is_global_zero:
            return
        network = module.network if self._average is None else self._average.network(module)
        if not self._validate:
            # Validation has done so already.
            module.fit_readouts(network)
        summary = {"steps": trainer.global_step, "seconds": round(self._seconds(), 1), **found}
        self._save_model(network, summary)

    def save_state(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        """Write the state of the run, to resume from."""
        _check_finite(trainer, module)
        trainer.save_checkpoint(self._files.last)

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._started


class EndOnInterrupt(Callback):
    """Ctrl-C or SIGTERM end a run behind its step, with a checkpoint; a second Ctrl-C at once.

    It must come last. In several processes, which need not meet Ctrl-C in the same step, and where
    it is ignored or handled by the program already, nothing is changed.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._asked = False
        self._installed = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to listen."""
        if (
            trainer.world_size == 1
            and threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            signal.signal(signal.SIGINT, self._note)
            self._installed = True

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save and end, unless a validation comes first."""
        assert isinstance(pl_module, TrainingModule)
        # Of SIGTERM, Lightning ends the run behind this.
        ends = self._asked or trainer.received_sigterm
        if ends and not self._recorder.validation_follows(trainer.global_step):
            self._recorder.save(trainer, pl_module)
            if self._asked:
                raise KeyboardInterrupt

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Listen no more."""
        self._restore()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Listen no more."""
        self._restore()

    def _note(self, signum: int, frame: Any) -> None:
        self._asked = True
        self._restore()

    def _restore(self) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._installed = False


class ErrorBar(TQDMProgressBar):
    """Progress bar with ε_mae of training and left-out structures."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(refresh_rate=1, leave=True)
        self._recorder = recorder

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """What is shown behind the bar."""
        return {f"ε_mae {name}": f"{v:.3f}%" for name, v in self._recorder.latest.items()}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the bar; a resumed run starts in the middle."""
        super().on_train_start(trainer, pl_module)
        self.train_progress_bar.reset(trainer.max_steps)
        self.train_progress_bar.initial = trainer.global_step
        self.train_progress_bar.n = trainer.global_step

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Name the bar; a run is one epoch."""
        super().on_train_epoch_start(trainer)
        self.train_progress_bar.set_description("training")


def _readable(blocks: Mapping[str, float]) -> dict[str, float]:
    """Errors of blocks of on-site data, or, of many, their means by element."""
    if len(blocks) > MOST_BLOCKS:
        of_element: dict[str, list[float]] = {}
        for name, value in blocks.items():
            of_element.setdefault(name.split()[0], []).append(value)
        blocks = {symbol: sum(values) / len(values) for symbol, values in of_element.items()}
    return {name: round(value, 2) for name, value in blocks.items()}


def _check_finite(trainer: pl.Trainer, module: TrainingModule) -> None:
    """Of a state that cannot be continued nothing should be kept, the last good one should."""
    if not torch.isfinite(module.train_sums).all():
        raise ConfigurationError(_diverged(trainer.global_step, "loss"))
    if not all(bool(torch.isfinite(weights).all()) for weights in module.network.parameters()):
        raise ConfigurationError(_diverged(trainer.global_step, "weights"))


def _diverged(step: int, what: str) -> str:
    return (
        f"The {what} is no finite number any more at step {step}: the run diverged. Lower "
        "optimisation.learning_rate, lengthen optimisation.warmup_steps, or clip gradients harder "
        "(optimisation.gradient_clip), and start again."
    )
