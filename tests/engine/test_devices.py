"""Evaluation on any device, and on several; what needs a GPU runs where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from ase import Atoms

from eac_model.engine import (
    encode,
    evaluate_grid,
    evaluate_points,
    fused,
    inference,
    integrate_density,
    kernels,
    value_weight,
)
from eac_model.engine.devices import full_precision, replicas, share
from eac_model.engine.kernels import shell_kernels
from eac_model.network import EACNet, NetworkConfig

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
    ),
]
SHAPE = (9, 10, 8)


def network(dtype=torch.float32, device="cpu", **chosen):
    torch.manual_seed(0)
    settings = {
        "elements": (1, 8),
        "l_max": 2,
        "channels": 4,
        "interactions": 1,
        "decoder": "linear+value-weight",
        "weight": "MLPxS",
        "point_cutoff": 4.0,
        "superposition": True,
    }
    model = EACNet(NetworkConfig(**settings | chosen))
    with torch.no_grad():
        model.superposition.table.uniform_(0, 0.3)
        if model.linear is not None:
            model.linear.functions.mul_(300)
    return model.to(dtype).to(device).eval()


def structure():
    rng = np.random.default_rng(0)
    cell = [[3.0, 0, 0], [1.0, 3.2, 0], [0.3, 0.4, 2.8]]
    return Atoms("OHHO", rng.random((4, 3)) * 3, cell=cell, pbc=True, magmoms=[1, 0, 0, -2])


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """The path of GPUs on any device: batches of matrices, no compiled loop."""
    prepare = value_weight.ShellValueWeight

    def batched(model, *arguments):
        return prepare(model, *arguments, batched=True)

    monkeypatch.setattr(kernels, "ShellValueWeight", batched)
    monkeypatch.setattr(kernels, "compiled_loop", lambda: None)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("spin", [False, True])
@pytest.mark.parametrize("weight", ["S", "MLPxS", "SoftmaxxS"])
def test_batches_of_matrices_give_the_density_of_the_network(as_on_a_gpu, device, weight, spin):
    model = network(device=device, weight=weight, spin=spin)
    exact = network(torch.float64, weight=weight, spin=spin)
    assert len(shell_kernels(model).shells) == 2
    found = evaluate_grid(model, encode(model, structure()), SHAPE)
    expected = evaluate_grid(exact, encode(exact, structure()), SHAPE)
    assert np.abs(found - expected).max() < 4e-6 * np.abs(expected).max()


@pytest.mark.parametrize("device", DEVICES)
def test_devices_share_a_grid(device):
    model, atoms = network(device=device), structure()
    encoded = encode(model, atoms)
    other = "cpu" if device == "cpu" else f"cuda:{torch.cuda.device_count() - 1}"
    devices = [device, other]
    done: list[int] = []
    found = evaluate_grid(
        model, encoded, SHAPE, block_size=100, devices=devices, progress=done.append
    )
    expected = evaluate_grid(model, encoded, SHAPE, block_size=100)
    assert np.abs(found - expected).max() < 1e-6 * np.abs(expected).max()
    assert sum(done) == np.prod(SHAPE)
    for by_atom in (False, True):
        options = {"by_atom": by_atom, "block_size": 100}
        for a, b in zip(
            integrate_density(model, encoded, SHAPE, devices=devices, **options),
            integrate_density(model, encoded, SHAPE, **options),
            strict=True,
        ):
            assert np.allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("contributions", [False, True])
def test_devices_share_points(contributions):
    model = network()
    encoded = encode(model, structure())
    points = np.random.default_rng(0).uniform(-3, 6, (300, 3))
    options = {"contributions": contributions, "block_size": 40}
    found = evaluate_points(model, encoded, points, devices=["cpu", "cpu", "cpu"], **options)
    expected = evaluate_points(model, encoded, points, **options)
    assert np.abs(found - expected).max() < 1e-6 * np.abs(expected).max()


def test_every_device_works():
    started = threading.Barrier(2, timeout=20)
    taken = {"a": 0, "b": 0}

    def do(worker, task):
        if not taken[worker]:
            started.wait()  # passes only if both are at work
        taken[worker] += 1
        return 1

    done = []
    share(range(10), ["a", "b"], do, done.append)
    assert sum(taken.values()) == sum(done) == 10


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_forked_processes_evaluate_after_their_parent_did():
    program = (
        "import multiprocessing, torch, eac_model.engine\n"
        "def work(_):\n"
        "    return float((torch.ones(2000, 2000) @ torch.ones(2000, 2000)).sum().log())\n"
        "work(0)\n"
        "with multiprocessing.get_context('fork').Pool(2) as pool:\n"
        "    print(pool.map(work, range(4)) == [work(0)] * 4)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == "True\n", done.stderr


def test_the_failure_of_one_device_stops_the_others():
    taken = []

    def do(worker, task):
        taken.append(task)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        share(range(1000), ["a", "b"], do)
    assert len(taken) < 10


def test_replicas_are_made_once_and_again_when_the_parameters_change():
    model = network()
    first = replicas(model, ["cpu", "cpu"])
    assert first[0] is model
    assert first[1] is not model
    assert replicas(model, ["cpu", "cpu"])[1] is first[1]
    assert replicas(model, ()) == replicas(model, ["cpu"]) == [model]
    with torch.no_grad():
        model.embed.weight.mul_(2)
    again = replicas(model, ["cpu", "cpu"])[1]
    assert again is not first[1]
    assert torch.equal(again.embed.weight, model.embed.weight)


def test_blocks_of_gpus_follow_their_free_memory(monkeypatch):
    model = network(decoder="linear")
    worker = inference._workers(model, encode(model, structure()), ())[0]
    monkeypatch.setattr(EACNet, "device", torch.device("cuda", 0))
    sizes = []
    for free in (10**6, 10**9, 10**10, 10**13):
        monkeypatch.setattr(inference, "free_memory", lambda _, free=free: free)
        sizes.append(inference._block_of(worker, inference._Wanted()))
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[1] < sizes[2]
    pairs = sizes[1] * worker.encoded.neighbors_in_reach(4.0)
    assert pairs * inference.BYTES_A_PAIR < 10**9


def test_matrix_products_are_of_full_precision_whatever_the_program_set():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with full_precision:
            with full_precision:  # as of another thread
                pass
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_threads_share_the_compiled_loop(monkeypatch):
    if fused.compiled_loop() is None:
        pytest.skip("numba is not installed")
    model = network(decoder="linear")
    encoded = encode(model, structure())
    expected = evaluate_grid(model, encoded, SHAPE)
    populations = integrate_density(model, encoded, SHAPE, by_atom=True)[0]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    found = evaluate_grid(model, encoded, SHAPE)
    assert np.abs(found - expected).max() < 1e-6 * np.abs(expected).max()
    again = integrate_density(model, encoded, SHAPE, by_atom=True)[0]
    assert np.allclose(again, populations, rtol=1e-6)
