"""The partition a model has learned, and models behind the other schemes."""

import numpy as np
import pytest
from ase.calculators.calculator import PropertyNotImplementedError

from eac_ase import EACDensity
from eac_ase.analysis import partition
from eac_ase.analysis.learned import has_closed_form, learned_moments
from eac_model.errors import AnalysisError
from eac_model.network import EACNet, NetworkConfig


def sums_in_spheres(calculator, atoms):
    """Populations, first and traceless second moments by quadrature around every nucleus."""
    cutoff = calculator.network.config.point_cutoff
    z, of_z = np.polynomial.legendre.leggauss(8)
    phi = 2 * np.pi * np.arange(16) / 16
    rho = np.sqrt(1 - z**2)
    unit = np.stack(
        [np.outer(rho, np.cos(phi)), np.outer(rho, np.sin(phi)), np.outer(z, np.ones(16))], -1
    ).reshape(-1, 3)
    # Many short panels: the splines have knots.
    x, of_x = np.polynomial.legendre.leggauss(5)
    step = cutoff / 120
    r = (step * (np.arange(120)[:, None] + (x + 1) / 2)).ravel()
    of_r = np.tile(of_x, 120) * step / 2 * r**2
    weights = np.outer(of_r, np.repeat(of_z, 16) * 2 * np.pi / 16).ravel()
    arms = (r[:, None, None] * unit).reshape(-1, 3)
    moments = []
    for a, place in enumerate(atoms.positions):
        values = weights * calculator.evaluate(place + arms, atoms, contributions=True)[:, a]
        second = np.einsum("p,pa,pb->ab", values, arms, arms)
        second -= np.trace(second) * np.eye(3) / 3
        moments.append((values.sum(), values @ arms, second))
    return [np.array(values) for values in zip(*moments, strict=True)]


def test_closed_forms_are_integrals(calculator, water):
    learned = learned_moments(calculator.network, calculator._encode(water))
    assert learned.error == 0
    populations, firsts, seconds = sums_in_spheres(calculator, water)
    assert learned.populations[0] == pytest.approx(populations, abs=1e-5)
    assert learned.firsts[0] == pytest.approx(firsts, abs=1e-5)
    assert np.abs(learned.firsts[0]).max() > 1e-3
    assert calculator.network.config.l_max == 1
    assert np.abs(seconds).max() < 1e-6  # l = 1 has none
    assert not learned.seconds.any()


def test_quadrupoles_have_a_closed_form_too(water):
    config = NetworkConfig(
        elements=(1, 8), l_max=2, channels=3, interactions=1, atom_radial_hidden=(8,),
        atom_cutoff=3.0, point_cutoff=2.0,
    )  # fmt: skip
    network = EACNet(config).double()
    calculator = EACDensity(network)
    learned = learned_moments(network, calculator._encode(water))
    _, firsts, seconds = sums_in_spheres(calculator, water)
    assert learned.seconds[0] == pytest.approx(seconds, abs=1e-3 * np.abs(seconds).max())
    assert learned.firsts[0] == pytest.approx(firsts, abs=1e-3 * np.abs(firsts).max())


def test_the_scheme_eac_agrees_with_the_calculator(calculator, crystal):
    crystal.calc = calculator
    found = calculator.partition("eac", crystal, normalize=False)
    assert found.charges == pytest.approx(crystal.get_charges(), abs=2e-3)
    assert found.error == 0
    assert found.volumes is None
    whole = calculator.partition("eac", crystal)
    assert whole.electrons == pytest.approx(16, abs=1e-9)
    assert whole.charge == pytest.approx(0, abs=1e-9)


def test_it_does_not_matter_what_lies_at_the_corner_of_the_cell(model_file, water):
    water.set_cell([14, 14, 14])
    water.center()
    water.pbc = True
    calculator = EACDensity(model_file, device="cpu", normalize=True)
    assert calculator.evaluate([(0, 0, 0)], water) == pytest.approx(0)
    found = calculator.partition("eac", water)
    assert found.electrons == pytest.approx(8, abs=1e-9)
    water.calc = calculator
    assert found.charges == pytest.approx(water.get_charges(), abs=2e-3)


