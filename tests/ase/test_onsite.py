"""Augmentation occupancies and PAW matrices from the calculator, and on grids."""

import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.calculator import PropertyNotImplementedError

from eac_ase import DensityGrid, EACDensity
from eac_model.data.sample import DensitySample
from eac_model.errors import ConfigurationError
from eac_model.onsite import OnsiteLayout

from .conftest import tiny_network, write_model

CHANNELS = {"H": (0, 0, 1), "O": (0, 0, 1, 1)}


def model(path, code="VASP", **changes):
    layout = OnsiteLayout(code=code, channels=CHANNELS)
    network = tiny_network(onsite=layout, l_max=2, **changes)
    rng = np.random.default_rng(0)
    samples = []
    for seed in range(4):
        atoms = molecule("H2O")
        atoms.rattle(0.1, seed=seed)
        rows = tuple(rng.normal(2.0, 0.5, layout.size(symbol)) for symbol in atoms.symbols)
        samples.append(DensitySample(atoms, np.ones(1), points=np.zeros((1, 3)), onsite=rows))
    network.onsite.fit(samples)
    return write_model(path / f"{code}.safetensors", network)


@pytest.fixture(scope="module")
def vasp_model(tmp_path_factory):
    return model(tmp_path_factory.mktemp("vasp"))


@pytest.fixture(scope="module")
def spin_model(tmp_path_factory):
    return model(tmp_path_factory.mktemp("spin"), spin=True)


@pytest.fixture(scope="module")
def gpaw_model(tmp_path_factory):
    return model(tmp_path_factory.mktemp("gpaw"), "GPAW")


@pytest.fixture(scope="module")
def gpaw_spin_model(tmp_path_factory):
    return model(tmp_path_factory.mktemp("gpaw-spin"), "GPAW", spin=True)


def test_augmentation_has_one_array_an_atom_of_the_size_in_chgcar(vasp_model, crystal):
    found = EACDensity(vasp_model).get_augmentation(crystal)
    assert [len(values) for values in found] == [33, 15, 15, 33, 15, 15]


def test_augmentation_of_spin_models_is_total_and_difference(spin_model, crystal):
    calculator = EACDensity(spin_model)
    crystal.set_initial_magnetic_moments([1.0, 0.2, 0.0, 0.0, 0.0, 0.0])
    total, spin = calculator.get_augmentation(crystal)
    crystal.set_initial_magnetic_moments(-crystal.get_initial_magnetic_moments())
    flipped_total, flipped_spin = calculator.get_augmentation(crystal)
    np.testing.assert_allclose(flipped_total[0], total[0], atol=1e-12)
    np.testing.assert_allclose(flipped_spin[0], -spin[0], atol=1e-12)
    assert np.abs(spin[0]).max() > 1e-6
    crystal.set_initial_magnetic_moments(np.zeros(6))
    assert np.abs(calculator.get_augmentation(crystal)[1][0]).max() == 0


def test_onsite_matrices_are_symmetric_with_one_or_two_spins(gpaw_model, gpaw_spin_model, crystal):
    matrices = EACDensity(gpaw_model).get_onsite_matrices(crystal)
    assert list(matrices) == list(range(6))
    assert matrices[0].shape == (1, 8, 8)
    np.testing.assert_allclose(matrices[0], matrices[0].transpose(0, 2, 1), atol=1e-12)
    crystal.set_initial_magnetic_moments([1.0] * 6)
    assert EACDensity(gpaw_spin_model).get_onsite_matrices(crystal)[1].shape == (2, 5, 5)


def test_models_say_what_they_do_not_predict(calculator, gpaw_model, vasp_model, crystal):
    with pytest.raises(PropertyNotImplementedError, match="predicts no on-site data"):
        calculator.get_augmentation(crystal)
    with pytest.raises(PropertyNotImplementedError, match="on-site data of GPAW only"):
        EACDensity(gpaw_model).get_augmentation(crystal)
    with pytest.raises(PropertyNotImplementedError, match="on-site data of VASP only"):
        EACDensity(vasp_model).get_onsite_matrices(crystal)


