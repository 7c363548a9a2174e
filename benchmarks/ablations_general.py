"""What decides the recipe of a model of many elements, and how far more data would carry it.

    python benchmarks/ablations_general.py data/eac-pbe.store
    python benchmarks/ablations_general.py data/eac-pbe.store --only embedding l_max --steps 2000

One thing is changed at a time, at equal steps. Structures of some compositions of the store
(--left-out, chosen by the seed) are left out of training; the tables give their mean ε_mae. The
learning curve takes an eighth to all of the other structures, in networks of three widths. Finished
runs are kept in the results file, an unfinished one resumes from its last checkpoint.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase.formula import Formula
from matplotlib.figure import Figure
from runs import REPOSITORY, RESULTS, Results, run_once, save_picture, show_progress, subset

from eac_model.data import DensityStore
from eac_model.training import TrainingConfig
from eac_model.training.draws import left_out

BASE: dict[str, Any] = {
    "decoder": "linear",
    "superposition": True,
    "spin": True,
    "embedding": "both",
    "l_max": 3,
    "channels": 16,
    "interactions": 2,
    "atom_cutoff": 5.5,
    "point_cutoff": 5.0,
    "linear_functions": 12,
    "average_neighbors": 60,
    "onsite": "from-data",
}
"""Every row changes one thing of this network, or of :data:`LOSS`."""

LOSS: dict[str, Any] = {"kind": "nmae", "onsite_weight": 0}

CURVE = "learning curve"
PARTS = (8, 4, 2, 1)
"""The learning curve's amounts of data: all divided by these."""
WIDTHS = (8, 16, 32)
"""The learning curve's channels."""


@dataclass(frozen=True)
class Variant:
    """A row of the tables."""

    group: str
    name: str
    network: dict[str, Any] = field(default_factory=dict)
    loss: dict[str, Any] = field(default_factory=dict)
    part: int = 1
    """Trained on all structures divided by this."""

    @property
    def key(self) -> str:
        """What it differs in, as text; rows of one key are one run."""
        changed = {k: v for k, v in self.network.items() if BASE.get(k) != v}
        changed |= {k: v for k, v in self.loss.items() if LOSS[k] != v}
        changed |= {"part": self.part} if self.part > 1 else {}
        return "-".join(f"{k}={v}" for k, v in changed.items()) or "base"


def variants() -> list[Variant]:
    """All rows, by group."""
    rows = [
        Variant(CURVE, f"1/{part}", {"channels": width}, part=part)
        for width in WIDTHS
        for part in PARTS
    ]
    rows += [
        Variant("embedding", name, {"embedding": name})
        for name in ("one-hot", "shell-filling", "both")
    ]
    rows.append(Variant("embedding", "learned, 16", {"embedding": "learned", "embedding_size": 16}))
    # Blocks of the matrices D go up to L = 6, out of reach of l = 1. They take no part in training.
    rows += [Variant("l_max", str(n), {"l_max": n, "onsite": None}) for n in (1, 2)]
    rows += [Variant("l_max", str(n), {"l_max": n}) for n in (3, 4)]
    rows += [Variant("interactions", str(n), {"interactions": n}) for n in (1, 2, 3)]
    rows += [Variant("channels", str(n), {"channels": n}) for n in WIDTHS]
    rows += [Variant("atom cutoff", f"{r} Å", {"atom_cutoff": r}) for r in (4.5, 5.5, 6.5)]
    rows += [Variant("point cutoff", f"{r} Å", {"point_cutoff": r}) for r in (4.0, 5.0, 6.0)]
    rows += [
        Variant("superposition", "on" if on else "off", {"superposition": on})
        for on in (True, False)
    ]
    rows += [
        Variant("matrices D", "none", {"onsite": None}),
        Variant("matrices D", "readouts fitted after training"),
        Variant("matrices D", "in the loss, weight 0.005", loss={"onsite_weight": 0.005}),
    ]
    rows += [
        Variant("decoder", name, {"decoder": name})
        for name in ("linear", "value-weight", "linear+value-weight")
    ]
    rows += [
        Variant("weight", name, {"decoder": "value-weight", "weight": name})
        for name in ("I", "S", "MLP+S", "smooth")
    ]
    return rows


