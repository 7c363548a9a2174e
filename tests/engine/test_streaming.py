"""Grids written slab by slab."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from filelock import FileLock

from eac_model.data import read_density
from eac_model.engine import encode, evaluate_grid, streaming
from eac_model.engine.streaming import stream_grid
from eac_model.errors import ConfigurationError, DensityFileError, GridError
from eac_model.network import EACNet, NetworkConfig

SHAPE = (7, 6, 5)
ROW = 4 * 6 * 5
"""Bytes of one plane."""


def prepared(spin=False):
    torch.manual_seed(0)
    config = NetworkConfig(elements=(1, 8), l_max=1, channels=4, interactions=1, spin=spin)
    network = EACNet(config).eval()
    with torch.no_grad():
        network.linear.functions.mul_(1000)
    atoms = molecule("H2O", vacuum=2.0, pbc=True)
    atoms.set_initial_magnetic_moments([1.0, 0.5, 0.0])
    return network, encode(network, atoms)


@pytest.mark.parametrize("spin", [False, True])
@pytest.mark.parametrize("name", ["rho.h5", "rho.cube", "CHGCAR", "CHGCAR.gz"])
def test_slabs_hold_the_values_of_the_whole_grid(tmp_path, name, spin):
    network, encoded = prepared(spin)
    stream_grid(network, encoded, SHAPE, tmp_path / name, memory=2 * ROW)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    sample = read_density(tmp_path / name)
    expected = evaluate_grid(network, encoded, SHAPE)
    digits = 1e-4 if name.endswith("cube") else 4e-6
    largest = np.abs(expected).max()
    assert np.abs(sample.density - expected.sum(0)).max() < digits * largest
    assert np.allclose(sample.atoms.positions, encoded.atoms.positions, atol=1e-5)
    if spin and not name.endswith("cube"):
        difference = expected[0] - expected[1]
        assert np.abs(sample.spin_density - difference).max() < 4e-6 * largest
    else:
        assert sample.spin_density is None


def test_several_files_come_from_one_evaluation(tmp_path, monkeypatch):
    network, encoded = prepared(spin=True)
    evaluate, calls = streaming.evaluate_grid, []

    def counted(*args, **keywords):
        calls.append(args[2])
        return evaluate(*args, **keywords)

    monkeypatch.setattr(streaming, "evaluate_grid", counted)
    names = ["a.h5", "CHGCAR", "b.h5", "rho.cube"]
    done = stream_grid(network, encoded, SHAPE, [tmp_path / name for name in names])
    assert calls == [SHAPE]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    expected = evaluate(network, encoded, SHAPE)
    for name in names:
        found = read_density(tmp_path / name).density
        assert np.abs(found - expected.sum(0)).max() < 1e-4 * np.abs(expected).max()
    voxel = encoded.atoms.cell.volume / np.prod(SHAPE)
    assert done.electrons == pytest.approx(expected.sum() * voxel, rel=1e-5)
    assert done.magnetic_moment == pytest.approx(
        (expected[0] - expected[1]).sum() * voxel, rel=1e-4
    )


@pytest.mark.parametrize("name", ["rho.h5", "rho.cube", "CHGCAR"])
def test_files_hold_the_electrons_that_were_asked_for(tmp_path, name):
    network, encoded = prepared(spin=True)
    done = stream_grid(network, encoded, SHAPE, tmp_path / name, memory=ROW, electrons=8.0)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert done.electrons == pytest.approx(8.0)
    sample = read_density(tmp_path / name)
    assert sample.density.mean() * encoded.atoms.cell.volume == pytest.approx(8.0, rel=1e-5)
    plain = evaluate_grid(network, encoded, SHAPE)
    ratio = sample.density.sum() / plain.sum()
    assert np.allclose(sample.density, ratio * plain.sum(0), atol=1e-4 * np.abs(plain).max())
    if not name.endswith("cube"):
        difference = ratio * (plain[0] - plain[1])
        assert np.abs(sample.spin_density - difference).max() < 1e-5 * np.abs(plain).max()


def test_densities_without_electrons_are_not_scaled(tmp_path):
    network, encoded = prepared()
    with torch.no_grad():
        network.linear.functions.zero_()
    with pytest.raises(GridError, match="cannot be normalised"):
        stream_grid(network, encoded, SHAPE, tmp_path / "rho.h5", electrons=8.0)


def test_a_break_while_the_target_is_written_costs_no_evaluation(tmp_path, monkeypatch):
    network, encoded = prepared(spin=True)
    with monkeypatch.context() as patch:
        patch.setattr(streaming, "_write_text", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            stream_grid(network, encoded, SHAPE, tmp_path / "CHGCAR", electrons=8.0)
    monkeypatch.setattr(streaming, "evaluate_grid", lambda *_, **__: pytest.fail("evaluated again"))
    stream_grid(network, encoded, SHAPE, tmp_path / "CHGCAR", electrons=8.0)
    density = read_density(tmp_path / "CHGCAR").density
    assert density.mean() * encoded.atoms.cell.volume == pytest.approx(8.0, rel=1e-5)


def run_until_killed(folder):
    """In a process of its own: nothing is closed, as with SIGKILL."""
    network, encoded = prepared()
    evaluate, calls = streaming.evaluate_grid, []

    def killed(*args, **keywords):
        calls.append(args[2])
        if len(calls) == 3:
            os._exit(9)
        return evaluate(*args, **keywords)

    streaming.evaluate_grid = killed
    stream_grid(network, encoded, SHAPE, Path(folder) / "rho.h5", memory=2 * ROW)


def test_a_killed_run_goes_on_where_it_was(tmp_path, monkeypatch):
    code = "import sys, test_streaming; test_streaming.run_until_killed(sys.argv[1])"
    run = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=Path(__file__).parent)
    assert run.returncode == 9
    assert not (tmp_path / "rho.h5").exists()
    with pytest.raises(DensityFileError, match="unfinished, 4 of 7 planes"):
        read_density(tmp_path / "rho.h5.partial.h5")

    network, encoded = prepared()
    evaluate, calls = streaming.evaluate_grid, []

    def counted(*args, **keywords):
        calls.append(args[2])
        return evaluate(*args, **keywords)

    monkeypatch.setattr(streaming, "evaluate_grid", counted)
    done = []
    stream_grid(network, encoded, SHAPE, tmp_path / "rho.h5", memory=2 * ROW, progress=done.append)
    assert [shape[0] for shape in calls] == [2, 1]
    assert done == [4 * 30, 2 * 30, 30]
    found = read_density(tmp_path / "rho.h5").density
    assert np.allclose(found, evaluate(network, encoded, SHAPE)[0], atol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["rho.h5"]


def test_two_runs_of_one_density_are_refused(tmp_path):
    network, encoded = prepared()
    lock = FileLock(tmp_path / "rho.h5.partial.h5.lock")
    with lock, pytest.raises(ConfigurationError, match="another run is writing"):
        stream_grid(network, encoded, SHAPE, tmp_path / "rho.h5")


@pytest.mark.parametrize("change", ["parameters", "shape", "structure", "damage"])
def test_what_belongs_to_another_task_is_not_continued(tmp_path, change, monkeypatch):
    network, encoded = prepared()
    shape = SHAPE
    partial = tmp_path / "rho.h5.partial.h5"
    with monkeypatch.context() as patch:
        patch.setattr(streaming, "evaluate_grid", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            stream_grid(network, encoded, shape, tmp_path / "rho.h5")
    with h5py.File(partial, "r+") as file:
        file.attrs["done"] = 7  # zeros that must not be taken for a density
    match change:
        case "parameters":
            with torch.no_grad():
                network.linear.functions.mul_(2)
        case "shape":
            shape = (7, 6, 6)
        case "structure":
            moved = encoded.atoms.copy()
            moved.rattle(0.1)
            encoded = encode(network, moved)
        case "damage":
            partial.write_bytes(partial.read_bytes()[:100])
    stream_grid(network, encoded, shape, tmp_path / "rho.h5")
    assert np.abs(read_density(tmp_path / "rho.h5").density).max() > 0


def test_what_the_disk_cannot_hold_is_refused_before_any_work(tmp_path, monkeypatch):
    network, encoded = prepared()
    monkeypatch.setattr(streaming, "evaluate_grid", None)
    with pytest.raises(GridError, match=r"4,000,000\.0 GB.* left\. Take a larger spacing"):
        stream_grid(network, encoded, (100_000, 100_000, 100_000), tmp_path / "CHGCAR")
    assert not list(tmp_path.iterdir())


def test_structures_without_a_cell_are_refused(tmp_path):
    network, _ = prepared()
    with pytest.raises(GridError, match="cell"):
        stream_grid(network, encode(network, Atoms("O")), SHAPE, tmp_path / "rho.h5")
    with pytest.raises(GridError, match="positive"):
        stream_grid(network, prepared()[1], (0, 1, 1), tmp_path / "rho.h5")
    assert not list(tmp_path.iterdir())