def test_descriptors_serve_density_and_onsite_data_alike(vasp_model, crystal, monkeypatch):
    calculator = EACDensity(vasp_model)
    calls = []
    encode = calculator.network.descriptors
    monkeypatch.setattr(
        calculator.network, "descriptors", lambda graph: calls.append(1) or encode(graph)
    )
    calculator.get_density_grid(crystal, shape=(6, 6, 6))
    calculator.get_augmentation(crystal)
    assert len(calls) == 1


@pytest.mark.parametrize("spin", [False, True])
def test_occupancies_travel_into_chgcar_and_back(vasp_model, spin_model, crystal, tmp_path, spin):
    calculator = EACDensity(spin_model if spin else vasp_model)
    crystal.set_initial_magnetic_moments([1.0, 0.2, 0.0, 0.0, 0.0, 0.0] if spin else None)
    calculator.get_density_grid(crystal, shape=(8, 9, 10)).write(tmp_path / "CHGCAR")
    grid = DensityGrid.read(tmp_path / "CHGCAR")
    found = calculator.get_augmentation(crystal)
    total, difference = found if spin else (found, None)
    for written, predicted in zip(grid.onsite, total, strict=True):
        np.testing.assert_allclose(written, predicted, rtol=1e-6, atol=1e-9)
    assert (grid.onsite_spin is None) == (not spin)
    if spin:
        np.testing.assert_allclose(grid.onsite_spin[0], difference[0], rtol=1e-6, atol=1e-9)


def test_occupancies_are_normalised_with_the_density(vasp_model, crystal):
    plain = EACDensity(vasp_model)
    scaled = EACDensity(vasp_model, normalize=True)
    factor = 16 / plain.get_number_of_electrons(crystal)
    np.testing.assert_allclose(
        scaled.get_augmentation(crystal)[0], factor * plain.get_augmentation(crystal)[0]
    )


def test_grids_of_matrices_are_written_to_chgcar_without_them(gpaw_model, crystal, tmp_path):
    grid = EACDensity(gpaw_model).get_density_grid(crystal, shape=(6, 6, 6))
    assert grid.onsite[0].shape == (8, 8)
    grid.write(tmp_path / "CHGCAR")
    assert DensityGrid.read(tmp_path / "CHGCAR").onsite is None


def test_onsite_data_follow_the_arithmetic_of_grids(vasp_model, crystal):
    grid = EACDensity(vasp_model).get_density_grid(crystal, shape=(6, 6, 6))
    np.testing.assert_allclose((2 * grid - grid / 2).onsite[0], 1.5 * grid.onsite[0])
    bare = DensityGrid(grid.values, grid.atoms, grid.cell)
    assert (grid + bare).onsite is None
    assert grid.resample((8, 8, 8)).onsite is grid.onsite


@pytest.mark.parametrize("spin", [False, True])
@pytest.mark.parametrize("name", ["CHGCAR", "grid.h5"])
def test_grids_written_slab_by_slab_are_those_written_at_once(
    vasp_model, spin_model, crystal, tmp_path, name, spin
):
    calculator = EACDensity(spin_model if spin else vasp_model)
    crystal.set_initial_magnetic_moments([1.0, 0.2, 0.0, 0.0, 0.0, 0.0] if spin else None)
    calculator.write_density(tmp_path / name, crystal, shape=(8, 9, 10), memory=1000)
    found = DensityGrid.read(tmp_path / name)
    expected = calculator.get_density_grid(crystal, shape=(8, 9, 10))
    np.testing.assert_allclose(found.values, expected.values, atol=1e-6)
    np.testing.assert_allclose(found.onsite[0], expected.onsite[0], atol=1e-6)
    assert (found.spin is None) == (found.onsite_spin is None) == (not spin)
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


def test_a_structure_with_elements_outside_the_layout_keeps_its_density(crystal, tmp_path):
    network = tiny_network(onsite=OnsiteLayout(code="VASP", channels={"H": (0,)}), l_max=2)
    calculator = EACDensity(write_model(tmp_path / "partial.safetensors", network))
    assert calculator.get_density_grid(crystal, shape=(6, 6, 6)).onsite is None
    calculator.write_density(tmp_path / "x.h5", crystal, shape=(6, 6, 6))
    with pytest.raises(ConfigurationError, match="no on-site layout of O, only of H"):
        calculator.get_augmentation(crystal)
