"""The recipe of ECD-mini, and functionals of single entries."""

from pathlib import Path

import numpy as np
import pytest

from eac_ase.ecd.export import Sizes, material_name
from eac_ase.ecd.layout import GAPS, read_gaps
from eac_ase.reference import Recipe
from eac_ase.reference.structures import build

RECIPES = Path(__file__).parents[2] / "recipes" / "data"
CRYSTAL = {"kind": "crystal", "lattices": "fcc", "formulas": {"Al": 4.0}}


@pytest.fixture(scope="module")
def tasks():
    return list(Recipe.from_yaml(RECIPES / "ecd-mini.yaml").tasks())


def test_an_entry_may_have_another_functional():
    entries = [{**CRYSTAL, "name": "a"}, {**CRYSTAL, "name": "b", "settings": {"xc": "HSE06"}}]
    tasks = Recipe.model_validate({"structures": entries}).tasks()
    assert {task.entry.name: task.settings.xc for task in tasks} == {"a": "PBE", "b": "HSE06"}


def test_an_entry_without_a_functional_keeps_its_key():
    # As it was before entries could name one: samples in stores have it.
    [task] = Recipe.model_validate({"structures": [{**CRYSTAL, "name": "a"}]}).tasks()
    assert task.key == "a/Al-fcc/0000 2287e487aedf"


def test_ecd_mini_has_what_the_tasks_need(tasks):
    sets = {
        name: [task for task in tasks if (task.split, task.settings.xc) == what]
        for name, what in {
            "pbe": ("train", "PBE"),
            "hse": ("train", "HSE06"),
            "ood": ("test", "PBE"),
        }.items()
    }
    assert len(sets["pbe"]) >= 120
    assert len(sets["hse"]) >= 20
    assert len(sets["ood"]) >= 20
    assert len(sets["hse"]) > Sizes().hse_test + Sizes().hse_validation
    for chosen in sets.values():
        names = [material_name(task.key) for task in chosen]
        assert len(set(names)) == len(names)
    trained = {task.member.split("-", 1)[1] for task in sets["pbe"]}
    assert not trained & {task.member.split("-", 1)[1] for task in sets["ood"]}


def test_crystals_in_both_functionals_are_the_same_with_the_same_settings(tasks):
    pbe = {material_name(t.key): t for t in tasks if t.settings.xc == "PBE"}
    both = [task for task in tasks if task.settings.xc == "HSE06"]
    for task in both:
        twin = pbe[material_name(task.key)]
        assert twin.settings.model_copy(update={"xc": "HSE06"}) == task.settings
        assert np.array_equal(build(twin).positions, build(task).positions)
        assert np.array_equal(build(twin).cell, build(task).cell)


def test_crystals_have_one_to_four_atoms(tasks):
    assert {len(build(task)) for task in tasks[::7]} <= {1, 2, 3, 4}


def test_measured_gaps_are_of_crystals_in_both_functionals(tasks, tmp_path):
    path = tmp_path / GAPS
    path.parent.mkdir()
    path.write_bytes((RECIPES / "ecd-mini-gaps.csv").read_bytes())
    gaps = read_gaps(tmp_path)
    assert len(gaps) >= 10
    both = {material_name(task.key) for task in tasks if task.settings.xc == "HSE06"}
    assert {gap.name for gap in gaps} <= both
    assert all(0 < gap.gap < 15 and gap.source for gap in gaps)
