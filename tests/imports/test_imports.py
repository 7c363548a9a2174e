"""Checkpoints of other programs: read safely, turned into networks with the same densities.

The files in ``data`` are networks of the authors' code with random weights, and what that code
computes with them (benchmarks/import_eac.py and import_charge3net.py wrote them).
"""

import importlib.util
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from typer.testing import CliRunner

from eac_ase import EACDensity
from eac_ase.cli import app
from eac_model.checkpoint import load_model
from eac_model.engine import encode, evaluate_points
from eac_model.errors import ConfigurationError, ModelFileError
from eac_model.imports import import_model, read_torch_file
from eac_model.imports.eac_net import DenseLayer, plain_network
from eac_model.neighbors import atom_graph, point_pairs
from eac_model.network import ChargE3Net, EACNet

DATA = Path(__file__).parent / "data"
NAMES = ("eac_net_total", "eac_net_spin", "charge3net_total", "charge3net_spin")
LOADED = {}


def cell_structure() -> Atoms:
    rng = np.random.default_rng(5)
    cell = [[5.0, 0, 0], [1.0, 4.8, 0], [0.4, 0.6, 5.2]]
    return Atoms("OHHOSiFe", rng.random((6, 3)) @ np.array(cell), cell=cell, pbc=True)


def crystal() -> Atoms:
    atoms = bulk("Si")
    atoms.rattle(0.05, seed=3)
    return atoms


def imported(name):
    if name not in LOADED:
        LOADED[name] = import_model(DATA / f"{name}.pt", elements=(1, 8, 14, 26))
    return LOADED[name]


def recorded(name) -> dict[str, np.ndarray]:
    with np.load(DATA / f"{name}.npz") as file:
        return dict(file)


def deviation(found, expected) -> float:
    assert found.shape == expected.shape
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("name", NAMES)
def test_densities_are_those_of_the_authors_code(name):
    network, _ = imported(name)
    record = recorded(name)
    assert network.n_spin == (2 if "spin" in name else 1)
    graph = atom_graph(cell_structure(), network.config.atom_cutoff)
    pairs = point_pairs(cell_structure(), record["cell_points"], network.config.point_cutoff)
    with torch.no_grad():
        assert deviation(network(graph, pairs).numpy(), record["cell_density"]) < 1e-5
        if isinstance(network, EACNet):
            plain = network(graph, pairs, zonal=False).numpy()
            assert deviation(plain, record["cell_density"]) < 1e-5
    encoded = encode(network, cell_structure())
    found = evaluate_points(network, encoded, record["cell_points"])
    assert deviation(found, record["cell_density"]) < 1e-5
    if name == "eac_net_spin":
        assert not np.allclose(found[0], found[1], rtol=0.1)


@pytest.mark.parametrize("name", ["eac_net_total", "eac_net_spin"])
def test_the_fast_engine_knows_imported_networks(name):
    network, _ = imported(name)
    encoded = encode(network, cell_structure())
    points = np.random.default_rng(0).random((1500, 3)) @ np.asarray(cell_structure().cell)
    graph = atom_graph(cell_structure(), network.config.atom_cutoff)
    pairs = point_pairs(cell_structure(), points, network.config.point_cutoff)
    with torch.no_grad():
        expected = network(graph, pairs).numpy()
    assert deviation(evaluate_points(network, encoded, points), expected) < 1e-5
    parts = evaluate_points(network, encoded, points, contributions=True)
    assert deviation(parts.sum(axis=2), expected) < 1e-5


@pytest.mark.parametrize("name", ["eac_net_total", "eac_net_spin"])
@pytest.mark.parametrize("theirs", ["nearest_images", "few_neighbours"])
def test_small_cells_see_all_neighbours_where_the_authors_code_sees_some(name, theirs):
    network, _ = imported(name)
    record = recorded(name)
    found = evaluate_points(network, encode(network, crystal()), record["crystal_points"])
    assert deviation(found, record["crystal_density_all_images"]) < 1e-5
    assert deviation(found, record[f"crystal_density_{theirs}"]) > 1e-3


