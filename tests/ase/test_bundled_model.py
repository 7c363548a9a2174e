"""Bundled models: water-scan on the demo's water, as its card promises, and the iron of fe-pbe."""

from importlib.resources import files

import numpy as np
import pytest
from ase import units
from ase.build import bulk, molecule
from ase.calculators.calculator import CalculatorSetupError
from ase.io import read

import eac_ase.calculator
from eac_ase import EACDensity
from eac_ase.evaluation import evaluate_sample
from eac_model.data import read_density
from eac_model.registry import bundled_models, find_model

NAME = "water-scan"

pytestmark = pytest.mark.skipif(
    NAME not in bundled_models(), reason=f"the model {NAME} is not bundled with this checkout"
)


@pytest.fixture(scope="module")
def water():
    return read(str(files("eac_ase") / "structures" / "water48.xyz"))


@pytest.fixture(scope="module")
def calculator():
    return EACDensity(NAME, device="cpu")


def test_the_file_is_small():
    assert find_model(NAME).stat().st_size < 1e7


def test_the_card_says_what_the_model_is(calculator):
    card = calculator.card
    assert card.elements == ("H", "O")
    assert card.valence_electrons == {"H": 1.0, "O": 6.0}
    assert card.provenance.density_kind == "valence"
    assert card.provenance.functional == "SCAN"


def test_liquid_water_has_eight_electrons_a_molecule(calculator, water):
    assert calculator.get_number_of_electrons(water) == pytest.approx(128, rel=5e-3)


def test_oxygen_is_negative_and_hydrogen_positive(calculator, water):
    charges = calculator.get_charges(water)
    assert (charges[::3] < 0).all()
    assert (np.delete(charges, np.s_[::3]) > 0).all()


def test_charges_are_converged_with_the_default_spacing(calculator, water, monkeypatch):
    default = calculator.get_charges(water)
    spacing = eac_ase.calculator.INTEGRATION_SPACING
    monkeypatch.setattr(eac_ase.calculator, "INTEGRATION_SPACING", spacing / 1.6)
    fine = EACDensity(NAME, device="cpu").get_charges(water)
    assert np.abs(default - fine).max() < 2e-3


def test_the_density_peaks_at_oxygen_and_is_hardly_negative_anywhere(calculator, water):
    grid = calculator.get_density_grid(water, spacing=0.2)
    peak = grid.points()[grid.values.argmax()]
    oxygens = water[water.numbers == 8]
    oxygens.append("H")
    oxygens.positions[-1] = peak
    assert oxygens.get_distances(-1, range(16), mic=True).min() < 0.6
    assert grid.values.min() > -0.01


def test_occupancies_of_water_are_those_of_its_two_elements(calculator, water):
    found = calculator.get_augmentation(water)
    assert [len(values) for values in found[:3]] == [33, 15, 15]
    # p1p1 L=0 of oxygen and s1s1 of hydrogen hold most of the electrons on the spheres.
    assert all(1.8 < values[15] < 2.2 for values in found[::3])
    assert all(0.8 < values[0] < 1.3 for values in found[1::3] + found[2::3])


def test_frames_the_model_has_learned_come_out_within_a_third_of_a_percent(
    calculator, water_frames
):
    errors = evaluate_sample(calculator, read_density(water_frames[0])).as_dict()
    assert errors["nmae_percent"] < 0.3


@pytest.fixture(scope="module")
def iron_moments():
    if "fe-pbe" not in bundled_models():
        pytest.skip("the model fe-pbe is not bundled with this checkout")
    model = EACDensity("fe-pbe", device="cpu")

    def moments(initial):
        iron = bulk("Fe", "bcc", 2.83, cubic=True)
        iron.set_initial_magnetic_moments(initial)
        return model.partition("eac", iron).moments

    return moments


def test_iron_has_the_moment_that_pbe_gives_it(iron_moments):
    assert iron_moments([2.3, 2.3]) == pytest.approx([2.18, 2.18], abs=0.1)


def test_the_moments_of_iron_turn_with_the_initial_ones(iron_moments):
    assert iron_moments([-2.3, -2.3]) == pytest.approx(-iron_moments([2.3, 2.3]), abs=1e-5)


def test_moments_of_an_antiferromagnet_cancel(iron_moments):
    up, down = iron_moments([2.0, -2.0])
    assert up > 1
    assert up + down == pytest.approx(0, abs=1e-5)


def test_moments_of_a_pseudo_density_include_the_paw_spheres(iron_moments):
    iron = bulk("Fe", "bcc", 2.83, cubic=True)
    iron.set_initial_magnetic_moments([2.3, 2.3])
    iron.calc = EACDensity("fe-pbe", device="cpu")
    moments = iron.get_magnetic_moments()
    assert moments == pytest.approx([2.18, 2.18], abs=0.1)
    assert iron.get_magnetic_moment() == pytest.approx(moments.sum())


def test_charges_and_dipoles_of_a_pseudo_density_include_the_paw_spheres():
    water = molecule("H2O")
    water.calc = calculator = EACDensity("water-pbe", device="cpu")
    assert np.array_equal(water.get_charges(), calculator.partition("eac", normalize=False).charges)
    assert abs(water.get_charges().sum()) < 0.02
    # PBE: 1.8 D.
    assert water.get_dipole_moment() / units.Debye == pytest.approx([0, 0, -1.8], abs=0.1)
    with pytest.raises(CalculatorSetupError, match="Leave normalize out"):
        EACDensity("water-pbe", device="cpu", normalize=True).evaluate([(0, 0, 0)], water)
