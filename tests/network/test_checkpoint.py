import json
import pickle

import pytest
import torch
from ase import Atoms
from safetensors.torch import load_file, save_file

from eac_model.checkpoint import ModelCard, load_model, save_model
from eac_model.data.sample import Provenance
from eac_model.engine import encode, evaluate_points
from eac_model.errors import ModelFileError
from eac_model.network import EACNet, NetworkConfig

CARD = ModelCard(
    name="test",
    summary="α test",
    elements=("H", "O"),
    provenance=Provenance("VASP", "SCAN", "valence", ("H", "O"), "x.h5"),
    valence_electrons={"H": 1.0, "O": 6.0},
    training={"steps": 3, "validation_nmae_percent": 1.5},
)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    config = NetworkConfig(
        elements=(1, 8),
        decoder="linear+value-weight",
        weight="smooth",
        l_max=1,
        channels=4,
        interactions=2,
        superposition=True,
        spin=True,
    )
    model = EACNet(config)
    model.superposition.table.uniform_(0, 1)
    return model


def test_a_saved_model_gives_the_same_density_and_card(network, tmp_path):
    save_model(network, CARD, tmp_path / "m.safetensors")
    loaded, card = load_model(tmp_path / "m.safetensors")
    assert card == CARD
    assert loaded.config == network.config
    atoms = Atoms("OH", [[0, 0, 0], [0, 0, 1]], magmoms=[1, 0])
    points = torch.randn(5, 3).numpy()
    a, b = (evaluate_points(n, encode(n, atoms), points) for n in (network, loaded))
    assert (a == b).all()


def test_a_model_file_can_be_loaded_in_double_precision(network, tmp_path):
    save_model(network, CARD, tmp_path / "m.safetensors")
    loaded, _ = load_model(tmp_path / "m.safetensors", dtype=torch.float64)
    assert loaded.dtype == torch.float64


def rewritten(path, **changes):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        header = file.metadata()
    header.update(changes)
    save_file(load_file(path), path, metadata=header)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.unlink(), "no model file"),
        (lambda p: p.write_bytes(b""), "damaged or no model file"),
        (lambda p: p.write_bytes(p.read_bytes()[:-100]), "damaged or no model file"),
        (lambda p: p.write_bytes(pickle.dumps({"a": 1})), "damaged or no model file"),
        (lambda p: p.write_bytes(b"CHGCAR\n 1.0\n" * 100), "damaged or no model file"),
        (lambda p: save_file({"a": torch.zeros(1)}, p), "not a model of this program"),
        (lambda p: rewritten(p, format_version="99"), "format 99"),
        (lambda p: rewritten(p, card="{"), "header"),
        (lambda p: rewritten(p, card=json.dumps({"name": 3})), "header"),
        (lambda p: rewritten(p, network='{"elements": []}'), "header"),
        (lambda p: rewritten(p, network='{"elements": [1]}'), "do not fit"),
    ],
)
def test_damaged_and_foreign_files_are_refused_with_a_reason(network, tmp_path, damage, message):
    path = tmp_path / "m.safetensors"
    save_model(network, CARD, path)
    damage(path)
    with pytest.raises(ModelFileError, match=message):
        load_model(path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(network, tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    save_model(network, CARD, path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        save_model(network, CARD, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_float64_weights_survive_the_round_trip_to_the_last_bit(tmp_path):
    network = EACNet(NetworkConfig(elements=(1,), l_max=1, channels=2)).double()
    with torch.no_grad():
        network.embed.weight.add_(1e-12)
    save_model(network, ModelCard(name="precise"), tmp_path / "m.safetensors")
    loaded, _ = load_model(tmp_path / "m.safetensors")
    assert torch.equal(loaded.embed.weight, network.embed.weight)