def main() -> None:
    options = _options()
    store = DensityStore.open(options.store)
    train, test = split(store, options.left_out, options.seed)
    settings = {
        name: getattr(options, name)
        for name in ("steps", "batch", "points", "learning_rate", "seed")
    }
    settings |= {"trained on": len(train), "left out": len(test), "base": BASE, "loss": LOSS}
    results = Results(options.output, settings, table)
    chosen = [row for row in variants() if not options.only or row.group in options.only]
    # What stands in several groups is trained once.
    runs = {row.key: row for row in chosen}
    for number, (key, row) in enumerate(runs.items(), start=1):
        if results.has(key=key):
            continue
        part = train[: len(train) // row.part]
        if not _elements(store, test) <= _elements(store, part):
            print(
                f"[{number}/{len(runs)}] {key}: {len(part)} structures lack an element of the test"
            )
            continue
        print(f"[{number}/{len(runs)}] {key}", flush=True)
        folder = options.runs / f"{len(train)}-{options.seed}"
        parts = {"test": test, f"train-{row.part}": part}
        data, left = (
            subset(folder / f"{name}.store", (store.read(index) for index in indices))
            for name, indices in reversed(parts.items())
        )
        found = run_once(_configuration(options, row, data, left), folder / key)
        results.add({"key": key, "structures": len(part), **found})
        draw(results.rows, options.output.with_suffix(".png"))
        print(f"    {found['nmae_percent']:.3f} %  {found['seconds']:.0f} s", flush=True)
    print(table(results.rows))


def split(store: DensityStore, compositions: int, seed: int) -> tuple[list[int], list[int]]:
    """Structures to train on and those of compositions that are left out.

    The former are in a random order, but those that bring an element, or spin, come first, so that
    all parts of them know as much as can be.
    """
    formulas = [Formula(entry.formula).reduce()[0].format("hill") for entry in store.entries]
    distinct = sorted(set(formulas))
    chosen = left_out(seed, [set(Formula(formula)) for formula in distinct], compositions)
    out = {distinct[index] for index in chosen}
    test = [index for index, formula in enumerate(formulas) if formula in out]
    rest = [index for index, formula in enumerate(formulas) if formula not in out]
    known: set[str] = set()
    first: list[int] = []
    for index in np.random.default_rng(seed).permutation(rest).tolist():
        brought = _elements(store, [index]) | ({"spin"} if store.entries[index].spin else set())
        if not brought <= known:
            known |= brought
            first.append(index)
    taken = set(first)
    others = [index for index in rest if index not in taken]
    return first + np.random.default_rng(seed).permutation(others).tolist(), test


def _elements(store: DensityStore, indices: list[int]) -> set[str]:
    return set().union(*(Formula(store.entries[index].formula) for index in indices))


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: ε_mae of every variant, and the learning curve."""
    by_key = {row["key"]: row for row in rows}
    lines = [
        "| group | variant | ε_mae / % | s / run | parameters |",
        "|---|---|---|---|---|",
    ]
    finished = [variant for variant in variants() if variant.key in by_key]
    groups = Counter(variant.group for variant in finished)
    for variant in finished:
        row = by_key[variant.key]
        # The base alone is nothing to compare.
        if variant.group != CURVE and groups[variant.group] > 1:
            lines.append(
                f"| {variant.group} | {variant.name} | {row['nmae_percent']:.2f} "
                f"| {row['seconds']:.0f} | {row['parameters']} |"
            )
    curve = curves(rows)
    if curve:
        sizes = sorted({size for line in curve.values() for size, _ in line})
        lines += ["", "| channels | " + " | ".join(f"{n} structures" for n in sizes) + " |"]
        lines.append("|---" * (len(sizes) + 1) + "|")
        for width, line in curve.items():
            found = dict(line)
            cells = (f"{found[n]:.2f}" if n in found else "" for n in sizes)
            lines.append(f"| {width} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def curves(rows: list[dict[str, Any]]) -> dict[int, list[tuple[int, float]]]:
    """Structures trained on and ε_mae in percent, for every number of channels."""
    by_key = {row["key"]: row for row in rows}
    found: dict[int, list[tuple[int, float]]] = {}
    for variant in variants():
        if variant.group == CURVE and (row := by_key.get(variant.key)) is not None:
            line = found.setdefault(variant.network["channels"], [])
            line.append((row["structures"], row["nmae_percent"]))
    return found


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Picture of the learning curve."""
    found = curves(rows)
    if not found:
        return
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    for width, line in found.items():
        axes.semilogx(*zip(*line, strict=True), "o-", label=f"{width} channels")
    sizes = sorted({size for line in found.values() for size, _ in line})
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set(xlabel="structures trained on", ylabel="ε_mae of compositions left out / %")
    axes.grid(alpha=0.3)
    axes.legend()
    save_picture(figure, path)


def _configuration(
    options: argparse.Namespace, row: Variant, train: Path, left: Path
) -> TrainingConfig:
    return TrainingConfig.from_mapping(
        {
            "data": {
                "train": str(train.absolute()),
                "validation": str(left.absolute()),
                "points_per_structure": options.points,
                "structures_per_batch": options.batch,
                "sampling": {"uniform": 0.6, "density": 0.4},
                "validation_points": 2000,
            },
            "network": BASE | row.network,
            "loss": LOSS | row.loss,
            "optimisation": {
                "steps": options.steps,
                "learning_rate": options.learning_rate,
                "warmup_steps": 50,
                "decay": [{"final": options.learning_rate / 100}],
                "ema_decay": 0.99,
                "gradient_clip": 1.0,
            },
            # Once, at the end: nothing is selected on what is left out.
            "validate_every": options.steps,
            "checkpoint_every": 200,
            "log_every": 100,
            "seed": options.seed,
            "accelerator": options.accelerator,
        }
    )


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("store", type=Path, help="reference data, from `eac data gpaw`")
    options.add_argument("--steps", type=int, default=1500, help="of a run (default: 1500)")
    options.add_argument("--batch", type=int, default=2, help="structures a step (default: 2)")
    options.add_argument("--points", type=int, default=600, help="of a structure (default: 600)")
    options.add_argument("--learning-rate", type=float, default=0.006, help="(default: 0.006)")
    options.add_argument("--left-out", type=int, default=60, help="compositions (default: 60)")
    options.add_argument("--seed", type=int, default=0, help="of weights and draws")
    groups = list(dict.fromkeys(row.group for row in variants()))
    options.add_argument("--only", nargs="+", choices=groups, help="groups to run (default: all)")
    options.add_argument("--accelerator", choices=["auto", "cpu", "gpu"], default="auto")
    options.add_argument(
        "--output",
        type=Path,
        default=RESULTS / "ablations_general.json",
        help="results; .md and .png beside it",
    )
    options.add_argument(
        "--runs",
        type=Path,
        default=REPOSITORY / "runs" / "ablations_general",
        help="folder of unfinished runs",
    )
    found = options.parse_args()
    show_progress()
    return found


if __name__ == "__main__":
    main()
