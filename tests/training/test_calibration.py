"""Expected errors: what a model file says of how far to trust it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms

from eac_model.checkpoint import load_model
from eac_model.neighbors import atom_graph, point_pairs
from eac_model.network.expected_error import (
    CalibrationStructure,
    ExpectedError,
    atoms_in_reach,
)
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
        yield CalibrationStructure(invariants, elements, alone(3), **known)


def alone(count):
    """Atoms without neighbours."""
    return torch.arange(count), torch.arange(count)


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
    errors, _ = expected(away, elements, alone(20))
    assert (errors.diff() >= -0.05 * errors[:-1]).all()
    assert errors[-1] > 2 * errors[0]


def test_expected_errors_rank_structures_as_their_errors_do(expected):
    test = [*structures(40, 0.5, 3, growing), *structures(40, 3.0, 4, growing)]
    true = np.array([100 * float(s.errors.sum() / s.electrons.sum()) for s in test])
    found = np.array([float(expected(s.invariants, s.elements, s.pairs)[1]) for s in test])
    ranks = [np.argsort(np.argsort(values)) for values in (true, found)]
    assert np.corrcoef(ranks)[0, 1] > 0.7
    assert 0.7 < found.mean() / true.mean() < 1.4


def test_an_element_with_larger_errors_keeps_them(expected):
    centre = torch.stack([torch.zeros(4), torch.full((4,), 10.0)])
    errors, _ = expected(centre, torch.tensor([0, 1]), alone(2))
    assert 1.5 < errors[1] / errors[0] < 2.7


def test_surroundings_far_from_all_known_ones_are_beyond_the_limit(expected):
    near, far = torch.zeros(1, 4), torch.full((1, 4), 60.0)
    element = torch.tensor([0])
    assert expected.distances(near, element) < expected.limit
    assert expected.distances(far, element) > expected.limit


def test_an_element_without_training_data_is_infinitely_far():
    found = ExpectedError(3, 4)
    found.fit(structures(10, 0.5), structures(10, 0.5, 1, growing))
    elements = torch.tensor([0, 2])
    assert found.distances(torch.zeros(2, 4), elements).isinf().tolist() == [False, True]
    # Whatever the slope, nothing is known of errors there.
    found.slope.zero_()
    errors, structure = found(torch.zeros(2, 4), elements, alone(2))
    assert errors.isinf().tolist() == [False, True]
    assert structure.isinf()


def test_left_out_structures_with_unknown_elements_do_not_spoil_the_others():
    left_out = list(structures(10, 0.5, 1, growing))
    strange = replace(left_out[0], elements=torch.tensor([0, 0, 2]))
    found, spoiled = ExpectedError(3, 4), ExpectedError(3, 4)
    found.fit(structures(10, 0.5), left_out)
    spoiled.fit(structures(10, 0.5), [*left_out, strange])
    assert torch.equal(found.offset, spoiled.offset)
    nothing = ExpectedError(3, 4)
    nothing.fit(structures(10, 0.5), [strange])
    assert nothing.limit.isinf()


def test_an_atom_beside_unknown_surroundings_has_the_error_of_these(expected):
    invariants = torch.tensor([[0.0], [40.0], [0.0]]).expand(3, 4)
    elements = torch.zeros(3, dtype=torch.long)
    own, _ = expected(invariants, elements, alone(3))
    pairs = (torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 1, 1, 0, 2]))
    near, _ = expected(invariants, elements, pairs)
    assert near[0] == own[1] > 2 * own[0]
    assert near[2] == own[2]


def test_invariants_count_in_units_of_their_spread():
    """One invariant is a thousand times as large as the others, and says as much as they do."""
    size = torch.tensor([1000.0, 1, 1, 1])
    found = ExpectedError(2, 4)

    def scaled(several):
        return [replace(s, invariants=size * s.invariants) for s in several]

    found.fit(scaled(structures(80, 0.5)), scaled(structures(60, 0.5, 1, growing)))
    element = torch.zeros(2, dtype=torch.long)
    large, small = found.distances(torch.tensor([[9000.0, 0, 0, 0], [0, 9, 0, 0]]), element)
    assert 0.5 < large / small < 2


def test_structures_weigh_the_same_however_many_atoms_they_have():
    def with_error(percent, atoms):
        ones = torch.ones(atoms)
        return CalibrationStructure(
            torch.zeros(atoms, 4), ones.long() * 0, alone(atoms), 0.01 * percent * ones, ones
        )

    found = ExpectedError(1, 4)
    left_out = [with_error(1.0, 200), *(with_error(2.0, 1) for _ in range(9))]
    found.fit(structures_of_one(20), left_out)
    _, structure = found(torch.zeros(1, 4), torch.tensor([0]), alone(1))
    assert 1.7 < structure < 2.0


def structures_of_one(count):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        invariants = torch.randn(2, 4, generator=generator)
        yield CalibrationStructure(invariants, torch.zeros(2, dtype=torch.long), alone(2))


def test_neighbours_are_found_through_periodic_boundaries():
    atoms = Atoms("HHH", [[0.2, 0, 0], [9.8, 0, 0], [5, 0, 0]], cell=[10, 10, 10], pbc=True)
    receivers, senders = atoms_in_reach(atoms, 2.0)
    pairs = set(zip(receivers.tolist(), senders.tolist(), strict=True))
    assert pairs == {(0, 0), (1, 1), (2, 2), (0, 1), (1, 0)}


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
    pairs = atoms_in_reach(scattered(9).atoms, float(network.expected_error.reach))
    elements = network.element_index[graph.numbers]
    errors, structure = network.expected_error(invariants, elements, pairs)
    assert torch.isfinite(errors).all()
    measured = card.training["validation_nmae_percent"]
    assert 0.3 * measured < structure.item() < 3 * measured


def test_left_out_structures_that_tell_nothing_of_distances_are_remarked_on(
    tmp_path, monkeypatch, caplog
):
    frames = store_of(tmp_path / "frames", [scattered(seed) for seed in range(8)])
    fit = ExpectedError.fit

    def without_slope(self, *args):
        fit(self, *args)
        self.slope.zero_()

    monkeypatch.setattr(ExpectedError, "fit", without_slope)
    train(config(frames, data={"validation": 2}, optimisation={"steps": 2}), tmp_path / "run")
    assert "will differ between elements only" in caplog.text


def test_training_on_all_structures_leaves_none(tmp_path):
    frames = store_of(tmp_path / "frames", [scattered(seed) for seed in range(3)])
    run = config(frames, data={"validation": 0}, optimisation={"steps": 2})
    network, _ = load_model(train(run, tmp_path / "run"))
    assert network.expected_error is None
