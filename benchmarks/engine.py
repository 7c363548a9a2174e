"""Speed of the engine: points a second, fraction of the machine's matrix rate, memory, training.

    python benchmarks/engine.py                      # everything, one thread, some 20 minutes
    python benchmarks/engine.py speed --l-max 3      # one measurement

Results go into benchmarks/results/engine.json, with tables and a plot beside it. Networks have
random weights: speed does not depend on them. All ratios are formed within one run, of the best of
several repetitions.

speed     Points a second of the value-weight and the linear decoder (with and without numba), and
          of the e3nn form of the same value-weight network, on two structures: 48 atoms of water
          (the 140³ grid VASP takes at 680 eV) and 64 atoms of silicon (100³, Fig. 3 of
          arXiv 2508.04052). Cubic pieces of the grids are evaluated; cutoff 6 Å, two edge updates,
          weight S, as in the paper.
linear    The linear decoder alone, with and without numba.
fourier   Grids of crystals from closed-form Fourier coefficients against evaluation at the points.
references  Errors of both against reference densities: ``--references MODEL STORE …``.
resampling  Error and time of grids that come from the Fourier series of coarser ones.
activations  Memory a training step keeps, and the price of recomputing it.
threads   Both decoders on one core and on all, by the clock on the wall.
training  Seconds a training step (forward, backward) with the zonal and with the e3nn form, the
          latter with e3nn's products between atoms, too.
interactions  Seconds a training step of a linear decoder and seconds of descriptors, with e3nn's
          products between atoms, with torch's, and with the compiled loops.
decoding  Forward and backward of the linear decoder alone, with torch's products and with the
          compiled loops.
convergence  Seconds and steps of both until a network has learned water to a given error.
startup   Imports, a first and a second density of two-atom silicon in a fresh process.
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
from unittest import mock

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import read
from matplotlib.figure import Figure
from runs import save_picture
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from eac_model.engine import encode, evaluate_band_limited, evaluate_grid, fused
from eac_model.engine.kernels import shell_kernels
from eac_model.engine.shells import TERMS
from eac_model.engine.value_weight import ShellValueWeight
from eac_model.files import write_bytes
from eac_model.graph import AtomGraph, PointPairs
from eac_model.neighbors import atom_graph, point_pairs
from eac_model.network import EACNet, NetworkConfig, convolution, linear
from eac_model.network.interaction import Interaction
from eac_model.network.radial import lengths

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results" / "engine.json"
POINT_CUTOFF = 6.0
"""Å, the paper's."""
FINE_SPACING = 0.05
"""Å, of the grids that are resampled."""
CONVERGENCE_STEPS = 160
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
        write_bytes(options.output.with_suffix(".md"), tables(results).encode())
    if "speed" in results:
        draw(results, options.output.with_suffix(".png"))


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