@pytest.mark.parametrize("name", ["charge3net_total", "charge3net_spin"])
def test_small_cells_are_right_in_charge3net_as_well(name):
    network, _ = imported(name)
    record = recorded(name)
    found = evaluate_points(network, encode(network, crystal()), record["crystal_points"])
    assert deviation(found, record["crystal_density"]) < 1e-5


def test_averaged_weights_are_preferred_and_scales_kept(tmp_path):
    content = torch.load(DATA / "eac_net_total.pt", weights_only=True)
    average = {k: v.clone() for k, v in content["model_state"].items() if k.endswith("weight")}
    average["atom_env_model.atom_encoding.linear.weight"] *= 2
    torch.save({**content, "ema": average}, tmp_path / "averaged.pt")
    network, _ = import_model(tmp_path / "averaged.pt", elements=(8, 1))
    assert network.config.elements == (1, 8)
    plain, _ = imported("eac_net_total")
    assert network.config.offset == plain.config.offset == (pytest.approx(0.3),)
    assert torch.allclose(network.embed.weight, 2 * plain.embed.weight)
    assert torch.equal(network.embed.bias, plain.embed.bias)


def test_an_offset_is_the_density_of_a_network_that_says_nothing():
    network, _ = import_model(DATA / "eac_net_total.pt", elements=(8,))
    with torch.no_grad():
        network.value_weight.value[-1].weight.zero_()
        network.value_weight.value[-1].bias.zero_()
    atoms = Atoms("O2", [[0, 0, 0], [1.2, 0, 0]])
    points = np.array([[0.5, 0.1, 0], [-3.0, 0, 0], [9.0, 0, 0]])
    for count in (1, 500):  # few pairs, and enough of them for the engine's tables
        found = evaluate_points(network, encode(network, atoms), np.repeat(points, count, axis=0))
        assert np.allclose(found[0].reshape(3, count).T, [0.3, 0.3, 0.0], atol=1e-6)


