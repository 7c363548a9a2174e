"""What a trained model is worth to a user with a handful of frames: fine-tuned, or from scratch.

    python benchmarks/fine_tuning.py data/gaas.store --test 6 --folds 2
    python benchmarks/fine_tuning.py data/water/*.h5 --test 2 --sizes 1 2 4

The frames are density files (CHGCAR, cube, sampled .h5 …), a glob of them, or a store. Some are
drawn for testing and never trained on; of the others the first 1, 2, 4, 8 of one random order are.
On each selection two networks of one shape are trained, with the same number of steps and points:
one starts from the model, as in recipes/fine-tuning.yaml, the other from random weights, each at a
learning rate that suits it. Only densities are learned here; frames may be of another code or
functional than the model. Where they are not, the model as it is stands in the table, too, as zero
frames. Finished runs are kept in the results file, an unfinished one resumes from its checkpoint.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from runs import (
    REPOSITORY,
    RESULTS,
    Help,
    Results,
    expand,
    run_once,
    save_picture,
    show_progress,
    subset,
)

from eac_ase import EACDensity
from eac_ase.evaluation import evaluate_sample, kinds_differ, samples_in
from eac_model.checkpoint import ModelHeader, read_header
from eac_model.data import DensitySample
from eac_model.errors import UnknownElementError
from eac_model.files import digest
from eac_model.registry import find_model
from eac_model.training import TrainingConfig

STARTS = ("fine-tuned", "from scratch")


def main() -> None:
    options = _options()
    model = find_model(options.model)
    header = read_header(model)
    frames = [sample for path in expand(options.frames) for _, sample in samples_in(Path(path))]
    if max(options.sizes) + options.test > len(frames):
        raise SystemExit(
            f"There are {len(frames)} frames: too few to train on {max(options.sizes)} (--sizes) "
            f"and to test on {options.test} others (--test)."
        )
    settings = {
        "frames": [Path(path).name for path in options.frames],
        "model": f"{header.card.name} {digest(model)}",
        "test": options.test,
        "steps": options.steps,
        "points": options.points,
        "learning_rates": [options.tuning_rate, options.learning_rate],
    }
    results = Results(options.output, settings, table)
    for fold in range(options.folds):
        order = np.random.default_rng([options.seed, fold]).permutation(len(frames))
        test = [frames[i] for i in order[: options.test]]
        train = [frames[i] for i in order[options.test :]]
        as_it_is(model, test, fold, results)
        for size in options.sizes:
            for start in STARTS:
                if results.has(frames=size, start=start, fold=fold):
                    continue
                print(f"{size} frames, {start}, draw {fold + 1}/{options.folds}", flush=True)
                slug = f"{size}-{start.replace(' ', '-')}-{fold}"
                found = learn(options, model, header, train[:size], test, options.runs / slug)
                results.add({"frames": size, "start": start, "fold": fold, **found})
                draw(results.rows, options.output.with_suffix(".png"))
                print(f"    {found['nmae_percent']:.3f} %  {found['seconds']:.0f} s", flush=True)
    print(table(results.rows))


def as_it_is(model: Path, test: Sequence[DensitySample], fold: int, results: Results) -> None:
    """Error of the model before any frame was seen, if its densities are of the same kind."""
    if results.has(frames=0, fold=fold):
        return
    calculator = EACDensity(model)
    theirs = calculator.card.provenance
    for sample in test:
        ours = sample.provenance
        same = (theirs.code.split()[0], theirs.functional) == (
            ours.code.split()[0],
            ours.functional,
        )
        if kinds_differ(calculator, sample) or not same:
            return
    try:
        errors = [evaluate_sample(calculator, sample).density.nmae_percent for sample in test]
    except UnknownElementError as error:
        raise SystemExit(f"--model {model.stem}: {error}") from error
    results.add(
        {"frames": 0, "start": STARTS[0], "fold": fold, "nmae_percent": mean(errors), "steps": 0}
    )


def learn(
    options: argparse.Namespace,
    model: Path,
    header: ModelHeader,
    train: Sequence[DensitySample],
    test: Sequence[DensitySample],
    folder: Path,
) -> dict[str, Any]:
    """One training; its error on the frames for testing."""
    tuned = "fine-tuned" in folder.name
    steps = options.steps
    config: dict[str, Any] = {
        "data": {
            "train": str(subset(folder / "train.store", train)),
            "validation": str(subset(folder / "test.store", test)),
            "points_per_structure": options.points,
            "validation_points": options.test_points,
        },
        "optimisation": {
            "steps": steps,
            "learning_rate": options.tuning_rate if tuned else options.learning_rate,
            "warmup_steps": min(100, max(1, steps // 10)),
            "ema_decay": 0.995,
        },
        # Validated once, at the end: nothing is selected on the frames for testing.
        "validate_every": steps,
        "checkpoint_every": max(1, min(500, steps // 4)),
        "log_every": max(1, min(50, steps // 4)),
        "seed": options.seed,
        "accelerator": options.accelerator,
    }
    if tuned:
        config |= {"initialize_from": str(model), "network": {"onsite": None}}
    else:
        config["network"] = header.config.model_dump(mode="json") | {"onsite": None}
        config["network"].pop("elements")
        config["network"]["spin"] = any(sample.spin_density is not None for sample in train)
    found = run_once(TrainingConfig.from_mapping(config), folder / "run")
    shutil.rmtree(folder)
    return found


def errors_of(rows: list[dict[str, Any]], start: str) -> dict[int, list[float]]:
    """ε_mae of all draws, by number of frames."""
    found: dict[int, list[float]] = {}
    for row in sorted(rows, key=lambda row: row["frames"]):
        if row["start"] == start:
            found.setdefault(row["frames"], []).append(row["nmae_percent"])
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: both starts, and how many times better the better one is."""
    tuned, scratch = (errors_of(rows, start) for start in STARTS)
    lines = [
        "| frames | fine-tuned, ε_mae / % | from scratch, ε_mae / % | ratio | draws |",
        "|---|---|---|---|---|",
    ]
    for size in sorted(tuned | scratch):
        one, two = tuned.get(size), scratch.get(size)
        ratio = f"{mean(two) / mean(one):.1f}" if one and two else "–"
        lines.append(
            f"| {size} | {_text(one)} | {_text(two)} | {ratio} | {len(one or two or [])} |"
        )
    return "\n".join(lines) + "\n"


