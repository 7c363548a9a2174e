"""All networks on equal terms: one table; and time and error against the size of EAC-Net.

    python benchmarks/networks.py --ecd data/ecd-mini --water "data/water/*.h5"
    python benchmarks/networks.py --silicon data/si-pbe.store
    python benchmarks/networks.py --water "data/water/*.h5" --only ChargE3Net "Deep Charge"

Every network is trained for about --seconds on the same data with the same points a step; the
number of steps follows from a short training that is thrown away. Times are those of the clock: run
it on one thread (OMP_NUM_THREADS=1) of a machine that does nothing else. All learn the difference
to superposed free atoms. ECD-mini: its PBE training split, tested on the test split. Water: all
frames but the last, tested on that one. The e3nn form of EAC-Net is the same network, written with
e3nn's tensor products: between atoms, and between atoms and points.

Silicon repeats Fig. 3 of arXiv 2508.04052: the diamond structures of the store, the last four for
testing, EAC-Net with l_max 2 and 3 and a growing number of channels, for --steps each.

Finished rows are kept in the results file; a training that was cut off goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from engine import e3nn_products
from matplotlib.figure import Figure
from runs import (
    REPOSITORY,
    RESULTS,
    Help,
    Results,
    configuration,
    expand,
    run_once,
    save_picture,
    seconds_per_step,
    show_progress,
    subset,
    unfinished_steps,
)

from eac_ase import EACDensity
from eac_ase.ecd import EcdSet
from eac_ase.evaluation import samples_in
from eac_model.checkpoint import ModelCard, save_model
from eac_model.data import DensitySample, DensityStore
from eac_model.metrics import DensityErrors
from eac_model.neighbors import atom_graph, point_pairs
from eac_model.network import (
    AnyNetworkConfig,
    DensityNetwork,
    EACNet,
    build,
    network_config,
)
from eac_model.training import TrainingConfig

EAC: dict[str, Any] = {"decoder": "value-weight", "weight": "MLPxS", "l_max": 3, "channels": 16}
NETWORKS: dict[str, dict[str, Any]] = {
    "superposition of atoms": {},
    "EAC-Net, linear decoder": {"decoder": "linear", "l_max": 3, "channels": 32},
    "EAC-Net (zonal form)": EAC,
    "EAC-Net (e3nn form)": EAC,
    "ChargE3Net": {
        "architecture": "charge3net",
        "l_max": 3,
        "channels": 64,
        "interactions": 2,
        "radial_hidden": [32],
    },
    "Deep Charge": {"architecture": "deep-charge"},
}
"""Rows of the table. ChargE3Net is smaller than published (500 channels, l_max 4, 3 layers), a step
of which takes many seconds on a core."""

INFERENCE_POINTS = 2000
TEST_POINTS = 3000
"""Of every test structure."""


def main() -> None:
    options = _options()
    settings = {
        "seconds": options.seconds,
        "points": options.points,
        "steps": options.steps,
        "learning_rate": options.learning_rate,
        "seed": options.seed,
    }
    results = Results(options.output, settings, table)
    for name, seen, unseen in data_sets(options):
        for network in options.only:
            if not results.has(data=name, network=network):
                print(f"{name}, {network}", flush=True)
                folder = options.runs / f"{name}, {network}"
                row = one_network(options, network, seen, unseen, folder)
                results.add({"data": name, "network": network, **row})
                print(f"    {row['nmae_percent']:.3f} %", flush=True)
    if options.silicon is not None:
        seen, unseen = silicon(options)
        for channels, l_max in product(options.channels, (2, 3)):
            key = {"data": "Si", "network": f"l_max {l_max}, {channels} channels"}
            if not results.has(**key):
                print(key["network"], flush=True)
                results.add(key | one_size(options, l_max, channels, seen, unseen))
                draw(results.rows, options.output.with_suffix(".png"))
    print(table(results.rows))


def data_sets(options: argparse.Namespace) -> Iterator[tuple[str, list[str], list[str]]]:
    """Name, files to train on, files to test."""
    if options.ecd is not None:
        ecd = EcdSet.open(options.ecd, "pbe")
        files = [
            subset(options.runs / f"ecd-{split}.store", (ecd.read(n) for n in ecd.of_split(split)))
            for split in ("train", "test")
        ]
        yield "ECD-mini", [str(files[0])], [str(files[1])]
    if options.water:
        frames = expand(options.water)
        yield "water", frames[:-1], frames[-1:]


def silicon(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Stores of the diamond structures: to train on, and the last four."""
    store = DensityStore.open(options.silicon)
    chosen = [i for i, entry in enumerate(store.entries) if entry.key.startswith("diamond/")]
    if len(chosen) < 6:
        raise SystemExit(f"--silicon {options.silicon}: there are too few diamond structures.")
    parts = {"train": chosen[:-4], "test": chosen[-4:]}
    paths = [
        subset(options.runs / f"si-{part}.store", (store.read(i) for i in indices))
        for part, indices in parts.items()
    ]
    return [str(paths[0])], [str(paths[1])]


