"""Speed of the engine: points a second, fraction of the machine's matrix rate, memory, training.

    python benchmarks/engine.py                      # everything, one thread, some 20 minutes
    python benchmarks/engine.py speed --l-max 3      # one measurement

Results go into benchmarks/results/engine.json and are drawn beside it. Networks have random
weights: speed does not depend on them. All ratios are formed within one run, of the best of
several repetitions.

speed     Points a second of the value-weight and the linear decoder (with and without numba), and
          of the e3nn form of the same value-weight network, on two structures: 48 atoms of water
          (the 140³ grid VASP takes at 680 eV) and 64 atoms of silicon (100³, Fig. 3 of
          arXiv 2508.04052). Cubic pieces of the grids are evaluated; cutoff 6 Å, two edge updates,
          weight S, as in the paper.
linear    The linear decoder alone, with and without numba.
resampling  Error and time of grids that come from the Fourier series of coarser ones.
activations  Memory a training step keeps, and the price of recomputing it.
threads   Both decoders on one core and on all, by the clock on the wall.
training  Seconds a training step (forward, backward) with the zonal and with the e3nn form.
crystal   A whole ``get_density_grid`` of two-atom silicon against one iteration of GPAW.
scaling   Time a point and peak memory from 48 to 100 000 atoms of water.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.io import read
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from eac_model.engine import encode, evaluate_grid, fused
from eac_model.engine.kernels import shell_kernels
from eac_model.engine.shells import TERMS
from eac_model.engine.value_weight import ShellValueWeight
from eac_model.files import write_bytes
from eac_model.graph import AtomGraph, PointPairs
from eac_model.neighbors import atom_graph, point_pairs
from eac_model.network import EACNet, NetworkConfig

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results" / "engine.json"
POINT_CUTOFF = 6.0
"""Å, the paper's."""
FINE_SPACING = 0.05
"""Å, of the grids that are resampled."""
TIMED_POINTS = 32
"""The piece of the grid that is evaluated has this many points along every axis."""


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    if options.measurements == ["one-size"]:
        measure_one_size(options)
        return
    results: dict[str, Any] = {}
    if options.output.exists():
        results = json.loads(options.output.read_text(encoding="utf-8"))
    for name in options.measurements:
        rows = MEASUREMENTS[name](options)
        kept = [row for row in results.get(name, []) if not any(_same(row, new) for new in rows)]
        results[name] = kept + rows
        text = json.dumps(results, indent=1) + "\n"
        write_bytes(options.output, text.encode())
    if "speed" in results:
        draw(results["speed"], options.output.with_suffix(".png"))