def _text(errors: list[float] | None) -> str:
    if not errors:
        return "–"
    spread = f" ({min(errors):.2f} … {max(errors):.2f})" if len(errors) > 1 else ""
    return f"{mean(errors):.2f}{spread}"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Picture of the table."""
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    for start, style in zip(STARTS, ("o-", "s--"), strict=True):
        curve = errors_of(rows, start)
        if curve:
            line = axes.plot(list(curve), [mean(found) for found in curve.values()], style)[0]
            line.set_label(start)
            for size, errors in curve.items():
                axes.plot([size] * len(errors), errors, ".", color=line.get_color(), markersize=4)
    axes.set(xlabel="frames", ylabel="ε_mae on unseen frames / %", yscale="log")
    axes.set_xticks(sorted({row["frames"] for row in rows}))
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    save_picture(figure, path)


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    options.add_argument("frames", nargs="+", help="density files, globs or stores")
    options.add_argument("--model", default="eac-pbe", help="bundled model or model file")
    options.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8], help="frames")
    options.add_argument("--test", type=int, default=4, help="frames for testing")
    options.add_argument("--folds", type=int, default=1, help="random draws of the frames")
    options.add_argument("--steps", type=int, default=400, help="optimisation steps of a run")
    options.add_argument("--points", type=int, default=1500, help="points a step")
    options.add_argument("--test-points", type=int, default=8000, help="points of a test frame")
    options.add_argument("--tuning-rate", type=float, default=5e-3, help="learning rate, tuned")
    options.add_argument("--learning-rate", type=float, default=1e-2, help="… from scratch")
    options.add_argument("--seed", type=int, default=0, help="of draws and weights")
    options.add_argument(
        "--accelerator", choices=["auto", "cpu", "gpu"], default="auto", help="device to train on"
    )
    options.add_argument(
        "--output", type=Path, default=RESULTS / "fine_tuning.json", help=".md and .png beside it"
    )
    options.add_argument(
        "--runs", type=Path, default=REPOSITORY / "runs" / "fine_tuning", help="unfinished runs"
    )
    found = options.parse_args()
    show_progress()
    return found


if __name__ == "__main__":
    main()
