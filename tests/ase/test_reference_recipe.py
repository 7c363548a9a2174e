from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ase.build import molecule
from ase.formula import Formula

from eac_ase.reference.recipe import Recipe, Settings
from eac_ase.reference.structures import build
from eac_model.errors import ConfigurationError

SHIPPED = sorted((Path(__file__).parents[2] / "recipes" / "data").glob("*.yaml"))
HELD_OUT_SET = {"Al", "Co", "Cr", "Fe", "Mn", "Ni", "Si"}


def recipe(*entries, **rest):
    return Recipe.model_validate({"structures": list(entries), **rest})


def crystal(**changes):
    return {"name": "c", "kind": "crystal", "lattices": "fcc", "formulas": {"Al": 4.0}, **changes}


def keys(recipe):
    return [task.key for task in recipe.tasks()]


def test_more_structures_and_members_leave_the_keys_of_the_others(tmp_path):
    few = keys(recipe(crystal(count=2)))
    more = keys(recipe(crystal(count=5, formulas={"Cu": 3.6, "Al": 4.0}), crystal(name="d")))
    assert set(few) < set(more)
    assert len(set(more)) == len(more) == 11


@pytest.mark.parametrize(
    "changed",
    [
        crystal(formulas={"Al": 4.1}),
        crystal(rattle=0.1),
        crystal(moments={"Al": 1.0}),
        crystal(settings={"smearing": 0.05}),
    ],
)
def test_whatever_changes_a_sample_changes_its_key(changed):
    assert not set(keys(recipe(changed))) & set(keys(recipe(crystal())))


def test_seed_and_settings_of_the_recipe_change_the_keys_and_the_split_does_not():
    first = keys(recipe(crystal()))
    assert keys(recipe(crystal(), seed=1)) != first
    assert keys(recipe(crystal(), settings={"cutoff": 500})) != first
    assert keys(recipe(crystal(split="test"))) == first


def test_variants_are_calculated_in_turn_so_that_a_part_is_a_fair_part():
    tasks = recipe(crystal(count=2), crystal(name="d", count=3)).tasks()
    names = [task.entry.name for task in tasks]
    assert [sorted(names[:2]), sorted(names[2:4]), names[4:]] == [["c", "d"], ["c", "d"], ["d"]]


def test_members_are_calculated_in_a_random_order_that_more_of_them_do_not_change():
    few = {"formulas": ["Al", "Cu", "Ag", "Au", "Pd", "Pt"]}
    order = [task.member for task in recipe(crystal(**few)).tasks()]
    assert order != sorted(order)
    more = recipe(crystal(formulas=[*few["formulas"], "Ni", "Ir"]), crystal(name="d")).tasks()
    kept = [task.member for task in more if task.entry.name == "c" and task.member in order]
    assert kept == order


