"""Relaxations, dynamics, equations of state, NEB, phonons: GPAW starts from bundled models.

Settings are those of no serious calculation, so that all of them together take half a minute.
Whatever is predicted, results have to be GPAW's own.
"""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.eos import EquationOfState
from ase.filters import FrechetCellFilter
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet
from ase.mep import NEB
from ase.optimize import BFGS

from eac_ase import EACDensity
from eac_model.network import EACNet, NetworkConfig
from eac_model.onsite import OnsiteLayout

pytest.importorskip("gpaw.dft")

from gpaw import GPAW

from eac_ase.adapters.gpaw import start_from_density

CRYSTAL = {
    "mode": {"name": "pw", "ecut": 150},
    "xc": "PBE",
    "kpts": {"size": (2, 1, 1), "gamma": True},
    "occupations": {"name": "fermi-dirac", "width": 0.1},
    "convergence": {"density": 1e-4, "eigenstates": 1e-7},
    "symmetry": "off",
    "txt": None,
}
MODES = {
    "pw": {"mode": {"name": "pw", "ecut": 250}},
    "fd": {"mode": "fd", "h": 0.3},
    "lcao": {"mode": "lcao", "h": 0.3, "basis": "sz(dzp)"},
}
MOLECULE = {
    "xc": "PBE",
    "symmetry": "off",
    "convergence": {"density": 1e-4, "eigenstates": 1e-6},
    "txt": None,
}
MOVES = ["reuse", "extrapolate", "predict", "restart"]


@pytest.fixture(scope="module")
def silicon_model():
    return EACDensity("si-pbe", device="cpu")


@pytest.fixture(scope="module")
def water_model():
    return EACDensity("water-pbe", device="cpu")


@pytest.fixture
def silicon():
    atoms = bulk("Si")
    atoms.rattle(0.05, seed=1)
    return atoms


@pytest.fixture
def water():
    return molecule("H2O", vacuum=1.8)


def crystal_calculator(**changes):
    return GPAW(**{**CRYSTAL, **changes})


def molecule_calculator(mode="pw", **changes):
    return GPAW(**{**MOLECULE, **MODES[mode], **changes})


def energy_and_forces(atoms, calculator):
    atoms = atoms.copy()
    atoms.calc = calculator
    return atoms.get_potential_energy(), atoms.get_forces()


def predicted(calculator):
    return [start.predicted for start in calculator.predicted_start.starts]


def kinds(calculator):
    return [start.kind for start in calculator.predicted_start.starts]


# -- relaxations -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fd", "lcao"])
def test_relaxations_in_modes_without_plane_waves(mode, water, water_model):
    reference = water.copy()
    reference.calc = molecule_calculator(mode)
    water.calc = start_from_density(molecule_calculator(mode), water_model)
    for atoms in (reference, water):
        BFGS(atoms, logfile=None).run(fmax=1e-3, steps=1)
    np.testing.assert_allclose(water.positions, reference.positions, atol=1e-3)
    assert kinds(water.calc) == ["new", "moved"]


@pytest.mark.parametrize("mode", ["pw", "lcao"])
def test_relaxations_of_a_radical_whose_spin_the_model_does_not_know(mode, water_model):
    atoms = molecule("OH", vacuum=1.8)
    assert atoms.get_initial_magnetic_moments().any()
    reference = atoms.copy()
    reference.calc = molecule_calculator(mode, occupations={"name": "fixed-uniform"})
    calculator = molecule_calculator(mode, occupations={"name": "fixed-uniform"})
    atoms.calc = start_from_density(calculator, water_model)
    for one in (reference, atoms):
        BFGS(one, logfile=None).run(fmax=1e-3, steps=1)
    np.testing.assert_allclose(atoms.positions, reference.positions, atol=2e-3)
    assert atoms.get_magnetic_moment() == pytest.approx(1, abs=0.01)
    assert kinds(atoms.calc) == ["new", "moved"]


@pytest.mark.parametrize("moves", MOVES)
def test_cells_relax_together_with_the_atoms(moves, silicon, silicon_model):
    silicon.calc = start_from_density(crystal_calculator(), silicon_model, moves=moves)
    BFGS(FrechetCellFilter(silicon), logfile=None).run(fmax=1e-3, steps=1)
    energy, forces = energy_and_forces(silicon, crystal_calculator())
    found = silicon.get_potential_energy()
    # GPAW's plane waves are those of the present cell, however it was reached.
    assert found == pytest.approx(energy, abs=2e-4)
    np.testing.assert_allclose(silicon.get_forces(), forces, atol=5e-3)
    assert kinds(silicon.calc) == ["new", "new" if moves == "restart" else "new cell"]
    assert predicted(silicon.calc) == [True, moves != "reuse"]


