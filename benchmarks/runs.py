"""What the benchmark scripts share: frames, single runs, and results that survive a kill."""

from __future__ import annotations

import argparse
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from eac_model.checkpoint import load_model
from eac_model.data import DensitySample, DensityStore
from eac_model.files import write_bytes
from eac_model.training import TrainingConfig, train
from eac_model.training.files import RunFiles, read_metrics

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"


WATER = REPOSITORY / "data" / "water" / "*.h5"
"""Where recipes/water-scan.yaml, too, expects its frames; it says where they come from."""


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Descriptions as they are written, defaults behind the options."""


def parser(description: str, name: str, steps: int) -> argparse.ArgumentParser:
    """The options common to the scripts."""
    options = argparse.ArgumentParser(description=description, formatter_class=Help)
    options.add_argument(
        "frames", nargs="*", default=[str(WATER)], help="density files or globs, one a frame"
    )
    options.add_argument("--steps", type=int, default=steps, help="optimisation steps of a run")
    options.add_argument("--points", type=int, default=500, help="points a step")
    options.add_argument("--learning-rate", type=float, default=5e-3, help="after the warm-up")
    options.add_argument("--folds", type=int, default=1, help="runs, each leaving out a frame")
    options.add_argument("--seed", type=int, default=0, help="of weights and draws")
    options.add_argument(
        "--accelerator", choices=["auto", "cpu", "gpu"], default="auto", help="device to train on"
    )
    options.add_argument(
        "--output", type=Path, default=RESULTS / f"{name}.json", help="results; .md beside it"
    )
    options.add_argument(
        "--runs", type=Path, default=REPOSITORY / "runs" / name, help="folder of unfinished runs"
    )
    return options


def expand(patterns: Sequence[str]) -> list[str]:
    """Files of the globs, sorted within each."""
    files: list[str] = []
    for pattern in patterns:
        path = Path(pattern).expanduser().absolute()
        found = sorted(str(p) for p in path.parent.glob(path.name))
        if not found:
            raise SystemExit(f"There is no file {pattern!r}. Name the frames, or see --help.")
        files += found
    return files


def configuration(
    options: argparse.Namespace,
    train_files: Sequence[str],
    validation_files: Sequence[str],
    network: dict[str, Any],
    steps: int,
    *,
    data: dict[str, Any] | None = None,
    optimisation: dict[str, Any] | None = None,
) -> TrainingConfig:
    """A run with the budget of the options; ``data`` and ``optimisation`` add to these sections."""
    return TrainingConfig.from_mapping(
        {
            "data": {
                "train": tuple(train_files),
                "validation": tuple(validation_files),
                "points_per_structure": options.points,
            }
            | (data or {}),
            "network": network,
            "optimisation": {
                "steps": steps,
                "learning_rate": options.learning_rate,
                "warmup_steps": min(100, steps // 5),
            }
            | (optimisation or {}),
            "validate_every": steps,
            "checkpoint_every": max(1, min(100, steps // 4)),
            "log_every": max(1, min(50, steps // 4)),
            "seed": options.seed,
            "accelerator": options.accelerator,
        }
    )


def run_once(config: TrainingConfig, directory: Path) -> dict[str, Any]:
    """Train (or go on training) and return the figures of the run; its folder is removed.

    The time is that of training, without the test at the end.
    """
    model = train(config, directory, resume=True)
    rows = read_metrics(RunFiles(directory).metrics)
    network, _ = load_model(model)
    trained = [row for row in rows if row["validation_nmae_percent"] is None][-1]
    assert trained["seconds"] is not None
    assert trained["step"] is not None
    validated = [row for row in rows if row["validation_nmae_percent"] is not None][-1]
    result = {
        "nmae_percent": validated["validation_nmae_percent"],
        "steps": config.optimisation.steps,
        "seconds": trained["seconds"] * config.optimisation.steps / trained["step"],
        "parameters": sum(p.numel() for p in network.parameters()),
    }
    shutil.rmtree(directory)
    return result


def seconds_per_step(config: TrainingConfig) -> float:
    """Time of a training step, from a run of ten seconds or more that is thrown away."""
    seconds = _timed(config, 30)
    return seconds if 30 * seconds > 10 else _timed(config, round(10 / seconds))


def _timed(config: TrainingConfig, steps: int) -> float:
    short = config.model_copy(
        update={
            "optimisation": config.optimisation.model_copy(
                update={"steps": steps, "warmup_steps": 0}
            ),
            "data": config.data.model_copy(update={"validation": 0}),
            "validate_every": steps,
            "log_every": steps // 3,
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        train(short, folder)
        rows = read_metrics(RunFiles(Path(folder)).metrics)
    seconds = [row["seconds"] or 0.0 for row in rows]
    counts = [row["step"] or 0 for row in rows]
    return (seconds[-1] - seconds[0]) / (counts[-1] - counts[0])


def unfinished_steps(directory: Path) -> int | None:
    """Steps of a run that was killed, None where there is none."""
    files = RunFiles(directory)
    if not files.last.exists():
        return None
    return TrainingConfig.from_yaml(files.config).optimisation.steps


@dataclass
class Results:
    """Finished runs in a JSON file, written after every run, with a table for people beside it."""

    path: Path
    settings: dict[str, Any]
    table: Callable[[list[dict[str, Any]]], str]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rows = _kept(self.path, self.settings).get("rows", [])

    def has(self, **key: Any) -> bool:
        """Whether the run of this key is finished."""
        return any(all(row[k] == v for k, v in key.items()) for row in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        """Keep a finished run."""
        self.rows.append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"settings": self.settings, "rows": self.rows}, indent=1)
        write_bytes(self.path, text.encode())
        write_bytes(self.path.with_suffix(".md"), self.table(self.rows).encode())


@dataclass
class KeyedResults:
    """Results by name in a JSON file, which is written again after every one."""

    path: Path
    settings: dict[str, Any]
    values: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.values = _kept(self.path, self.settings).get("values", {})

    def missing(self, key: str) -> bool:
        """Whether there is no such result yet."""
        return key not in self.values

    def add(self, key: str, value: Any) -> None:
        """Keep a result."""
        self.values[key] = value
        content = {"settings": self.settings, "values": self.values}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(self.path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def _kept(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What a file of results holds, if it is of these settings; nothing if it is not there."""
    if not path.exists():
        return {}
    content: dict[str, Any] = json.loads(path.read_text())
    if content["settings"] != settings:
        raise SystemExit(
            f"{path} holds results of other settings:\n  {content['settings']}\n"
            f"now they are\n  {settings}\nChoose another file for results, or delete it."
        )
    return content


def subset(path: Path, samples: Iterable[DensitySample]) -> Path:
    """A store of its own, complete or not there."""
    if not path.exists():
        unfinished = path.with_name(f"unfinished-{path.name}")
        shutil.rmtree(unfinished, ignore_errors=True)
        store = DensityStore.create(unfinished)
        for sample in samples:
            store.append(sample)
        unfinished.rename(path)
    return path


def save_picture(figure: Figure, path: Path) -> None:
    """Write a PNG that is whole or not there."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    write_bytes(path, picture.getvalue())


def show_progress() -> None:
    """Log errors where there is no progress bar."""
    import logging

    logging.basicConfig(level=logging.INFO, format="    %(message)s")
    for noisy in ("lightning", "matplotlib", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
