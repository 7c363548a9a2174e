import copy
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from ase import Atoms

from eac_model.engine import encode, evaluate_grid, evaluate_points, integrate_density
from eac_model.errors import (
    ConfigurationError,
    GridError,
    StructureError,
    UnknownElementError,
)
from eac_model.neighbors import atom_graph, point_pairs
from eac_model.network import EACNet, NetworkConfig

SKEWED = [[3.0, 0, 0], [1.0, 3.2, 0], [0.3, 0.4, 2.8]]


def network(dtype=torch.float64, **settings):
    torch.manual_seed(0)
    defaults = {
        "elements": (1, 8),
        "l_max": 2,
        "channels": 4,
        "interactions": 1,
        "decoder": "linear+value-weight",
        "weight": "MLPxS",
        "point_cutoff": 4.0,
        "superposition": True,
    }
    model = EACNet(NetworkConfig(**defaults | settings))
    with torch.no_grad():
        if model.superposition is not None:
            model.superposition.table.uniform_(0, 1)
        if model.linear is not None:
            model.linear.functions.mul_(1000)
            model.scale_contributions.copy_(torch.tensor([0.7, 1.3]))
    return model.to(dtype).eval()


def structure(pbc=True, cell=SKEWED):
    rng = np.random.default_rng(0)
    return Atoms("OHHO", rng.random((4, 3)) * 3, cell=cell, pbc=pbc, magmoms=[1, 0, 0, -2])


def reference(model, atoms, points):
    graph = atom_graph(atoms, model.config.atom_cutoff, model.dtype)
    pairs = point_pairs(atoms, points, model.config.point_cutoff, model.dtype)
    with torch.no_grad():
        return model(graph, pairs, zonal=False).numpy()


@pytest.mark.parametrize("pbc", [True, False, (True, False, True)])
@pytest.mark.parametrize("spin", [False, True])
@pytest.mark.parametrize("block_size", [None, 7])
def test_blocks_equal_the_network_on_a_pair_list(pbc, spin, block_size):
    model = network(spin=spin)
    atoms = structure(pbc)
    points = np.random.default_rng(1).uniform(-5, 8, (200, 3))
    found = evaluate_points(model, encode(model, atoms), points, block_size=block_size)
    expected = reference(model, atoms, points)
    assert found.shape == (2 if spin else 1, 200)
    assert np.abs(found - expected).max() < 1e-10 * np.abs(expected).max()


def test_float32_agrees_with_float64_to_two_millionths():
    points = np.random.default_rng(1).uniform(0, 3, (300, 3))
    model = network(torch.float32)
    exact = evaluate_points(network(), encode(network(), structure()), points)
    found = evaluate_points(model, encode(model, structure()), points)
    assert found.dtype == np.float32
    assert np.abs(found - exact).max() < 2e-6 * np.abs(exact).max()


@pytest.mark.parametrize("shape", [(4, 5, 6), (1, 1, 1), (7, 1, 3)])
def test_a_grid_holds_the_values_at_fractions_of_the_cell_in_c_order(shape):
    model, atoms = network(), structure()
    encoded = encode(model, atoms)
    grid = evaluate_grid(model, encoded, shape, block_size=5)
    fractions = np.stack(np.meshgrid(*(np.arange(n) / n for n in shape), indexing="ij"), axis=-1)
    expected = evaluate_points(model, encoded, fractions.reshape(-1, 3) @ np.array(SKEWED))
    assert np.allclose(grid.reshape(1, -1), expected, rtol=1e-12)


def test_a_grid_may_span_another_box():
    model, atoms = network(), structure()
    encoded = encode(model, atoms)
    grid = evaluate_grid(model, encoded, (2, 2, 2), cell=np.eye(3), origin=np.array([0.5, 0, 0]))
    corner = evaluate_points(model, encoded, np.array([[1.0, 0.5, 0.5]]))
    assert np.allclose(grid[0, 1, 1, 1], corner[0, 0])


def test_contributions_sum_to_the_density_and_follow_the_atoms_through_the_boundary():
    model, atoms = network(), structure()
    points = np.random.default_rng(1).uniform(0, 3, (50, 3))
    encoded = encode(model, atoms)
    parts = evaluate_points(model, encoded, points, contributions=True)
    assert parts.shape == (1, 50, 4)
    assert np.allclose(parts.sum(-1), evaluate_points(model, encoded, points), atol=1e-12)
    moved = atoms.copy()
    moved.positions[2] += np.array(SKEWED[0])
    again = evaluate_points(model, encode(model, moved), points, contributions=True)
    assert np.allclose(again, parts, atol=1e-10)


