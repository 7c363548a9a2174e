"""Error on left-out frames against the number of training frames (arXiv 2508.04052, Fig. 2a).

    python benchmarks/learning_curve.py                 # data/water/*.h5
    python benchmarks/learning_curve.py --folds 6

Every run follows recipes/water-scan.yaml, which starts from the bundled model `water-pbe`. Fold k
leaves out frame k and trains on the frames that follow it, cyclically. Finished runs are kept in
the results file, an unfinished one resumes from its last checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean
from typing import Any

import yaml
from matplotlib.figure import Figure
from runs import REPOSITORY, Results, expand, parser, run_once, save_picture, show_progress

from eac_model.training import TrainingConfig

RECIPE: dict[str, Any] = yaml.safe_load(
    (REPOSITORY / "recipes" / "water-scan.yaml").read_text(encoding="utf-8")
)
"""That of the bundled model."""


def main() -> None:
    options = _options()
    frames = expand(options.frames)
    largest = max(options.sizes)
    if largest >= len(frames) or not 1 <= options.folds <= len(frames):
        raise SystemExit(
            f"There are {len(frames)} frames: one is left out, so --sizes must stay below that "
            "number, and --folds cannot exceed it."
        )
    settings = {
        "frames": [Path(frame).name for frame in frames],
        "steps": options.steps,
        "points": options.points,
        "learning_rate": options.learning_rate,
        "seed": options.seed,
        "recipe": {k: RECIPE[k] for k in ("network", "optimisation", "loss", "initialize_from")},
    }
    results = Results(options.output, settings, table)
    todo = [(size, fold) for size in options.sizes for fold in range(options.folds)]
    for number, (size, fold) in enumerate(todo, start=1):
        if results.has(frames=size, fold=fold):
            continue
        print(f"[{number}/{len(todo)}] {size} frames, left out {Path(frames[fold]).name}")
        followers = [frames[(fold + 1 + i) % len(frames)] for i in range(size)]
        config = as_in_the_recipe(options, followers, frames[fold])
        found = run_once(config, options.runs / f"{size}-{fold}")
        results.add({"frames": size, "fold": fold, **found})
        draw(results.rows, options.output.with_suffix(".png"))
        print(f"    {found['nmae_percent']:.3f} %  {found['seconds']:.0f} s", flush=True)
    print(table(results.rows))


def as_in_the_recipe(
    options: argparse.Namespace, train: list[str], left_out: str
) -> TrainingConfig:
    """The recipe's run on some frames."""
    data = {"train": train, "validation": left_out, "points_per_structure": options.points}
    changed = {"steps": options.steps, "learning_rate": options.learning_rate}
    return TrainingConfig.from_mapping(
        RECIPE
        | {
            "data": data,
            "optimisation": RECIPE["optimisation"] | changed,
            "validate_every": options.steps,
            "seed": options.seed,
            "accelerator": options.accelerator,
        }
    )


def by_size(rows: list[dict[str, Any]]) -> dict[int, list[float]]:
    """ε_mae of all folds, by number of training frames."""
    sizes = sorted({row["frames"] for row in rows})
    return {size: [row["nmae_percent"] for row in rows if row["frames"] == size] for size in sizes}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: mean and range of ε_mae for every number of frames."""
    lines = [
        "| training frames | ε_mae / % | smallest | largest | folds |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {size} | {mean(errors):.3f} | {min(errors):.3f} | {max(errors):.3f} | {len(errors)} |"
        for size, errors in by_size(rows).items()
    ]
    return "\n".join(lines) + "\n"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Picture of the table."""
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    curve = by_size(rows)
    for size, errors in curve.items():
        axes.plot([size] * len(errors), errors, "k.", markersize=4)
    axes.plot(list(curve), [mean(errors) for errors in curve.values()], "o-")
    axes.set(xlabel="training frames", ylabel="ε_mae on the frame left out / %")
    axes.set_xticks(list(curve))
    axes.grid(alpha=0.3)
    save_picture(figure, path)


def _options() -> argparse.Namespace:
    recipe = RECIPE["optimisation"]
    options = parser(__doc__ or "", "learning_curve", steps=recipe["steps"])
    options.set_defaults(points=5000, learning_rate=recipe["learning_rate"])
    options.add_argument(
        "--sizes", type=int, nargs="+", default=[1, 2, 4, 5], help="numbers of training frames"
    )
    found = options.parse_intermixed_args()
    show_progress()
    return found


if __name__ == "__main__":
    main()