def measure_speed(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    gemm = matrix_rate()
    print(f"matrix products: {gemm:.0f} GFLOP/s")
    for structure in options.structures:
        atoms, shape = STRUCTURES[structure]()
        for channels in options.channels:
            for l_max in options.l_max:
                row: dict[str, Any] = {
                    "structure": structure,
                    "l_max": l_max,
                    "channels": channels,
                    "threads": options.threads,
                    "gemm_gflops": gemm,
                }
                network = paper_network(atoms, l_max, channels, decoder="value-weight")
                row["pairs_per_point"] = pairs_per_point(atoms)
                row["e3nn"] = e3nn_rate(network, atoms, shape)
                row["value_weight"] = grid_rate(network, atoms, shape, options.repeats)
                row["multiply_adds_per_pair"] = multiply_adds(network)
                row["useful_gflops"] = (
                    2e-9 * row["multiply_adds_per_pair"] * row["pairs_per_point"]
                ) * row["value_weight"]
                row["fraction_of_gemm"] = row["useful_gflops"] / gemm
                linear = paper_network(atoms, l_max, channels, decoder="linear")
                with compiled_loop(False):
                    row["linear_torch"] = grid_rate(linear, atoms, shape, options.repeats)
                with compiled_loop(True):
                    row["linear"] = grid_rate(linear, atoms, shape, options.repeats)
                for form in ("value_weight", "linear", "linear_torch"):
                    row[f"{form}_ratio"] = row[form] / row["e3nn"]
                rows.append(row)
                print(json.dumps(row), flush=True)
    return rows


def measure_linear(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The linear decoder with and without numba, at the paper's cutoff and at its own default."""
    rows = []
    for structure in options.structures:
        atoms, shape = STRUCTURES[structure]()
        for l_max in options.l_max:
            for cutoff in (POINT_CUTOFF, 4.0):
                network = paper_network(atoms, l_max, 20, decoder="linear", point_cutoff=cutoff)
                row: dict[str, Any] = {
                    "structure": structure,
                    "l_max": l_max,
                    "point_cutoff": cutoff,
                    "threads": options.threads,
                    "pairs_per_point": pairs_per_point(atoms, cutoff),
                }
                for name, wanted in [("torch", False), ("numba", True)]:
                    with compiled_loop(wanted):
                        row[name] = grid_rate(network, atoms, shape, options.repeats)
                    row[f"{name}_nanoseconds_per_pair"] = 1e9 / (row[name] * row["pairs_per_point"])
                row["ratio"] = row["numba"] / row["torch"]
                rows.append(row)
                print(json.dumps(row), flush=True)
    return rows


def measure_resampling(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Water by water-scan on a fine grid: directly, and from the Fourier series of coarser ones."""
    from eac_ase import EACDensity

    atoms, _ = water()
    calculator = EACDensity("water-scan", device="cpu")
    fine = calculator.get_grid_shape(atoms, spacing=FINE_SPACING)
    began = time.process_time()
    exact = calculator.get_density_grid(atoms, shape=fine).values.astype(float)
    direct = time.process_time() - began
    rows = []
    for spacing in (0.2, 0.15, 0.1, 0.07):
        began = time.process_time()
        found = calculator.get_density_grid(atoms, shape=fine, resample_from=spacing).values
        seconds = time.process_time() - began
        difference = np.abs(found - exact)
        rows.append(
            {
                "shape": list(fine),
                "coarse_shape": list(calculator.get_grid_shape(atoms, spacing=spacing)),
                "resample_from": spacing,
                "seconds": seconds,
                "seconds_direct": direct,
                "error_mae_percent": 100 * float(difference.sum() / np.abs(exact).sum()),
                "largest_error_of_largest_density": float(difference.max() / exact.max()),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def measure_activations(options: argparse.Namespace) -> list[dict[str, Any]]:
    """What a training step keeps for its backward pass, and what recomputing it would cost."""
    atoms, _ = water()
    points = np.random.default_rng(0).random((300, 3)) @ np.asarray(atoms.cell)
    rows = []
    for decoder, cutoff in [("value-weight", POINT_CUTOFF), ("linear", 4.0)]:
        network = paper_network(atoms, 3, 20, decoder=decoder, point_cutoff=cutoff).train()
        graph = atom_graph(atoms, network.config.atom_cutoff)
        pairs = point_pairs(atoms, points, cutoff)

        def density(network: EACNet = network, pairs: PointPairs = pairs) -> Tensor:
            descriptors = network.spin_descriptors(graph)  # noqa: B023
            return network.density(descriptors, graph.numbers, pairs)  # noqa: B023

        def checkpointed(network: EACNet = network, pairs: PointPairs = pairs) -> Tensor:
            descriptors = network.spin_descriptors(graph)  # noqa: B023
            found: Tensor = checkpoint(
                lambda d: network.density(d, graph.numbers, pairs),  # noqa: B023
                descriptors,
                use_reentrant=False,
            )
            return found

        row: dict[str, Any] = {"decoder": decoder, "points": 300, "l_max": 3, "channels": 20}
        for name, forward in [("kept", density), ("recomputed", checkpointed)]:
            kept: dict[int, int] = {}

            def pack(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
                storage = tensor.untyped_storage()
                kept[storage.data_ptr()] = storage.nbytes()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                forward()
            row[f"{name}_mib"] = sum(kept.values()) / 2**20
            row[f"{name}_seconds"] = shortest(
                lambda forward=forward: forward().square().mean().backward(), 2
            )
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def measure_threads(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Points a second by the clock on the wall, on one core and on all, of water at L = 3."""
    atoms, shape = water()
    rows = []
    for decoder, cutoff in [("value-weight", POINT_CUTOFF), ("linear", POINT_CUTOFF)]:
        network = paper_network(atoms, 3, 20, decoder=decoder, point_cutoff=cutoff)
        encoded = encode(network, atoms)
        n = TIMED_POINTS if decoder == "value-weight" else 2 * TIMED_POINTS
        piece = np.asarray(atoms.cell) * (n / np.array(shape))[:, None]
        for threads in sorted({1, os.cpu_count() or 1}):
            torch.set_num_threads(threads)
            rate = n**3 / shortest(
                lambda: evaluate_grid(network, encoded, (n,) * 3, cell=piece),  # noqa: B023
                options.repeats,
                time.perf_counter,
            )
            rows.append({"decoder": decoder, "threads": threads, "points_per_second": rate})
            print(json.dumps(rows[-1]), flush=True)
        torch.set_num_threads(options.threads)
    return rows


def measure_training(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Forward and backward of 300 points of water, gradients with respect to all parameters."""
    rows = []
    atoms, _ = water()
    points = np.random.default_rng(0).random((300, 3)) @ np.asarray(atoms.cell)
    for l_max, channels in [(3, 20), (5, 36)]:
        network = paper_network(atoms, l_max, channels, decoder="value-weight").train()
        graph = atom_graph(atoms, network.config.atom_cutoff)
        row: dict[str, Any] = {"l_max": l_max, "channels": channels, "threads": options.threads}
        for form, count in [("zonal", 300), ("e3nn", 300 if l_max == 3 else 60)]:
            pairs = point_pairs(atoms, points[:count], POINT_CUTOFF)

            step = partial(_train, network, graph, pairs, form == "zonal")
            for _ in range(2):
                step()
            row[f"{form}_seconds_per_300_points"] = shortest(step, 2) * 300 / count
        zonal, e3nn = (row[f"{form}_seconds_per_300_points"] for form in ("zonal", "e3nn"))
        row["ratio"] = e3nn / zonal
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def _train(network: EACNet, graph: AtomGraph, pairs: PointPairs, zonal: bool) -> None:
    network.zero_grad()
    network(graph, pairs, zonal=zonal).square().mean().backward()


def measure_crystal(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Two atoms of silicon: a whole density, everything included, against one SCF iteration."""
    from gpaw.dft import DFT

    from eac_ase import EACDensity

    crystal = bulk("Si", "diamond", 5.43)
    rattled_crystal = crystal.copy()
    rattled_crystal.rattle(0.05, seed=0)
    parameters = {"mode": {"name": "pw", "ecut": 400}, "xc": "PBE", "kpts": (4, 4, 4)}
    iterations = {}
    for rattled, atoms in ((False, crystal), (True, rattled_crystal)):
        dft = DFT(atoms, **parameters, txt=None, converge=False)
        begin = time.process_time()
        count = sum(1 for _ in dft.iconverge())
        iterations[rattled] = (time.process_time() - begin) / count
    own_shape = dft.density.nt_sR.desc.size_c
    rows = []
    for decoder, cutoff in [("linear", 4.0), ("value-weight", POINT_CUTOFF)]:
        network = paper_network(
            crystal, 3, 32 if decoder == "linear" else 20, decoder=decoder, point_cutoff=cutoff
        )
        for shape in (tuple(int(n) for n in own_shape), (36, 36, 36)):
            for rattled in (False, True):
                atoms = rattled_crystal if rattled else crystal

                def density(network: EACNet = network, shape: Any = shape) -> None:
                    EACDensity(network).get_density_grid(atoms, shape=shape)  # noqa: B023

                row: dict[str, Any] = {
                    "decoder": decoder,
                    "shape": list(shape),
                    "symmetric": not rattled,
                    "seconds": shortest(density, 5),
                    "gpaw_seconds_per_iteration": iterations[rattled],
                }
                rows.append(row)
                print(json.dumps(row), flush=True)
    return rows


def measure_scaling(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Each size in a process of its own, for its peak of memory."""
    rows = []
    for repeat in (1, 3, 6, 13):
        found = subprocess.run(
            [sys.executable, __file__, "one-size", "--repeat", str(repeat)],
            check=True,
            capture_output=True,
            text=True,
        )
        rows.append(json.loads(found.stdout.splitlines()[-1]))
        print(json.dumps(rows[-1]), flush=True)
    for row in rows:
        row["seconds_per_point_ratio"] = row["seconds_per_point"] / rows[0]["seconds_per_point"]
    return rows


def measure_one_size(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Water repeated: descriptors of all atoms, density on a piece of the grid."""
    atoms, shape = water()
    atoms *= (options.repeat,) * 3
    network = paper_network(atoms, 3, 32, decoder="linear", point_cutoff=4.0)
    begin = time.process_time()
    encoded = encode(network, atoms)
    encoding = time.process_time() - begin
    n = 64
    piece = np.asarray(atoms.cell) * (n / (options.repeat * np.array(shape)))[:, None]
    origin = np.asarray(atoms.cell).sum(axis=0) * 0.37
    seconds = shortest(
        lambda: evaluate_grid(network, encoded, (n, n, n), cell=piece, origin=origin), 3
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    row = {
        "atoms": len(atoms),
        "encode_seconds": encoding,
        "seconds_per_point": seconds / n**3,
        "peak_memory_gib": peak,
    }
    print(json.dumps(row))
    return [row]


def multiply_adds(network: EACNet) -> int:
    """Multiply-adds a pair in the value × weight decoder's matrix products, padding left out."""
    kernel = next(k for k in shell_kernels(network).shells if isinstance(k, ShellValueWeight))
    outputs = kernel.first.species[0].shape[-1]
    total = (network.config.l_max + 1) ** 2 * TERMS * outputs
    for update in kernel.later:
        total += update.radial.shape[1] * TERMS
        total += sum(matrices[0].numel() for matrices in update.matrices)
    total += sum(matrix.numel() for matrix, _ in kernel.bottleneck)
    total += kernel.value.first[0][0].numel()
    total += sum(matrix.numel() for matrix, _ in kernel.value.rest)
    return total


def water() -> tuple[Atoms, tuple[int, int, int]]:
    return read(REPOSITORY / "eac_ase" / "structures" / "water48.xyz"), (140, 140, 140)


def silicon() -> tuple[Atoms, tuple[int, int, int]]:
    atoms = bulk("Si", "diamond", 5.43, cubic=True) * (2, 2, 2)
    atoms.rattle(0.05, seed=0)
    return atoms, (100, 100, 100)


STRUCTURES: dict[str, Callable[[], tuple[Atoms, tuple[int, int, int]]]] = {
    "water": water,
    "silicon": silicon,
}


def paper_network(atoms: Atoms, l_max: int, channels: int, **settings: Any) -> EACNet:
    """A network of the paper's shape with random weights."""
    torch.manual_seed(0)
    config = {
        "elements": tuple(sorted(set(atoms.numbers.tolist()))),
        "l_max": l_max,
        "channels": channels,
        "interactions": 2,
        "point_cutoff": POINT_CUTOFF,
        "coupling_updates": 2,
        "weight": "S",
    }
    return EACNet(NetworkConfig(**config | settings)).eval()


def matrix_rate() -> float:
    """GFLOP/s of torch's float32 matrix product, the best of some sizes."""
    best = 0.0
    for rows, inner, columns in [(1024, 128, 1024), (1024, 512, 1024), (1024, 1024, 1024)]:
        a, b = torch.randn(rows, inner), torch.randn(inner, columns)
        out = torch.empty(rows, columns)
        seconds = shortest(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), 20)
        best = max(best, 2e-9 * rows * inner * columns / seconds)
    return best


def pairs_per_point(atoms: Atoms, cutoff: float = POINT_CUTOFF) -> float:
    return len(atoms) / atoms.cell.volume * 4 / 3 * np.pi * cutoff**3


def e3nn_rate(network: EACNet, atoms: Atoms, shape: tuple[int, int, int]) -> float:
    """Points a second of the e3nn form on neighbouring points, eight at a time."""
    graph = atom_graph(atoms, network.config.atom_cutoff)
    along = np.arange(8)[:, None] * np.asarray(atoms.cell)[2] / shape[2]
    batches = [point_pairs(atoms, along + 0.1 * i, POINT_CUTOFF) for i in range(4)]
    with torch.no_grad():
        descriptors = network.descriptors(graph)

        def evaluate(pairs: PointPairs) -> None:
            network.contributions(descriptors, graph.numbers, pairs, zonal=False)

        for _ in range(3):  # torch.jit optimises during the first calls
            evaluate(batches[0])
        seconds = min(shortest(lambda p=pairs: evaluate(p), 1) for pairs in batches)
    return 8 / seconds


def grid_rate(network: EACNet, atoms: Atoms, shape: tuple[int, int, int], repeats: int) -> float:
    """Points a second of ``evaluate_grid`` on a cubic piece of the grid."""
    encoded = encode(network, atoms)
    n = TIMED_POINTS
    piece = np.asarray(atoms.cell) * (n / np.array(shape))[:, None]
    return n**3 / shortest(lambda: evaluate_grid(network, encoded, (n, n, n), cell=piece), repeats)


def shortest(
    function: Callable[[], object],
    repeats: int,
    clock: Callable[[], float] = time.process_time,
) -> float:
    """Seconds of the fastest of some calls; CPU seconds, for others may use the machine, too."""
    function()
    times = []
    for _ in range(repeats):
        begin = clock()
        function()
        times.append(clock() - begin)
    return min(times)


@contextmanager
def compiled_loop(wanted: bool) -> Iterator[None]:
    """Evaluate linear decoders with or without numba."""
    before = os.environ.get("EAC_COMPILED", "1")
    os.environ["EAC_COMPILED"] = "1" if wanted else "0"
    fused.compiled_loop.cache_clear()
    if wanted and fused.compiled_loop() is None:
        raise SystemExit("numba is not installed: pip install eac-density[fast]")
    yield
    os.environ["EAC_COMPILED"] = before
    fused.compiled_loop.cache_clear()


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Points a second against L, one panel a structure and number of channels."""
    cases = sorted({(row["structure"], row["channels"]) for row in rows})
    figure = Figure(figsize=(3.2 * len(cases), 3.4), layout="constrained")
    panels = figure.subplots(1, len(cases), sharey=True, squeeze=False)[0]
    for axes, (structure, channels) in zip(panels, cases, strict=True):
        chosen = [r for r in rows if (r["structure"], r["channels"]) == (structure, channels)]
        chosen.sort(key=lambda row: row["l_max"])
        degrees = [row["l_max"] for row in chosen]
        for key, label in LABELS.items():
            rates = [row.get(key, np.nan) for row in chosen]
            axes.plot(degrees, rates, "o-", label=label)
        axes.set(title=f"{structure}, C = {channels}", xlabel="L", yscale="log", xticks=degrees)
    panels[0].set_ylabel("points / s")
    panels[0].legend(fontsize="small")
    figure.savefig(path, dpi=150)


LABELS = {
    "linear": "linear",
    "linear_torch": "linear, without numba",
    "value_weight": "value × weight",
    "e3nn": "value × weight, e3nn",
}


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    names = ("structure", "l_max", "channels", "threads", "atoms", "decoder", "shape", "symmetric")
    names += ("point_cutoff", "resample_from")
    return all(a.get(name) == b.get(name) for name in names)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("measurements", nargs="*", default=list(MEASUREMENTS))
    parser.add_argument("--structures", nargs="+", default=list(STRUCTURES))
    parser.add_argument("--l-max", nargs="+", type=int, default=[2, 3, 4, 5])
    parser.add_argument("--channels", nargs="+", type=int, default=[20, 36])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args()


MEASUREMENTS = {
    "speed": measure_speed,
    "linear": measure_linear,
    "resampling": measure_resampling,
    "activations": measure_activations,
    "threads": measure_threads,
    "training": measure_training,
    "crystal": measure_crystal,
    "scaling": measure_scaling,
}

if __name__ == "__main__":
    main()