def test_integrals_of_contributions_equal_sums_over_the_grid():
    model, atoms = network(), structure()
    encoded = encode(model, atoms)
    shape = (6, 5, 4)
    populations, dipoles, seconds = integrate_density(
        model, encoded, shape, by_atom=True, block_size=11
    )
    fractions = np.stack(np.meshgrid(*(np.arange(n) / n for n in shape), indexing="ij"), axis=-1)
    points = fractions.reshape(-1, 3) @ np.array(SKEWED)
    parts = evaluate_points(model, encoded, points, contributions=True)
    voxel = atoms.cell.volume / np.prod(shape)
    assert np.allclose(populations, parts.sum(1) * voxel)
    assert dipoles.shape == (1, 4, 3)
    assert seconds.shape == (1, 4, 3, 3)


def test_the_dipole_of_a_single_contribution_vanishes_by_symmetry():
    model = network(interactions=0, decoder="linear")
    atom = Atoms("O", [[0, 0, 0]])
    cell, origin = 8.2 * np.eye(3), np.full(3, -4.0)
    found = integrate_density(
        model, encode(model, atom), (41, 41, 41), by_atom=True, cell=cell, origin=origin
    )
    assert np.abs(found.dipoles).max() < 1e-10
    np.testing.assert_allclose(
        found.seconds[0, 0], found.seconds[0, 0, 0, 0] * np.eye(3), atol=1e-10
    )


def test_points_out_of_reach_get_exactly_zero():
    model = network()
    encoded = encode(model, structure(pbc=False))
    values = evaluate_points(model, encoded, np.array([[50.0, 0, 0], [1, 1, 1]]))
    assert values[0, 0] == 0
    assert values[0, 1] != 0


def test_no_points_give_no_values():
    model = network()
    encoded = encode(model, structure())
    assert evaluate_points(model, encoded, np.zeros((0, 3))).shape == (1, 0)


def test_running_out_of_memory_halves_the_block_and_goes_on(monkeypatch):
    model, atoms = network(), structure()
    points = np.random.default_rng(1).uniform(0, 3, (64, 3))
    encoded = encode(model, atoms)
    expected = evaluate_points(model, encoded, points)
    contributions = model.contributions
    sizes = []

    def small_machine(descriptors, numbers, pairs):
        sizes.append(pairs.n_points)
        if pairs.n_points > 10:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return contributions(descriptors, numbers, pairs)

    monkeypatch.setattr(model, "contributions", small_machine)
    assert np.allclose(evaluate_points(model, encoded, points), expected, atol=1e-12)
    assert max(sizes) > 10


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch):
    model = network()
    encoded = encode(model, structure())

    def broken(*_):
        raise RuntimeError("something else")

    monkeypatch.setattr(model, "contributions", broken)
    with pytest.raises(RuntimeError, match="something else"):
        evaluate_points(model, encoded, np.zeros((3, 3)))


def test_progress_adds_up_to_the_number_of_points():
    model = network()
    encoded = encode(model, structure())
    done = []
    evaluate_grid(model, encoded, (5, 6, 7), block_size=13, progress=done.append)
    assert sum(done) == 5 * 6 * 7
    assert len(done) > 5


@pytest.mark.parametrize("points", [np.zeros(3), np.zeros((2, 2)), np.full((1, 3), np.nan)])
def test_points_that_are_none_are_refused(points):
    model = network()
    with pytest.raises(ValueError, match=r"[Pp]oints"):
        evaluate_points(model, encode(model, structure()), points)


