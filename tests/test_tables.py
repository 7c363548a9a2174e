"""Tables in the documentation are of the models that are bundled with it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from eac_model.registry import find_model

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
BY_MODEL = sorted(
    path
    for stem in ("scf_acceleration", "scf_moves", "fixed_density")
    for path in RESULTS.glob(f"{stem}_*-*.json")
)


OLDER = {"scf_acceleration_water-pbe"}
"""Of a file that has been replaced since; the page GPAW says so."""


def digest(model: str) -> str:
    return hashlib.sha256(find_model(model).read_bytes()).hexdigest()


@pytest.mark.parametrize("path", BY_MODEL, ids=lambda path: path.stem)
def test_tables_of_calculations_are_of_the_bundled_file(path):
    _, _, model = path.stem.rpartition("_")
    same = digest(model).startswith(json.loads(path.read_text())["settings"]["model"])
    assert same is (path.stem not in OLDER)


def test_the_report_is_of_the_bundled_general_model():
    assert json.loads((RESULTS / "eac_pbe.json").read_text())["model"]["sha256"] == digest(
        "eac-pbe"
    )


@pytest.mark.parametrize("path", sorted(RESULTS.glob("fine_tuning_*.json")), ids=lambda p: p.stem)
def test_tables_of_fine_tuning_begin_at_the_bundled_general_model(path):
    name, _, beginning = json.loads(path.read_text())["settings"]["model"].partition(" ")
    assert beginning
    assert digest(name).startswith(beginning)
