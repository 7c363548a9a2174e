"""Grids larger than memory, resampled grids, and grids that devices share."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.calculators.calculator import CalculatorSetupError
from ase.io import read

from eac_ase import DensityGrid, EACDensity
from eac_model.engine import streaming
from eac_model.errors import DensityFileError, GridError

from .conftest import run

SMALL = "1e-6"
"""GiB: less than any grid takes."""


def test_predict_writes_large_grids_piece_by_piece(structure, model_file, tmp_path, monkeypatch):
    monkeypatch.setattr(EACDensity, "get_density_grid", lambda *_, **__: pytest.fail("at once"))
    outputs = [tmp_path / "rho.h5", tmp_path / "CHGCAR"]
    result = run("predict", structure, "-m", model_file, "--shape", 10, 9, 8, "--memory", SMALL,
                 "--json", "-o", outputs[0], "-o", outputs[1])  # fmt: skip
    monkeypatch.undo()
    report = json.loads(result.stdout)
    assert report["shape"] == [10, 9, 8]
    assert report["files"] == [str(path) for path in outputs]
    grids = [DensityGrid.read(path) for path in outputs]
    expected = EACDensity(model_file, device="cpu").get_density_grid(
        grids[0].atoms, shape=(10, 9, 8)
    )
    for grid in grids:
        assert np.abs(grid.values - expected.values).max() < 1e-5 * expected.values.max()
    assert report["electrons"] == pytest.approx(expected.integrate(), rel=1e-5)


@pytest.mark.parametrize("pbc", [(True, True, False), False])
@pytest.mark.parametrize("name", ["x.cube", "x.h5", "CHGCAR"])
def test_densities_beyond_the_cell_are_written_like_others(model_file, tmp_path, pbc, name):
    atoms = molecule("H2O", cell=[6, 6, 6], pbc=pbc)  # at the corner
    calculator = EACDensity(model_file, device="cpu")
    expected = calculator.get_density_grid(atoms, spacing=0.4).to_sample()
    calculator.write_density(tmp_path / name, atoms, spacing=0.4, memory=1000)
    found = DensityGrid.read(tmp_path / name)
    assert found.shape == expected.density.shape
    assert np.abs(found.values - expected.density).max() < 1e-5 * expected.density.max()
    assert np.allclose(found.atoms.positions, expected.atoms.positions)
    assert np.allclose(found.cell, expected.atoms.cell)


def test_molecules_without_a_cell_are_written_piece_by_piece(model_file, tmp_path):
    calculator = EACDensity(model_file, device="cpu")
    found = calculator.write_density(tmp_path / "x.h5", molecule("H2O"), spacing=0.4, memory=1000)
    expected = calculator.get_density_grid(molecule("H2O"), spacing=0.4).integrate()
    assert found.electrons == pytest.approx(expected, rel=1e-5)


def test_predict_goes_on_after_a_break(structure, model_file, tmp_path, monkeypatch):
    evaluate, calls = streaming.evaluate_grid, []

    def broken(*args, **keywords):
        calls.append(args[2])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return evaluate(*args, **keywords)

    command = ("predict", structure, "-m", model_file, "--shape", 10, 9, 8, "--memory", SMALL,
               "-o", tmp_path / "rho.h5")  # fmt: skip
    monkeypatch.setattr(streaming, "evaluate_grid", broken)
    run(*command, code=130)
    assert not (tmp_path / "rho.h5").exists()
    before = len(calls)
    run(*command)
    assert len(calls) - before == 10 - 3
    assert DensityGrid.read(tmp_path / "rho.h5").integrate() > 0


def test_predict_scales_large_grids_to_the_exact_number_of_electrons(
    structure, model_file, tmp_path
):
    run("predict", structure, "-m", model_file, "--shape", 10, 9, 8, "--memory", SMALL,
        "--normalize", "-o", tmp_path / "rho.h5")  # fmt: skip
    assert DensityGrid.read(tmp_path / "rho.h5").integrate() == pytest.approx(16, rel=1e-6)


def test_what_needs_the_whole_grid_is_refused_before_the_work(structure, model_file, tmp_path):
    for option, name in (("-o", "rho.xsf"), ("--plot", "rho.png")):
        result = run("predict", structure, "-m", model_file, "--shape", 10, 9, 8,
                     "--memory", SMALL, option, tmp_path / name, code=2)  # fmt: skip
        assert "--memory" in result.output
    run("predict", structure, "-m", model_file, "--memory", 0, "-o", tmp_path / "a.h5", code=2)
    assert [path.name for path in tmp_path.iterdir()] == ["POSCAR"]


@pytest.mark.parametrize("name", ["CHGCAR", "grid.h5", "grid.cube"])
def test_normalised_files_are_those_of_normalised_grids(calculator, crystal, tmp_path, name):
    calculator.normalize = True
    calculator.write_density(tmp_path / name, crystal, shape=(8, 9, 10), memory=1000)
    found = DensityGrid.read(tmp_path / name)
    expected = calculator.get_density_grid(crystal, shape=(8, 9, 10))
    assert np.abs(found.values - expected.values).max() < 1e-4 * expected.values.max()
    assert found.integrate() == pytest.approx(16, rel=1e-5)


def test_resampled_grids_are_the_fourier_series_of_coarse_ones(calculator, crystal):
    fine, coarse = (20, 20, 24), 0.5
    found = calculator.get_density_grid(crystal, shape=fine, resample_from=coarse)
    steps = calculator.get_grid_shape(crystal, spacing=coarse)
    assert max(steps) < 20
    expected = calculator.get_density_grid(crystal, shape=steps).resample(fine)
    assert found.shape == fine
    assert np.array_equal(found.values, expected.values)
    direct = calculator.get_density_grid(crystal, shape=fine)
    assert 0 < np.abs(found.values - direct.values).max() < 0.2 * direct.values.max()
    same = calculator.get_density_grid(crystal, shape=fine, resample_from=0.01)
    assert np.array_equal(same.values, direct.values)


def test_only_crystals_are_resampled(calculator, crystal):
    with pytest.raises(GridError, match="periodic"):
        calculator.get_density_grid(molecule("H2O"), resample_from=0.5)
    slab = crystal.copy()
    slab.pbc = (True, True, False)
    with pytest.raises(GridError, match="periodic"):
        calculator.get_density_grid(slab, resample_from=0.5)


def test_calculators_share_their_grids_among_devices(model_file, crystal):
    several = EACDensity(model_file, device=["cpu", "cpu"])
    single = EACDensity(model_file, device=torch.device("cpu"))
    shape = (30, 28, 32)
    found = several.get_density_grid(crystal, shape=shape).values
    expected = single.get_density_grid(crystal, shape=shape).values
    assert np.abs(found - expected).max() < 2e-6 * expected.max()
    assert np.allclose(several.get_charges(crystal), single.get_charges(crystal), atol=1e-5)


def test_unfinished_files_are_no_densities(structure, model_file, tmp_path, monkeypatch):
    calculator = EACDensity(model_file, device="cpu")
    evaluate, slabs = streaming.evaluate_grid, []

    def stop(*arguments, **options):
        slabs.append(0)
        if len(slabs) == 3:
            raise KeyboardInterrupt
        return evaluate(*arguments, **options)

    monkeypatch.setattr(streaming, "evaluate_grid", stop)
    crystal = read(structure)
    with pytest.raises(KeyboardInterrupt):
        calculator.write_density(tmp_path / "x.h5", crystal, shape=(6, 6, 6), memory=200)
    monkeypatch.undo()
    partial = tmp_path / "x.h5.partial.h5"
    with pytest.raises(DensityFileError, match="unfinished, 2 of 6 planes"):
        DensityGrid.read(partial)
    calculator.write_density(tmp_path / "x.h5", crystal, shape=(6, 6, 6), memory=200)
    assert DensityGrid.read(tmp_path / "x.h5").shape == (6, 6, 6)


def test_what_may_become_the_file_lies_on_its_disk(structure, model_file, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    moves = []
    replace = Path.replace
    monkeypatch.setattr(
        Path, "replace", lambda path, target: (moves.append((path, target)), replace(path, target))
    )
    targets = [tmp_path / "CHGCAR", tmp_path / "elsewhere" / "x.h5"]
    EACDensity(model_file, device="cpu").write_density(targets, read(structure), shape=(4, 4, 4))
    assert [path.parent for path, _ in moves] == [tmp_path / "elsewhere"]
    assert all(target.exists() for target in targets)


def test_formats_that_are_not_written_in_pieces_are_refused_by_name(calculator, crystal, tmp_path):
    for name in ("rho.xsf", "rho.txt"):
        with pytest.raises(GridError, match=name):
            calculator.write_density(tmp_path / name, crystal)
    assert not list(tmp_path.iterdir())


def test_devices_that_are_not_supported_are_named(model_file):
    with pytest.raises(CalculatorSetupError, match="'mps'"):
        EACDensity(model_file, device="mps")
