"""`eac info POTCAR`: what training with occupancies needs to know."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from eac_ase.cli import app
from eac_model.training import TrainingConfig


@pytest.fixture
def potcar(tmp_path, made_up_potcar):
    (tmp_path / "POTCAR").write_text(made_up_potcar("H") + made_up_potcar("Fe"))
    return str(tmp_path / "POTCAR")


def test_the_printed_lines_are_a_configuration(potcar):
    output = CliRunner().invoke(app, ["info", potcar], env={"COLUMNS": "150"}).output
    keys = yaml.safe_load(output[output.index("network:") :])
    config = TrainingConfig.from_mapping({"data": {"train": "frames/*"}, **keys})
    assert config.network.onsite.channels == {"H": (0, 0, 1), "Fe": (2, 2, 0, 0, 1, 1)}
    assert config.network.onsite.datasets["Fe"] == "PAW_PBE Fe 01Jan2000"
    assert config.card.valence_electrons == {"H": 1.0, "Fe": 8.0}


def test_json_holds_the_headers_and_the_same_lines(potcar):
    found = json.loads(CliRunner().invoke(app, ["info", potcar, "--json"]).output)
    assert [dataset["symbol"] for dataset in found["datasets"]] == ["H", "Fe"]
    assert found["configuration"]["network"]["onsite"]["channels"]["H"] == [0, 0, 1]


def test_a_truncated_potcar_is_refused(tmp_path, made_up_potcar):
    (tmp_path / "POTCAR").write_text(made_up_potcar("H")[:600])
    result = CliRunner().invoke(app, ["info", str(tmp_path / "POTCAR")])
    assert result.exit_code == 2
    assert "truncated" in result.output