def test_residual_networks_become_plain_ones():
    torch.manual_seed(0)

    def layer(n_in, n_out, residual):
        made = torch.nn.Linear(n_in, n_out).double()
        step = torch.rand(n_out, dtype=torch.float64)
        return DenseLayer(made.weight.detach(), made.bias.detach(), step, residual)

    layers = [layer(3, 6, True), layer(6, 6, True), layer(6, 4, False), layer(4, 4, True)]
    last = replace(layer(4, 2, False), step=torch.ones(2, dtype=torch.float64))
    layers.append(last)
    entrance = torch.randn(3, 5, dtype=torch.float64)
    features = torch.randn(7, 5, dtype=torch.float64)
    x = features @ entrance.T
    for one in layers[:-1]:
        y = torch.nn.functional.silu(x @ one.weight.T + one.bias) * one.step
        x = y + x.repeat(1, y.shape[1] // x.shape[1]) if one.residual else y
    expected = x @ layers[-1].weight.T + layers[-1].bias
    plain, hidden = plain_network(layers, entrance)
    x = features
    for matrix, bias in plain[:-1]:
        x = torch.nn.functional.silu(x @ matrix.T + bias)
    assert torch.allclose(x @ plain[-1][0].T + plain[-1][1], expected, atol=1e-12)
    assert hidden[2] == 4  # nothing has to pass a layer without residual connection
    for other in replace(last, residual=True), replace(last, step=2 * last.step):
        with pytest.raises(ModelFileError, match="last layer"):
            plain_network([*layers[:-1], other], entrance)


def test_the_calculator_runs_imported_models(tmp_path):
    from eac_model.checkpoint import save_model

    network, card = imported("charge3net_total")
    assert isinstance(network, ChargE3Net)
    save_model(network, card, tmp_path / "m.safetensors")
    atoms = Atoms("OH", [[1, 1, 1], [1, 1, 2]], cell=[3, 3, 3], pbc=True)
    atoms.calc = EACDensity(str(tmp_path / "m.safetensors"), normalize=False)
    points = np.array([[1.0, 1.2, 1.4]])
    expected = evaluate_points(network, encode(network, atoms), points)
    assert np.allclose(atoms.calc.evaluate(points), expected, rtol=1e-5)


# -- files that are something else -----------------------------------------------------------------


class Harmful:
    """Runs a command when it is unpickled."""

    def __init__(self, function, argument):
        self.function, self.argument = function, argument

    def __reduce__(self):
        return self.function, (self.argument,)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("function", [os.system, exec])
def test_nothing_in_a_file_is_executed(tmp_path, function, zipped):
    trace = tmp_path / "executed"
    argument = f"touch {trace}" if function is os.system else f"open({str(trace)!r}, 'w')"
    content = torch.load(DATA / "eac_net_total.pt", weights_only=True)
    content["harmful"] = Harmful(function, argument)
    torch.save(content, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    if zipped and function is exec:
        read = read_torch_file(tmp_path / "m.pt")
        assert type(read["harmful"]).__name__ == "Unread"
    else:
        with pytest.raises(ModelFileError, match="Nothing was executed") as refusal:
            read_torch_file(tmp_path / "m.pt")
        assert "weights_only" not in str(refusal.value)
    assert not trace.exists()


def test_weights_are_read_beside_objects_of_any_class(tmp_path):
    from collections import defaultdict
    from functools import partial

    content = {
        "weights": torch.arange(3.0),
        "optimizer": partial(torch.optim.Adam, lr=1e-3),
        "losses": defaultdict(list, {"a": [1.0]}),
        "path": Path("somewhere"),
        "number": np.float64(2.0),
    }
    torch.save(content, tmp_path / "m.pt")
    read = read_torch_file(tmp_path / "m.pt")
    assert torch.equal(read["weights"], torch.arange(3.0))
    assert read["losses"] == {"a": [1.0]}
    for name in ("optimizer", "path", "number"):
        assert type(read[name]).__name__ == "Unread"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weights": torch.ones(2)}, "no checkpoint of EAC-Net .* it holds weights"),
        (torch.ones(2), "holds Tensor, not a dictionary"),
        ({"settings": {}, "model_state": {}}, "does not hold what EAC-Net writes"),
        ({"model": {"probe_model.readout.weight": torch.ones(1)}}, "not of the ChargE3Net"),
    ],
)
def test_other_files_are_refused_with_a_reason(tmp_path, content, message):
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(ModelFileError, match=message):
        import_model(tmp_path / "m.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    for name in ("text.pt", "missing.pt"):
        with pytest.raises(ModelFileError, match=name):
            import_model(tmp_path / name)


def changed_settings(tmp_path, change):
    content = torch.load(DATA / "eac_net_total.pt", weights_only=True)
    change(content["settings"]["model"])
    torch.save(content, tmp_path / "m.pt")
    return tmp_path / "m.pt"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: m["atom"]["message_passing"].update(feature_smooth=True),
            "feature_smooth: false",
        ),
        (lambda m: m["probe"]["message_passing"].update(lmax=1), "one lmax"),
        (lambda m: m["probe"]["probe_edge_weight"].update(method="new"), "exp\\+smooth"),
        (lambda m: m["probe"]["edge_encoding"]["smooth"].update(rcut=9.0), "one rcut"),
        (lambda m: m["probe"]["charge_head"].update(active="tanh"), "silu"),
        (lambda m: m["probe"].pop("charge_head"), "charge_head"),
    ],
)
def test_options_without_a_counterpart_are_named(tmp_path, change, message):
    with pytest.raises(ModelFileError, match=message):
        import_model(changed_settings(tmp_path, change))


def test_missing_weights_and_elements_are_named(tmp_path):
    content = torch.load(DATA / "eac_net_total.pt", weights_only=True)
    del content["model_state"]["atom_env_model.atom_encoding.linear.bias"]
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(ModelFileError, match=r"linear\.bias"):
        import_model(tmp_path / "m.pt", elements=(8,))
    with pytest.raises(ModelFileError, match="up to atomic number 103, not 118"):
        import_model(DATA / "eac_net_total.pt", elements=(8, 118))
    state = torch.load(DATA / "charge3net_total.pt", weights_only=True)
    state["model"]["atom_model.basis.mean"] += 1
    torch.save(state, tmp_path / "c.pt")
    with pytest.raises(ModelFileError, match="radial basis"):
        import_model(tmp_path / "c.pt")