def test_spins_of_iron_are_gpaw_s_in_another_cell_too():
    settings = {
        "mode": {"name": "pw", "ecut": 300},
        "kpts": {"size": (3, 3, 3), "gamma": True},
        "symmetry": {},
        "convergence": {"density": 1e-4},
    }
    atoms = bulk("Fe", a=2.84)
    atoms.set_initial_magnetic_moments([2.3])
    calculator = crystal_calculator(**settings)
    atoms.calc = start_from_density(calculator, EACDensity("eac-pbe", device="cpu"))
    for scale in (1.0, 1.01):
        atoms.set_cell(atoms.cell * scale, scale_atoms=True)
        energy, _ = energy_and_forces(atoms, crystal_calculator(**settings))
        assert atoms.get_potential_energy() == pytest.approx(energy, abs=2e-3)
    assert atoms.get_magnetic_moment() > 1.5
    assert predicted(calculator) == [True, True]


# -- dynamics ----------------------------------------------------------------------------------


def dynamics(atoms, calculator, steps=2):
    atoms = atoms.copy()
    atoms.calc = calculator
    MaxwellBoltzmannDistribution(atoms, temperature_K=600, rng=np.random.default_rng(0))
    VelocityVerlet(atoms, timestep=2 * units.fs).run(steps)
    return atoms


@pytest.fixture(scope="module")
def plain_dynamics():
    atoms = bulk("Si")
    atoms.rattle(0.05, seed=1)
    return dynamics(atoms, crystal_calculator())


@pytest.mark.parametrize("moves", MOVES)
def test_dynamics_follow_gpaw_s_trajectory(moves, silicon, silicon_model, plain_dynamics):
    calculator = start_from_density(crystal_calculator(), silicon_model, moves=moves)
    atoms = dynamics(silicon, calculator)
    np.testing.assert_allclose(atoms.positions, plain_dynamics.positions, atol=1e-4)
    assert atoms.get_total_energy() == pytest.approx(plain_dynamics.get_total_energy(), abs=1e-3)
    assert predicted(calculator) == [True] + 2 * [moves != "reuse"]


# -- equations of state ------------------------------------------------------------------------


def equation_of_state(calculator):
    atoms = bulk("Si")
    cell = atoms.cell.copy()
    atoms.calc = calculator
    volumes, energies = [], []
    for scale in (0.97, 0.99, 1.01, 1.03):
        atoms.set_cell(cell * scale, scale_atoms=True)
        volumes.append(atoms.get_volume())
        energies.append(atoms.get_potential_energy())
    return np.array(energies), EquationOfState(volumes, energies).fit()


@pytest.fixture(scope="module")
def plain_equation_of_state():
    return equation_of_state(crystal_calculator())


@pytest.mark.parametrize("moves", ["reuse", "extrapolate", "predict"])
def test_equations_of_state_are_gpaw_s(moves, silicon_model, plain_equation_of_state):
    calculator = start_from_density(crystal_calculator(), silicon_model, moves=moves)
    energies, (volume, _, modulus) = equation_of_state(calculator)
    expected, (v, _, b) = plain_equation_of_state
    np.testing.assert_allclose(energies, expected, atol=2e-4)
    assert volume == pytest.approx(v, rel=1e-3)
    assert modulus == pytest.approx(b, rel=2e-2)
    assert predicted(calculator) == [True] + 3 * [moves != "reuse"]


# -- nudged elastic bands ----------------------------------------------------------------------


def band(water):
    """A molecule that turns by 40°."""
    turned = water.copy()
    turned.rotate(40, "x", center="COM")
    images = [water.copy(), water.copy(), turned]
    return images


@pytest.mark.parametrize(
    ("shared", "mode"), [(False, "pw"), (True, "lcao")], ids=["separate", "shared"]
)
def test_bands_have_gpaw_s_energies(shared, mode, water, water_model):
    images = band(water)

    def calculator():
        return start_from_density(molecule_calculator(mode), water_model)

    one = calculator()
    for image in images:
        image.calc = one if shared else calculator()
    chain = NEB(images, allow_shared_calculator=shared)
    chain.interpolate()
    BFGS(chain, logfile=None).run(fmax=1e-2, steps=1)
    middle = images[1]
    energy, forces = energy_and_forces(middle, molecule_calculator(mode))
    assert middle.get_potential_energy() == pytest.approx(energy, abs=1e-3)
    np.testing.assert_allclose(middle.get_forces(), forces, atol=2e-2)
    assert predicted(middle.calc)[0]
    assert all(one.predicted_start.starts for one in (image.calc for image in images))


# -- phonons -----------------------------------------------------------------------------------


