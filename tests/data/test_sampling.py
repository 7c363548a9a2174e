from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.geometry import get_distances
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from eac_model.data import DensitySample, SamplingMap, SamplingMixture, draw_points
from eac_model.errors import ConfigurationError, GridError

CELL = np.array([[6.0, 0.5, 0.0], [0.0, 7.0, 0.0], [1.0, 0.0, 5.0]])
MIXTURES = [
    SamplingMixture(),
    SamplingMixture(uniform=0, density=1),
    SamplingMixture(uniform=0, core=1),
    SamplingMixture(uniform=0, gradient=1),
    SamplingMixture(uniform=2, density=1, core=3, gradient=0.5),
]


def make_sample(shape=(50, 45, 83), pbc=True, cell=CELL):
    """Two exponential atoms: cusps at the nuclei, nearly nothing between them."""
    atoms = Atoms("OH", scaled_positions=[[0.1, 0.2, 0.3], [0.55, 0.6, 0.9]], cell=cell, pbc=pbc)
    points = DensitySample(atoms, np.zeros(shape)).grid_points()
    _, distances = get_distances(points, atoms.positions, cell=cell, pbc=pbc)
    density = (np.exp(-2 * distances) @ [4.0, 1.0]).reshape(shape)
    return DensitySample(atoms, density)


@pytest.fixture(scope="module")
def sample():
    return make_sample()


@pytest.fixture(scope="module")
def sampling_map(sample):
    return SamplingMap.from_grid(sample.atoms, sample.density)


def distance_of_points(sample, indices):
    points = sample.select(indices).points
    atoms = sample.atoms
    return get_distances(points, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)[1].min(axis=1)


def per_point(sampling_map, per_box):
    """Values of boxes spread over their grid points."""
    for axis, (size, n) in enumerate(zip(sampling_map.box, sampling_map.shape, strict=True)):
        per_box = np.repeat(per_box, size, axis=axis).take(np.arange(n), axis=axis)
    return per_box


@pytest.mark.parametrize("mixture", MIXTURES, ids=str)
def test_weights_are_the_inverse_probabilities_exactly(sample, sampling_map, mixture):
    probability = per_point(
        sampling_map, sampling_map.box_probabilities(mixture) / sampling_map.points_per_box()
    ).reshape(-1)
    assert probability.sum() == pytest.approx(1)
    assert probability.min() > 0  # 6 Å reach every point of this cell
    indices, weights = draw_points(sampling_map, 1000, mixture, np.random.default_rng(0))
    np.testing.assert_allclose(weights, 1 / (probability[indices] * sample.density.size))
    # so that the expectation of the weighted mean is the mean over the grid
    values = sample.density.reshape(-1)
    expectation = (probability * values / (probability * values.size)).sum()
    assert expectation == pytest.approx(values.mean())


@pytest.mark.parametrize("mixture", MIXTURES, ids=str)
def test_points_are_drawn_with_the_probabilities_of_the_map(sampling_map, mixture):
    count = 2_000_000
    indices, _ = draw_points(sampling_map, count, mixture, np.random.default_rng(1))
    places = np.unravel_index(indices, sampling_map.shape)
    expected = per_point(
        sampling_map, sampling_map.box_probabilities(mixture) / sampling_map.points_per_box()
    )
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        found = np.bincount(places[axis], minlength=sampling_map.shape[axis]) / count
        np.testing.assert_allclose(found, expected.sum(axis=others), atol=2e-3 / 10, rtol=0.05)


@pytest.mark.parametrize("mixture", MIXTURES, ids=str)
def test_the_weighted_mean_estimates_the_grid_mean(sample, sampling_map, mixture):
    rng = np.random.default_rng(2)
    values = sample.density.reshape(-1)
    estimates = []
    for _ in range(200):
        indices, weights = draw_points(sampling_map, 400, mixture, rng)
        estimates.append(np.mean(weights * values[indices]))
    error = np.std(estimates) / np.sqrt(len(estimates))
    assert abs(np.mean(estimates) - values.mean()) < 4 * error
    assert error < 0.02 * values.mean()


def test_density_sampling_makes_the_electron_count_far_more_certain(sample, sampling_map):
    rng = np.random.default_rng(3)
    values = sample.density.reshape(-1)

    def spread(mixture):
        means = []
        for _ in range(50):
            indices, weights = draw_points(sampling_map, 300, mixture, rng)
            means.append(np.mean(weights * values[indices]))
        return np.std(means)

    assert spread(SamplingMixture(uniform=0, density=1)) < 0.3 * spread(SamplingMixture())


def test_each_strategy_goes_where_it_should(sample, sampling_map):
    rng = np.random.default_rng(4)
    means = {}
    for name in ("uniform", "density", "core", "gradient"):
        mixture = SamplingMixture(**{"uniform": 0, name: 1})
        indices, weights = draw_points(sampling_map, 4000, mixture, rng)
        means[name] = distance_of_points(sample, indices).mean()
        assert weights.max() <= 100 + 1e-9
    assert means["core"] < means["density"] < 0.7 * means["uniform"]
    assert means["gradient"] < 0.7 * means["uniform"]
    indices, _ = draw_points(sampling_map, 4000, SamplingMixture(uniform=0, core=1), rng)
    assert np.median(distance_of_points(sample, indices)) < 1.0


