"""benchmarks/general_model.py and fine_tuning.py: the figures of the report are what they claim."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

from eac_ase import DensityGrid, EACDensity
from eac_ase.evaluation import evaluate_sample
from eac_ase.reference.recipe import Recipe
from eac_model.data import DensitySample, DensityStore, FreeAtoms, Provenance

from .conftest import gaussian_water

REPOSITORY = Path(__file__).parents[2]
SCRIPTS = REPOSITORY / "benchmarks"
if not SCRIPTS.exists():
    pytest.skip("no benchmarks beside these tests", allow_module_level=True)

ORIGIN = Provenance(code="VASP", functional="SCAN", density_kind="valence")


def script(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(SCRIPTS))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPTS))
    return module


@pytest.fixture(scope="module")
def general():
    return script("general_model")


@pytest.fixture(scope="module")
def tuning():
    return script("fine_tuning")


@pytest.fixture(scope="module")
def water_sample():
    sample = gaussian_water()
    atoms = sample.atoms
    atoms.pbc = True
    free = FreeAtoms(density=1.1 * sample.density)
    return replace(sample, atoms=atoms, free_atoms=free, provenance=ORIGIN)


@pytest.fixture(scope="module")
def row(general, water_sample, model_file):
    return general.of_structure(EACDensity(model_file, device="cpu"), water_sample)


def test_every_entry_of_the_recipe_belongs_to_a_family(general):
    recipe = Recipe.from_yaml(REPOSITORY / "recipes" / "data" / "eac-pbe.yaml")
    families = {
        entry.name: general.family_of(f"{entry.name}/x/0000") for entry in recipe.structures
    }
    assert "others" not in families.values()
    assert families["test-alloys"] == "zero-shot alloys"
    assert families["test-al-mg"] == families["alloy-al-mg"] == "alloys"
    assert families["magnetic-oxides"] == families["test-iron"] == "magnets"
    assert families["half-heusler"] == "ternaries"


def test_the_error_of_a_structure_is_that_of_eac_evaluate(row, water_sample, model_file):
    errors = evaluate_sample(EACDensity(model_file, device="cpu"), water_sample)
    assert row["nmae"] == pytest.approx(errors.density.nmae_percent, rel=1e-6)
    assert row["free_atoms"] == pytest.approx(10.0)


def test_errors_of_atoms_add_up_to_that_of_the_structure(row):
    electrons = np.array(row["atom_electrons"])
    assert electrons.sum() == pytest.approx(8.0, abs=0.05)
    assert electrons[0] > 3 * electrons[1]
    mean = (electrons * row["atom_errors"]).sum() / electrons.sum()
    assert mean == pytest.approx(row["nmae"], rel=0.02)


def test_gradients_are_those_of_the_density(general):
    """ρ = 1 + 0.2 cos(k·r): |∇ρ| is known everywhere."""
    n, length = 48, 6.0
    cell = [[length, 0, 0], [2.0, 3.0, 0], [0, 0, 4.0]]
    values = np.empty((n, 4, 4))
    points = DensitySample(Atoms("H", cell=cell, pbc=True), values).grid_points()
    inverse = np.linalg.inv(np.array(cell))
    wave = 2 * np.pi * inverse[:, 0]
    values = (1 + 0.2 * np.cos(points @ wave)).reshape(n, 4, 4)
    grid = DensityGrid(values, Atoms("H", cell=cell, pbc=True), np.array(cell))
    found = general._of_gradient(grid, np.ones_like(values))
    slopes = 0.2 * np.linalg.norm(wave) * np.abs(np.sin(points @ wave))
    ratio = np.clip(slopes / values.ravel() ** (4 / 3), *general.GRADIENTS[[0, -1]])
    expected, _ = np.histogram(ratio, general.GRADIENTS)
    np.testing.assert_allclose(found["gradient_errors"], expected * grid.volume / values.size)
    assert sum(found["gradient_electrons"]) == pytest.approx(grid.integrate())


def some_rows():
    rng = np.random.default_rng(0)
    for index in range(12):
        error = float(np.exp(rng.normal()))
        yield {
            "key": f"test-rocksalt/NaCl-{index}/0000 abc",
            "formula": "NaCl",
            "symbols": ["Na", "Cl"],
            "points": 1000,
            "seconds": 0.1,
            "nmae": error,
            "expected": 1.5 * error,
            "atom_errors": [error, 2 * error],
            "atom_expected": [error, error],
            "atom_electrons": [1.0, 3.0],
            "unfamiliar": int(index == 0),
            "free_atoms": 5.0,
            "gradient_errors": [1.0] * 15,
            "gradient_electrons": [50.0] * 15,
        }


def test_a_model_that_ranks_its_errors_rightly_has_a_correlation_of_one(general):
    found = general.trust(list(some_rows()))
    assert found["rank_correlation"] == pytest.approx(1.0)
    assert found["median_ratio"] == pytest.approx(1 / 1.5)
    assert found["within_twice"] == 1.0
    assert found["flagged"] == 1


def test_an_element_has_the_mean_error_around_its_atoms(general):
    rows = list(some_rows())
    found = general.of_elements(rows)
    assert list(found) == ["Cl", "Na"]
    np.testing.assert_allclose(found["Na"], [row["nmae"] for row in rows])
    np.testing.assert_allclose(found["Cl"], [2 * row["nmae"] for row in rows])


def test_a_store_becomes_a_report_with_pictures(
    general, water_sample, model_file, tmp_path, monkeypatch
):
    store = DensityStore.create(tmp_path / "test.store")
    store.append(water_sample, key="test-water/H2O/0000 1")
    lithium = replace(water_sample, atoms=Atoms("Li", cell=water_sample.atoms.cell, pbc=True))
    store.append(lithium, key="test-b2/Li/0000 2")
    output = tmp_path / "found.json"

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["x", *map(str, arguments), "--output", str(output)])
        general.main()

    call("measure", model_file, store.path)
    content = json.loads(output.read_text())
    assert [row["key"][:9] for row in content["structures"]] == ["test-wate", "test-b2/L"]
    assert "does not know Li" in content["structures"][1]["refused"]
    call("measure", model_file, store.path)  # nothing is left to do
    assert json.loads(output.read_text()) == content
    call("report", store.path, "--train", store.path, "--model", model_file)
    text = (tmp_path / "found.md").read_text()
    assert "Refused, since an element is not known: b2: Li" in text
    assert f"| water | 1 | {content['structures'][0]['nmae']:.2f} |" in text
    for name in ("elements", "gradient", "worst"):
        assert (tmp_path / f"found_{name}.png").stat().st_size > 5000


def test_fine_tuning_and_training_from_scratch_are_compared(
    tuning, water_sample, single_model_file, tmp_path, monkeypatch
):
    frames = DensityStore.create(tmp_path / "frames.store")
    for shift in range(3):
        atoms = water_sample.atoms.copy()
        atoms.positions[1] += 0.02 * shift
        frames.append(replace(water_sample, atoms=atoms, free_atoms=None))
    output = tmp_path / "found.json"
    arguments = [frames.path, "--model", single_model_file, "--sizes", 1, 2, "--test", 1]
    arguments += ["--steps", 4, "--points", 50, "--test-points", 40000, "--accelerator", "cpu"]
    arguments += ["--tuning-rate", 1e-12, "--output", output, "--runs", tmp_path / "runs"]
    monkeypatch.setattr(sys, "argv", ["x", *map(str, arguments)])
    tuning.main()
    rows = json.loads(output.read_text())["rows"]
    assert [(row["frames"], row["start"]) for row in rows] == [
        (0, "fine-tuned"),
        (1, "fine-tuned"),
        (1, "from scratch"),
        (2, "fine-tuned"),
        (2, "from scratch"),
    ]
    assert all(row["nmae_percent"] > 0 for row in rows)
    # Steps of no length do not lead away from the model.
    assert rows[1]["nmae_percent"] == pytest.approx(rows[0]["nmae_percent"], rel=1e-3)
    assert abs(rows[2]["nmae_percent"] - rows[1]["nmae_percent"]) > 1
    assert output.with_suffix(".png").exists()
    tuning.main()  # finished runs are kept
    assert json.loads(output.read_text())["rows"] == rows


def test_the_table_of_fine_tuning_says_how_much_better_it_is(tuning):
    rows = [
        {"frames": 1, "start": "fine-tuned", "fold": 0, "nmae_percent": 0.5},
        {"frames": 1, "start": "from scratch", "fold": 0, "nmae_percent": 2.0},
        {"frames": 0, "start": "fine-tuned", "fold": 0, "nmae_percent": 1.0},
    ]
    lines = tuning.table(rows).splitlines()
    assert lines[2] == "| 0 | 1.00 | – | – | 1 |"
    assert lines[3] == "| 1 | 0.50 | 2.00 | 4.0 | 1 |"
