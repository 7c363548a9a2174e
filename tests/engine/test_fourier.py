"""Densities from closed-form Fourier coefficients against densities at points."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scipy.signal import resample
from scipy.special import spherical_jn

from eac_ase import DensityGrid, EACDensity
from eac_ase.analysis.learned import learned_moments
from eac_model.engine import (
    encode,
    evaluate_band_limited,
    evaluate_grid,
    evaluate_points,
    fourier,
)
from eac_model.engine.fourier import (
    TOLERANCE,
    radial_transforms,
    spherical_bessel,
    transform,
)
from eac_model.errors import ConfigurationError, GridError
from eac_model.network import EACNet, NetworkConfig, RadialBasis
from eac_model.network.config import DeepChargeConfig
from eac_model.network.deepcharge import DeepCharge

EXAMPLES = int(os.environ.get("EAC_EXAMPLES", "12"))
SKEWED = [[3.0, 0, 0], [1.0, 3.2, 0], [0.3, 0.4, 2.8]]
SMOOTH = RadialBasis(kind="natural-spline", size=8, core_radius=1.5, cutoff_power=6)
"""Functions whose spectrum has decayed where a grid of FINE spacing ends."""
FINE = 0.06


def network(seed=0, dtype=torch.float32, **chosen):
    torch.manual_seed(seed)
    defaults = {
        "elements": (1, 8),
        "channels": 4,
        "interactions": 1,
        "decoder": "linear",
        "linear_basis": SMOOTH,
        "superposition": True,
    }
    model = EACNet(NetworkConfig(**defaults | chosen))
    with torch.no_grad():
        if model.linear is not None:
            model.linear.functions.normal_(0, 0.03)
        if model.superposition is not None:
            model.superposition.table.uniform_(0, 0.3)
    return model.to(dtype).eval()


def structure(seed=0, cell=SKEWED):
    rng = np.random.default_rng(seed)
    positions = rng.uniform(-0.5, 1.5, (4, 3)) @ np.array(cell)
    return Atoms("OHHO", positions, cell=cell, pbc=True, magmoms=[1, 0, 0, -2])


def truncated(model, encoded, shape, spacing=FINE):
    """The density at the points of a much finer grid, without what the coarse one cannot hold."""
    lengths = encoded.atoms.cell.lengths()
    fine = tuple(max(3 * n, int(np.ceil(a / spacing))) for n, a in zip(shape, lengths, strict=True))
    values = evaluate_grid(model, encoded, fine, symmetry=False).astype(float)
    for axis, n in enumerate(shape):
        values = resample(values, n, axis=axis + 1)
    return values


def largest_term(model, encoded):
    """What errors are relative to: random functions cancel, also between atoms."""
    points = np.random.default_rng(0).random((200, 3)) @ np.asarray(encoded.atoms.cell)
    return np.abs(evaluate_points(model, encoded, points, contributions=True)).max()


cells = st.sampled_from(
    [
        SKEWED,
        np.diag([4.0, 2.2, 3.0]).tolist(),
        [[0, 2.1, 2.1], [2.1, 0, 2.1], [2.1, 2.1, 0]],
        [[1.5, 0, 0], [-0.7, 1.4, 0], [0.2, 0.1, 1.3]],
    ]
)
networks = st.fixed_dictionaries(
    {
        "l_max": st.integers(0, 5),
        "interactions": st.integers(0, 1),
        "point_cutoff": st.sampled_from([3.5, 4.0, 5.0]),
        "spin": st.booleans(),
        "superposition": st.booleans(),
    }
)
shapes = st.tuples(*[st.integers(1, 12)] * 3)


@settings(max_examples=EXAMPLES, phases=[Phase.explicit, Phase.generate])
@given(networks, cells, shapes, st.integers(0, 99))
def test_coefficients_are_those_of_a_fine_grid(chosen, cell, shape, seed):
    model = network(seed, **chosen)
    encoded = encode(model, structure(seed, cell))
    found = evaluate_band_limited(model, encoded, shape)
    expected = truncated(model, encoded, shape)
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    largest = max(np.abs(found).max(), largest_term(model, encoded))
    assert np.abs(found - expected).max() < 2e-6 * largest


@pytest.mark.parametrize("shape", [(8, 9, 10), (2, 6, 1)])
def test_finer_grids_at_points_converge_to_the_coefficients(shape):
    model = network(dtype=torch.float64, l_max=3)
    encoded = encode(model, structure())
    found = evaluate_band_limited(model, encoded, shape)
    errors = [
        np.abs(found - truncated(model, encoded, shape, spacing)).max() / np.abs(found).max()
        for spacing in (0.12, 0.06)
    ]
    # Three derivatives are continuous: coefficients fall at least as the fifth power.
    assert errors[1] < errors[0] / 16
    assert errors[1] < 1e-6


@pytest.mark.parametrize("kind", ["natural-spline", "spline", "bessel", "gaussian"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_sum_is_the_integral_in_closed_form(dtype, kind):
    rough = RadialBasis(kind=kind, size=40 if "spline" in kind else 8, cutoff_power=3)
    model = network(dtype=dtype, linear_basis=rough, spin=True)
    atoms = structure()
    encoded = encode(model, atoms)
    expected = learned_moments(model, encoded).populations.sum(axis=1)
    for shape in ((1, 1, 1), (4, 3, 2), (9, 8, 7)):
        found = evaluate_band_limited(model, encoded, shape).astype(float)
        electrons = found.mean(axis=(1, 2, 3)) * atoms.cell.volume
        assert np.allclose(electrons, expected, rtol=1e-6)


def test_moving_all_atoms_moves_the_density_whatever_the_points():
    model, shape = network(dtype=torch.float64, l_max=3), (9, 7, 11)
    atoms = structure()
    before = evaluate_band_limited(model, encode(model, atoms), shape)
    by = np.array([0.31, 0.77, 0.52]) / shape
    atoms.positions += by @ np.asarray(atoms.cell)
    after = evaluate_band_limited(model, encode(model, atoms), shape)
    spectrum = np.fft.fftn(before[0])
    for axis, n in enumerate(shape):
        turn = np.exp(-2j * np.pi * np.fft.fftfreq(n, 1 / n) * by[axis])
        spectrum *= np.moveaxis(np.broadcast_to(turn, (1, 1, n)), 2, axis)
    moved = np.fft.ifftn(spectrum).real
    assert np.abs(after[0] - moved).max() < 1e-11 * np.abs(moved).max()
    # The grid at an origin of its own is the same in the atoms' frame.
    origin = -by @ np.asarray(atoms.cell)
    atoms.positions += origin
    found = evaluate_band_limited(model, encode(model, atoms), shape, origin=origin)
    assert np.abs(found - after).max() < 1e-11 * np.abs(moved).max()


def test_equal_frequencies_of_even_grids_are_added():
    """A wave cos(Gx) at the points 0 and π of its period; its sine cannot be seen there."""
    model = network(dtype=torch.float64, l_max=0)
    cell = np.diag([2.0, 2.5, 3.0])
    for place in (0.0, 0.4, 0.5):
        atoms = Atoms("O", [[place, 0, 0]], cell=cell, pbc=True)
        encoded = encode(model, atoms)
        found = evaluate_band_limited(model, encoded, (2, 1, 1))[0, :, 0, 0]
        fine = evaluate_band_limited(model, encoded, (3, 1, 1))[0, :, 0, 0]
        first = np.fft.fft(fine)[1] / 3
        assert np.isclose(found[0] - found[1], 4 * first.real, rtol=1e-10)
        assert np.isclose(found.mean(), fine.mean())


def test_few_atoms_and_few_waves_at_once_give_the_same(monkeypatch):
    model = network(spin=True)
    encoded = encode(model, structure())
    expected = evaluate_band_limited(model, encoded, (10, 9, 8))
    monkeypatch.setattr(fourier, "ATOMS_AT_ONCE", 3)
    monkeypatch.setattr(fourier, "WAVES_AT_ONCE", 50)
    monkeypatch.setattr(fourier, "WIDTH", 7)
    done: list[int] = []
    found = evaluate_band_limited(model, encoded, (10, 9, 8), progress=done.append)
    assert np.abs(found - expected).max() < 1e-6 * np.abs(expected).max()
    assert sum(done) == 720
    assert len(done) > 10


def test_a_spin_model_without_moments_has_equal_spins():
    model, atoms = network(spin=True), structure()
    atoms.set_initial_magnetic_moments(np.zeros(4))
    up, down = evaluate_band_limited(model, encode(model, atoms), (6, 6, 6))
    assert np.array_equal(up, down)


# -- radial transforms ---------------------------------------------------------------------------


def test_spherical_bessel_functions_are_those_of_scipy():
    x = np.concatenate([[0.0, 1e-9, 1e-3], np.linspace(0.1, 20, 400), [500.0]])
    for l, found in enumerate(spherical_bessel(8, x)):
        assert np.abs(found - spherical_jn(l, x)).max() < 1e-13


@pytest.mark.parametrize("kind", ["natural-spline", "spline", "bessel", "gaussian"])
def test_transforms_equal_sums_over_many_radii(kind):
    basis = RadialBasis(kind=kind, size=12, cutoff_power=4, core_radius=0.4)
    model = network(dtype=torch.float64, linear_basis=basis, l_max=4)
    wave_numbers = np.array([0.0, 0.3, 4.0, 60.0])
    found = transform(model, wave_numbers)
    # Midpoints: what vanishes at both ends with two derivatives is integrated to the fourth order.
    r = (np.arange(200_000) + 0.5) * (4.0 / 200_000)
    with torch.no_grad():
        functions = model.linear.basis(torch.from_numpy(r)).numpy()
    core = model.config.linear_basis.core_radius
    for l in range(5):
        weights = 4 * np.pi * r**2 * (r / np.sqrt(r**2 + core**2)) ** l * 4.0 / 200_000
        expected = functions.T @ (weights[:, None] * spherical_jn(l, np.outer(r, wave_numbers)))
        assert np.abs(found[l].numpy() - expected).max() < 1e-7 * np.abs(expected).max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tables_keep_their_bound_and_grow_where_more_is_asked_for(dtype):
    rough = RadialBasis(kind="natural-spline", size=40, cutoff_power=3)
    model = network(dtype=dtype, linear_basis=rough)
    small = radial_transforms(model, 10.0)
    assert radial_transforms(model, 7.0) is small
    large = radial_transforms(model, 30.0)
    assert torch.equal(large.coefficients[:, :, : small.count], small.coefficients)
    wave_numbers = np.random.default_rng(0).uniform(0, 30, 300)
    # Splines are positive: their integrals bound their transforms.
    scale = transform(model, np.zeros(1))[0]
    error = (large.at(wave_numbers) - transform(model, wave_numbers)).abs() / scale
    assert float(error.max()) < TOLERANCE[dtype]
    model.linear.functions.data.mul_(2)
    assert radial_transforms(model, 7.0) is not large


# -- what is refused, and the calculator ---------------------------------------------------------


def test_models_of_other_decoders_are_told_what_to_do():
    atoms = structure()
    for model, name in [
        (network(decoder="linear+value-weight"), r"linear\+value-weight"),
        (DeepCharge(DeepChargeConfig(architecture="deep-charge", elements=(1, 8))), "deep-charge"),
    ]:
        with pytest.raises(ConfigurationError, match=name + ".*resample"):
            evaluate_band_limited(model, encode(model, atoms), (4, 4, 4))


@pytest.mark.parametrize("pbc", [False, (True, True, False)])
def test_structures_that_do_not_repeat_are_refused(pbc):
    model, atoms = network(), structure()
    atoms.pbc = pbc
    with pytest.raises(GridError, match="pbc = True"):
        evaluate_band_limited(model, encode(model, atoms), (4, 4, 4))
    with pytest.raises(GridError, match="pbc = True"):
        EACDensity(model).get_density_grid(molecule("H2O"), band_limited=True)


@pytest.mark.parametrize("shape", [(0, 3, 3), (3, 3)])
def test_shapes_that_are_none_are_refused(shape):
    model = network()
    with pytest.raises(GridError, match="three positive"):
        evaluate_band_limited(model, encode(model, structure()), shape)


def test_the_calculator_offers_band_limited_grids():
    model, atoms = network(spin=True), structure()
    calculator = EACDensity(model)
    grid = calculator.get_density_grid(atoms, shape=(8, 8, 6), band_limited=True)
    up, down = evaluate_band_limited(model, encode(model, atoms), (8, 8, 6))
    assert np.allclose(grid.values, up + down)
    assert np.allclose(grid.spin, up - down)
    populations = learned_moments(model, encode(model, atoms)).populations
    assert grid.integrate() == pytest.approx(populations.sum(), rel=1e-6)
    finer = calculator.get_density_grid(
        atoms, shape=(16, 16, 12), resample_from=0.4, band_limited=True
    )
    assert finer.integrate() == pytest.approx(populations.sum(), rel=1e-6)
    box = DensityGrid(np.zeros((4, 4, 4)), atoms, np.eye(3), pbc=(False,) * 3)
    with pytest.raises(GridError, match="own cell"):
        calculator.get_density_grid(atoms, like=box, band_limited=True)


def test_symmetric_crystals_have_symmetric_coefficients():
    crystal = bulk("MgO", "rocksalt", 4.2, cubic=True)
    model = network(elements=(8, 12), l_max=4)
    found = evaluate_band_limited(model, encode(model, crystal), (8, 8, 8))[0]
    largest = np.abs(found).max()
    assert np.abs(found - found.transpose(1, 2, 0)).max() < 2e-6 * largest
    assert np.abs(found - np.roll(found[::-1], 1, axis=0)).max() < 2e-6 * largest
