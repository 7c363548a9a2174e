"""Ablations in the manner of arXiv 2508.04052, Tables 2-4: equal budgets, frames left out.

    python benchmarks/ablations.py                      # data/water/*.h5
    python benchmarks/ablations.py --seconds 300        # equal time instead of equal steps
    python benchmarks/ablations.py my/*.h5 --only weight decoder

Finished runs are kept in the results file, an unfinished one resumes from its last checkpoint.
"""

from __future__ import annotations

import argparse
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any

from runs import (
    Results,
    configuration,
    expand,
    parser,
    run_once,
    seconds_per_step,
    show_progress,
    unfinished_steps,
)

CONCATENATIONS = ("distance", "basis", "type")
WEIGHTS = ("I", "S", "MLP+S", "MLPxS", "SoftmaxxS", "smooth")

BASE: dict[str, Any] = {
    "decoder": "value-weight",
    "weight": "S",
    "concatenate": list(CONCATENATIONS),
    "embedding": "both",
    "superposition": False,
    "l_max": 3,
    "channels": 16,
    "interactions": 2,
    "point_cutoff": 4.0,
}
"""Every row changes one thing of this network."""


def variants() -> list[tuple[str, str, dict[str, Any]]]:
    """Group, name and changed keys of every row."""
    rows: list[tuple[str, str, dict[str, Any]]] = []
    rows += [("weight", weight, {"weight": weight}) for weight in WEIGHTS]
    for size in range(len(CONCATENATIONS) + 1):
        for chosen in combinations(CONCATENATIONS, size):
            name = "+".join(chosen) or "none"
            rows.append(("concatenation", name, {"concatenate": list(chosen)}))
    rows += [
        ("embedding", embedding, {"embedding": embedding})
        for embedding in ("one-hot", "shell-filling", "both")
    ]
    rows += [
        ("decoder", decoder, {"decoder": decoder})
        for decoder in ("linear", "value-weight", "linear+value-weight")
    ]
    rows += [
        ("superposition", f"{decoder}, {'on' if on else 'off'}", {"decoder": decoder} | on_off)
        for decoder in ("linear", "value-weight")
        for on, on_off in ((False, {"superposition": False}), (True, {"superposition": True}))
    ]
    return rows


def main() -> None:
    options = _options()
    frames = expand(options.frames)
    if not 1 <= options.folds <= len(frames) or len(frames) < 2:
        raise SystemExit(f"--folds must lie between 1 and the {len(frames)} frames (two at least).")
    settings = {
        "frames": [Path(frame).name for frame in frames],
        "steps": None if options.seconds else options.steps,
        "seconds": options.seconds,
        "points": options.points,
        "learning_rate": options.learning_rate,
        "seed": options.seed,
        "base": BASE,
    }
    results = Results(options.output, settings, table)
    chosen = [row for row in variants() if not options.only or row[0] in options.only]
    # A network that stands in several groups is trained once.
    networks = {_key(BASE | change): BASE | change for _, _, change in chosen}
    todo = [(network, fold) for network in networks.values() for fold in range(options.folds)]
    for number, (network, fold) in enumerate(todo, start=1):
        key = _key(network)
        if results.has(key=key, fold=fold):
            continue
        print(f"[{number}/{len(todo)}] left out {Path(frames[fold]).name}: {key}", flush=True)
        rest = [frame for frame in frames if frame != frames[fold]]
        directory = options.runs / f"{_folder(key)}-{fold}"
        config = configuration(options, rest, [frames[fold]], network, options.steps)
        if options.seconds:
            steps = unfinished_steps(directory)
            if steps is None:
                steps = max(20, round(options.seconds / seconds_per_step(config)))
            config = configuration(options, rest, [frames[fold]], network, steps)
        found = run_once(config, directory)
        results.add({"key": key, "fold": fold, **found})
        print(f"    {found['nmae_percent']:.3f} %  {found['seconds']:.0f} s", flush=True)
    print(table(results.rows))


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: ε_mae of every variant, mean over the frames left out."""
    lines = [
        "| group | variant | ε_mae / % | steps | s / run | parameters |",
        "|---|---|---|---|---|---|",
    ]
    for group, name, change in variants():
        found = [row for row in rows if row["key"] == _key(BASE | change)]
        if found:
            lines.append(
                f"| {group} | {name} | {mean(row['nmae_percent'] for row in found):.3f} "
                f"| {mean(row['steps'] for row in found):.0f} "
                f"| {mean(row['seconds'] for row in found):.0f} | {found[0]['parameters']} |"
            )
    return "\n".join(lines) + "\n"


def _options() -> argparse.Namespace:
    options = parser(__doc__ or "", "ablations", steps=600)
    options.add_argument(
        "--seconds", type=float, help="training time of a run instead of --steps (measured)"
    )
    groups = sorted({group for group, _, _ in variants()})
    options.add_argument("--only", nargs="+", choices=groups, help="groups to run (default: all)")
    found = options.parse_intermixed_args()
    show_progress()
    return found


def _key(network: dict[str, Any]) -> str:
    """What a row differs in, as text."""
    shown = ("decoder", "weight", "concatenate", "embedding", "superposition")
    # The linear decoder reads none of the keys of the value-weight one.
    skipped = ("weight", "concatenate") if network["decoder"] == "linear" else ()
    parts = []
    for name in shown:
        if name not in skipped:
            value = network[name]
            text = "+".join(value) or "none" if isinstance(value, list) else str(value)
            parts.append(f"{name}={text}")
    return " ".join(parts)


def _folder(key: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in key.replace("+", "p"))


if __name__ == "__main__":
    main()