@pytest.mark.parametrize("name", ["eac_net_total", "charge3net_total"])
@pytest.mark.parametrize(
    "wrong",
    [
        {"elements": []},
        {"elements": [0, 1]},
        {"elements": ["H"]},
        {"elements": [1.7]},
        {"cutoff": 0.0},
    ],
)
def test_elements_and_cutoffs_that_are_none_are_refused(name, wrong):
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        import_model(DATA / f"{name}.pt", **wrong)


def test_older_charge3net_files_have_other_names(tmp_path):
    state = torch.load(DATA / "charge3net_total.pt", weights_only=True)["model"]
    older = {f"network.{name}": value for name, value in state.items()}
    torch.save({"pytorch-lightning_version": "1", "state_dict": older}, tmp_path / "old.pt")
    network, _ = import_model(tmp_path / "old.pt", elements=(8,), cutoff=3.5)
    assert network.config.point_cutoff == network.config.atom_cutoff == 3.5
    known, _ = imported("charge3net_total")
    assert torch.equal(network.readout.weight, known.readout.weight)


WEIGHTS = {"eac_net_total": "model_state", "charge3net_total": "model"}


@pytest.mark.parametrize("name", list(WEIGHTS))
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "network.module.", "model."])
def test_names_may_be_those_of_a_wrapped_network(tmp_path, name, prefix):
    content = torch.load(DATA / f"{name}.pt", weights_only=True)
    state = content[WEIGHTS[name]]
    content[WEIGHTS[name]] = {f"{prefix}{key}": value for key, value in state.items()}
    torch.save(content, tmp_path / "m.pt")
    network, _ = import_model(tmp_path / "m.pt")
    expected = import_model(DATA / f"{name}.pt")[0].state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in network.state_dict().items())


def test_a_plain_state_dictionary_of_charge3net_is_enough(tmp_path):
    state = torch.load(DATA / "charge3net_total.pt", weights_only=True)["model"]
    torch.save(state, tmp_path / "m.pt")
    network, _ = import_model(tmp_path / "m.pt")
    assert torch.equal(network.readout.weight, imported("charge3net_total")[0].readout.weight)


@pytest.mark.parametrize("name", list(WEIGHTS))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_may_be_in_half_precision(tmp_path, name, dtype):
    content = torch.load(DATA / f"{name}.pt", weights_only=True)
    for key, value in content[WEIGHTS[name]].items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            content[WEIGHTS[name]][key] = value.to(dtype)
    torch.save(content, tmp_path / "m.pt")
    network, _ = import_model(tmp_path / "m.pt")
    expected = dict(import_model(DATA / f"{name}.pt")[0].named_parameters())
    for key, value in network.named_parameters():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[key], rtol=0.02, atol=0.01)


@pytest.mark.parametrize("name", list(WEIGHTS))
def test_tensors_of_a_wrong_shape_are_refused_or_not_needed(tmp_path, name):
    content = torch.load(DATA / f"{name}.pt", weights_only=True)
    content.pop("ema", None)
    torch.save(content, tmp_path / "m.pt")
    whole = import_model(tmp_path / "m.pt")[0].state_dict()
    tensors = {k: v for k, v in content[WEIGHTS[name]].items() if isinstance(v, torch.Tensor)}
    for key in [k for k, v in tensors.items() if v.numel() > 1][::6]:
        value = tensors[key]
        wrong = {**content[WEIGHTS[name]], key: value.reshape(-1)[:-1].clone()}
        torch.save({**content, WEIGHTS[name]: wrong}, tmp_path / "m.pt")
        try:
            network, _ = import_model(tmp_path / "m.pt")
        except ModelFileError:
            continue
        found = network.state_dict()
        assert all(torch.equal(found[k], v) for k, v in whole.items()), key


