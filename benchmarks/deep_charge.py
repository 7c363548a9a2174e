"""One structure is enough: Deep Charge trained on points of one crystal (PRB 108, 235159).

    eac data gpaw recipes/data/deep-charge.yaml -o data/deep-charge.store
    python benchmarks/deep_charge.py                      # data/deep-charge.store
    python benchmarks/deep_charge.py --points 1000 10000 --steps 2000 --elements Si

For every element a network is trained on random grid points of the first structure of the store
that consists of it, and tested on all grid points of the structures of it in the store beside it
(…-test.store). Finished runs are kept in the results file, an unfinished one resumes from its last
checkpoint. The densities are GPAW's pseudo densities, those of the paper VASP's valence densities:
errors per volume compare, errors near nuclei do not.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from runs import REPOSITORY, RESULTS, Help, Results, save_picture, show_progress, subset

from eac_ase import EACDensity
from eac_ase.evaluation import SampleErrors, evaluate_sample
from eac_model.data import DensitySample, DensityStore
from eac_model.training import TrainingConfig, train
from eac_model.training.files import RunFiles, read_metrics

PUBLISHED = {"Si": 6.7e-4, "Al": 6.0e-4}
"""MAE on unseen structures, e/Å³, trained on 10⁵ points of one structure."""

NETWORKS: dict[str, dict[str, Any]] = {
    "deep-charge": {"architecture": "deep-charge", "superposition": False},
    "deep-charge + free atoms": {"architecture": "deep-charge", "superposition": True},
    "eac-net": {"superposition": True},
}
"""The paper's network; the same learning the difference to superposed atoms; this project's."""


def main() -> None:
    options = _options()
    settings = {
        "store": options.store.name,
        "optimizer": options.optimizer,
        "learning_rate": options.learning_rate,
        "seed": options.seed,
    }
    results = Results(options.output, settings, table)
    store = DensityStore.open(options.store)
    unseen = options.store.with_name(f"{options.store.stem}-test.store")
    todo = [
        (network, element, count)
        for network in options.networks
        for element in options.elements
        for count in options.points
    ]
    for number, (network, element, count) in enumerate(todo, start=1):
        key = {
            "network": network,
            "element": element,
            "points": count,
            "steps": options.steps,
            "points_per_step": options.points_per_step,
        }
        if results.has(**key):
            continue
        seen = samples_of(store, element)[0]
        print(f"[{number}/{len(todo)}] {network}, {element}, {count} points", flush=True)
        slug = network.replace(" + ", "-").replace(" ", "-")
        folder = (
            options.runs / f"{slug}-{element}-{count}-{options.steps}x{options.points_per_step}"
        )
        calculator, figures = learn(options, NETWORKS[network], seen, count, folder)
        tests = samples_of(DensityStore.open(unseen), element)
        found = test(calculator, tests) | figures
        shutil.rmtree(folder)
        results.add(key | found)
        draw(results.rows, options.output.with_suffix(".png"))
        print(f"    MAE {found['mae']:.2e} e/Å³  {found['seconds']:.0f} s", flush=True)
    print(table(results.rows))


def samples_of(store: DensityStore, element: str) -> list[DensitySample]:
    """All structures of one element."""
    chosen = [
        store.read(index)
        for index, entry in enumerate(store.entries)
        if entry.formula.rstrip("0123456789") == element
    ]
    if not chosen:
        raise SystemExit(f"{store.path} holds no structure of {element} alone.")
    return chosen


def learn(
    options: argparse.Namespace,
    network: dict[str, Any],
    seen: DensitySample,
    count: int,
    folder: Path,
) -> tuple[EACDensity, dict[str, Any]]:
    """Train on some points of a structure; the model, and figures of the run."""
    count = min(count, seen.density.size)
    rng = np.random.default_rng(options.seed)
    chosen = np.sort(rng.choice(seen.density.size, count, replace=False))
    points = subset(folder / "points.store", [seen.select(chosen)])
    steps = options.steps
    config = TrainingConfig.from_mapping(
        {
            "data": {
                "train": str(points),
                "points_per_structure": options.points_per_step,
            },
            "network": network,
            "optimisation": {
                "steps": steps,
                "optimizer": options.optimizer,
                "learning_rate": options.learning_rate,
                "warmup_steps": min(100, steps // 5),
                "decay": [{"final": options.learning_rate / 50}],
            },
            "checkpoint_every": max(1, min(100, steps // 4)),
            "log_every": max(1, min(50, steps // 4)),
            "seed": options.seed,
            "accelerator": options.accelerator,
        }
    )
    model = train(config, folder / "run", resume=True)
    rows = read_metrics(RunFiles(folder / "run").metrics)
    calculator = EACDensity(model)
    return calculator, {
        "train_nmae_percent": rows[-1]["train_nmae_percent"],
        "atoms": len(seen.atoms),
        "points_used": count,
        "seconds": rows[-1]["seconds"],
        "parameters": sum(p.numel() for p in calculator.network.parameters()),
    }


def test(calculator: EACDensity, samples: list[DensitySample]) -> dict[str, Any]:
    """Errors at all points of some structures."""
    errors = SampleErrors()
    for sample in samples:
        errors += evaluate_sample(calculator, sample)
    figures = errors.as_dict()
    return {
        "mae": figures["mae"],
        "max_error": figures["max_error"],
        "nmae_percent": figures["nmae_percent"],
        "test_points": sum(sample.density.size for sample in samples),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: errors of all runs."""
    lines = [
        "| network | element, atoms | points | MAE / 10⁻⁴ e Å⁻³ | published | ε_mae / % | "
        "ε_mae in training / % | steps × points | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['network']} | {row['element']}{row['atoms']} | {row['points_used']} | "
        f"{1e4 * row['mae']:.1f} | {1e4 * PUBLISHED[row['element']]:.1f} | "
        f"{row['nmae_percent']:.2f} | {row['train_nmae_percent']:.2f} | "
        f"{row['steps']} × {row['points_per_step']} | "
        f"{row['seconds']:.0f} |"
        for row in sorted(rows, key=lambda r: (r["network"], r["element"], r["points"]))
    ]
    return "\n".join(lines) + "\n"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Errors against the number of points, a panel an element."""
    elements = sorted({row["element"] for row in rows})
    figure = Figure(figsize=(4.2 * len(elements), 3.6), layout="constrained")
    for axes, element in zip(
        np.atleast_1d(figure.subplots(1, len(elements))), elements, strict=True
    ):
        for network in NETWORKS:
            curve = sorted(
                (row["points_used"], row["mae"])
                for row in rows
                if (row["element"], row["network"]) == (element, network)
            )
            if curve:
                axes.loglog(*zip(*curve, strict=True), "o-", label=network)
        axes.axhline(PUBLISHED[element], color="k", linestyle="--", label="published, 10⁵ points")
        axes.set(xlabel="training points", ylabel="MAE on unseen structures / e Å⁻³", title=element)
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize="small")
    save_picture(figure, path)


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    options.add_argument(
        "store",
        nargs="?",
        type=Path,
        default=REPOSITORY / "data" / "deep-charge.store",
        help="store with the structures to learn from",
    )
    options.add_argument("--elements", nargs="+", default=list(PUBLISHED), choices=list(PUBLISHED))
    options.add_argument(
        "--points",
        type=int,
        nargs="+",
        default=[1000, 3000, 10_000, 30_000, 100_000],
        help="numbers of training points",
    )
    options.add_argument(
        "--networks", nargs="+", default=["deep-charge"], choices=list(NETWORKS), help="networks"
    )
    options.add_argument("--steps", type=int, default=20_000, help="optimisation steps of a run")
    options.add_argument("--points-per-step", type=int, default=500, help="points a step")
    options.add_argument("--optimizer", choices=["adam", "muon"], default="muon", help="optimiser")
    options.add_argument("--learning-rate", type=float, default=6e-3, help="after the warm-up")
    options.add_argument("--seed", type=int, default=0, help="of weights and draws")
    options.add_argument(
        "--accelerator", choices=["auto", "cpu", "gpu"], default="auto", help="device to train on"
    )
    options.add_argument(
        "--output",
        type=Path,
        default=RESULTS / "deep_charge.json",
        help="results; .md, .png beside",
    )
    options.add_argument(
        "--runs",
        type=Path,
        default=REPOSITORY / "runs" / "deep_charge",
        help="folder of unfinished runs",
    )
    found = options.parse_intermixed_args()
    found.store = found.store.absolute()
    show_progress()
    return found


if __name__ == "__main__":
    main()