def measure_fourier(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Whole grids of crystals, descriptors left out: at points, and from Fourier coefficients."""
    crystal = bulk("Si", "diamond", 5.43)
    crystal.rattle(0.05, seed=0)
    silicon64, liquid = silicon()[0], water()[0]
    cases = [
        ("silicon", crystal, (18,) * 3),
        ("silicon", crystal, (36,) * 3),
        ("silicon", silicon64, (54,) * 3),
        ("silicon", silicon64, (100,) * 3),
        ("water", liquid, (48,) * 3),
        ("water", liquid, (140,) * 3),
        ("water", liquid * (2, 1, 1), (96, 48, 48)),
        ("water", liquid * (2, 2, 1), (96, 96, 48)),
        ("water", liquid * (2, 2, 2), (96,) * 3),
    ]
    rows = []
    for structure, atoms, shape in cases:
        atoms.rattle(0.02, seed=1)  # no symmetry, of repeated cells neither
        network = paper_network(atoms, 3, 32, decoder="linear", point_cutoff=4.0)
        encoded = encode(network, atoms)
        row: dict[str, Any] = {
            "structure": structure,
            "atoms": len(atoms),
            "shape": list(shape),
            "threads": options.threads,
        }
        begin = time.process_time()
        evaluate_band_limited(network, encoded, shape)
        row["fourier_first_seconds"] = time.process_time() - begin
        row["fourier_seconds"] = shortest(
            lambda: evaluate_band_limited(network, encoded, shape),  # noqa: B023
            options.repeats,
        )
        for name, wanted in [("torch", False), ("numba", True)]:
            with compiled_loop(wanted):
                row[f"{name}_seconds"] = shortest(
                    lambda: evaluate_grid(network, encoded, shape),  # noqa: B023
                    options.repeats,
                )
            row[f"ratio_to_{name}"] = row[f"{name}_seconds"] / row["fourier_seconds"]
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def measure_references(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Errors of models at the points of reference grids, and of the waves these grids can hold."""
    from eac_ase import DensityGrid, EACDensity
    from eac_model.data import DensityStore
    from eac_model.metrics import DensityErrors

    if not options.references:
        raise SystemExit("references: give --references MODEL STORE (any number of pairs)")
    rows = []
    for model, path in zip(options.references[::2], options.references[1::2], strict=True):
        calculator = EACDensity(model, device="cpu")
        store = DensityStore.open(path)
        sums = [DensityErrors(), DensityErrors()]
        electrons: list[list[float]] = [[], []]
        for index in range(len(store)):
            reference = DensityGrid.from_sample(store.read(index))
            if not all(reference.pbc):
                continue
            voxel = reference.volume / reference.values.size
            for number in (0, 1):
                found = calculator.get_density_grid(
                    reference.atoms, like=reference, band_limited=bool(number)
                ).values
                errors = DensityErrors.between(reference.values, found, voxel)
                sums[number] += errors
                electrons[number].append(errors.electrons_predicted)
        points, waves = sums
        rows.append(
            {
                "model": model,
                "samples": len(electrons[0]),
                "points_nmae_percent": points.as_dict()["nmae_percent"],
                "waves_nmae_percent": waves.as_dict()["nmae_percent"],
                "largest_difference_of_electrons": float(
                    np.abs(np.subtract(electrons[0], electrons[1])).max()
                ),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
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
        for band_limited in (False, True):
            began = time.process_time()
            grid = calculator.get_density_grid(
                atoms, shape=fine, resample_from=spacing, band_limited=band_limited
            )
            seconds = time.process_time() - began
            difference = np.abs(grid.values - exact)
            rows.append(
                {
                    "shape": list(fine),
                    "coarse_shape": list(calculator.get_grid_shape(atoms, spacing=spacing)),
                    "resample_from": spacing,
                    "band_limited": band_limited,
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
            with e3nn_products(form == "e3nn"):
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


def measure_interactions(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Forward and backward of 3000 points, and descriptors alone, L = 4, three interactions."""
    cell = molecule("H2O")
    cell.set_cell([3.1] * 3)
    cell.pbc = True
    small = cell * 2
    small.rattle(0.1, seed=0)
    rows = []
    for atoms in (small, water()[0]):
        points = np.random.default_rng(0).random((3000, 3)) @ np.asarray(atoms.cell)
        for channels in (48, 64):
            settings = {"decoder": "linear", "interactions": 3, "point_cutoff": 3.0}
            network = paper_network(atoms, 4, channels, **settings).train()
            graph = atom_graph(atoms, network.config.atom_cutoff)
            pairs = point_pairs(atoms, points, 3.0)
            row: dict[str, Any] = {
                "structure": "water",
                "atoms": len(atoms),
                "edges": len(graph.senders),
                "l_max": 4,
                "channels": channels,
                "threads": options.threads,
            }
            describe = torch.no_grad()(partial(network.descriptors, graph))
            step = partial(_train, network, graph, pairs, True)
            for form in ("e3nn", "torch", "numba"):
                with compiled_loop(form == "numba"), e3nn_products(form == "e3nn"):
                    step()  # torch.jit optimises during the first calls
                    row[f"{form}_step_seconds"] = shortest(step, options.repeats)
                    row[f"{form}_descriptors_seconds"] = shortest(describe, options.repeats)
            for part in ("step", "descriptors"):
                for form in ("torch", "numba"):
                    ratio = row[f"e3nn_{part}_seconds"] / row[f"{form}_{part}_seconds"]
                    row[f"{form}_{part}_ratio"] = ratio
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def measure_decoding(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Forward and backward of the linear decoder alone: products of torch, and compiled loops."""
    atoms, _ = water()
    points = np.random.default_rng(0).random((3000, 3)) @ np.asarray(atoms.cell)
    rows = []
    for l_max in options.l_max:
        decoder = paper_network(atoms, l_max, 32, decoder="linear", point_cutoff=5.0).linear
        assert decoder is not None
        pairs = point_pairs(atoms, points, 5.0)
        count = int(pairs.mask.sum())
        shape = (len(atoms), (l_max + 1) ** 2, decoder.basis.size)
        coefficients = torch.randn(*shape, requires_grad=True)
        row: dict[str, Any] = {"l_max": l_max, "pairs": count, "threads": options.threads}
        for form in ("torch", "numba"):
            with compiled_loop(form == "numba"):

                def step() -> None:
                    decoder.of_coefficients(coefficients, pairs).sum().backward()  # noqa: B023

                step()
                row[f"{form}_seconds"] = shortest(step, options.repeats)
        row["ratio"] = row["torch_seconds"] / row["numba_seconds"]
        row["numba_nanoseconds_per_pair"] = 1e9 * row["numba_seconds"] / count
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


@contextmanager
def e3nn_products(wanted: bool) -> Iterator[None]:
    """Let the interactions of all networks use the products that define them, on every edge."""
    if not wanted:
        yield
        return

    def every_edge(network: EACNet, vectors: Tensor) -> tuple[Tensor, None]:
        return network.atom_basis(lengths(vectors)), None

    def forward(layer: Interaction, *inputs: Any) -> Tensor:
        found: Tensor = layer.forward_e3nn(*inputs[:6])
        return found

    with (
        mock.patch.object(EACNet, "distance_basis", every_edge),
        mock.patch.object(Interaction, "forward", forward),
    ):
        yield


def measure_convergence(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The same training of a value × weight network with both forms, on water-scan's water.

    Weights, batches and the optimiser are the same: both take the same steps up to rounding.
    """
    from eac_ase import EACDensity

    atoms, _ = water()
    cell = np.asarray(atoms.cell)
    teacher = EACDensity("water-scan", device="cpu")
    graph = atom_graph(atoms, 4.0)

    def batch(count: int, seed: int) -> tuple[PointPairs, Tensor]:
        points = np.random.default_rng(seed).random((count, 3)) @ cell
        density = torch.as_tensor(teacher.evaluate(points, atoms), dtype=torch.float32)
        return point_pairs(atoms, points, POINT_CUTOFF), density

    unseen, exact = batch(200, 10**6)
    rows = []
    for form in ("zonal", "e3nn"):
        network = paper_network(atoms, 3, 20, decoder="value-weight").train()
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
        seconds, errors, times = 0.0, [], []
        for step in range(CONVERGENCE_STEPS):
            pairs, density = batch(60, step)
            begin = time.process_time()
            optimizer.zero_grad()
            with e3nn_products(form == "e3nn"):
                found = network(graph, pairs, zonal=form == "zonal")[0]
                (found - density).abs().mean().backward()
            optimizer.step()
            seconds += time.process_time() - begin
            schedule.step()
            if step % 10 == 9:
                with torch.no_grad():
                    deviation = (network(graph, unseen)[0] - exact).abs().sum()
                errors.append(100 * float(deviation / exact.abs().sum()))
                times.append(seconds)
        row: dict[str, Any] = {"form": form, "steps": CONVERGENCE_STEPS, "l_max": 3, "channels": 20}
        row |= {"seconds": seconds, "error_percent": errors[-1], "reached": {}}
        for target in (80, 40, 30, 25):
            first = next((i for i, error in enumerate(errors) if error < target), None)
            if first is not None:
                reached = {"steps": 10 * (first + 1), "seconds": times[first]}
                row["reached"][f"{target} %"] = reached
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def measure_startup(options: argparse.Namespace) -> list[dict[str, Any]]:
    """What a fresh process costs until the first densities."""
    rows = []
    for compiled in (True, False):
        environment = os.environ | {"EAC_COMPILED": "1" if compiled else "0"}
        found = [
            json.loads(
                subprocess.run(
                    [sys.executable, "-c", STARTUP],
                    check=True,
                    capture_output=True,
                    text=True,
                    env=environment,
                ).stdout.splitlines()[-1]
            )
            for _ in range(options.repeats)
        ]
        row = {name: min(run[name] for run in found) for name in found[0]}
        rows.append({"compiled": compiled} | row)
        print(json.dumps(rows[-1]), flush=True)
    return rows


STARTUP = """
import json, time
begin = time.process_time()
from ase.build import bulk, molecule
from eac_ase import EACDensity
marks = [time.process_time()]
crystal = bulk("Si", "diamond", 5.43)
crystal.rattle(0.05, seed=0)
calculator = EACDensity("si-pbe", device="cpu")
marks.append(time.process_time())
for _ in range(2):
    calculator.get_density_grid(crystal, shape=(18, 18, 18))
    marks.append(time.process_time())
    crystal.rattle(0.01, seed=1)
names = ["import_seconds", "load_seconds", "first_density_seconds", "next_density_seconds"]
print(json.dumps({n: b - a for n, a, b in zip(names, [begin, *marks], marks)}))
"""


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
    return rows


def measure_one_size(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Water repeated: descriptors of all atoms, density on a piece of the grid.

    The same piece of the cell itself is evaluated in turn, for the ratio of the two.
    """
    cell, shape = water()
    network = paper_network(cell, 3, 32, decoder="linear", point_cutoff=4.0)
    n = 64
    piece = np.asarray(cell.cell) * (n / np.array(shape))[:, None]
    origin = np.asarray(cell.cell).sum(axis=0) * (0.37 * options.repeat)
    small = encode(network, cell)
    begin = time.process_time()
    encoded = encode(network, cell * ((options.repeat,) * 3))
    encoding = time.process_time() - begin
    times: dict[str, list[float]] = {"small": [], "large": []}
    for _ in range(5):
        for name, structure in (("small", small), ("large", encoded)):
            begin = time.process_time()
            evaluate_grid(network, structure, (n, n, n), cell=piece, origin=origin)
            times[name].append(time.process_time() - begin)
    # The first call compiles, or loads what was compiled.
    seconds = {name: min(of_name[1:]) for name, of_name in times.items()}
    row = {
        "atoms": len(encoded.atoms),
        "encode_seconds": encoding,
        "seconds_per_point": seconds["large"] / n**3,
        "seconds_per_point_ratio": seconds["large"] / seconds["small"],
        "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
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
    """Compute with or without numba."""
    known = (fused.compiled_loop, convolution.compiled_convolution, linear.compiled_loops)
    before = os.environ.get("EAC_COMPILED", "1")
    os.environ["EAC_COMPILED"] = "1" if wanted else "0"
    for loops in known:
        loops.cache_clear()
    if wanted and fused.compiled_loop() is None:
        raise SystemExit("numba is not installed, or EAC_COMPILED=0 forbids it.")
    yield
    os.environ["EAC_COMPILED"] = before
    for loops in known:
        loops.cache_clear()


def tables(results: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown of all results, one table a measurement."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.4g}"
        return json.dumps(value) if isinstance(value, dict) else str(value)

    lines = []
    for name, rows in results.items():
        columns = list(dict.fromkeys(key for row in rows for key in row))
        lines += [f"## {name}", "", "| " + " | ".join(columns) + " |"]
        lines.append("|" + "---|" * len(columns))
        for row in rows:
            lines.append("| " + " | ".join(cell(row.get(key, "")) for key in columns) + " |")
        lines.append("")
    return "\n".join(lines)


def draw(results: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Points a second against L, one panel a structure and number of channels.

    The linear decoder's are those of its own measurement where there is one: channels do not count.
    """
    rows = results["speed"]
    linear = {
        (row["structure"], row["l_max"]): row["numba"]
        for row in results.get("linear", [])
        if row["point_cutoff"] == POINT_CUTOFF
    }
    cases = sorted({(row["structure"], row["channels"]) for row in rows})
    figure = Figure(figsize=(3.2 * len(cases), 3.4), layout="constrained")
    panels = figure.subplots(1, len(cases), sharey=True, squeeze=False)[0]
    for axes, (structure, channels) in zip(panels, cases, strict=True):
        chosen = [r for r in rows if (r["structure"], r["channels"]) == (structure, channels)]
        chosen.sort(key=lambda row: row["l_max"])
        degrees = [row["l_max"] for row in chosen]
        for key, label in LABELS.items():
            rates = [row.get(key, np.nan) for row in chosen]
            if key == "linear":
                rates = [linear.get((structure, row["l_max"]), row.get(key)) for row in chosen]
            axes.plot(degrees, rates, "o-", label=label)
        axes.set(title=f"{structure}, C = {channels}", xlabel="L", yscale="log", xticks=degrees)
    panels[0].set_ylabel("points / s")
    panels[0].legend(fontsize="small")
    save_picture(figure, path)


LABELS = {
    "linear": "linear",
    "linear_torch": "linear, without numba",
    "value_weight": "value × weight",
    "e3nn": "value × weight, e3nn",
}


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    names = ("structure", "l_max", "channels", "threads", "atoms", "decoder", "shape", "symmetric")
    names += ("point_cutoff", "resample_from", "band_limited", "model", "form", "compiled")
    return all(a.get(name) == b.get(name) for name in names)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("measurements", nargs="*", default=DEFAULT)
    parser.add_argument("--structures", nargs="+", default=list(STRUCTURES))
    parser.add_argument("--l-max", nargs="+", type=int, default=[2, 3, 4, 5])
    parser.add_argument("--channels", nargs="+", type=int, default=[20, 36])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--references", nargs="+", default=[], metavar="MODEL STORE")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args()


MEASUREMENTS = {
    "speed": measure_speed,
    "linear": measure_linear,
    "fourier": measure_fourier,
    "references": measure_references,
    "resampling": measure_resampling,
    "activations": measure_activations,
    "threads": measure_threads,
    "training": measure_training,
    "interactions": measure_interactions,
    "decoding": measure_decoding,
    "convergence": measure_convergence,
    "startup": measure_startup,
    "crystal": measure_crystal,
    "scaling": measure_scaling,
}

DEFAULT = [name for name in MEASUREMENTS if name != "references"]
"""What needs no data from elsewhere."""

if __name__ == "__main__":
    main()
