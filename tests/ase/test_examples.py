"""Every example runs as a user runs it: a script, somewhere, with a model."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from eac_ase import DensityGrid, EACDensity

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, folder: Path, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, arguments)],
        cwd=folder, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent), "MPLBACKEND": "agg"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_molecule_example_writes_a_density_of_eight_electrons(single_model_file, tmp_path):
    output = run("molecule.py", tmp_path, single_model_file)
    assert "dipole moment" in output
    assert DensityGrid.read(tmp_path / "molecule.cube").integrate() == pytest.approx(8, rel=1e-2)
    assert (tmp_path / "molecule.png").stat().st_size > 1000


def test_the_charges_example_compares_schemes(single_model_file, tmp_path):
    output = run("charges.py", tmp_path, single_model_file)
    assert output.count(" O ") == 4
    assert "dipole moment" in output
    assert output.count(" eV") >= 8
    assert (tmp_path / "charges.xyz").exists()


def test_the_crystal_example_is_ice(single_model_file, tmp_path):
    output = run("crystal.py", tmp_path, single_model_file)
    ice = DensityGrid.read(tmp_path / "CHGCAR_ice").atoms
    assert ice.get_chemical_formula() == "H4O2"
    distances = ice.get_all_distances(mic=True)
    assert sorted(distances[0])[1:3] == pytest.approx([0.985, 0.985], abs=1e-3)
    assert output.count("Å³") == 12


def test_the_slab_example_shows_two_surfaces(single_model_file, tmp_path):
    lines = run("slab.py", tmp_path, single_model_file).splitlines()[1:]
    profile = [float(line.split()[-2]) for line in lines]
    assert profile[0] == 0
    assert max(profile) == max(profile[3:-3])


def test_the_trajectory_example_follows_the_charges(single_model_file, tmp_path):
    assert run("md_trajectory.py", tmp_path, single_model_file).count(" fs ") == 3


def test_the_gpaw_example_saves_iterations_and_finds_the_same_energy(tmp_path):
    pytest.importorskip("gpaw", reason="needs GPAW")
    lines = run("relax_with_gpaw.py", tmp_path).splitlines()
    energy, alone, same_energy, *predicted_and_passes = lines
    assert same_energy == energy
    alone, predicted = (
        sum(map(int, re.findall(r"\d+", text))) for text in (alone, " ".join(predicted_and_passes))
    )
    assert predicted < alone


def test_the_chgcar_example_fine_tunes_checks_and_predicts(single_model_file, tmp_path, crystal):
    calculator = EACDensity(single_model_file, device="cpu")
    for index in range(3):
        crystal.rattle(0.05, seed=index)
        grid = calculator.get_density_grid(crystal, shape=(20, 20, 20)) * 1.1
        grid.write(tmp_path / f"CHGCAR_{index}")
    (tmp_path / "CHGCAR_bad").write_text("broken\n")
    names = [tmp_path / f"CHGCAR_{name}" for name in ("bad", 0, 1, 2)]
    output = run("own_chgcars.py", tmp_path, single_model_file, *names)
    assert "skipped" in output
    assert "2 densities" in output
    before, after = (
        float(line.split("error ")[1].split(" %")[0])
        for line in output.splitlines()
        if "error" in line and "%" in line
    )
    assert before == pytest.approx(100 * 0.1 / 1.1, abs=0.05)
    assert after < before
    assert DensityGrid.read(tmp_path / "CHGCAR_predicted").shape == (20, 20, 20)


def test_examples_are_short():
    for path in EXAMPLES.glob("*.py"):
        if path.name != "make_water_box.py":
            code = path.read_text().split('"""', 2)[2].splitlines()
            assert len(code) <= 40, path.name
