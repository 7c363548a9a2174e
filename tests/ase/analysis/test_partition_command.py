"""``eac partition``."""

import json
from dataclasses import replace

import numpy as np
import pytest
from ase.io import read

from eac_ase import DensityGrid, EACDensity

from ..conftest import run


@pytest.fixture
def chgcar(tmp_path, crystal, model_file):
    grid = EACDensity(model_file, device="cpu").get_density_grid(crystal, shape=(16, 16, 16))
    (grid * (16 / grid.integrate())).write(tmp_path / "CHGCAR")
    return tmp_path / "CHGCAR"


def test_the_command_explains_itself():
    output = run("partition", "--help").output
    assert "--scheme" in output
    assert "Examples" in output


def test_structures_are_divided_by_a_model(structure, model_file, tmp_path):
    output = run(
        "partition", structure, "--model", model_file, "--device", "cpu", "-o", tmp_path / "q.xyz"
    ).stdout
    assert "scheme: eac" in output
    assert "charge of the cell: +0.000000 e" in output
    charges = read(tmp_path / "q.xyz").get_charges()
    assert charges.sum() == pytest.approx(0, abs=1e-5)
    again = run("partition", structure, "--model", model_file, "-o", tmp_path / "q.xyz", code=2)
    assert "--force" in again.output


def test_densities_are_divided_by_schemes(chgcar, tmp_path):
    result = run(
        "partition", chgcar, "-s", "voronoi", "-s", "hirshfeld", "--valence", "O=6,H=1", "--json",
        "-o", tmp_path / "q.json",
    )  # fmt: skip
    content = json.loads(result.stdout)
    assert set(content) == {"voronoi", "hirshfeld"}
    assert json.loads((tmp_path / "q.json").read_text()) == content
    for found in content.values():
        assert sum(found["charges"]) - found["vacuum_charge"] == pytest.approx(0, abs=1e-6)


def test_without_valences_there_are_populations(chgcar):
    content = json.loads(run("partition", chgcar, "--json").stdout)["hirshfeld"]
    assert content["charges"] is None
    assert sum(content["populations"]) == pytest.approx(16, abs=1e-3)


def test_cubes_of_pseudo_densities_are_refused(crystal, model_file, tmp_path):
    grid = EACDensity(model_file, device="cpu").get_density_grid(crystal, shape=(12, 12, 12))
    replace(grid, kind="pseudo").write(tmp_path / "x.cube")
    assert "matrices D" in run("partition", tmp_path / "x.cube", code=2).stderr


def test_the_reference_beside_a_chgcar_is_used(chgcar):
    pytest.importorskip("baderkit")
    grid = DensityGrid.read(chgcar)
    core = grid * 0.0
    for place in grid.atoms.positions:
        arms = grid.points() - place
        arms -= np.round(arms @ np.linalg.inv(grid.cell)) @ grid.cell
        core.values.flat += 20 * np.exp(-20 * (arms**2).sum(axis=1))
    for name, one in (("AECCAR0", core), ("AECCAR2", grid)):
        one.write(chgcar.parent / f"CHGCAR_{name}")
        (chgcar.parent / f"CHGCAR_{name}").rename(chgcar.parent / name)
    result = run("partition", chgcar, "-s", "bader", "--valence", "O=6,H=1")
    assert "AECCAR0 + AECCAR2 beside" in result.output
    assert "basins of the reference density" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--scheme", "mulliken"), "voronoi"),
        (("--valence", "O6"), "O=6,H=1"),
        (("--spacing", "0.1"), "is a density"),
        (("-o", "nowhere/q.json"), "no folder"),
        (("-o", "q.xyz", "-s", "voronoi", "-s", "hirshfeld"), "one scheme"),
        (("--scheme", "eac"), "partition"),
    ],
)
def test_wrong_input_is_explained(chgcar, arguments, message):
    assert message in run("partition", chgcar, *arguments, code=2).output


def test_options_of_densities_are_refused_for_structures(structure):
    assert "is a structure" in run("partition", structure, "--all-electron", code=2).output


def test_targets_and_charges_that_mean_nothing_are_refused_first(structure, model_file, tmp_path):
    command = ["partition", structure, "-m", model_file]
    assert "no format of ASE" in run(*command, "-o", tmp_path / "q.foo", code=2).output
    assert "number of elementary charges" in run(*command, "--charge", "nan", code=2).output
    spacing = ["--scheme", "voronoi", "--spacing", 0]
    assert "has to be positive" in run(*command, *spacing, code=2).output


def test_a_potcar_says_nothing_of_all_electron_densities(chgcar):
    (chgcar.parent / "POTCAR").write_text("not looked at")
    output = run("partition", chgcar, "--all-electron", "--no-normalize", "--json").stdout
    assert sum(json.loads(output)["hirshfeld"]["charges"]) == pytest.approx(20 - 16, abs=0.2)


def test_a_damaged_density_is_not_taken_for_a_structure(chgcar, model_file):
    text = chgcar.read_text()
    damaged = chgcar.parent / "o.vasp"
    damaged.write_text(text[: len(text) // 2])
    for command in ("partition", "info"):
        assert "truncated" in run(command, damaged, code=2).output


def test_files_of_charges_have_a_name_that_says_their_format(chgcar, tmp_path):
    for name in ("CHARGES", "q.json.gz", "q.db"):
        result = run("partition", chgcar, "-o", tmp_path / name, code=2)
        assert "names no format" in result.output
        assert "Traceback" not in result.output
    run("partition", chgcar, "-o", tmp_path / "q.JSON")
    assert json.loads((tmp_path / "q.JSON").read_text())["scheme"] == "hirshfeld"