def one_network(
    options: argparse.Namespace, name: str, seen: list[str], unseen: list[str], folder: Path
) -> dict[str, Any]:
    """Figures of a row of the table."""
    network = NETWORKS[name] | {"superposition": True}
    if name == "superposition of atoms":
        return superposition(options, seen, unseen)
    with form("e3nn" if "e3nn" in name else "zonal"):
        config = run_of(options, network, seen, unseen, 100)
        seconds = seconds_per_step(config)
        steps = unfinished_steps(folder) or max(20, round(options.seconds / seconds))
        config = run_of(options, network, seen, unseen, steps)
        rate = points_per_second(config, unseen[0])
        found = run_once(config, folder)
    return found | {"seconds_per_step": seconds, "points_per_second": rate}


def one_size(
    options: argparse.Namespace, l_max: int, channels: int, seen: list[str], unseen: list[str]
) -> dict[str, Any]:
    """Figures of a size of EAC-Net: errors after equal steps, times in both forms."""
    network = EAC | {"superposition": True, "l_max": l_max, "channels": channels}
    config = run_of(options, network, seen, unseen, options.steps)
    rates, times = {}, {}
    for which in ("zonal", "e3nn"):
        with form(which):
            times[which] = seconds_per_step(config)
            rates[which] = points_per_second(config, unseen[0])
    found = run_once(config, options.runs / f"Si, {l_max}, {channels}, {options.steps}")
    return found | {
        "l_max": l_max,
        "channels": channels,
        "seconds_per_step": times["zonal"],
        "seconds_per_step_e3nn": times["e3nn"],
        "points_per_second": rates["zonal"],
        "points_per_second_e3nn": rates["e3nn"],
    }


def run_of(
    options: argparse.Namespace,
    network: dict[str, Any],
    seen: list[str],
    unseen: list[str],
    steps: int,
) -> TrainingConfig:
    """A run whose last step, and no other, is tested."""
    return configuration(
        options,
        seen,
        unseen,
        network,
        steps,
        data={"validation_points": TEST_POINTS},
        optimisation={"ema_decay": 0.99},
    )


def fresh(config: TrainingConfig, sample: DensitySample) -> tuple[DensityNetwork, AnyNetworkConfig]:
    """A network of the configuration for the elements of a sample, with random weights."""
    elements = sorted({int(z) for z in sample.atoms.numbers})
    shape = network_config({**config.network.model_dump(), "elements": elements})
    return build(shape, torch.float32), shape


@contextmanager
def form(which: str) -> Iterator[None]:
    """Train and evaluate EAC-Net in the zonal or in the e3nn form."""
    methods: tuple[Any, ...] = (EACNet.forward, EACNet.density, EACNet.contributions)
    for method in methods:
        method.__kwdefaults__["zonal"] = which == "zonal"
    try:
        with e3nn_products(which == "e3nn"):
            yield
    finally:
        for method in methods:
            method.__kwdefaults__["zonal"] = True


