"""Dipole moments of point-like charges with known positions."""

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms

from eac_ase.analysis import dipole_moment
from eac_ase.analysis.dipoles import EMPTY
from eac_model.errors import AnalysisError

DELTA = np.array([0.1, -0.2, 0.3])


@pytest.fixture(scope="module")
def polar(gaussians):
    """Two electrons displaced from their helium nucleus."""
    atoms = Atoms("He", [(2.5, 2.5, 2.5)], cell=[5, 5, 5])
    moved = atoms.copy()
    moved.positions += DELTA
    return replace(gaussians(moved, [2], [4.0], (30, 30, 30), kind="all-electron"), atoms=atoms)


def test_electrons_off_their_nucleus_make_a_dipole(polar):
    found = dipole_moment(polar)
    assert found.vector == pytest.approx(-2 * DELTA, abs=1e-6)
    assert len(found.directions) == 3
    assert found.charge == pytest.approx(0, abs=1e-9)


def test_a_periodic_cell_with_vacuum_is_cut_in_the_vacuum(polar):
    """Across the faces of the cell, too."""
    atoms = polar.atoms.copy()
    atoms.pbc = True
    atoms.positions[:] = 2.5 + 5 / 30 * np.array([-14, 0, 10])
    atoms.wrap()
    moved = np.roll(polar.values, (-14, 0, 10), axis=(0, 1, 2))
    found = dipole_moment(replace(polar, values=moved, atoms=atoms, pbc=(True,) * 3))
    assert found.vector == pytest.approx(-2 * DELTA, abs=1e-6)


def test_of_slabs_only_the_normal_component_means_something(gaussians):
    cell = np.array([[2.0, 0, 0], [0.5, 2.0, 0], [0.3, 0.2, 7.0]])
    atoms = Atoms("He", [(1.0, 1.0, 3.0)], cell=cell, pbc=True)
    moved = atoms.copy()
    moved.positions += DELTA
    grid = replace(gaussians(moved, [2], [4.0], (16, 16, 48), kind="all-electron"), atoms=atoms)
    found = dipole_moment(grid)
    assert found.vector == pytest.approx([0, 0, -0.6], abs=1e-4)
    assert abs(found.directions) == pytest.approx(np.array([[0, 0, 1.0]]), abs=1e-12)


def test_a_crystal_has_no_dipole_moment(salt):
    with pytest.raises(AnalysisError, match="cut"):
        dipole_moment(salt, valence_electrons={"Na": 1, "Cl": 7})


def test_an_open_box_must_not_cut_the_density(polar):
    cut = replace(polar, values=np.roll(polar.values, 15, axis=0))
    with pytest.raises(AnalysisError, match="larger"):
        dipole_moment(cut)


def test_charged_molecules_are_taken_about_their_centre_of_mass(polar):
    found = dipole_moment(polar / 2, charge=1.0)
    assert found.vector == pytest.approx(-DELTA, abs=1e-6)
    assert found.origin == pytest.approx([2.5, 2.5, 2.5])
    assert found.charge == pytest.approx(1, abs=1e-9)


def test_ions_of_unknown_charge_are_an_error(polar):
    with pytest.raises(AnalysisError, match="valence_electrons"):
        dipole_moment(replace(polar, kind="unknown"))
    with pytest.raises(AnalysisError, match="check the valence"):
        dipole_moment(polar, valence_electrons={"He": 8})


def test_an_ion_is_not_made_neutral_by_itself(gaussians):
    atoms = Atoms("Ne", [(2.5, 2.5, 2.5)], cell=[5, 5, 5])
    grid = gaussians(atoms, [10.5], [4.0], (30, 30, 30), kind="all-electron")
    with pytest.raises(AnalysisError, match="Give the charge"):
        dipole_moment(grid)
    assert dipole_moment(grid, charge=-0.5).charge == pytest.approx(-0.5)
    assert dipole_moment(grid, normalize=False).charge == pytest.approx(-0.5, abs=1e-3)


@pytest.mark.parametrize("shift", [1, 5, -1, -5])
def test_an_open_box_must_not_end_in_the_density_on_either_side(polar, shift):
    """Layers that were cut off at one face."""
    values = polar.values.copy()
    kept = np.arange(30)
    cut = values[kept >= 13 + shift] if shift > 0 else values[kept < 17 + shift]
    length = len(cut) * 5 / 30
    cell = np.diag([length, 5, 5])
    atoms = polar.atoms.copy()
    start = 5 / 30 * (13 + shift) if shift > 0 else 0.0
    atoms.positions[0, 0] = np.clip(atoms.positions[0, 0] - start, 0.01, length - 0.01)
    grid = replace(polar, values=cut, cell=cell, atoms=atoms)
    with pytest.raises(AnalysisError, match="larger"):
        dipole_moment(grid, normalize=False)


def test_atoms_outside_of_an_open_box_have_no_dipole_moment(polar):
    atoms = polar.atoms.copy()
    atoms.positions += polar.cell[1]
    with pytest.raises(AnalysisError, match="outside"):
        dipole_moment(replace(polar, atoms=atoms))


def test_a_box_that_is_as_tight_on_both_sides_is_large_enough(gaussians):
    """The last layer of points is a step before the upper face, the first one on the lower face."""
    atoms = Atoms("He", [(2.0, 2.0, 2.0)], cell=[4, 4, 4])
    grid = gaussians(atoms, [2], [1.62], (16, 16, 16), kind="all-electron")
    layers = grid.values.max(axis=(1, 2))
    assert layers[0] < EMPTY < layers[-1]
    assert dipole_moment(grid).vector == pytest.approx(np.zeros(3), abs=0.05)
