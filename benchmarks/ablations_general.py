"""What decides the recipe of a model of many elements: one thing changed at a time, equal steps.

    python benchmarks/ablations_general.py data/eac-pbe.store
    python benchmarks/ablations_general.py data/eac-pbe.store --only embedding l_max --steps 2000

Some structures of the store (--left-out, chosen by the seed) are left out of training; the table
gives their mean ε_mae. Finished runs are kept in the results file, an unfinished one resumes from
its last checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from runs import REPOSITORY, RESULTS, Results, run_once, show_progress

from eac_model.data import DensityStore
from eac_model.training import TrainingConfig

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


def variants() -> list[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """Group, name, changed keys of the network and of the loss of every row."""
    rows: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
        ("embedding", name, {"embedding": name}, {})
        for name in ("one-hot", "shell-filling", "both")
    ]
    rows.append(("embedding", "learned, 16", {"embedding": "learned", "embedding_size": 16}, {}))
    # Blocks of the matrices D go up to L = 6, out of reach of l = 1. They take no part in training.
    rows += [("l_max", str(l_max), {"l_max": l_max, "onsite": None}, {}) for l_max in (1, 2)]
    rows += [("l_max", str(l_max), {"l_max": l_max}, {}) for l_max in (3, 4)]
    rows += [("interactions", str(n), {"interactions": n}, {}) for n in (1, 2, 3)]
    rows += [("channels", str(n), {"channels": n}, {}) for n in (8, 16, 32)]
    rows += [("atom cutoff", f"{r} Å", {"atom_cutoff": r}, {}) for r in (4.5, 5.5, 6.5)]
    rows += [("point cutoff", f"{r} Å", {"point_cutoff": r}, {}) for r in (4.0, 5.0, 6.0)]
    rows += [
        ("superposition", "on" if on else "off", {"superposition": on}, {}) for on in (True, False)
    ]
    rows += [
        ("on-site data", "none", {"onsite": None}, {}),
        ("on-site data", "fitted", {}, {}),
        ("on-site data", "weight 0.005", {}, {"onsite_weight": 0.005}),
    ]
    rows += [
        ("decoder", name, {"decoder": name}, {})
        for name in ("linear", "value-weight", "linear+value-weight")
    ]
    rows += [
        ("weight", name, {"decoder": "value-weight", "weight": name}, {})
        for name in ("I", "S", "MLP+S", "smooth")
    ]
    return rows


def main() -> None:
    options = _options()
    settings = {
        name: getattr(options, name)
        for name in ("steps", "batch", "points", "learning_rate", "left_out", "seed")
    }
    settings |= {"structures": len(DensityStore.open(options.store)), "base": BASE, "loss": LOSS}
    results = Results(options.output, settings, table)
    chosen = [row for row in variants() if not options.only or row[0] in options.only]
    # What stands in several groups is trained once.
    runs = {_key(network, loss): (network, loss) for _, _, network, loss in chosen}
    for number, (key, (network, loss)) in enumerate(runs.items(), start=1):
        if results.has(key=key):
            continue
        print(f"[{number}/{len(runs)}] {key}", flush=True)
        found = run_once(_configuration(options, network, loss), options.runs / key)
        results.add({"key": key, **found})
        print(f"    {found['nmae_percent']:.3f} %  {found['seconds']:.0f} s", flush=True)
    print(table(results.rows))


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: ε_mae of every variant on the structures left out."""
    lines = ["| group | variant | ε_mae / % | s / run | parameters |", "|---|---|---|---|---|"]
    by_key = {row["key"]: row for row in rows}
    for group, name, network, loss in variants():
        if (row := by_key.get(_key(network, loss))) is not None:
            lines.append(
                f"| {group} | {name} | {row['nmae_percent']:.3f} | {row['seconds']:.0f} "
                f"| {row['parameters']} |"
            )
    return "\n".join(lines) + "\n"


def _configuration(
    options: argparse.Namespace, network: dict[str, Any], loss: dict[str, Any]
) -> TrainingConfig:
    return TrainingConfig.from_mapping(
        {
            "data": {
                "train": str(options.store.absolute()),
                "validation": options.left_out,
                "points_per_structure": options.points,
                "structures_per_batch": options.batch,
                "sampling": {"uniform": 0.6, "density": 0.4},
                "validation_points": 2000,
            },
            "network": BASE | network,
            "loss": LOSS | loss,
            "optimisation": {
                "steps": options.steps,
                "learning_rate": options.learning_rate,
                "warmup_steps": 50,
                "decay": [{"final": options.learning_rate / 100}],
                "ema_decay": 0.99,
                "gradient_clip": 1.0,
            },
            "validate_every": options.steps,
            "checkpoint_every": 200,
            "log_every": 100,
            "seed": options.seed,
            "accelerator": options.accelerator,
        }
    )


def _key(network: dict[str, Any], loss: dict[str, Any]) -> str:
    """What a row differs in, as text."""
    changed = {k: v for k, v in network.items() if BASE.get(k) != v}
    changed |= {k: v for k, v in loss.items() if LOSS[k] != v}
    return "-".join(f"{k}={v}" for k, v in changed.items()) or "base"


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("store", type=Path, help="reference data, from `eac data gpaw`")
    options.add_argument("--steps", type=int, default=1000, help="of a run (default: 1000)")
    options.add_argument("--batch", type=int, default=2, help="structures a step (default: 2)")
    options.add_argument("--points", type=int, default=1000, help="of a structure (default: 1000)")
    options.add_argument("--learning-rate", type=float, default=0.01, help="(default: 0.01)")
    options.add_argument("--left-out", type=int, default=40, help="structures (default: 40)")
    options.add_argument("--seed", type=int, default=0, help="of weights and draws")
    groups = list(dict.fromkeys(group for group, *_ in variants()))
    options.add_argument("--only", nargs="+", choices=groups, help="groups to run (default: all)")
    options.add_argument("--accelerator", choices=["auto", "cpu", "gpu"], default="auto")
    options.add_argument(
        "--output",
        type=Path,
        default=RESULTS / "ablations_general.json",
        help="results; .md beside it",
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
