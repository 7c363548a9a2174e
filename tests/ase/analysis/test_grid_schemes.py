"""Voronoi and Hirshfeld on densities whose parts are known."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import read

from eac_ase import DensityGrid
from eac_ase.analysis import absolute_moment, partition
from eac_ase.analysis.free_atoms import STEP, core_density, free_atom, free_ion
from eac_ase.analysis.moments import sphere
from eac_model.errors import AnalysisError

VALENCES = {"Na": 1.0, "Cl": 7.0}
SCHEMES = ["voronoi", "hirshfeld", "iterative-hirshfeld"]


def superposed(atoms: Atoms, radials, shape) -> DensityGrid:
    """Spherical densities around atoms, images included."""
    grid = DensityGrid(np.zeros(shape), atoms, np.array(atoms.cell), pbc=atoms.pbc)
    values = torch.zeros(grid.values.size, dtype=torch.float64)
    for place, radial in zip(atoms.positions, radials, strict=True):
        r = STEP * np.arange(len(radial.values))
        for part in sphere(grid, place, radial.radius):
            found = np.interp(part.distance.numpy(), r, radial.values)
            values.index_add_(0, part.point, torch.from_numpy(found))
    return replace(grid, values=values.numpy().reshape(shape), kind="all-electron")


@pytest.fixture(scope="module")
def hydrogens() -> Atoms:
    return Atoms("H2", [(0.2, 0.1, 0), (1.1, 0.3, 0.4)], cell=[3.3, 3.4, 3.5], pbc=True)


# -- what comes out is what went in ------------------------------------------------------------


def test_voronoi_cells_of_well_separated_atoms_hold_their_electrons(salt):
    found = partition(salt, "voronoi", valence_electrons=VALENCES)
    assert found.populations == pytest.approx([1, 7], abs=1e-4)
    assert found.charges == pytest.approx([0, 0], abs=1e-4)
    assert found.moments == pytest.approx([0.5, -1.75], abs=1e-4)  # half and a quarter of them
    assert found.volumes == pytest.approx([3.6**3 / 2] * 2, rel=1e-9)
    assert found.dipoles == pytest.approx(np.zeros((2, 3)), abs=1e-6)


@pytest.mark.parametrize("direction", [(0, 0, 1), (1, 2, 3)])
@pytest.mark.parametrize("shape", [(7, 7, 7), (8, 9, 11), (6, 6, 13)])
def test_voronoi_cells_of_two_equal_atoms_are_halves_on_any_grid(direction, shape):
    place = np.array([0.1, 0.2, 0.3])
    bond = 0.77 * np.array(direction) / np.linalg.norm(direction)
    atoms = Atoms("H2", [place, place + bond], cell=[3, 3.1, 3.2], pbc=True)
    grid = DensityGrid(np.ones(shape), atoms, np.array(atoms.cell), pbc=atoms.pbc)
    found = partition(grid, "voronoi", normalize=False)
    assert found.volumes == pytest.approx(np.full(2, grid.volume / 2), rel=1e-2)


def test_hirshfeld_gives_superposed_free_atoms_back(hydrogens):
    radials = [free_atom(1), free_atom(1)]
    grid = superposed(hydrogens, radials, (24, 24, 25))
    alone = superposed(hydrogens[:1], radials[:1], (24, 24, 25))
    found = partition(grid, "hirshfeld", normalize=False)
    assert found.populations[0] == pytest.approx(alone.integrate(), abs=1e-9)
    assert found.populations.sum() == pytest.approx(grid.integrate(), abs=1e-9)
    assert found.charges == pytest.approx([0, 0], abs=5e-3)  # the cusp on a coarse grid


def test_iterative_hirshfeld_finds_the_charges_of_superposed_ions(hydrogens):
    grid = superposed(hydrogens, [free_ion(1, 1.3), free_ion(1, 0.7)], (24, 24, 25))
    once = partition(grid, "hirshfeld")
    found = partition(grid, "iterative-hirshfeld")
    assert abs(once.charges[0]) < 0.2
    assert found.charges == pytest.approx([-0.3, 0.3], abs=0.01)
    assert "iterations" in found.remarks[0]


def test_free_atoms_and_cores_hold_their_electrons():
    for number in (1, 6, 8, 17):
        assert free_atom(number).electrons() == pytest.approx(number, rel=1e-3)
    assert free_ion(8, 8.7).electrons() == pytest.approx(8.7, rel=1e-3)
    assert core_density(8, 2).electrons() == pytest.approx(2, rel=1e-3)
    assert core_density(1, 0).values.max() == 0
    with pytest.raises(AnalysisError, match="whole shells"):
        core_density(8, 3)


def test_the_quadrupole_of_an_ellipsoid_is_traceless_and_right():
    atoms = Atoms("He", [(2, 2, 2)], cell=[4, 4, 4])
    grid = DensityGrid(np.zeros((40, 40, 40)), atoms, np.eye(3) * 4, pbc=(False,) * 3)
    x, y, z = (grid.points() - 2).T
    values = 2 * np.sqrt(3 * 3 * 6 / np.pi**3) * np.exp(-3 * x**2 - 3 * y**2 - 6 * z**2)
    grid = replace(grid, values=values.reshape(grid.shape), kind="all-electron")
    found = partition(grid, "voronoi").quadrupoles[0]
    # <x²> = 1/6, <z²> = 1/12: Θ_zz = −2 (<z²> − <x²>)
    assert np.diag(found) == pytest.approx([-1 / 12, -1 / 12, 1 / 6], abs=1e-4)
    assert found == pytest.approx(found.T)


# -- sums --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
def test_populations_add_up_to_the_stated_electrons(salt, scheme):
    grid = salt * 1.003
    found = partition(grid, scheme, valence_electrons=VALENCES, charge=1.0)
    assert found.electrons == pytest.approx(7, abs=1e-9)
    assert found.charges.sum() - found.vacuum_charge == pytest.approx(1, abs=1e-9)
    assert found.charge == pytest.approx(1, abs=1e-9)
    assert found.factor == pytest.approx(7 / 8.024, rel=1e-3)
    raw = partition(grid, scheme, valence_electrons=VALENCES, normalize=False)
    assert raw.electrons == pytest.approx(grid.integrate(), abs=1e-9)
    assert raw.moment == pytest.approx(grid.integrate_spin(), abs=1e-9)


def test_the_charge_of_the_cell_may_come_with_the_atoms(salt):
    atoms = salt.atoms.copy()
    atoms.info["charge"] = -1
    found = partition(replace(salt, atoms=atoms), "voronoi", valence_electrons=VALENCES)
    assert found.charge == pytest.approx(-1, abs=1e-9)


def test_electrons_that_do_not_fit_the_valences_are_an_error(salt):
    with pytest.raises(AnalysisError, match=r"8\.0.. electrons, its neutral atoms 16"):
        partition(salt, "voronoi", valence_electrons={"Na": 9, "Cl": 7})


def test_points_far_from_all_atoms_are_vacuum():
    atoms = Atoms("H", [(7, 7, 7)], cell=[14, 14, 14], pbc=True)
    grid = DensityGrid(np.full((20, 20, 20), 1e-4), atoms, np.eye(3) * 14)
    found = partition(grid, "hirshfeld", normalize=False)
    assert 0 < found.vacuum_charge < grid.integrate()
    assert found.populations[0] + found.vacuum_charge == pytest.approx(grid.integrate())
    assert found.vacuum_volume + found.volumes[0] == pytest.approx(14**3)
    assert found.charges is None
    assert found.atoms.get_initial_charges().tolist() == [0]


# -- spin --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
def test_moments_are_exactly_odd_under_flipping(salt, scheme):
    found = partition(salt, scheme, valence_electrons=VALENCES)
    flipped = partition(replace(salt, spin=-salt.spin), scheme, valence_electrons=VALENCES)
    assert np.array_equal(flipped.moments, -found.moments)
    assert np.array_equal(flipped.populations, found.populations)


def test_an_antiferromagnet_has_opposite_moments(gaussians):
    atoms = Atoms("Fe2", [(0, 0, 0), (1.6, 1.6, 1.6)], cell=[3.2] * 3, pbc=True)
    grid = gaussians(atoms, [8, 8], [4.0, 4.0], (24, 24, 24), spins=[0.25, -0.25])

    for scheme in ("voronoi", "hirshfeld"):
        found = partition(grid, scheme, valence_electrons={"Fe": 8})
        assert found.moments[0] == pytest.approx(-found.moments[1], abs=1e-9)
        assert found.moment == pytest.approx(0, abs=1e-9)
        assert found.moments[0] > 0.1
    assert absolute_moment(grid) > 0.2
    assert absolute_moment(replace(grid, spin=None)) == 0
    assert grid.up - grid.down == pytest.approx(grid.spin)


# -- invariances -------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["voronoi", "hirshfeld"])
def test_a_supercell_has_the_same_atoms(salt, scheme):
    double = replace(
        salt,
        atoms=salt.atoms.repeat((2, 1, 1)),
        cell=salt.cell * np.array([[2], [1], [1]]),
        values=np.tile(salt.values, (2, 1, 1)),
        spin=np.tile(salt.spin, (2, 1, 1)),
    )
    one = partition(salt, scheme, valence_electrons=VALENCES)
    two = partition(double, scheme, valence_electrons=VALENCES)
    assert two.populations == pytest.approx(np.tile(one.populations, 2), abs=1e-9)
    assert two.dipoles == pytest.approx(np.tile(one.dipoles, (2, 1)), abs=1e-9)


@pytest.mark.parametrize("scheme", ["voronoi", "hirshfeld"])
def test_atoms_outside_of_the_cell_are_wrapped(salt, scheme):
    atoms = salt.atoms.copy()
    atoms.positions[1] += [3.6, -7.2, 0]
    one = partition(salt, scheme, valence_electrons=VALENCES)
    two = partition(replace(salt, atoms=atoms), scheme, valence_electrons=VALENCES)
    assert two.populations == pytest.approx(one.populations, abs=1e-9)
    assert two.dipoles == pytest.approx(one.dipoles, abs=1e-9)


# -- the result --------------------------------------------------------------------------------


def test_a_result_is_frozen(salt):
    found = partition(salt, "voronoi", valence_electrons=VALENCES)
    with pytest.raises(ValueError, match="read-only"):
        found.populations[0] = 3


def test_the_atoms_carry_charges_and_moments(salt, tmp_path):
    found = partition(salt, "hirshfeld", valence_electrons=VALENCES)
    atoms = found.atoms
    assert atoms.get_initial_charges() == pytest.approx(found.charges)
    assert atoms.get_charges() == pytest.approx(found.charges)
    assert atoms.get_magnetic_moments() == pytest.approx(found.moments)
    found.write(tmp_path / "salt.xyz")
    again = read(tmp_path / "salt.xyz")
    assert again.get_charges() == pytest.approx(found.charges, abs=1e-7)
    assert again.get_magnetic_moments() == pytest.approx(found.moments, abs=1e-7)
    assert [path.name for path in tmp_path.iterdir()] == ["salt.xyz"]


def test_json_and_table_say_the_same(salt, tmp_path):
    found = partition(salt, "hirshfeld", valence_electrons=VALENCES)
    found.write(tmp_path / "salt.json")
    content = json.loads((tmp_path / "salt.json").read_text())
    assert content["charges"] == pytest.approx(found.charges.tolist())
    assert content["scheme"] == "hirshfeld"
    table = found.table()
    assert f"{found.charges[1]:+.4f}" in table
    assert "charge of the cell: +0.000000 e" in table
    assert "8.000000, 0.00" in table


# -- what is refused ---------------------------------------------------------------------------


def test_unknown_schemes_and_missing_models_are_explained(salt):
    with pytest.raises(AnalysisError, match="voronoi"):
        partition(salt, "mulliken")
    with pytest.raises(AnalysisError, match="a model"):
        partition(salt, "eac")


def test_a_pseudo_density_without_matrices_is_refused(salt):
    with pytest.raises(AnalysisError, match="matrices D"):
        partition(replace(salt, kind="pseudo"), "hirshfeld")


def test_valences_have_to_name_all_elements(salt):
    with pytest.raises(AnalysisError, match="Cl"):
        partition(salt, "voronoi", valence_electrons={"Na": 1})


def test_a_reference_is_for_bader_only(salt):
    with pytest.raises(AnalysisError, match="bader"):
        partition(salt, "voronoi", reference=salt, valence_electrons=VALENCES)


def test_voronoi_cells_repeat_with_the_box_of_the_grid(salt):
    """Whatever cell the atoms have: none, or another one."""
    origin = np.array([0.3, -0.2, 0.1])
    whole = partition(salt, "voronoi", valence_electrons=VALENCES)
    for cell in (np.zeros((3, 3)), 2 * salt.cell):
        atoms = salt.atoms.copy()
        atoms.set_cell(cell)
        atoms.positions += origin
        found = partition(
            replace(salt, atoms=atoms, origin=origin), "voronoi", valence_electrons=VALENCES
        )
        assert found.populations == pytest.approx(whole.populations, abs=1e-9)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_atoms_outside_of_an_open_box_are_refused(salt, scheme):
    atoms = salt.atoms.copy()
    atoms.positions[1] += salt.cell[2]
    periodic = replace(salt, atoms=atoms, pbc=(False, False, True))
    partition(periodic, scheme, valence_electrons=VALENCES)
    with pytest.raises(AnalysisError, match=r"Atom 1 \(Cl\) lies outside of .* vector 3"):
        partition(replace(periodic, pbc=(False,) * 3), scheme, valence_electrons=VALENCES)


def test_a_stated_charge_does_not_excuse_twice_the_electrons(salt):
    for charge in (0.0, 1.0):
        with pytest.raises(AnalysisError, match="with the charge"):
            partition(salt * 2, "voronoi", valence_electrons=VALENCES, charge=charge)


def test_a_reference_is_for_bader_alone(salt):
    with pytest.raises(AnalysisError, match="not of voronoi"):
        partition(salt, "voronoi", reference=salt, valence_electrons=VALENCES)


def test_the_structure_of_a_result_keeps_its_charge_and_masses_and_cannot_be_changed(salt):
    atoms = salt.atoms.copy()
    atoms.info["charge"] = 0
    atoms.set_masses([10, 20])
    found = partition(replace(salt, atoms=atoms), "voronoi", valence_electrons=VALENCES)
    assert found.structure.info == {"charge": 0}
    assert list(found.structure.get_masses()) == [10, 20]
    with pytest.raises(ValueError, match="read-only"):
        found.structure.positions += 1
    copy = found.atoms
    copy.positions += 1
