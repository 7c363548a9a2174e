"""Expected errors: what a model file says of how far to trust it."""

import numpy as np
import pytest
import torch
from ase import Atoms

from eac_model.checkpoint import load_model
from eac_model.neighbors import atom_graph, point_pairs
from eac_model.network.expected_error import CalibrationStructure, ExpectedError
from eac_model.training import train
from eac_model.training.calibration import nearest_atoms

from .synthetic import config, scattered, store_of


def structures(count, scale, seed=0, errors=None):
    """Atoms of two elements whose invariants scatter by ``scale`` about a centre of their own."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        elements = torch.tensor([0, 0, 1])
        invariants = elements[:, None] * 10 + scale * torch.randn(3, 4, generator=generator)
        known = {}
        if errors is not None:
            noise = torch.exp(0.05 * torch.randn(3, generator=generator))
            known = {"errors": errors(invariants, elements) * noise, "electrons": torch.ones(3)}
        yield CalibrationStructure(invariants, elements, **known)


def growing(invariants, elements):
    """1 % or 2 % by element, and more away from the centre."""
    away = (invariants - 10 * elements[:, None]).norm(dim=1)
    return 0.01 * (1 + elements) * (1 + away)


@pytest.fixture(scope="module")
def expected():
    found = ExpectedError(2, 4)
    left_out = [*structures(60, 0.5, 1, growing), *structures(60, 3.0, 2, growing)]
    found.fit(structures(80, 0.5), left_out)
    return found


def test_errors_are_expected_to_grow_away_from_the_training_data(expected):
    elements = torch.zeros(20, dtype=torch.long)
    away = torch.linspace(3, 12, 20)[:, None] * torch.tensor([1.0, 0, 0, 0])
    errors, _ = expected(away, elements)
    assert (errors.diff() >= -0.05 * errors[:-1]).all()
    assert errors[-1] > 2 * errors[0]


def test_expected_errors_rank_structures_as_their_errors_do(expected):
    test = [*structures(40, 0.5, 3, growing), *structures(40, 3.0, 4, growing)]
    true = np.array([100 * float(s.errors.sum() / s.electrons.sum()) for s in test])
    found = np.array([float(expected(s.invariants, s.elements)[1]) for s in test])
    ranks = [np.argsort(np.argsort(values)) for values in (true, found)]
    assert np.corrcoef(ranks)[0, 1] > 0.7
    assert 0.7 < found.mean() / true.mean() < 1.4


def test_an_element_with_larger_errors_keeps_them(expected):
    centre = torch.stack([torch.zeros(4), torch.full((4,), 10.0)])
    errors, _ = expected(centre, torch.tensor([0, 1]))
    assert 1.5 < errors[1] / errors[0] < 2.7


def test_surroundings_far_from_all_known_ones_are_beyond_the_limit(expected):
    near, far = torch.zeros(1, 4), torch.full((1, 4), 60.0)
    element = torch.tensor([0])
    assert expected.distances(near, element) < expected.limit
    assert expected.distances(far, element) > expected.limit


def test_an_element_without_training_data_is_infinitely_far():
    found = ExpectedError(3, 4)
    found.fit(structures(10, 0.5), structures(10, 0.5, 1, growing))
    assert torch.isinf(found.distances(torch.zeros(1, 4), torch.tensor([2]))).all()


def test_points_belong_to_the_nearest_atom_in_units_of_its_radius():
    atoms = Atoms("HCs", positions=[[0, 0, 0], [3.0, 0, 0]], cell=[20, 20, 20], pbc=True)
    points = np.array([[0.1, 0, 0], [1.5, 0, 0], [2.9, 0, 0], [19.8, 0, 0], [10.0, 10, 10]])
    pairs = point_pairs(atoms, points, 4.0, torch.float64)
    numbers = torch.as_tensor(atoms.numbers)
    # Caesium is eight times as large as hydrogen: the middle is its.
    assert nearest_atoms(pairs, numbers).tolist() == [0, 1, 1, 0, -1]


def test_training_with_left_out_structures_leaves_expected_errors_in_the_model(tmp_path):
    frames = store_of(tmp_path / "frames", [scattered(seed) for seed in range(8)])
    run = config(frames, data={"validation": 3}, optimisation={"steps": 4})
    network, card = load_model(train(run, tmp_path / "run"))
    assert network.expected_error is not None
    graph = atom_graph(scattered(9).atoms, network.config.atom_cutoff, network.dtype)
    invariants = network.atom_invariants(network.spin_descriptors(graph))
    errors, structure = network.expected_error(invariants, network.element_index[graph.numbers])
    assert torch.isfinite(errors).all()
    measured = card.training["validation_nmae_percent"]
    assert 0.3 * measured < structure.item() < 3 * measured


def test_training_on_all_structures_leaves_none(tmp_path):
    frames = store_of(tmp_path / "frames", [scattered(seed) for seed in range(3)])
    run = config(frames, data={"validation": 0}, optimisation={"steps": 2})
    network, _ = load_model(train(run, tmp_path / "run"))
    assert network.expected_error is None
