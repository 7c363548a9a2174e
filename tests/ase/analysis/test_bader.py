"""Bader's basins by baderkit. The first run of an installation compiles for a minute or two."""

import logging
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms

from eac_ase.analysis import partition
from eac_model.errors import AnalysisError

pytest.importorskip("baderkit")

VALENCES = {"Na": 1.0, "Cl": 7.0}


def test_basins_of_well_separated_atoms_hold_their_electrons(salt, caplog, capsys):
    handlers = logging.getLogger().handlers[:]
    with caplog.at_level(logging.INFO):
        found = partition(salt, "bader", valence_electrons=VALENCES)
    assert found.populations + 0.0 == pytest.approx([1, 7], abs=0.02)
    assert found.moments == pytest.approx([0.5, -1.75], abs=0.01)
    assert found.electrons == pytest.approx(8, abs=1e-9)
    assert found.charge == pytest.approx(0, abs=1e-9)
    assert found.volumes.sum() + found.vacuum_volume == pytest.approx(3.6**3, rel=1e-6)
    assert found.dipoles == pytest.approx(np.zeros((2, 3)), abs=1e-3)
    assert "cores of free atoms" in found.density
    # quiet
    assert not caplog.records
    assert capsys.readouterr() == ("", "")
    assert logging.getLogger().handlers == handlers


def test_spins_are_odd_and_the_reference_decides(salt):
    flipped = replace(salt, spin=-salt.spin)
    reference = replace(salt, values=salt.values, spin=None, kind="all-electron")
    found = partition(flipped, "bader", valence_electrons=VALENCES, reference=reference)
    assert found.moments == pytest.approx([-0.5, 1.75], abs=0.01)
    assert "the reference density" in found.density


def test_closed_shells_in_a_calculation_with_spin_have_no_moments(gaussians):
    # Points midway between the atoms belong to both alike.
    atoms = Atoms("H2", [(1.5, 1.5, 1.5), (4.5, 1.5, 1.5)], cell=[6, 3, 3], pbc=True)
    grid = gaussians(atoms, [1, 1], [1.0, 1.0], (24, 12, 12))
    grid = replace(grid, spin=np.zeros_like(grid.values))
    found = partition(grid, "bader", valence_electrons={"H": 1})
    np.testing.assert_allclose(found.moments, 0, atol=1e-8)


def test_an_atom_without_a_maximum_is_an_error(salt):
    atoms = salt.atoms.copy()
    atoms.append("H")
    atoms.positions[-1] = (0.9, 0.9, 0.9)
    grid = replace(salt, atoms=atoms, kind="all-electron")
    with pytest.raises(AnalysisError, match=r"no maximum at 1 atoms \(H 2\)"):
        partition(grid, "bader", normalize=False)


def test_basins_need_cores_or_a_reference(salt):
    with pytest.raises(AnalysisError, match="AECCAR0"):
        partition(salt, "bader")
    other = replace(salt, values=salt.values[:-1], spin=None)
    with pytest.raises(AnalysisError, match="have to be the same"):
        partition(salt, "bader", reference=other, valence_electrons=VALENCES)


def test_thin_points_are_vacuum(gaussians):
    atoms = Atoms("H", [(3, 3, 3)], cell=[6, 6, 6], pbc=True)
    grid = gaussians(atoms, [1], [2.0], (24, 24, 24))
    found = partition(grid, "bader", valence_electrons={"H": 1})
    assert 0 < found.vacuum_charge < 0.02
    assert found.populations[0] + found.vacuum_charge == pytest.approx(1, abs=1e-9)


def test_multipoles_of_a_slab_are_about_the_nearest_image_of_an_atom(gaussians):
    # Rounded fractions are not the nearest image in a hexagonal cell.
    a = 3.0
    atoms = Atoms("He", [(0.2, 0.1, 3.0)], cell=[[a, 0, 0], [a / 2, a * 3**0.5 / 2, 0], [0, 0, 6]])
    atoms.pbc = True
    grid = gaussians(atoms, [2], [1.5], (24, 24, 48), kind="all-electron")
    whole = partition(grid, "bader")
    atoms.pbc = (True, True, False)
    slab = partition(replace(grid, atoms=atoms, pbc=(True, True, False)), "bader")
    assert whole.dipoles[0] == pytest.approx(np.zeros(3), abs=0.02)
    np.testing.assert_allclose(slab.dipoles, whole.dipoles, atol=1e-6)
    np.testing.assert_allclose(slab.quadrupoles, whole.quadrupoles, atol=1e-6)
