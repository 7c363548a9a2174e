"""What a user is told of the error of a prediction."""

import json
import warnings

import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.calculators.calculator import PropertyNotImplementedError
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from eac_ase import EACDensity
from eac_model.checkpoint import load_model, save_model
from eac_model.errors import UnfamiliarStructureWarning
from eac_model.neighbors import atom_graph
from eac_model.network.expected_error import (
    CalibrationStructure,
    ExpectedError,
    atoms_in_reach,
)

from .conftest import run, tiny_network, write_model


def rattled(seed):
    atoms = molecule("H2O", vacuum=3.0)
    atoms.rattle(0.05, seed=seed)
    return atoms


def known(network, seed):
    """A structure whose error is 1 % around hydrogen and 2 % around oxygen."""
    graph = atom_graph(rattled(seed), network.config.atom_cutoff, network.dtype)
    invariants = network.atom_invariants(network.spin_descriptors(graph)).detach()
    electrons = torch.tensor([6.0, 1.0, 1.0])
    errors = electrons * torch.tensor([0.02, 0.01, 0.01])
    elements = network.element_index[graph.numbers]
    pairs = atoms_in_reach(rattled(seed), 4.0)
    return CalibrationStructure(invariants, elements, pairs, errors, electrons)


@pytest.fixture(scope="module", params=[False, True], ids=["paired", "spin"])
def model(request, tmp_path_factory):
    network = tiny_network(spin=request.param)
    features = known(network, 0).invariants.shape[1]
    network.expected_error = ExpectedError(2, features).double()
    network.expected_error.fit(
        [known(network, seed) for seed in range(20)],
        [known(network, seed) for seed in range(20, 30)],
    )
    return write_model(tmp_path_factory.mktemp("m") / "trusted.safetensors", network)


def test_estimates_come_from_the_structures_left_out(model):
    estimate = EACDensity(model).get_error_estimate(rattled(40))
    np.testing.assert_allclose(estimate.atoms, [2.0, 1.0, 1.0], rtol=0.2)
    assert estimate.structure == pytest.approx((6 * 2 + 1 + 1) / 8, rel=0.1)
    assert len(estimate.unfamiliar) == 0


def test_estimates_do_not_depend_on_orientation_place_or_order(model):
    calculator, atoms = EACDensity(model), rattled(40)
    expected = calculator.get_error_estimate(atoms)
    turned = atoms[[2, 0, 1]]
    turned.rotate(37, (1, 2, 3), rotate_cell=True)
    turned.positions += [0.3, -0.1, 0.7]
    found = calculator.get_error_estimate(turned)
    np.testing.assert_allclose(found.atoms, expected.atoms[[2, 0, 1]], rtol=1e-8)
    np.testing.assert_allclose(found.distances, expected.distances[[2, 0, 1]], rtol=1e-6)


def test_a_structure_unlike_the_training_data_warns_once(model):
    atoms = molecule("H2O", vacuum=3.0)
    atoms.positions[1] = atoms.positions[0] + [0.0, 0.0, 0.55]
    calculator = EACDensity(model)
    with pytest.warns(UnfamiliarStructureWarning, match=r"like those of .*H 1"):
        calculator.evaluate([[0.0, 0.0, 0.0]], atoms)
    assert 1 in calculator.get_error_estimate(atoms).unfamiliar
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calculator.evaluate([[1.0, 0.0, 0.0]], atoms)


def test_familiar_structures_do_not_warn(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EACDensity(model).evaluate([[0.0, 0.0, 0.0]], rattled(41))


def test_models_without_calibration_say_so(model_file):
    with pytest.raises(PropertyNotImplementedError, match=r"Train with `data\.validation`"):
        EACDensity(model_file).get_error_estimate(rattled(0))


def test_estimates_come_back_from_a_model_file(model, tmp_path):
    network, card = load_model(model)
    save_model(network, card, tmp_path / "again.safetensors")
    atoms = rattled(40)
    expected = EACDensity(model).get_error_estimate(atoms)
    found = EACDensity(tmp_path / "again.safetensors").get_error_estimate(atoms)
    assert np.array_equal(found.atoms, expected.atoms)
    assert np.array_equal(found.distances, expected.distances)
    assert found.structure == expected.structure
    single = EACDensity(model, dtype=torch.float32).get_error_estimate(atoms)
    assert np.allclose(single.atoms, expected.atoms, rtol=1e-3)
    with pytest.raises(ValueError, match="read-only"):
        found.atoms[:] = 0


@pytest.mark.filterwarnings("ignore::eac_model.errors.UnfamiliarStructureWarning")
def test_files_without_neighbours_in_their_estimates_keep_these(model, tmp_path):
    """Format 4: distances of an atom's own invariants, in the units in which they come."""
    tensors = load_file(model)
    for name in ("scales", "reach"):
        del tensors[f"expected_error.{name}"]
    with safe_open(model, "pt") as file:
        header = file.metadata() | {"format_version": "4"}
    save_file(tensors, tmp_path / "old.safetensors", metadata=header)
    network, _ = load_model(tmp_path / "old.safetensors")
    expected = network.expected_error
    assert expected.reach == 0
    estimate = EACDensity(network).get_error_estimate(rattled(40))
    graph = atom_graph(rattled(40), network.config.atom_cutoff, network.dtype)
    invariants = network.atom_invariants(network.spin_descriptors(graph)).detach()
    elements = network.element_index[graph.numbers]
    between = (expected.references[elements] - invariants[:, None]).norm(dim=2).amin(dim=1)
    d = between / expected.unit[elements]
    np.testing.assert_allclose(estimate.distances, d, rtol=1e-9)
    by_hand = torch.exp(expected.offset[elements] + expected.slope * torch.log1p(d))
    np.testing.assert_allclose(estimate.atoms, by_hand, rtol=1e-9)


def test_the_command_line_prints_the_estimate(model, tmp_path):
    rattled(40).write(tmp_path / "w.xyz")
    arguments = ["predict", tmp_path / "w.xyz", "-o", tmp_path / "w.cube", "--model", model]
    result = run(*arguments, "--spacing", "0.4")
    assert "expected error" in result.stdout
    result = run(*arguments, "--spacing", "0.4", "--force", "--json")
    report = json.loads(result.stdout)
    assert report["expected_error_percent"] == pytest.approx(1.75, rel=0.1)
    assert report["unfamiliar_atoms"] == []
    assert report["largest_at"] == "O 0"
