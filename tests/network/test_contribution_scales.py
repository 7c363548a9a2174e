import numpy as np
import pytest
import torch
from ase import Atoms

from eac_model.checkpoint import ModelCard, load_model, save_model
from eac_model.data.sample import DensitySample, Provenance
from eac_model.neighbors import atom_graph, point_pairs
from eac_model.network import EACNet, NetworkConfig

SHAPE = (8, 8, 8)


def network(**changes):
    torch.manual_seed(0)
    keys = {"l_max": 1, "channels": 3, "interactions": 1, "point_cutoff": 2.5, "decoder": "linear"}
    return EACNet(NetworkConfig(elements=(1, 8), **keys | changes)).eval()


def constant_density(symbol, value):
    atoms = Atoms(symbol, cell=[4, 4, 4], pbc=True)
    return DensitySample(atoms, np.full(SHAPE, value), provenance=Provenance("X", "PBE", "total"))


def test_scales_are_the_deviations_for_each_atom_in_reach():
    model = network()
    model.fit_scales([constant_density("H", 0.01), constant_density("O", 0.04)])
    hydrogen, oxygen = model.scale_contributions.tolist()
    assert oxygen == pytest.approx(4 * hydrogen)
    atoms = constant_density("H", 0.01).atoms
    points = constant_density("H", 0.01).grid_points()
    pairs = point_pairs(atoms, points, 2.5)
    expected = 0.01 * len(points) / int(pairs.mask.sum()) / 1.5e-3
    assert hydrogen == pytest.approx(expected, rel=1e-5)


def test_an_element_without_data_keeps_the_usual_scale():
    model = network()
    model.fit_scales([constant_density("H", 0.01)])
    assert model.scale_contributions[1] == 1


@pytest.fixture
def scaled():
    model = network().double()
    with torch.no_grad():
        model.linear.functions.mul_(1000)
        model.scale_contributions.copy_(torch.tensor([0.5, 3.0]))
    return model


def test_contributions_are_proportional_to_the_scale_in_both_forms(scaled):
    atoms = Atoms("OH", [[0, 0, 0], [0.9, 0.3, 0]])
    points = np.random.default_rng(0).uniform(-1, 1, (20, 3))
    graph = atom_graph(atoms, scaled.config.atom_cutoff, torch.float64)
    pairs = point_pairs(atoms, points, 2.5, torch.float64)
    descriptors = scaled.descriptors(graph)
    forms = {}
    for zonal in (True, False):
        forms[zonal] = scaled.contributions(descriptors, graph.numbers, pairs, zonal=zonal)
    torch.testing.assert_close(forms[True], forms[False])
    scaled.scale_contributions.mul_(2)
    twice = scaled.contributions(descriptors, graph.numbers, pairs)
    torch.testing.assert_close(twice, 2 * forms[True])


def test_model_files_keep_the_scales(scaled, tmp_path):
    save_model(scaled, ModelCard("m"), tmp_path / "m.safetensors")
    loaded, _ = load_model(tmp_path / "m.safetensors")
    assert loaded.scale_contributions.tolist() == [0.5, 3.0]