def test_phonons_from_predicted_supercells(silicon_model):
    phonopy = pytest.importorskip("phonopy")
    from phonopy.structure.atoms import PhonopyAtoms

    unit = bulk("Si")
    primitive = PhonopyAtoms(
        symbols=list(unit.symbols), cell=unit.cell[:], scaled_positions=unit.get_scaled_positions()
    )
    phonon = phonopy.Phonopy(primitive, [[-1, 1, 1], [1, -1, 1], [1, 1, -1]])
    phonon.generate_displacements(distance=0.03)
    (displaced,) = phonon.supercells_with_displacements
    settings = {"kpts": (1, 1, 1), "symmetry": {}, "convergence": {"density": 1e-5}}
    constants = []
    for model in (None, silicon_model):
        # One for each supercell: GPAW keeps the symmetry that it began with.
        calculator = crystal_calculator(**settings)
        if model is not None:
            calculator = start_from_density(calculator, model)
        atoms = Atoms(displaced.symbols, cell=displaced.cell, positions=displaced.positions, pbc=1)
        atoms.calc = calculator
        phonon.forces = [atoms.get_forces()]
        phonon.produce_force_constants()
        constants.append(phonon.force_constants.copy())
    assert predicted(calculator) == [True]
    assert np.abs(constants[0]).max() > 5
    np.testing.assert_allclose(constants[1], constants[0], atol=0.1)


def test_lost_symmetry_is_gpaw_s_error_unless_every_geometry_starts_afresh(silicon_model):
    from gpaw.new.symmetry import SymmetryBrokenError

    for moves in ("reuse", "restart"):
        atoms = bulk("Si")
        calculator = crystal_calculator(symmetry={}, kpts=(1, 1, 1))
        atoms.calc = start_from_density(calculator, silicon_model, moves=moves)
        atoms.get_potential_energy()
        atoms.positions[0, 0] += 0.03
        if moves == "reuse":
            with pytest.raises(SymmetryBrokenError):
                atoms.get_potential_energy()
        else:
            energy, _ = energy_and_forces(atoms, crystal_calculator(kpts=(1, 1, 1)))
            assert atoms.get_potential_energy() == pytest.approx(energy, abs=2e-4)


# -- one calculator for several structures -----------------------------------------------------


def test_files_go_on_and_predict_when_gpaw_begins_afresh(silicon, silicon_model, tmp_path):
    path = tmp_path / "silicon.gpw"
    calculator = start_from_density(crystal_calculator(), silicon_model)
    energy, _ = energy_and_forces(silicon, calculator)
    calculator.write(path)  # without wave functions
    reopened = start_from_density(GPAW(path, txt=None), silicon_model)
    atoms = silicon.copy()
    atoms.calc = reopened
    assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-9)
    assert predicted(reopened) == []
    atoms.positions[0, 0] += 0.02
    expected, _ = energy_and_forces(atoms, crystal_calculator())
    assert atoms.get_potential_energy() == pytest.approx(expected, abs=2e-4)
    assert predicted(reopened) == [True]


def test_other_cells_are_predicted_again_where_gpaw_cannot_interpolate(water, water_model):
    water.calc = start_from_density(molecule_calculator("lcao"), water_model)
    water.get_potential_energy()
    water.center(vacuum=2.1)
    expected, _ = energy_and_forces(water, molecule_calculator("lcao"))
    assert water.get_potential_energy() == pytest.approx(expected, abs=2e-3)
    assert kinds(water.calc) == ["new", "new"]
    assert predicted(water.calc) == [True, True]


def spin_model():
    """An untrained network with spins that knows GPAW's hydrogen."""
    layout = OnsiteLayout(code="GPAW", channels={"H": (0, 0, 1)})
    config = NetworkConfig(
        elements=(1,), channels=4, l_max=2, interactions=1, onsite=layout, spin=True
    )
    return EACDensity(EACNet(config))


def triplet():
    return Atoms("H2", [(0, 0, 0), (0, 0, 0.8)], cell=[3.6, 3.6, 4.2], pbc=True, magmoms=[1, 1])


def test_classic_gpaw_predicts_again_when_moments_or_cell_change(tmp_path):
    text = tmp_path / "gpaw.txt"
    settings = {**MOLECULE, **MODES["pw"], "convergence": {"density": 1e-2}, "txt": str(text)}
    atoms = triplet()
    atoms.calc = start_from_density(GPAW(**settings, legacy_gpaw=True), spin_model())
    atoms.get_potential_energy()
    atoms.set_initial_magnetic_moments([1, -1])
    atoms.get_potential_energy()
    atoms.set_cell(atoms.cell * 1.02, scale_atoms=True)
    atoms.get_potential_energy()
    atoms.calc.log.fd.flush()
    assert text.read_text().count("Density predicted by the model") == 3


def test_classic_gpaw_takes_matrices_of_single_precision(silicon, silicon_model):
    assert silicon_model.get_density_grid(silicon, shape=(8, 8, 8)).onsite[0].dtype == np.float32
    settings = {**CRYSTAL, "kpts": (1, 1, 1), "legacy_gpaw": True}
    expected, _ = energy_and_forces(silicon, GPAW(**settings))
    calculator = start_from_density(GPAW(**settings), silicon_model)
    found, _ = energy_and_forces(silicon, calculator)
    assert found == pytest.approx(expected, abs=1e-4)
