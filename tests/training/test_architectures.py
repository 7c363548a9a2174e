"""Runs that train something else than EAC-Net, and files older than the choice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from eac_model.checkpoint import load_model, read_header
from eac_model.engine import encode, evaluate_points
from eac_model.errors import ConfigurationError, ModelFileError
from eac_model.network import DeepCharge, EACNet
from eac_model.training import TrainingConfig, train

from .synthetic import config, scattered, settings

DEEP_CHARGE = {
    "architecture": "deep-charge",
    "point_cutoff": 2.5,
    "embedding_widths": [5, 10],
    "axis_neurons": 3,
    "fitting_widths": [12, 12],
}


def with_network(frames: Path, network: dict, **changes) -> dict:
    return settings(frames, **changes) | {"network": network}


def deep_charge(frames: Path, **changes) -> TrainingConfig:
    return TrainingConfig.from_mapping(with_network(frames, DEEP_CHARGE, **changes))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, frames) -> Path:
    """Folder of a finished run of Deep Charge; not to be changed."""
    folder = tmp_path_factory.mktemp("deep-charge") / "run"
    train(deep_charge(frames), folder)
    return folder


def test_a_configuration_without_architecture_means_eac_net(frames, finished):
    assert "architecture" not in settings(frames)["network"]
    assert config(frames).network.architecture == "eac-net"
    assert isinstance(load_model(finished / "model.safetensors")[0], EACNet)
    written = yaml.safe_load((finished / "config.yaml").read_text())
    assert written["network"]["architecture"] == "eac-net"


def test_the_architecture_of_a_run_is_that_of_its_model_file(trained):
    network, card = load_model(trained / "model.safetensors")
    assert isinstance(network, DeepCharge)
    assert network.config.elements == (1, 8)
    assert card.elements == ("H", "O")
    assert read_header(trained / "model.safetensors").config == network.config
    again = TrainingConfig.from_yaml(trained / "config.yaml")
    assert again.network.architecture == "deep-charge"
    assert again.network.elements == (1, 8)


def test_another_architecture_learns(frames, tmp_path):
    changes = {"optimisation": {"steps": 60, "learning_rate": 0.01}, "validate_every": 60}
    model = train(deep_charge(frames, **changes), tmp_path / "run")
    network, card = load_model(model)
    assert card.training["validation_nmae_percent"] < 60
    sample = scattered(17)
    found = evaluate_points(network, encode(network, sample.atoms), sample.points)[0]
    assert np.abs(found - sample.density).sum() < 0.7 * sample.density.sum()


def test_scales_come_from_the_training_data_and_stay(trained, frames, tmp_path):
    network, _ = load_model(trained / "model.safetensors")
    assert not torch.allclose(network.scale_rows, torch.ones(2))
    assert float(network.scale_neighbors) != 50
    start = {"initialize_from": str(trained / "model.safetensors")}
    short = {"optimisation": {"steps": 3, "warmup_steps": 0}, "data": {"train": str(frames)}}
    finer = TrainingConfig.from_mapping(settings(frames, **start, **short) | {"network": {}})
    tuned, _ = load_model(train(finer, tmp_path / "finer"))
    assert isinstance(tuned, DeepCharge)
    for name, value in network.fitted():
        assert torch.equal(value, tuned.get_buffer(name)), name


def test_a_killed_run_of_another_architecture_goes_on_as_if_nothing_had_happened(
    trained, frames, tmp_path, monkeypatch
):
    from eac_model.training.module import TrainingModule

    original = TrainingModule.training_step

    def stop_at_seven(self, batch, index):
        if self.global_step == 7:
            raise ConfigurationError("stopped")
        return original(self, batch, index)

    monkeypatch.setattr(TrainingModule, "training_step", stop_at_seven)
    with pytest.raises(ConfigurationError, match="stopped"):
        train(deep_charge(frames), tmp_path / "run")
    monkeypatch.undo()
    train(deep_charge(frames), tmp_path / "run", resume=True)
    found, expected = (load_file(f / "model.safetensors") for f in (tmp_path / "run", trained))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_fine_tuning_refuses_another_architecture_than_the_file_has(trained, frames, tmp_path):
    start = {"initialize_from": str(trained / "model.safetensors")}
    asked = TrainingConfig.from_mapping(with_network(frames, {"architecture": "eac-net"}, **start))
    with pytest.raises(ConfigurationError, match=r"network\.architecture: 'eac-net' was asked for"):
        train(asked, tmp_path / "run")


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"architecture": "deepdft"}, "network: architecture is one of eac-net, deep-charge"),
        (DEEP_CHARGE | {"l_max": 2}, r"^network\.l_max: there is no such key"),
        ({"fitting_widths": [3]}, r"^network\.fitting_widths: there is no such key"),
        (DEEP_CHARGE | {"point_cutoff": -1}, r"^network\.point_cutoff: .*greater than 0"),
        (DEEP_CHARGE | {"switch_from": 9}, "switch_from must be smaller"),
        (DEEP_CHARGE | {"core_radius": 9}, "core_radius must be smaller"),
        ({"architecture": "charge3net", "channels": 2}, "2 channels leave no scalars at l_max 4"),
        ({"channels": 0}, r"^network\.channels: .*greater than or equal to 1"),
    ],
)
def test_wrong_keys_are_named_without_the_machinery_behind_them(frames, network, message):
    with pytest.raises(ConfigurationError, match=message):
        TrainingConfig.from_mapping(with_network(frames, network))


def rewritten(source: Path, target: Path, **changes: str) -> Path:
    with safe_open(source, "pt") as file:
        header = file.metadata() | changes
    save_file(load_file(source), target, metadata=header)
    return target


def test_model_files_from_before_the_choice_can_be_read(finished, tmp_path):
    model = finished / "model.safetensors"
    with safe_open(model, "pt") as file:
        shape = json.loads(file.metadata()["network"])
    del shape["architecture"]
    old = rewritten(model, tmp_path / "m", format_version="2", network=json.dumps(shape))
    network, card = load_model(old)
    assert network.config == load_model(model)[0].config
    assert card == load_model(model)[1]


def test_model_files_of_an_unknown_architecture_are_refused(trained, tmp_path):
    model = trained / "model.safetensors"
    with safe_open(model, "pt") as file:
        shape = json.loads(file.metadata()["network"]) | {"architecture": "deepdft"}
    strange = rewritten(model, tmp_path / "m", network=json.dumps(shape))
    with pytest.raises(ModelFileError, match="architecture is one of"):
        load_model(strange)


def test_runs_from_before_the_choice_can_be_resumed(frames, tmp_path):
    short = {"optimisation": {"steps": 6, "warmup_steps": 2}, "checkpoint_every": 3}
    folder = tmp_path / "run"
    train(config(frames, **short), folder)
    last = folder / "checkpoints" / "last.ckpt"
    state = torch.load(last, weights_only=True)
    del state["training_config"]["network"]["architecture"]
    torch.save(state, last)
    assert train(config(frames, **short), folder, resume=True).exists()
