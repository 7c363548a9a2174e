"""Electrostatic potentials of Gaussian charges, whose potentials are known."""

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.io.cube import read_cube
from scipy.special import erf

from eac_ase import DensityGrid
from eac_ase.analysis import electrostatic_potential
from eac_ase.analysis.potential import COULOMB, ION_WIDTH
from eac_model.errors import AnalysisError

ALPHA = 9.0


def distances(potential, place):
    points = DensityGrid(potential.values, potential.atoms, potential.cell).points()
    return np.linalg.norm(points - place, axis=1).reshape(potential.values.shape) + 1e-12


@pytest.mark.parametrize("charge", [0.0, 1.0])
def test_an_isolated_atom_has_no_images(gaussians, charge):
    atoms = Atoms("H", [(1.9, 1.7, 2.1)], cell=[3.6, 3.8, 4.0])
    grid = gaussians(atoms, [1], [ALPHA], (36, 38, 40))
    found = electrostatic_potential(grid, valence_electrons={"H": 1 + charge}, charge=charge)
    r = distances(found, atoms.positions[0])
    exact = COULOMB * (erf(np.sqrt(ALPHA) * r) - (1 + charge) * erf(r / ION_WIDTH)) / r
    assert found.values == pytest.approx(exact, abs=1e-4)
    assert "isolated" in found.description


def test_an_ionic_crystal_has_madelungs_potential(gaussians):
    a = 4.0
    fcc = np.array([(0, 0, 0), (0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0)]) * a
    atoms = Atoms("Na4Cl4", [*fcc, *(fcc + np.array([a / 2, 0, 0]))], cell=[a] * 3, pbc=True)
    atoms.wrap()
    # One electron went from Na to Cl; all charges are Gaussians of the same width.
    grid = gaussians(atoms, [0] * 4 + [8] * 4, [ION_WIDTH**-2] * 8, (40, 40, 40))
    found = electrostatic_potential(grid, valence_electrons={"Na": 1, "Cl": 7})
    own = 2 / np.sqrt(np.pi) / ION_WIDTH
    at_sodium = COULOMB * (1.7475646 / (a / 2) - own)
    assert found.values[0, 0, 0] == pytest.approx(at_sodium, abs=2e-3)
    assert found.values[20, 0, 0] == pytest.approx(-at_sodium, abs=2e-3)
    assert found.values.mean() == pytest.approx(0, abs=1e-9)


@pytest.fixture(scope="module")
def layer(gaussians) -> DensityGrid:
    """Electrons 0.2 Å below their nuclei: the upper side is positive."""
    atoms = Atoms("H", [(1, 1, 3.5)], cell=[2, 2, 9], pbc=(True, True, False))
    lower = atoms.copy()
    lower.positions[:, 2] -= 0.2
    grid = gaussians(lower, [1], [6.0], (20, 20, 90), kind="all-electron")
    return replace(grid, atoms=atoms)


def test_a_dipole_layer_is_a_step(layer):
    found = electrostatic_potential(layer)
    below, above = found.vacuum_levels(axis=2)
    step = 4 * np.pi * COULOMB * 0.2 / 4
    assert below - above == pytest.approx(step, abs=1e-3)
    assert below + above == pytest.approx(0, abs=1e-3)
    assert found.work_functions(-5.0) == pytest.approx((5 + step / 2, 5 - step / 2), abs=1e-3)
    average = found.planar_average(2)
    assert average.distance[1] == pytest.approx(9 / len(average.values))


def test_images_of_a_dipole_layer_are_noticed(layer):
    periodic = electrostatic_potential(replace(layer, pbc=(True, True, True)))
    with pytest.raises(AnalysisError, match="open direction"):
        periodic.vacuum_levels(axis=2)


def test_potentials_are_linear_and_blind_to_the_choice_of_cell(layer):
    one = electrostatic_potential(layer)
    atoms = layer.atoms.copy()
    atoms.positions[:, 2] += 3.0
    moved = replace(layer, values=np.roll(layer.values, 30, axis=2), atoms=atoms)
    two = electrostatic_potential(moved)
    n = one.values.shape[2] // 3
    assert np.roll(one.values, n, axis=2)[..., n : 2 * n] == pytest.approx(
        two.values[..., n : 2 * n], abs=1e-3
    )


def test_cube_files_hold_electronvolts(layer, tmp_path):
    found = electrostatic_potential(layer)
    found.write(tmp_path / "V.cube")
    with open(tmp_path / "V.cube") as file:
        data = read_cube(file)["data"]
    assert data == pytest.approx(found.values, rel=1e-4, abs=1e-4)


def test_what_has_no_potential_says_so(layer, salt, gaussians):
    with pytest.raises(AnalysisError, match="limit"):
        electrostatic_potential(layer * 1.05, charge=-0.05)
    with pytest.raises(AnalysisError, match="wires"):
        electrostatic_potential(replace(layer, pbc=(True, False, False)))
    with pytest.raises(AnalysisError, match="not known"):
        electrostatic_potential(salt)
    found = electrostatic_potential(salt, valence_electrons={"Na": 1, "Cl": 7})
    with pytest.raises(AnalysisError, match="no vacuum"):
        found.vacuum_levels()


def test_atoms_outside_of_an_open_box_have_no_potential(gaussians):
    atoms = Atoms("H", [(1.9, 1.7, 2.1)], cell=[3.6, 3.8, 4.0])
    grid = gaussians(atoms, [1], [ALPHA], (36, 38, 40))
    atoms = atoms.copy()
    atoms.positions += grid.cell[0]
    with pytest.raises(AnalysisError, match="outside"):
        electrostatic_potential(replace(grid, atoms=atoms), valence_electrons={"H": 1})