@pytest.mark.parametrize("name", list(WEIGHTS))
def test_weights_that_are_no_numbers_are_refused(tmp_path, name):
    content = torch.load(DATA / f"{name}.pt", weights_only=True)
    key = next(
        k for k in content[WEIGHTS[name]] if k.endswith(("fc.layer0.weight", "linear.weight"))
    )
    content[WEIGHTS[name]][key][0, 0] = float("nan")
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(ModelFileError, match="no finite numbers"):
        import_model(tmp_path / "m.pt")


@pytest.mark.parametrize("part", ["edge_feature_simple_net", "edge_weight.mlplayers"])
def test_steps_where_our_networks_have_none_are_refused(tmp_path, part):
    content = torch.load(DATA / "eac_net_total.pt", weights_only=True)
    content.pop("ema", None)
    tensors = content[WEIGHTS["eac_net_total"]]
    key = next(k for k in tensors if part in k and k.endswith(".0.weight"))
    tensors[key.removesuffix("0.weight") + "1.idt"] = torch.full((len(tensors[key]),), 0.5)
    torch.save(content, tmp_path / "steps.pt")
    with pytest.raises(ModelFileError, match="residual connections or steps"):
        import_model(tmp_path / "steps.pt")


def test_settings_of_fewer_layers_than_there_are_weights_are_refused(tmp_path):
    for part in ("atom", "probe"):
        path = changed_settings(
            tmp_path, lambda m, part=part: m[part]["message_passing"].update(num_layers=1)
        )
        with pytest.raises(ModelFileError, match="its settings say 1"):
            import_model(path)


def test_a_file_that_was_cut_off_is_named(tmp_path):
    whole = (DATA / "eac_net_total.pt").read_bytes()
    for size in (1, 2, 5000, len(whole) - 10):
        (tmp_path / "cut.pt").write_bytes(whole[:size])
        with pytest.raises(ModelFileError, match=r"cut\.pt"):
            import_model(tmp_path / "cut.pt")


# -- command line ----------------------------------------------------------------------------------


def test_the_command_writes_a_model_file(tmp_path):
    target = tmp_path / "mine.safetensors"
    command = ["models", "import", str(DATA / "eac_net_spin.pt"), "-o", str(target)]
    options = ["--elements", "O,H Si", "--functional", "PBE", "--licence", "MIT"]
    options += ["--valence", "H=1,O=6, Si=4"]
    result = CliRunner().invoke(app, [*command, *options])
    assert result.exit_code == 0, result.output
    assert "mine.safetensors" in result.output.replace("\n", "")
    network, card = load_model(target)
    assert network.config.elements == (1, 8, 14)
    assert card.name == "mine"
    assert card.elements == ("H", "O", "Si")
    assert (card.provenance.functional, card.licence) == ("PBE", "MIT")
    assert card.valence_electrons == {"H": 1.0, "O": 6.0, "Si": 4.0}
    known, _ = imported("eac_net_spin")
    assert torch.equal(network.embed.weight, known.embed.weight)
    shown = CliRunner().invoke(app, ["models", str(target), "--json"])
    assert json.loads(shown.stdout)["name"] == "mine"
    for wrong in (["--elements", "Xx"], ["--valence", "H O 6"], ["-o", "mine.txt"]):
        assert CliRunner().invoke(app, [*command, *wrong]).exit_code == 2


def test_models_takes_names_options_and_commands():
    runner = CliRunner()
    listed = json.loads(runner.invoke(app, ["models", "--json"]).stdout)
    first = listed[0]["name"]
    for arguments in (["models", first, "--json"], ["models", "--json", first]):
        assert json.loads(runner.invoke(app, arguments).stdout)["name"] == first
    assert runner.invoke(app, ["models", "show", first]).exit_code == 0
    assert runner.invoke(app, ["models", "no-such-model"]).exit_code == 2


def test_the_scripts_that_run_the_authors_code_can_be_imported():
    folder = Path(__file__).parents[2] / "benchmarks"
    spec = importlib.util.spec_from_file_location("import_eac", folder / "import_eac.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(SystemExit, match="no checkout"):
        module.Reference(Path("nowhere"))