def test_gradients_match_an_analytic_density():
    shape = (60, 64, 56)
    atoms = Atoms("H", cell=CELL, pbc=True)
    points = DensitySample(atoms, np.zeros(shape)).grid_points()
    wave = 2 * np.pi * np.linalg.inv(CELL) @ [1, 2, -1]
    density = np.sin(points @ wave).reshape(shape)
    expected = np.abs(np.cos(points @ wave)).reshape(shape) * np.linalg.norm(wave)
    sampling_map = SamplingMap.from_grid(atoms, density)
    total = sampling_map.gradient.sum(dtype=float)
    assert total == pytest.approx(expected.sum(), rel=0.01)


@pytest.mark.parametrize("pbc", [True, (True, True, False), False])
def test_nothing_is_drawn_beyond_the_cutoff_and_nothing_within_is_out_of_reach(pbc):
    sample = make_sample(shape=(40, 45, 81), pbc=pbc, cell=3 * CELL)
    sampling_map = SamplingMap.from_grid(sample.atoms, sample.density)
    distances = distance_of_points(sample, np.arange(sample.density.size))
    for mixture in (SamplingMixture(cutoff=3), SamplingMixture(cutoff=3, density=1, core=1)):
        probability = per_point(sampling_map, sampling_map.box_probabilities(mixture)).reshape(-1)
        assert (probability[distances <= 3] > 0).all()
        assert (probability[distances > 3 + 2 * sampling_map.reach] == 0).all()
        assert (probability == 0).any()


@settings(max_examples=25)
@given(
    st.lists(st.floats(-1, 1), min_size=9, max_size=9),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_distances_are_right_in_any_cell(shear, pbc):
    cell = np.diag([3.0, 2.5, 8.0]) + 1.2 * np.reshape(shear, (3, 3))
    if abs(np.linalg.det(cell)) < 8:
        return
    sample = DensitySample(
        Atoms("LiH", positions=[[0.3, 9.0, -2.0], [1.0, 1.0, 1.0]], cell=cell, pbc=pbc),
        np.ones((5, 4, 6)),
    )
    found = SamplingMap.from_grid(sample.atoms, sample.density).distance.reshape(-1)
    shifts = np.stack(np.meshgrid(*[np.arange(-9, 10) if p else [0] for p in pbc]), -1)
    images = (sample.atoms.positions[:, None] + shifts.reshape(-1, 3) @ cell).reshape(-1, 3)
    points = sample.grid_points()
    expected = np.array([np.linalg.norm(images - point, axis=1).min() for point in points])
    expected[expected > 10] = np.inf
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_same_seed_draws_the_same_points(sample, sampling_map):
    draws = [draw_points(sampling_map, 50, MIXTURES[4], np.random.default_rng(7)) for _ in "ab"]
    np.testing.assert_array_equal(draws[0], draws[1])
    from_sample = draw_points(sample, 50, MIXTURES[4], np.random.default_rng(7))
    np.testing.assert_array_equal(draws[0], from_sample)
    other, _ = draw_points(sampling_map, 50, MIXTURES[4], np.random.default_rng(8))
    assert (other != draws[0][0]).any()


def test_scattered_points_are_drawn_uniformly_and_without_repeats(sample):
    rng = np.random.default_rng(0)
    points = sample.select(np.arange(100))
    indices, weights = draw_points(points, 60, SamplingMixture(), rng)
    assert len(set(indices.tolist())) == 60
    assert (weights == 1).all()
    assert len(draw_points(points, 150, SamplingMixture(), rng)[0]) == 150
    with pytest.raises(ConfigurationError, match="scattered points"):
        draw_points(points, 60, SamplingMixture(core=0.1), rng)


def test_senseless_requests_are_refused(sample):
    rng = np.random.default_rng(0)
    with pytest.raises(ConfigurationError, match="at least one"):
        draw_points(sample, 0, SamplingMixture(), rng)
    with pytest.raises(ValidationError, match="all proportions"):
        SamplingMixture(uniform=0)
    with pytest.raises(ValidationError):
        SamplingMixture(uniform=-1)
    with pytest.raises(ValidationError):
        SamplingMixture(cutoff=11)
    flat = DensitySample(Atoms("H", cell=[3, 3, 0.1], pbc=True), np.ones((4, 4, 4)))
    with pytest.raises(GridError, match=r"0\.1 Å thick"):
        draw_points(flat, 5, SamplingMixture(), rng)
    with pytest.raises(GridError, match="three independent vectors"):
        draw_points(DensitySample(Atoms("H"), np.ones((4, 4, 4))), 5, SamplingMixture(), rng)
    empty = DensitySample(Atoms(cell=CELL, pbc=True), np.ones((4, 4, 4)))
    with pytest.raises(ConfigurationError, match="No point of the grid"):
        draw_points(empty, 5, SamplingMixture(), rng)


def test_a_grid_of_zeros_is_drawn_uniformly(sample):
    nothing = DensitySample(sample.atoms, np.zeros((8, 9, 10)))
    _, weights = draw_points(nothing, 20, SamplingMixture(density=1), np.random.default_rng(0))
    np.testing.assert_allclose(weights, 1)
