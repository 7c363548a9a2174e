"""Tables in the documentation are of the models that are bundled with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eac_model.files import digest
from eac_model.registry import find_model

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
BY_MODEL = sorted(
    path
    for stem in ("scf_acceleration", "scf_moves", "fixed_density")
    for path in RESULTS.glob(f"{stem}_*-*.json")
)


@pytest.mark.parametrize("path", BY_MODEL, ids=lambda path: path.stem)
def test_tables_of_calculations_are_of_the_bundled_file(path):
    _, _, model = path.stem.rpartition("_")
    assert digest(find_model(model)) == json.loads(path.read_text())["settings"]["model"]


def test_the_report_is_of_the_bundled_general_model():
    content = json.loads((RESULTS / "eac_pbe.json").read_text())
    assert content["model"]["digest"] == digest(find_model("eac-pbe"))


@pytest.mark.parametrize("path", sorted(RESULTS.glob("fine_tuning_*.json")), ids=lambda p: p.stem)
def test_tables_of_fine_tuning_begin_at_the_bundled_general_model(path):
    name, _, beginning = json.loads(path.read_text())["settings"]["model"].partition(" ")
    assert beginning == digest(find_model(name))
