"""What a run leaves on disk: every file is complete or absent, whenever the run is killed."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from matplotlib.figure import Figure

from eac_model.errors import ConfigurationError
from eac_model.files import write_bytes


@dataclass(frozen=True)
class RunFiles:
    """Names of the files of a run."""

    directory: Path

    @property
    def config(self) -> Path:
        """The configuration, every key written out."""
        return self.directory / "config.yaml"

    @property
    def metrics(self) -> Path:
        """The log."""
        return self.directory / "metrics.csv"

    @property
    def picture(self) -> Path:
        """Learning curve."""
        return self.directory / "learning_curve.png"

    @property
    def model(self) -> Path:
        """The model file."""
        return self.directory / "model.safetensors"

    @property
    def last(self) -> Path:
        """State of the run, from which it resumes."""
        return self.directory / "checkpoints" / "last.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, replaced atomically and read without unpickling objects.

    Lightning's own writer passes through the system's temporary folder, from where a file reaches
    another file system by copying, which a kill can interrupt.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint; the one of the same name stays until the new one is whole."""
        content = io.BytesIO()
        torch.save(checkpoint, content)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(Path(path), content.getvalue())

    def load_checkpoint(
        self, path: Any, map_location: Any | None = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read tensors and plain containers, nothing else."""
        return load_state(Path(path))


def load_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU: tensors and plain containers, nothing else.

    Raises
    ------
    ConfigurationError
        It is damaged, or something else.
    """
    try:
        content = io.BytesIO(path.read_bytes())
        state: Any = torch.load(content, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, UnpicklingError, ValueError, KeyError) as error:
        raise ConfigurationError(f"{path} {_NO_STATE}") from error
    if not isinstance(state, dict) or not {"training_config", "global_step"} <= state.keys():
        raise ConfigurationError(f"{path} {_NO_STATE}")
    return state


_NO_STATE = (
    "is damaged, or not the state of a run. Put back a copy of it, or begin anew in another "
    "directory; the model beside it can be trained further (initialize_from)."
)


COLUMNS = (
    "step",
    "seconds",
    "learning_rate",
    "train_loss",
    "train_nmae_percent",
    "validation_nmae_percent",
    "validation_spin_nmae_percent",
    "validation_onsite_percent",
)
"""Columns of metrics.csv. Training values are means over the steps since the row before; the error
of on-site data is the mean over all blocks of error over spread."""

Row = Mapping[str, float | int | None]


def read_metrics(path: Path) -> list[dict[str, float | None]]:
    """Rows of metrics.csv; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    rows: list[dict[str, float | None]] = []
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            try:
                rows.append({key: float(row[key]) if row[key] else None for key in COLUMNS})
            except (KeyError, TypeError, ValueError):
                break
    return rows


def write_metrics(path: Path, rows: Sequence[Row]) -> None:
    """Write metrics.csv anew."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(_text(row) for row in rows)
    write_bytes(path, text.getvalue().encode())


def append_metrics(path: Path, row: Row) -> None:
    """Add a row to metrics.csv."""
    with path.open("a", encoding="utf-8", newline="") as file:
        csv.DictWriter(file, COLUMNS).writerow(_text(row))


def _text(row: Row) -> dict[str, str]:
    def cell(key: str) -> str:
        value = row.get(key)
        if value is None:
            return ""
        return str(int(value)) if key == "step" else f"{value:.8g}"

    return {key: cell(key) for key in COLUMNS}


def draw_learning_curve(path: Path, rows: Sequence[Row], title: str) -> None:
    """Picture of ε_mae against the step, of training and of left-out structures."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for key, label, style in (
        ("train_nmae_percent", "training points", "-"),
        ("validation_nmae_percent", "left-out structures", "o-"),
        ("validation_spin_nmae_percent", "left-out structures, spin density", "s-"),
        ("validation_onsite_percent", "left-out structures, on-site data (of spread)", "^-"),
    ):
        points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=3, linewidth=1)
    if axes.lines:
        axes.set_yscale("log")
        axes.legend()
    axes.set_xlabel("step")
    axes.set_ylabel("error / %")
    axes.set_title(title)
    axes.grid(visible=True, which="both", alpha=0.3)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    write_bytes(path, picture.getvalue())