def test_finite_points_are_out_of_reach_however_far():
    model = network()
    far = [[1e160, 0, 0], [0, -1.7e308, 1.7e308], [1e13, 1e13, 1e13]]
    assert not evaluate_points(model, encode(model, structure(pbc=False)), far).any()
    assert np.isfinite(evaluate_points(model, encode(model, structure()), far)).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"of_atoms": np.array([1, 1, 0, 0])}, ConfigurationError, "a mask is needed"),
        ({"of_atoms": [True]}, ConfigurationError, "each of 4 atoms"),
        ({"block_size": -1}, ConfigurationError, "block_size=-1"),
        ({"cell": [3, 3, 3]}, GridError, "cell: finite numbers"),
        ({"cell": np.full((3, 3), np.nan)}, GridError, "cell: finite numbers"),
        ({"origin": [np.nan, 0, 0]}, GridError, "origin: finite numbers"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(options, error, message):
    model = network()
    with pytest.raises(error, match=message):
        evaluate_grid(model, encode(model, structure()), (2, 2, 2), **options)


@pytest.mark.parametrize("shape", [(None, 2, 3), (2, 2, [3]), (2, 2), (2, 2, np.inf), (1, 2, 1.5)])
def test_shapes_that_are_none_are_refused(shape):
    model = network()
    with pytest.raises(GridError, match="three positive whole numbers"):
        evaluate_grid(model, encode(model, structure()), shape)


@pytest.mark.parametrize("decoder", ["linear", "value-weight"])
def test_threads_may_share_a_network(decoder):
    model = network(torch.float32, decoder=decoder)
    encoded = encode(model, structure())
    rng = np.random.default_rng(2)
    points = [rng.uniform(0, 3, (150, 3)) for _ in range(24)]
    expected = [evaluate_points(model, encoded, some, block_size=20) for some in points]
    switching = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            jobs = [
                pool.submit(evaluate_points, model, encode(model, structure()), some, block_size=20)
                for some in points
            ]
            found = [job.result() for job in jobs]
    finally:
        sys.setswitchinterval(switching)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("decoder", ["linear", "value-weight"])
@pytest.mark.parametrize(
    "change",
    [
        lambda parameter: parameter.data.neg_(),
        lambda parameter: parameter.data.copy_(parameter.data.flip(0)),
        lambda parameter: setattr(parameter, "data", -parameter.data),
        lambda parameter: parameter.data.mul_(1.001),
    ],
    ids=["in place", "copied", "replaced", "scaled"],
)
def test_weights_changed_behind_the_back_of_torch_are_noticed(decoder, change):
    model, atoms = network(torch.float32, decoder=decoder, superposition=False), structure()
    points = np.random.default_rng(1).uniform(0, 3, (20, 3))
    before = evaluate_points(model, encode(model, atoms), points)
    for parameter in model.parameters():
        change(parameter)
    found = evaluate_points(model, encode(model, atoms), points)
    fresh = copy.deepcopy(model)
    expected = evaluate_points(fresh, encode(fresh, atoms), points)
    assert np.abs(expected - before).max() > 1e-3 * np.abs(before).max()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


def test_bad_structures_are_refused_before_the_encoder_runs(monkeypatch):
    model = network()
    monkeypatch.setattr(model, "descriptors", lambda _: pytest.fail("the encoder ran"))
    with pytest.raises(UnknownElementError, match="Fe"):
        encode(model, Atoms("Fe"))
    with pytest.raises(StructureError):
        encode(model, Atoms("O", [[np.nan] * 3]))


def test_a_spin_model_evaluates_structures_without_moments_once():
    model, atoms = network(spin=True), structure()
    atoms.set_initial_magnetic_moments(np.zeros(4))
    points = np.random.default_rng(1).uniform(0, 3, (20, 3))
    encoded = encode(model, atoms)
    assert len(encoded.descriptors) == 1
    found = evaluate_points(model, encoded, points)
    assert np.abs(found - reference(model, atoms, points)).max() < 1e-10
    assert np.array_equal(found[0], found[1])


def test_evaluation_is_deterministic():
    model, atoms = network(torch.float32), structure()
    points = np.random.default_rng(1).uniform(0, 3, (100, 3))
    a, b = (evaluate_points(model, encode(model, atoms), points) for _ in range(2))
    assert np.array_equal(a, b)


@pytest.mark.parametrize("spin", [False, True])
def test_the_density_of_some_atoms_is_the_sum_of_their_contributions(spin):
    model, atoms = network(spin=spin), structure()
    encoded = encode(model, atoms)
    points = np.random.default_rng(1).uniform(0, 3, (40, 3))
    chosen = np.array([True, False, False, True])
    found = evaluate_points(model, encoded, points, of_atoms=chosen, block_size=7)
    parts = evaluate_points(model, encoded, points, contributions=True)
    assert np.allclose(found, parts[..., chosen].sum(-1), rtol=1e-12, atol=1e-14)