def superposition(
    options: argparse.Namespace, seen: list[str], unseen: list[str]
) -> dict[str, Any]:
    """Free atoms fitted to the training data, and nothing else."""
    samples = [sample for file in seen for _, sample in samples_in(Path(file))]
    elements = sorted({int(z) for sample in samples for z in sample.atoms.numbers})
    network = build(
        network_config({"elements": elements, "superposition": True}), torch.float32
    ).eval()
    network.fit_superposition(samples)
    torch.nn.init.zeros_(dict(network.named_parameters())["linear.functions"])
    path = options.runs / "superposition.safetensors"
    save_model(network, ModelCard("superposition"), path)
    calculator = EACDensity(path, device="cpu")
    errors = DensityErrors()
    for sample in (sample for file in unseen for _, sample in samples_in(Path(file))):
        chosen = np.arange(sample.density.size)[:: max(1, sample.density.size // TEST_POINTS)]
        some = sample.select(chosen)
        assert some.points is not None
        errors += DensityErrors.between(some.density, calculator.evaluate(some.points, some.atoms))
    return {
        "nmae_percent": errors.nmae_percent,
        "steps": 0,
        "seconds": 0.0,
        "parameters": 0,
        "seconds_per_step": None,
        "points_per_second": None,
    }


def points_per_second(config: TrainingConfig, file: str) -> float:
    """Points a second of the bare network, pairs included, descriptors kept; the best of three."""
    _, sample = next(samples_in(Path(file)))
    network, shape = fresh(config, sample)
    network.eval()
    points = sample.grid_points()
    points = points[:: max(1, len(points) // INFERENCE_POINTS)][:INFERENCE_POINTS]
    numbers = torch.as_tensor(sample.atoms.numbers)
    times = []
    with torch.no_grad():
        graph = atom_graph(sample.atoms, shape.atom_cutoff, torch.float32)
        descriptors = network.spin_descriptors(graph)
        for _ in range(3):
            began = process_time()
            pairs = point_pairs(sample.atoms, points, shape.point_cutoff, torch.float32)
            network.density(descriptors, numbers, pairs)
            times.append(process_time() - began)
    return len(points) / min(times)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a row a network."""
    lines = []
    if any(row["data"] != "Si" for row in rows):
        lines += [
            "| data | network | ε_mae / % | ms / step | steps | training / s | points / s | "
            "parameters |",
            "|---|---|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {row['data']} | {row['network']} | {row['nmae_percent']:.2f} | "
            f"{_number(row['seconds_per_step'], 1000)} | {row['steps'] or '–'} | "
            f"{_number(row['seconds'] or None)} | {_number(row['points_per_second'])} | "
            f"{row['parameters'] or '–'} |"
            for row in rows
            if row["data"] != "Si"
        ]
    if any(row["data"] == "Si" for row in rows):
        lines += [
            *([""] if lines else []),
            "| l_max | channels | parameters | ε_mae / % | ms / step | e3nn form | points / s | "
            "e3nn form |",
            "|---|---|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {row['l_max']} | {row['channels']} | {row['parameters']} | "
            f"{row['nmae_percent']:.3f} | {_number(row['seconds_per_step'], 1000)} | "
            f"{_number(row['seconds_per_step_e3nn'], 1000)} | "
            f"{_number(row['points_per_second'])} | {_number(row['points_per_second_e3nn'])} |"
            for row in sorted(rows, key=lambda r: (r.get("l_max", 0), r.get("channels", 0)))
            if row["data"] == "Si"
        ]
    return "\n".join(lines) + "\n"


def _number(value: float | None, factor: float = 1.0) -> str:
    return "–" if value is None else f"{value * factor:.0f}"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Time of a step, and error, against the number of channels."""
    found = [row for row in rows if row["data"] == "Si"]
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for l_max, colour in ((2, "tab:blue"), (3, "tab:orange")):
        of_l = sorted((row for row in found if row["l_max"] == l_max), key=lambda r: r["channels"])
        if not of_l:
            continue
        sizes = [row["channels"] for row in of_l]
        for key, style, name in (
            ("seconds_per_step", "o-", "zonal"),
            ("seconds_per_step_e3nn", "s--", "e3nn form"),
        ):
            times = [1000 * row[key] for row in of_l]
            left.loglog(sizes, times, style, color=colour, label=f"L = {l_max}, {name}")
        errors = [row["nmae_percent"] for row in of_l]
        right.semilogx(sizes, errors, "o-", color=colour, label=f"L = {l_max}")
    left.set(xlabel="channels", ylabel="time of a training step / ms")
    right.set(xlabel="channels", ylabel="ε_mae / %")
    for axes in (left, right):
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize="small")
    save_picture(figure, path)


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    options.add_argument("--ecd", type=Path, help="ECD-mini, or any folder in ECD's layout")
    options.add_argument("--water", nargs="+", default=[], help="files of frames, or globs")
    options.add_argument("--silicon", type=Path, help="store of silicon")
    options.add_argument(
        "--only", nargs="+", default=list(NETWORKS), choices=list(NETWORKS), help="rows to make"
    )
    options.add_argument("--seconds", type=float, default=120, help="time of a training")
    options.add_argument("--steps", type=int, default=300, help="steps of a size of EAC-Net")
    options.add_argument(
        "--channels", type=int, nargs="+", default=[4, 8, 16, 32], help="sizes of EAC-Net"
    )
    options.add_argument("--points", type=int, default=500, help="points a step")
    options.add_argument("--learning-rate", type=float, default=5e-3, help="after the warm-up")
    options.add_argument("--seed", type=int, default=0, help="of weights and draws")
    options.add_argument("--runs", type=Path, default=REPOSITORY / "runs" / "networks")
    options.add_argument("--output", type=Path, default=RESULTS / "networks.json")
    options.set_defaults(accelerator="cpu")
    found = options.parse_args()
    found.runs = found.runs.absolute()
    found.runs.mkdir(parents=True, exist_ok=True)
    show_progress()
    return found


if __name__ == "__main__":
    main()
