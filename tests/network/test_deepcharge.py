"""What is Deep Charge's own; what it shares is in test_contract.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from pydantic import ValidationError

from eac_model.data.sample import DensitySample
from eac_model.neighbors import atom_graph, point_pairs
from eac_model.network import DeepChargeConfig, build
from eac_model.network.deepcharge import ResidualNetwork, switched_inverse


def make(dtype=torch.float64, **changes):
    torch.manual_seed(0)
    shape = {"embedding_widths": (5, 10, 20), "axis_neurons": 4, "fitting_widths": (10, 10)}
    config = DeepChargeConfig(
        **{"architecture": "deep-charge", "elements": (13, 14)} | shape | changes
    )
    return build(config, dtype).eval()


def crystal():
    atoms = bulk("Si", cubic=True)
    atoms.numbers[3] = 13
    atoms.rattle(0.1, seed=0)
    return atoms


def inputs(network, atoms, points):
    graph = atom_graph(atoms, network.config.atom_cutoff, network.dtype)
    pairs = point_pairs(atoms, points, network.config.point_cutoff, network.dtype)
    return network.descriptors(graph), graph.numbers, pairs


def sample(scale=1.0):
    atoms = crystal()
    points = np.random.default_rng(0).random((400, 3)) @ np.asarray(atoms.cell)
    pairs = point_pairs(atoms, points, 6.5, torch.float64)
    values = torch.exp(-(pairs.vectors.norm(dim=2) ** 2)) * pairs.mask
    return DensitySample(atoms, scale * pairs.sum_over_atoms(values).numpy(), points=points)


def test_the_switched_inverse_is_one_over_r_and_ends_with_two_derivatives():
    r = torch.tensor([0.1, 0.3, 0.5, 6.5, 7.0], dtype=torch.float64)
    expected = torch.tensor([10.0, 1 / 0.3, 2.0, 0.0, 0.0], dtype=torch.float64)
    assert torch.allclose(switched_inverse(r, 0.5, 6.5), expected, rtol=1e-14)
    middle = torch.tensor([3.5], dtype=torch.float64)
    assert float(switched_inverse(middle, 0.5, 6.5)) == pytest.approx(0.5 / 3.5)
    for place in (0.5, 6.5):
        around = torch.linspace(place - 2e-3, place + 2e-3, 41, dtype=torch.float64)
        second = np.diff(switched_inverse(around, 0.5, 6.5).numpy() * around.numpy(), 2) / 1e-8
        assert np.abs(np.diff(second)).max() < 0.03


@pytest.mark.parametrize("core_radius", [0.05, 0.1, 0.5])
def test_splines_of_the_embedding_are_the_embedding_of_every_pair(core_radius):
    network = make(core_radius=core_radius)
    network.fit_scales([sample()])
    atoms = crystal()
    points = np.concatenate([sample().points, atoms.positions])
    found, exact = (
        network.decode(*inputs(network, atoms, points), tabulated=tabulated).detach()
        for tabulated in (True, False)
    )
    assert float((found - exact).abs().max()) < 3e-6 * float(exact.abs().max())
    gradients = []
    for tabulated in (True, False):
        network.zero_grad()
        network.decode(
            *inputs(network, atoms, points), tabulated=tabulated
        ).square().sum().backward()
        gradients.append(torch.cat([p.grad.ravel() for p in network.parameters()]))
    assert float((gradients[0] - gradients[1]).abs().max()) < 1e-5 * float(gradients[1].abs().max())


def test_invariants_are_those_of_the_definition():
    network = make()
    atoms, point = crystal(), np.array([[0.4, 0.7, 1.9]])
    found = network.invariants(*inputs(network, atoms, point), tabulated=False)[0].detach()
    cluster = atoms.repeat(5)
    vectors = point - (cluster.positions - 2 * np.asarray(atoms.cell).sum(axis=0))
    rows, embedded = [], []
    for vector, number in zip(vectors, cluster.numbers, strict=True):
        if np.linalg.norm(vector) > 6.5:
            continue
        r = np.sqrt(vector @ vector + 0.1**2)
        x = np.clip((r - 0.5) / 6.0, 0, 1)
        s = (1 - 10 * x**3 + 15 * x**4 - 6 * x**5) / r
        rows.append(s * np.concatenate([[1.0], vector / r]))
        net = network.embeddings[int(number) - 13]
        embedded.append(net(torch.tensor([s], dtype=torch.float64)).detach().numpy())
    mixed = np.array(rows).T @ np.array(embedded) / float(network.scale_neighbors)
    assert np.allclose(found.reshape(20, 4).numpy(), mixed.T @ mixed[:, :4], rtol=1e-9, atol=1e-12)


def test_layers_add_their_input_once_or_twice():
    network = ResidualNetwork((3, 5, 5, 10, 7)).double()
    for layer in network.layers:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    with torch.no_grad():
        network.layers[0].bias.fill_(0.3)
    x = torch.randn(2, 3, dtype=torch.float64)
    assert not network(x).any()
    widened = network.layers.pop(3)
    assert torch.allclose(network(x), torch.tanh(torch.tensor(0.3, dtype=torch.float64)))
    assert widened.out_features == 7


def test_the_default_widths_are_the_published_ones():
    config = DeepChargeConfig(architecture="deep-charge", elements=(14,))
    assert config.point_cutoff == 6.5
    assert config.embedding_widths == (20, 40, 80)
    assert config.fitting_widths == (200, 200, 200)
    network = build(config, torch.float32)
    embedding = 20 + 20 + 20 * 40 + 40 + 40 * 80 + 80
    fitting = 80 * 16 * 200 + 200 + 2 * (200 * 200 + 200) + 200
    assert sum(p.numel() for p in network.parameters()) == embedding + fitting


def test_scales_make_invariants_and_targets_of_order_one():
    network = make()
    network.fit_scales([sample(scale=7.0), sample(scale=7.0)])
    found = network.invariants(*inputs(network, sample().atoms, sample().points)).detach()
    scaled = (found - network.scale_mean) / network.scale_spread
    assert float(scaled.mean(dim=0).abs().max()) < 0.3
    assert float(scaled.std(dim=0).median()) == pytest.approx(1.0, abs=0.2)
    squares = np.mean((7.0 * sample().density) ** 2)
    assert float(network.scale_density) == pytest.approx(np.sqrt(squares), rel=0.05)
    assert float(network.scale_neighbors) == pytest.approx(
        8 * 4 / 3 * np.pi * 6.5**3 / 5.43**3, 0.02
    )


def test_moments_of_neighbours_decide_the_spin_and_none_of_them_others():
    network = make(spin=True)
    atoms = Atoms("SiAl", [[0, 0, 0], [0, 0, 2.2]], magmoms=[1.0, 0.0])
    points = np.array([[0.3, 0, 0.5], [0.3, 0.0, 8.0]])
    graph = atom_graph(atoms, 0.0, torch.float64)
    up, down = network(graph, point_pairs(atoms, points, 6.5, torch.float64)).detach()
    assert float((up - down).abs()[0]) > 1e-6
    # Only the atom without a moment is in reach of the second point.
    assert float((up - down).abs()[1]) < 1e-15
    assert float(up[1]) != 0


@pytest.mark.parametrize(
    "settings", [{"switch_from": 7.0}, {"axis_neurons": 21}, {"elements": (14, 13)}, {"l_max": 3}]
)
def test_configurations_that_contradict_themselves_are_refused(settings):
    with pytest.raises(ValidationError):
        make(**settings)