def test_dipoles_and_quadrupoles_turn_with_the_molecule(calculator, water):
    one = calculator.partition("eac", water)
    turned = water.copy()
    turned.rotate(70, (1, 2, 3), center="COM")
    two = calculator.partition("eac", turned)
    rotation = np.linalg.lstsq(
        water.positions - water.get_center_of_mass(),
        turned.positions - turned.get_center_of_mass(), rcond=None,
    )[0]  # fmt: skip
    # A planar molecule leaves its normal open; dipoles lie in the plane.
    assert two.charges == pytest.approx(one.charges, abs=1e-9)
    assert two.dipoles == pytest.approx(one.dipoles @ rotation, abs=1e-8)
    assert two.get_dipole_moment() == pytest.approx(one.get_dipole_moment() @ rotation, abs=1e-8)


def test_a_supercell_repeats_the_charges(calculator, crystal):
    one = calculator.partition("eac", crystal)
    two = calculator.partition("eac", crystal.repeat((2, 1, 1)))
    assert two.charges == pytest.approx(np.tile(one.charges, 2), abs=1e-9)


def test_other_decoders_are_summed_to_a_stated_error(water):
    config = NetworkConfig(
        elements=(1, 8), decoder="value-weight", l_max=1, channels=3, interactions=1,
        atom_radial_hidden=(8,), atom_cutoff=3.0, point_cutoff=2.0, coupling_scalars=8,
        point_radial_hidden=(8,), bottleneck=(8, 4), value_hidden=(8,),
    )  # fmt: skip
    network = EACNet(config).double()
    assert not has_closed_form(network)
    calculator = EACDensity(network)
    found = learned_moments(network, calculator._encode(water), spacings=(0.3, 0.24, 0.2))
    assert found.error < 0.05
    for a, population in enumerate(found.populations[0]):
        grid = calculator.get_atomic_density([a], water, spacing=0.2)
        assert population == pytest.approx(grid.integrate(), abs=1e-6)
        arms = grid.points() - water.positions[a]
        weights = grid.values.ravel() * grid.volume / grid.values.size
        second = np.einsum("p,pa,pb->ab", weights, arms, arms)
        assert found.seconds[0, a] == pytest.approx(second, abs=1e-6)


# -- spin --------------------------------------------------------------------------------------


def test_moments_of_a_model_are_exactly_odd(spin_calculator, crystal):
    crystal.set_initial_magnetic_moments([1, 0.5, 0, -1, 0, 2])
    flipped = crystal.copy()
    flipped.set_initial_magnetic_moments(-crystal.get_initial_magnetic_moments())
    for scheme in ("eac", "hirshfeld"):
        one = spin_calculator.partition(scheme, crystal, spacing=0.25 if scheme != "eac" else None)
        two = spin_calculator.partition(scheme, flipped, spacing=0.25 if scheme != "eac" else None)
        assert np.abs(one.moments).max() > 1e-3
        assert two.moments == pytest.approx(-one.moments, abs=1e-10)
        assert two.populations == pytest.approx(one.populations, abs=1e-10)


def test_without_moments_a_spin_model_has_none(spin_calculator, crystal):
    found = spin_calculator.partition("eac", crystal)
    assert found.moments == pytest.approx(np.zeros(6), abs=1e-12)
    assert found.electrons == pytest.approx(16, abs=1e-9)


# -- grids of models ---------------------------------------------------------------------------


def test_other_schemes_divide_the_model_s_grid(calculator, crystal):
    found = calculator.partition("hirshfeld", crystal, spacing=0.25)
    grid = calculator.get_density_grid(crystal, spacing=0.25)
    again = partition(grid, "hirshfeld", valence_electrons=calculator.card.valence_electrons)
    assert found.charges == pytest.approx(again.charges, abs=1e-12)
    assert found.charge == pytest.approx(0, abs=1e-9)


def test_results_are_kept_until_the_structure_changes(calculator, crystal):
    first = calculator.partition("eac", crystal)
    assert calculator.partition("eac", crystal) is first
    assert calculator.partition("eac", crystal, normalize=False) is not first
    crystal.info["charge"] = 1
    assert calculator.partition("eac", crystal).charge == pytest.approx(1, abs=1e-9)
    crystal.positions[0] += 0.1
    moved = calculator.partition("eac", crystal)
    assert np.abs(moved.populations - first.populations).max() > 1e-4


def test_unknown_valences_leave_populations(model_file_of_unknown_oxygen, water):
    calculator = EACDensity(model_file_of_unknown_oxygen, device="cpu")
    with pytest.raises(AnalysisError, match="O"):
        calculator.partition("eac", water)


def test_networks_without_contributions_say_so(calculator, water, monkeypatch):
    monkeypatch.setattr(calculator, "_why_no_contributions", lambda: "predicts the whole")
    with pytest.raises(PropertyNotImplementedError, match="the whole"):
        calculator.partition("eac", water)