def test_settings_come_from_the_entry_then_its_kind_then_the_recipe():
    made = recipe(
        crystal(settings={"smearing": 0.05}),
        {"name": "m", "kind": "molecule", "molecules": "H2O"},
        {"name": "w", "kind": "water", "molecules": 4, "settings": {"smearing": 0.02}},
        settings={"cutoff": 450},
    )
    settings = {task.entry.name: task.settings for task in made.tasks()}
    metal, molecule, water = (settings[name] for name in ("c", "m", "w"))
    assert metal == Settings(cutoff=450, smearing=0.05)
    assert molecule == Settings(cutoff=450, smearing=0.0, kpoint_density=None)
    assert water == Settings(cutoff=450, smearing=0.02, kpoint_density=None)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (crystal(strian=0.1), r"structures\[c\]\.strian: there is no such key"),
        (crystal(lattices="fbc"), r"structures\[c\]: lattices: no prototype 'fbc'; known: own"),
        (crystal(formulas="AlMg"), r"AlMg are as 1:1, those of fcc as 1"),
        (crystal(lattices="l12", formulas="CuAu"), r"CuAu are as 1:1, those of l12 as 3:1"),
        (crystal(formulas="Xy"), r"'Xy' is no (element|formula)"),
        (crystal(moments={"Iron": 2}), r"structures\[c\]\.moments: 'Iron' is no element"),
        (crystal(rattle=[0.2, 0.1]), r"structures\[c\]\.rattle: the range 0\.2 … 0\.1 is empty"),
        (crystal(formulas={"Al": -4}), r"formulas\.Al: .*greater than 0 \(got -4\)"),
        (crystal(kind="cristal"), r"structures\[c\]: .*'cristal'"),
        ({"name": "m", "kind": "molecule", "molecules": ["H2O", "H3O"]}, "no molecules H3O"),
        ({"name": "m", "kind": "molecule", "molecules": ["CN", False]}, "YAML reads NO"),
        (
            {"name": "m", "kind": "molecule", "molecules": "CO", "substitute": {"C": ["Xq"]}},
            "'Xq' is no element",
        ),
        ({"name": "w", "kind": "water", "molecules": 2, "scale": 1.1}, "a range of density"),
        ({"name": "a", "kind": "alloy", "elements": ["Al"]}, r"structures\[a\]\.elements"),
        ({"name": "a", "kind": "alloy", "elements": ["Al", "Al"]}, "two elements or more"),
        (crystal(lattices="own", formulas="F"), "no crystal of 'F'"),
        (crystal(lattices="own", formulas="P"), "no crystal of 'P'"),
        (crystal(lattices="own", formulas="Si2"), "no crystal of 'Si2'"),
        (crystal(lattices=["fcc", "fcc"]), "'Al-fcc' is there twice"),
        ({"name": "m", "kind": "molecule", "molecules": ["H2", "H2"]}, "'H2' is there twice"),
        (crystal(kind="slab", miller=[0, 0, 0]), r"miller: a plane has an index"),
        ({"name": "w", "kind": "water", "molecules": 2, "temperature": [9, 3]}, "9 … 3 is empty"),
        (
            {
                **{"name": "p", "kind": "phonons", "potential": "stillinger-weber"},
                **{"lattices": "diamond", "formulas": ["Si", "Ge"]},
            },
            "of Si, not of Ge",
        ),
    ],
)
def test_a_wrong_recipe_is_refused_by_file_entry_and_key(tmp_path, entry, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump({"structures": [entry]}))
    with pytest.raises(ConfigurationError, match=rf"wrong\.yaml: .*{message}"):
        Recipe.from_yaml(path)


def test_two_entries_of_one_name_and_no_yaml_are_refused(tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump({"structures": [crystal(), crystal()]}))
    with pytest.raises(ConfigurationError, match="two entries have the name 'c'"):
        Recipe.from_yaml(path)
    path.write_text("structures: [")
    with pytest.raises(ConfigurationError, match="not YAML"):
        Recipe.from_yaml(path)
    path.write_text("seed: 1\nstructures: []\nseed: 2\n")
    with pytest.raises(ConfigurationError, match="'seed' is there twice"):
        Recipe.from_yaml(path)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Recipe.from_yaml(tmp_path / "absent.yaml")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_are_valid_and_hold_structures_out(path):
    tasks = list(Recipe.from_yaml(path).tasks())
    assert len({task.key for task in tasks}) == len(tasks)
    # Of the frames for fine-tuning, benchmarks/fine_tuning.py draws some for testing.
    splits = {"train"} if path.stem == "fine-tuning" else {"train", "test"}
    assert {task.split for task in tasks} == splits
    assert all(task.settings.cutoff == 400 for task in tasks)
    assert all(task.settings.xc == (task.entry.settings.xc or "PBE") for task in tasks)


def test_the_general_recipe_holds_out_by_composition():
    [path] = [path for path in SHIPPED if path.stem == "eac-pbe"]
    compositions: dict[str, set] = {"train": set(), "test": set()}
    for task in Recipe.from_yaml(path).tasks():
        if task.entry.kind in ("crystal", "slab"):
            counts = Formula(task.member.split("-")[0]).reduce()[0].count()
            compositions[task.split].add(frozenset(counts.items()))
        elif task.entry.kind == "molecule":
            made = build(task) if task.entry.substitute else molecule(task.member)
            counts = made.symbols.formula.reduce()[0].count()
            compositions[task.split].add(frozenset(counts.items()))
        elif task.entry.kind == "alloy" and task.split == "train":
            assert len(set(task.entry.elements) & HELD_OUT_SET) < 2
    compounds = {c for c in compositions["test"] if len(c) > 1}
    assert len(compounds) > 40
    assert not compounds & compositions["train"]
    assert len({c for c in compositions["train"] if len(c) > 1}) > 200
    trained = {symbol for c in compositions["train"] for symbol, _ in c}
    assert len(trained) > 55
    for composition in compositions["train"]:
        elements = {symbol for symbol, _ in composition}
        assert len(elements) == 1 or not elements <= HELD_OUT_SET
