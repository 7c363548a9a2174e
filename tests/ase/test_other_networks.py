"""The calculator with a network that predicts the density as a whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError

from eac_ase import DensityGrid, EACDensity
from eac_model.checkpoint import ModelCard, save_model
from eac_model.network import DeepChargeConfig, build

CARD = ModelCard(name="whole", valence_electrons={"H": 1.0, "O": 6.0})


@pytest.fixture(scope="module", params=[False, True], ids=["total", "spin"])
def model(request, tmp_path_factory):
    torch.manual_seed(0)
    config = DeepChargeConfig(
        architecture="deep-charge",
        elements=(1, 8),
        point_cutoff=3.0,
        embedding_widths=(5, 10),
        axis_neurons=3,
        fitting_widths=(8, 8),
        spin=request.param,
        superposition=True,
    )
    network = build(config, torch.float64)
    network.superposition.table.uniform_(0, 0.3)
    path = tmp_path_factory.mktemp("models") / "whole.safetensors"
    save_model(network, CARD, path)
    return path


@pytest.fixture
def atoms(model):
    rng = np.random.default_rng(0)
    made = Atoms("OHHO", rng.random((4, 3)) * 3, cell=[3.0, 3.3, 3.6], pbc=True)
    made.set_initial_magnetic_moments([1, 0, 0, -0.5])
    made.calc = EACDensity(model, device="cpu")
    return made


@pytest.fixture
def molecule(model):
    positions = [[0, 0, 0.1], [0.76, 0, -0.5], [-0.76, 0.2, -0.5]]
    made = Atoms("OHH", positions, magmoms=[1, 0, 0])
    made.calc = EACDensity(model, device="cpu")
    return made


def test_densities_are_had_as_from_any_other_model(atoms, tmp_path):
    grid = atoms.calc.get_density_grid(shape=(6, 7, 8))
    points = np.stack(np.meshgrid(*(np.arange(n) / n for n in (6, 7, 8)), indexing="ij"), -1)
    values = atoms.calc.evaluate(points @ np.asarray(atoms.cell))
    assert np.allclose(grid.values, values, rtol=1e-10)
    atoms.calc.write_density(tmp_path / "streamed.h5", shape=(6, 7, 8), memory=500)
    assert np.allclose(DensityGrid.read(tmp_path / "streamed.h5").values, values, rtol=1e-6)
    grid.write(tmp_path / "CHGCAR")
    assert np.allclose(DensityGrid.read(tmp_path / "CHGCAR").values, values, rtol=1e-6)
    if atoms.calc.network.n_spin == 2:
        spin = atoms.calc.get_spin_density(points=points @ np.asarray(atoms.cell))
        assert np.allclose(grid.spin, spin, atol=1e-12)
        assert np.abs(spin).max() > 0


def test_descriptors_are_kept_until_the_structure_changes(atoms, monkeypatch):
    before = atoms.calc.evaluate([[1.0, 1.0, 1.0]])
    with monkeypatch.context() as patched:
        patched.setattr(atoms.calc.network, "descriptors", None)
        assert atoms.calc.evaluate([[1.0, 1.0, 1.0]]) == before
    atoms.positions[0] += 0.1
    assert atoms.calc.evaluate([[1.0, 1.0, 1.0]]) != before


def test_normalised_densities_hold_the_exact_number_of_electrons(model, atoms):
    atoms.calc = EACDensity(model, device="cpu", normalize=True)
    assert atoms.calc.get_number_of_electrons() == pytest.approx(14)
    assert atoms.calc.get_density_grid(shape=(12, 12, 12)).integrate() == pytest.approx(14)


def test_the_dipole_of_a_molecule_is_that_of_its_density(molecule):
    grid = molecule.calc.get_density_grid(spacing=0.3)
    fractions = np.stack(np.meshgrid(*(np.arange(n) / n for n in grid.shape), indexing="ij"), -1)
    points = fractions.reshape(-1, 3) @ grid.cell + grid.origin
    weights = grid.values.ravel() * abs(np.linalg.det(grid.cell)) / grid.values.size
    center = molecule.get_center_of_mass()
    expected = np.array([6, 1, 1]) @ (molecule.positions - center) - weights @ (points - center)
    assert np.allclose(molecule.get_dipole_moment(), expected, atol=1e-2 * weights.sum())
    shifted = molecule.copy()
    shifted.positions += [3.0, -1.0, 2.0]
    shifted.calc = molecule.calc
    assert np.allclose(shifted.get_dipole_moment(), expected, atol=1e-2 * weights.sum())


def test_the_total_moment_is_the_integral_of_the_spin_density(molecule):
    if molecule.calc.network.n_spin == 1:
        with pytest.raises(PropertyNotImplementedError, match="knows no spin"):
            molecule.get_magnetic_moment()
        return
    grid = molecule.calc.get_density_grid(spacing=0.25)
    voxel = abs(np.linalg.det(grid.cell)) / grid.values.size
    assert molecule.get_magnetic_moment() == pytest.approx(grid.spin.sum() * voxel, rel=1e-2)


def test_what_needs_contributions_of_atoms_is_refused_with_a_reason(atoms):
    asked = [
        lambda: atoms.get_charges(),
        lambda: atoms.calc.evaluate([[0.0, 0, 0]], contributions=True),
        lambda: atoms.calc.get_atomic_density(0),
    ]
    if atoms.calc.network.n_spin == 2:
        asked.append(lambda: atoms.get_magnetic_moments())
    for ask in asked:
        with pytest.raises(PropertyNotImplementedError, match=r"deep-charge.*as a whole"):
            ask()
    with pytest.raises(PropertyNotImplementedError, match="no on-site data"):
        atoms.calc.get_onsite_matrices()
