"""GPAW begins with predicted densities: stored calculations stand in for trained models."""

from __future__ import annotations

import contextlib
import copy
import sys
import warnings
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.emt import EMT
from ase.optimize import BFGS
from ase.units import Bohr, Hartree

from eac_ase import DensityGrid, EACDensity
from eac_ase.error_estimate import ErrorEstimate
from eac_ase.reference.gpaw import calculate
from eac_ase.reference.recipe import Settings
from eac_model.checkpoint import ModelCard
from eac_model.data.sample import Provenance
from eac_model.errors import ConfigurationError, UnknownElementError
from eac_model.network import EACNet, NetworkConfig
from eac_model.onsite import OnsiteLayout

pytest.importorskip("gpaw.dft")

from gpaw import GPAW

from eac_ase.adapters import gpaw_mixing, gpaw_passes
from eac_ase.adapters.gpaw import (
    KnownDensity,
    all_electron_density,
    fixed_density,
    start_from_density,
)
from eac_ase.adapters.gpaw_mixing import (
    EXCITATION,
    FIRST_STEP,
    SHORT,
    SHORT_IN_MOLECULES,
    STEP,
    cloud_of_metal,
    cloud_of_molecules,
    dielectric_constant,
    divide_by_screening,
    take_whole_steps,
)
from eac_ase.adapters.gpaw_state import Correction, check_setups, predict_state
from eac_ase.analysis import dipole_moment

SILICON = Settings(cutoff=200, kpoint_density=0.9)
OXYGEN = Settings(cutoff=250, kpoint_density=None, smearing=0.0)


@pytest.fixture(scope="module")
def silicon():
    atoms = bulk("Si")
    atoms.rattle(0.1, seed=1)
    return calculate(atoms, SILICON, "silicon/0")


@pytest.fixture(scope="module")
def oxygen():
    return calculate(molecule("O2", vacuum=2.0), OXYGEN, "oxygen/0")


def gpaw_for(sample, **changes):
    return GPAW(**{**sample.calculation.settings, "txt": None, **changes})


def free_atoms(sample):
    """The state that GPAW begins with by itself."""
    free = sample.free_atoms
    return replace(
        sample,
        density=free.density,
        spin_density=free.spin_density,
        onsite=free.onsite,
        onsite_spin=free.onsite_spin,
    )


def energy_and_iterations(atoms, calculator):
    atoms = atoms.copy()
    atoms.calc = calculator
    return atoms.get_potential_energy(), calculator.get_number_of_iterations()


class OwnArrays:
    """A model of what GPAW itself begins with, in any mode."""

    def __init__(self, atoms, **parameters):
        calculator = GPAW(**parameters, txt=None)
        calculator.create_new_calculation(atoms)
        density = calculator.dft.density
        grids = density.nt_sR.to_pbc_grid().data / Bohr**3
        matrices = [np.array(d) for d in density.D_asii.values()]
        self.grids, self.matrices = grids, matrices
        layout = OnsiteLayout(
            code="GPAW", channels={s.symbol: tuple(s.l_j) for s in calculator.dft.setups}
        )
        elements = tuple(set(atoms.numbers.tolist()))
        self.card = ModelCard(name="own arrays")
        self.network = SimpleNamespace(
            config=SimpleNamespace(elements=elements, spin=len(grids) == 2, onsite=layout)
        )

    def get_density_grid(self, atoms, *, like, progress=None):
        assert like.shape == self.grids.shape[1:]
        spin = len(self.grids) == 2
        return DensityGrid(
            self.grids.sum(axis=0),
            atoms,
            like.cell,
            spin=self.grids[0] - self.grids[1] if spin else None,
            onsite=tuple(d.sum(axis=0) for d in self.matrices),
            onsite_spin=tuple(d[0] - d[1] for d in self.matrices) if spin else None,
        )

    def get_error_estimate(self, atoms):
        raise PropertyNotImplementedError


def hydrogen(**moments):
    return Atoms("H2", [(0, 0, 0), (0, 0, 0.8)], cell=[3.6, 3.6, 4.2], pbc=True, **moments)


def tiny_model(**changes):
    """An untrained network that knows GPAW's hydrogen."""
    layout = OnsiteLayout(code="GPAW", channels={"H": (0, 0, 1)})
    config = NetworkConfig(
        elements=(1,), channels=4, l_max=2, interactions=1, onsite=layout, **changes
    )
    return EACDensity(EACNet(config))


# -- the start ---------------------------------------------------------------------------------


def test_gpaw_s_own_arrays_give_gpaw_s_own_run(silicon):
    mixer = {"beta": 0.1}
    energy, iterations = energy_and_iterations(silicon.atoms, gpaw_for(silicon, mixer=mixer))
    model = KnownDensity([free_atoms(silicon)])
    calculator = start_from_density(gpaw_for(silicon, mixer=mixer), model, hold=0)
    found, count = energy_and_iterations(silicon.atoms, calculator)
    assert count == iterations
    assert found == pytest.approx(energy, abs=1e-9)


@pytest.mark.parametrize(
    "parameters",
    [
        {"mode": "fd", "h": 0.3},
        {"mode": "lcao", "h": 0.3, "basis": "sz(dzp)"},
        {"mode": {"name": "pw", "ecut": 200}},
    ],
    ids=["fd", "lcao", "pw"],
)
@pytest.mark.parametrize("moments", [{}, {"magmoms": [1.0, 1.0]}], ids=["paired", "spin"])
def test_own_arrays_in_every_mode_and_with_spin(parameters, moments):
    common = {"xc": "PBE", "convergence": {"density": 1e-3}, "mixer": {"beta": 0.1}}
    parameters = {**parameters, **common}
    atoms = hydrogen(**moments)
    atoms.pbc = (True, True, False)
    atoms.center(axis=2)
    energy, iterations = energy_and_iterations(atoms, GPAW(**parameters, txt=None))
    model = OwnArrays(atoms, **parameters)
    calculator = start_from_density(GPAW(**parameters, txt=None), model, hold=0)
    found, count = energy_and_iterations(atoms, calculator)
    assert count == iterations
    assert found == pytest.approx(energy, abs=1e-8)


def test_the_exact_state_converges_to_the_same_energy_in_fewer_iterations(silicon):
    calculator = start_from_density(gpaw_for(silicon), KnownDensity([silicon]), hold=2)
    energy, iterations = energy_and_iterations(silicon.atoms, calculator)
    (start,) = calculator.predicted_start.starts
    assert (start.kind, start.predicted, start.passes) == ("new", True, 2)
    assert iterations + start.passes < 0.7 * silicon.calculation.iterations
    assert energy == pytest.approx(silicon.calculation.energy, abs=1e-5)


def test_a_good_prediction_is_held_longer_than_a_poor_one(silicon):
    rng = np.random.default_rng(0)
    noise = rng.normal(size=silicon.density.shape) * silicon.density
    passes = []
    for size in (0.0, 0.1):
        model = KnownDensity([replace(silicon, density=silicon.density + size * noise)])
        calculator = start_from_density(gpaw_for(silicon), model)
        calculator.create_new_calculation(silicon.atoms)
        passes.append(calculator.predicted_start.starts[0].passes)
    assert passes[0] >= 2
    assert passes[1] == 1


def test_passes_alone_leave_the_density_as_it_was_predicted(silicon):
    calculator = start_from_density(gpaw_for(silicon), KnownDensity([silicon]), hold=3)
    calculator.create_new_calculation(silicon.atoms)
    density = calculator.dft.density
    np.testing.assert_allclose(density.nt_sR.data[0] / Bohr**3, silicon.density, rtol=1e-5)
    np.testing.assert_allclose(density.D_asii[0][0], silicon.onsite[0], atol=1e-6)


def test_by_itself_the_start_improves_a_wrong_density_and_leaves_its_electrons(silicon):
    wave = np.cos(2 * np.pi * np.arange(silicon.density.shape[0]) / silicon.density.shape[0])
    wrong = replace(silicon, density=silicon.density * (1 + 0.01 * wave[:, None, None]))
    off = []
    for hold in (3, None):
        calculator = start_from_density(gpaw_for(silicon), KnownDensity([wrong]), hold=hold)
        calculator.create_new_calculation(silicon.atoms)
        grid = calculator.dft.density.nt_sR.data[0] / Bohr**3
        assert calculator.predicted_start.starts[0].passes <= 4
        off.append(np.abs(grid - silicon.density).sum())
    assert off[1] < 0.7 * off[0]


def test_the_step_after_the_passes_screens_a_charge_that_is_neutral(silicon, monkeypatch):
    integrals = []
    real = gpaw_passes.divide_by_screening

    def watched(change, charge, density, cloud):
        integrals.append((abs(change.integrate()), abs(charge.integrate())))
        real(change, charge, density, cloud)

    monkeypatch.setattr(gpaw_passes, "divide_by_screening", watched)
    wrong = tuple(0.98 * matrix for matrix in silicon.onsite)
    model = KnownDensity([replace(silicon, onsite=wrong)])
    start_from_density(gpaw_for(silicon), model).create_new_calculation(silicon.atoms)
    ((of_density, of_charge),) = integrals
    assert of_charge < 1e-3 < of_density


@pytest.mark.parametrize(
    ("name", "expected", "held"),
    [("silicon", 0.3, True), ("silicon", 3.0, False), ("oxygen", 0.3, False)],
)
def test_the_error_that_a_model_expects_decides_whether_its_density_is_held(
    request, name, expected, held
):
    class Expectant(KnownDensity):
        def get_error_estimate(self, atoms):
            return ErrorEstimate(expected, np.full(len(atoms), expected), np.ones(len(atoms)), 2.0)

    sample = request.getfixturevalue(name)  # oxygen has spin, of which the estimate says nothing
    calculator = start_from_density(gpaw_for(sample), Expectant([sample]))
    calculator.create_new_calculation(sample.atoms)
    (start,) = calculator.predicted_start.starts
    assert (start.passes > 0) == held


@pytest.mark.parametrize(("name", "taken"), [("silicon", True), ("oxygen", False)])
def test_moments_in_unfamiliar_surroundings_are_not_trusted(request, name, taken):
    class Stranger(KnownDensity):
        def get_error_estimate(self, atoms):
            return ErrorEstimate(9.0, np.full(len(atoms), 9.0), np.full(len(atoms), 5.0), 2.0)

    sample = request.getfixturevalue(name)
    calculator = start_from_density(gpaw_for(sample), Stranger([sample]))
    calculator.create_new_calculation(sample.atoms)
    assert calculator.predicted_start.starts[0].predicted == taken
    expected = sample if taken else free_atoms(sample)
    found = calculator.dft.density.nt_sR.data.sum(axis=0) / Bohr**3
    np.testing.assert_allclose(found, expected.density, rtol=1e-3, atol=1e-3)
    kept = fixed_density(gpaw_for(sample), Stranger([sample]))
    kept.create_new_calculation(sample.atoms)
    assert kept.predicted_start.starts[0].predicted


def test_only_gpaw_s_default_mixer_takes_whole_steps(silicon):
    mixers = []
    for changes in ({}, {"mixer": {"beta": 0.1}}, {"mixer": {"name": "pulay"}}):
        calculator = start_from_density(gpaw_for(silicon, **changes), KnownDensity([silicon]))
        calculator.create_new_calculation(silicon.atoms)
        mixers.append(calculator.dft.scf_loop.mixer)
    assert [mixer.beta for mixer in mixers] == [STEP, 0.1, 0.08]
    assert [hasattr(mixer, "cloud") for mixer in mixers] == [True, False, False]
    assert list(mixers[1].A_lims) == [0.02, 0.75]


def test_screening_divides_long_waves_and_leaves_charge_and_errors_as_they_are(
    silicon, monkeypatch
):
    monkeypatch.setattr(gpaw_mixing, "METAL", -1.0)  # Silicon has no gap with so few k-points.
    monkeypatch.setattr(gpaw_mixing, "dielectric_constant", lambda dft: 10.0)
    calculator = start_from_density(gpaw_for(silicon), KnownDensity([silicon]))
    calculator.create_new_calculation(silicon.atoms)
    density = calculator.dft.density
    mixer = calculator.dft.scf_loop.mixer
    change = density.nt_sR.copy()
    matrices = density.D_asii.copy()
    with_charges = type(mixer).__mro__[1].add_compensation_charge(mixer, change, matrices, density)
    found = mixer.add_compensation_charge(change, matrices, density)
    np.testing.assert_array_equal(found.data, with_charges.data)
    squares = squares_of(change.desc)
    squares[0, 0, 0] = np.inf  # The charge stays.
    squares /= SHORT
    inverse = 1 / (1 + 1 / (1 / (10.0 - 1) + squares + squares**2))
    cloud, charge = (
        np.fft.fftn(array) for array in ((change.data - density.nt_sR.data)[0], found.data[0])
    )
    # Waves of half the grid have no sign.
    counts = [abs(np.fft.fftfreq(n)) < 0.5 for n in change.desc.size_c]
    inner = np.ix_(*counts)
    np.testing.assert_allclose(
        cloud[inner], ((inverse - 1) * charge)[inner], atol=1e-9 * abs(charge).max()
    )
    assert found.data is not change.data


def squares_of(grid):
    """G² in Bohr⁻² of all waves of a grid."""
    counts = (np.fft.fftfreq(n, 1 / n) for n in grid.size_c)
    indices = np.stack(np.meshgrid(*counts, indexing="ij"), axis=-1)
    return ((2 * np.pi * indices @ np.linalg.inv(grid.cell_cv).T) ** 2).sum(axis=-1)


def metal(cell, **changes):
    calculator = GPAW(
        mode={"name": "pw", "ecut": 150}, xc="PBE", kpts=(2, 2, 1), txt=None, **changes
    )
    calculator.create_new_calculation(Atoms("Na", cell=cell, pbc=True))
    return calculator.dft


def test_a_uniform_metal_damps_long_waves_as_kerker_does_and_short_ones_not():
    dft = metal([3.5, 3.5, 8.0])
    density, grid = dft.density, dft.density.nt_sR.desc
    density.nt_sR.data[:] = 0.02
    charge = grid.empty()
    charge.data[:] = np.random.default_rng(0).normal(size=charge.data.shape)
    found = charge.copy()
    divide_by_screening(found, charge, density, cloud_of_metal)
    squares = squares_of(grid)
    squares[0, 0, 0] = np.inf
    thomas_fermi = 4 / np.pi * (3 * np.pi**2 * 0.02) ** (1 / 3)
    expected = np.fft.fftn(charge.data) / (1 + thomas_fermi / (squares + squares**2 / SHORT))
    assert np.abs(np.fft.ifftn(expected).real - found.data).max() < 0.01
    assert found.data.sum() == pytest.approx(charge.data.sum())


def test_electrons_of_a_metal_slab_answer_inside_it_and_not_in_the_vacuum():
    dft = metal([3.5, 3.5, 16.0])
    density, grid = dft.density, dft.density.nt_sR.desc
    places = np.arange(grid.size_c[2]) / grid.size_c[2]
    slab = (abs(places - 0.5) < 0.2)[None, None, :]
    density.nt_sR.data[:] = np.where(slab, 0.02, 0.0)
    wave = grid.empty()
    wave.data[:] = np.cos(2 * np.pi * places)
    found = wave.copy()
    divide_by_screening(found, wave, density, cloud_of_metal)
    assert found.data.sum() == pytest.approx(wave.data.sum(), abs=1e-6)
    inside = np.broadcast_to(slab, found.data.shape)
    # What is left of the wave: nearly nothing in the middle of the slab, all of it outside.
    middle = found.data[..., grid.size_c[2] // 2]
    assert abs(middle).max() < 0.3
    np.testing.assert_allclose(found.data[~inside], wave.data[~inside], atol=1e-12)


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5])
def test_a_uniform_gas_of_molecules_divides_long_waves_by_one_constant(density):
    grid = metal([3.5, 4.0, 8.0]).density.nt_sR.desc
    charge = np.random.default_rng(0).normal(size=grid.size_c)
    charge -= charge.mean()
    cloud = cloud_of_molecules(charge, np.full(charge.shape, density), grid)
    squares = squares_of(grid)
    susceptibility = 4 * np.pi * density * (Hartree / EXCITATION) ** 2
    expected = -susceptibility / (1 + susceptibility + squares / SHORT_IN_MOLECULES)
    # Waves of half the grid have no direction.
    inner = np.ix_(*(abs(np.fft.fftfreq(n)) < 0.5 for n in grid.size_c))
    transformed = (expected * np.fft.fftn(charge))[inner]
    np.testing.assert_allclose(
        np.fft.fftn(cloud)[inner], transformed, atol=0.01 * np.abs(charge).max() * charge.size**0.5
    )


def test_molecules_are_polarized_where_their_electrons_are_and_keep_their_charge():
    cell = np.array([[4.0, 0.0, 0.0], [1.5, 4.0, 0.0], [0.5, 0.3, 12.0]])
    grid = metal(cell).density.nt_sR.desc
    places = np.arange(grid.size_c[2]) / grid.size_c[2]
    slab = np.broadcast_to(0.05 * np.exp(-(((places - 0.5) / 0.2) ** 8)), grid.size_c)
    charge = np.broadcast_to(np.sin(2 * np.pi * places), grid.size_c).copy()
    cloud = cloud_of_molecules(charge, slab, grid)
    assert cloud.sum() == pytest.approx(0, abs=1e-9 * abs(charge).sum())
    outside = abs(places - 0.5) > 0.35
    assert abs(cloud[..., outside]).max() < 0.01 * abs(cloud).max()
    assert (cloud * charge).sum() < 0  # It weakens the charge,
    assert abs(cloud).sum() < abs(charge).sum()  # and is the smaller of the two.


@pytest.mark.parametrize(
    ("symbol", "lattice", "a", "smallest", "largest"),
    [("Al", "fcc", 4.05, np.inf, np.inf), ("NaCl", "rocksalt", 5.64, 1.5, 3)],
)
def test_metals_screen_long_waves_and_salts_hardly_do(symbol, lattice, a, smallest, largest):
    atoms = bulk(symbol, lattice, a)
    calculator = GPAW(mode={"name": "pw", "ecut": 200}, kpts=(2, 2, 2), xc="PBE", txt=None)
    calculator.create_new_calculation(atoms)
    assert smallest <= dielectric_constant(calculator.dft) <= largest


@pytest.mark.parametrize(
    ("atoms", "mode", "first", "cloud"),
    [
        (Atoms("He", cell=[2.2, 2.2, 2.2], pbc=True), "pw", STEP, partial),
        (Atoms("He", cell=[2.2, 2.2, 9], pbc=True), "pw", STEP, cloud_of_molecules),
        (Atoms("Na", cell=[3.5, 3.5, 12], pbc=True), "pw", STEP, cloud_of_metal),
        (Atoms("He", cell=[6, 6, 6]), "fd", FIRST_STEP, None),
    ],
    ids=["dense", "gap and vacuum", "metal and vacuum", "no waves"],
)
def test_the_step_and_the_screening_follow_gap_vacuum_and_grid(atoms, mode, first, cloud):
    mode = {"name": "pw", "ecut": 150} if mode == "pw" else mode
    atoms.center()
    calculator = GPAW(
        mode=mode, xc="PBE", kpts=(2, 2, 1) if atoms.pbc.all() else (1, 1, 1), txt=None
    )
    calculator.create_new_calculation(atoms)
    take_whole_steps(calculator.dft, calculator.params)
    mixer = calculator.dft.scf_loop.mixer
    assert mixer.beta == first
    assert list(mixer.A_lims) == [STEP, STEP]
    found = getattr(mixer, "cloud", None)
    assert type(found) is partial if cloud is partial else found is cloud


def test_where_the_gap_is_narrow_beside_vacuum_only_the_first_step_is_larger(monkeypatch):
    monkeypatch.setattr(gpaw_mixing, "WIDE", np.inf)
    calculator = GPAW(mode={"name": "pw", "ecut": 150}, xc="PBE", txt=None)
    calculator.create_new_calculation(Atoms("He", cell=[2.2, 2.2, 9], pbc=True))
    take_whole_steps(calculator.dft, calculator.params)
    assert calculator.dft.scf_loop.mixer.beta == FIRST_STEP
    assert list(calculator.dft.scf_loop.mixer.A_lims) == [0.02, 0.75]


def test_spins_and_moments_are_those_of_the_prediction(oxygen):
    calculator = start_from_density(gpaw_for(oxygen), KnownDensity([oxygen]))
    calculator.create_new_calculation(oxygen.atoms)
    moment, moments = calculator.dft.density.calculate_magnetic_moments()
    assert moment[2] == pytest.approx(2, abs=0.02)
    np.testing.assert_allclose(moments[:, 2], oxygen.calculation.moments, atol=0.02)
    energy, iterations = energy_and_iterations(oxygen.atoms, calculator)
    iterations += calculator.predicted_start.starts[-1].passes
    assert iterations <= 0.8 * oxygen.calculation.iterations
    assert energy == pytest.approx(oxygen.calculation.energy, abs=1e-4)


def test_models_without_spin_leave_the_spin_of_free_atoms(oxygen):
    paired = replace(oxygen, spin_density=None, onsite_spin=None)
    calculator = start_from_density(gpaw_for(oxygen), KnownDensity([paired]), hold=0)
    calculator.create_new_calculation(oxygen.atoms)
    up, down = calculator.dft.density.nt_sR.data / Bohr**3
    np.testing.assert_allclose(up - down, oxygen.free_atoms.spin_density, atol=2e-2)
    np.testing.assert_allclose(up + down, oxygen.density, rtol=1e-3, atol=1e-3)
    d = calculator.dft.density.D_asii[0]
    np.testing.assert_allclose(d[0] - d[1], oxygen.free_atoms.onsite_spin[0], atol=1e-12)
    np.testing.assert_allclose(d[0] + d[1], oxygen.onsite[0], atol=1e-12)


def test_predictions_are_symmetrised_and_normalised_as_gpaw_does(silicon):
    """Matrices and density without symmetry, in a crystal that has symmetry."""
    rng = np.random.default_rng(0)
    noise = 1 + 0.05 * rng.normal(size=silicon.density.shape)
    disorderly = replace(
        silicon,
        atoms=bulk("Si"),
        density=silicon.density * noise,
        onsite=tuple(d + 0.1 * np.diag(rng.normal(size=len(d))) for d in silicon.onsite),
    )
    calculator = start_from_density(gpaw_for(silicon), KnownDensity([disorderly]), hold=0)
    calculator.create_new_calculation(bulk("Si"))
    dft = calculator.dft
    symmetries = dft.ibzwfs.ibz.symmetries
    assert len(symmetries) > 20
    grid = dft.density.nt_sR.data.copy()
    matrix = np.array(dft.density.D_asii[0])
    assert np.abs(matrix - disorderly.onsite[0]).max() > 0.01
    dft.density.symmetrize(symmetries)
    np.testing.assert_allclose(dft.density.nt_sR.data, grid, atol=1e-10)
    np.testing.assert_allclose(dft.density.D_asii[0], matrix, atol=1e-10)
    charge = dft.density.calculate_compensation_charge_coefficients()
    total = dft.density.nt_sR.integrate().sum()
    total += np.sqrt(4 * np.pi) * sum(q[0] for q in charge.values())
    assert total == pytest.approx(0, abs=1e-10)


def test_models_without_matrices_get_refresh_passes_or_a_warning(silicon):
    alone = KnownDensity([silicon], onsite=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        calculator = start_from_density(gpaw_for(silicon), alone)
    calculator.create_new_calculation(silicon.atoms)
    assert calculator.predicted_start.starts[0].passes == 2
    refreshed = np.array(calculator.dft.density.D_asii[0][0])
    error = np.abs(refreshed - silicon.onsite[0]).max()
    assert error < 0.1 * np.abs(silicon.free_atoms.onsite[0] - silicon.onsite[0]).max()
    with pytest.warns(UserWarning, match="no matrices D"):
        start_from_density(gpaw_for(silicon), alone, refresh=0)


# -- more than one geometry --------------------------------------------------------------------


@pytest.mark.parametrize("moves", ["reuse", "extrapolate", "predict", "restart"])
def test_relaxations_go_on(moves):
    """An untrained network: whatever it predicts, GPAW finds the same forces."""
    parameters = {
        "mode": {"name": "pw", "ecut": 150},
        "xc": "PBE",
        "symmetry": "off",
        "convergence": {"density": 1e-3, "eigenstates": 1e-6},
    }
    atoms, reference = hydrogen(), hydrogen()
    reference.calc = GPAW(**parameters, txt=None)
    atoms.calc = start_from_density(GPAW(**parameters, txt=None), tiny_model(), moves=moves)
    for structure in (reference, atoms):
        BFGS(structure, logfile=None).run(fmax=0.001, steps=2)
    np.testing.assert_allclose(atoms.positions, reference.positions, atol=2e-3)
    starts = atoms.calc.predicted_start.starts
    assert [start.predicted for start in starts] == [True] + [moves != "reuse"] * 2
    assert [start.kind for start in starts[1:]] == ["new" if moves == "restart" else "moved"] * 2


@pytest.mark.parametrize("change", ["moved", "strained", "read"])
def test_errors_that_structures_share_are_not_extrapolated(silicon, change, tmp_path):
    """What a model lacks of one converged geometry is added to its prediction of the next one."""
    after = silicon.atoms.copy()
    if change != "strained":
        after.rattle(0.03, seed=2)
    else:
        after.set_cell(after.cell * 1.01, scale_atoms=True)
    following = calculate(after, SILICON, "silicon/1")
    lacking = 0.1 * (silicon.free_atoms.density - silicon.density)
    samples = [
        replace(
            sample,
            density=sample.density
            + lacking * silicon.atoms.get_volume() / sample.atoms.get_volume(),
            onsite=tuple(matrix + 0.1 * np.eye(len(matrix)) for matrix in sample.onsite),
        )
        for sample in (silicon, following)
    ]
    errors = {}
    for moves in ("predict", "extrapolate"):
        model = KnownDensity(samples)
        calculator = start_from_density(gpaw_for(silicon), model, hold=0, moves=moves)
        energy_and_iterations(silicon.atoms, calculator)
        if change == "read":
            calculator.write(tmp_path / "silicon.gpw", mode="all")
            read = GPAW(tmp_path / "silicon.gpw", txt=None)
            calculator = start_from_density(read, model, hold=0, moves=moves)
        begin = (
            calculator.create_new_calculation_from_old
            if change == "strained"
            else calculator.move_atoms
        )
        begin(after)
        density = calculator.dft.density.nt_sR.data[0] / Bohr**3
        wrong = abs(density - following.density).sum() / following.density.sum()
        errors[moves] = wrong
        matrices = [np.array(d[0]) for d in calculator.dft.density.D_asii.values()]
        off = max(abs(m - x).max() for m, x in zip(matrices, following.onsite, strict=True))
        assert off < 1e-3 if moves == "extrapolate" else off > 0.05
    assert errors["extrapolate"] < 1e-3 < 5e-3 < errors["predict"]


def test_other_cells_and_other_elements_are_predicted_again(tmp_path):
    text = tmp_path / "gpaw.txt"
    parameters = {
        "mode": {"name": "pw", "ecut": 150},
        "xc": "PBE",
        "kpts": {"density": 0.6},
        "convergence": {"density": 1e-2},
    }
    calculator = start_from_density(GPAW(**parameters, txt=str(text)), tiny_model())
    atoms = hydrogen()
    atoms.calc = calculator
    atoms.get_potential_energy()
    atoms.set_cell(atoms.cell * 1.01, scale_atoms=True)  # the same k-points: GPAW interpolates
    atoms.get_potential_energy()
    atoms.set_cell(atoms.cell * [2, 1, 1], scale_atoms=False)  # other k-points
    atoms.get_potential_energy()
    del atoms[1]
    atoms.get_potential_energy()
    starts = calculator.predicted_start.starts
    assert [start.kind for start in starts] == ["new", "new cell", "new", "new"]
    assert [start.predicted for start in starts] == [True, True, True, True]
    assert text.read_text().count("Density: predicted by the model") == 4


def test_a_calculator_with_other_parameters_predicts_too(silicon):
    calculator = start_from_density(gpaw_for(silicon), KnownDensity([silicon]), hold=2)
    other = calculator.new(txt=None, occupations={"name": "fermi-dirac", "width": 0.2})
    other.create_new_calculation(silicon.atoms)
    assert [start.passes for start in other.predicted_start.starts] == [2]
    assert calculator.predicted_start.starts == []


def test_calculators_are_released_and_can_be_given_another_model(silicon, tmp_path):
    text = tmp_path / "gpaw.txt"
    calculator = gpaw_for(silicon, txt=str(text))
    start_from_density(calculator, tiny_model())
    start_from_density(calculator, KnownDensity([silicon]))
    calculator.create_new_calculation(silicon.atoms)
    assert len(calculator.predicted_start.starts) == 1
    del calculator
    assert "Max RSS" in text.read_text()


# -- without self-consistency ------------------------------------------------------------------


def test_fixed_densities_give_bands_and_the_harris_foulkes_energy(silicon):
    known = silicon.calculation
    wrong = replace(
        silicon, density=silicon.density + 0.02 * (silicon.free_atoms.density - silicon.density)
    )
    for sample, energy_error, band_error in ((silicon, 1e-5, 1e-3), (wrong, 2e-3, 0.05)):
        calculator = fixed_density(gpaw_for(silicon), KnownDensity([sample]))
        energy, _ = energy_and_iterations(silicon.atoms, calculator)
        assert abs(energy - known.energy) / 2 < energy_error
        bands = calculator.eigenvalues()
        occupied = known.occupations > 0.1
        np.testing.assert_allclose(bands[occupied], known.eigenvalues[occupied], atol=band_error)
    with pytest.warns(UserWarning, match="not self-consistent"):
        calculator.get_forces(calculator.atoms)
    path = calculator.fixed_density(kpts={"path": "GX", "npoints": 3}, symmetry="off", txt=None)
    assert path.band_structure().energies.shape[:2] == (1, 3)
    assert np.isfinite(calculator.dos().raw_dos([0.0, 1.0])).all()


def test_a_calculator_forgets_what_it_did_before(silicon):
    """Between self-consistent runs and held densities, in both directions."""
    model = KnownDensity([free_atoms(silicon)])
    converged = silicon.calculation.energy
    calculator = gpaw_for(silicon)
    energy, _ = energy_and_iterations(silicon.atoms, calculator)
    assert energy == pytest.approx(converged, abs=1e-5)
    kept, _ = energy_and_iterations(silicon.atoms, fixed_density(calculator, model))
    assert [start.predicted for start in calculator.predicted_start.starts] == [True]
    assert abs(kept - converged) > 1e-3
    again, _ = energy_and_iterations(silicon.atoms, start_from_density(calculator, model))
    assert again == pytest.approx(converged, abs=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calculator.get_forces(calculator.atoms)


def test_eigensolvers_with_densities_of_their_own_keep_none():
    atoms, model = hydrogen(), tiny_model()
    parameters = {"mode": {"name": "pw", "ecut": 150}, "xc": "PBE", "symmetry": "off", "txt": None}

    def direct():
        return GPAW(**parameters, eigensolver="etdm-fdpw")

    for calculator in (fixed_density(direct(), model), start_from_density(direct(), model, hold=1)):
        with pytest.raises(ConfigurationError, match="minimises the energy directly"):
            calculator.create_new_calculation(atoms)
    calculator = start_from_density(direct(), model)
    calculator.create_new_calculation(atoms)
    assert calculator.predicted_start.starts[0].passes == 0


def test_other_moments_than_the_initial_ones_are_remarked_on(oxygen):
    atoms = oxygen.atoms.copy()
    atoms.set_initial_magnetic_moments([3.0, 3.0])
    calculator = fixed_density(gpaw_for(oxygen), KnownDensity([replace(oxygen, atoms=atoms)]))
    with pytest.warns(UserWarning, match=r"begins with a moment of 3\.00 μ_B"):
        calculator.create_new_calculation(atoms)


def test_hybrids_may_start_from_densities_of_pbe(silicon):
    model = KnownDensity([silicon])
    hybrid = gpaw_for(silicon, xc="PBE0")
    with pytest.raises(ConfigurationError, match="any_functional=True"):
        start_from_density(hybrid, model)
    start_from_density(hybrid, model, any_functional=True).create_new_calculation(silicon.atoms)
    assert hybrid.predicted_start.starts[0].predicted
    other = start_from_density(gpaw_for(silicon, xc="LDA"), model, any_functional=True)
    with pytest.raises(ConfigurationError, match=r"Projectors|data set"):
        other.create_new_calculation(silicon.atoms)


def test_fixed_densities_are_predicted_anew_when_atoms_move():
    parameters = {"mode": {"name": "pw", "ecut": 150}, "xc": "PBE", "symmetry": "off"}
    atoms = hydrogen()
    atoms.calc = fixed_density(GPAW(**parameters, txt=None), tiny_model())
    first = atoms.get_potential_energy()
    atoms.positions[0, 2] -= 0.05
    assert atoms.get_potential_energy() != pytest.approx(first, abs=1e-3)
    assert [start.kind for start in atoms.calc.predicted_start.starts] == ["new", "new"]


@pytest.mark.parametrize("refinement", [1, 2, 4])
def test_all_electron_densities_hold_all_electrons(silicon, refinement):
    model = KnownDensity([silicon])
    grid = all_electron_density(gpaw_for(silicon), model, silicon.atoms, refinement=refinement)
    assert grid.kind == "all-electron"
    assert grid.shape == tuple(refinement * n for n in silicon.density.shape)
    assert grid.integrate() == pytest.approx(28, abs=1e-6)
    valence = all_electron_density(
        gpaw_for(silicon), model, silicon.atoms, refinement=refinement, core=False
    )
    assert valence.integrate() == pytest.approx(8, abs=0.2)


def test_all_electron_densities_are_gpaw_s(silicon, oxygen):
    for sample in (silicon, oxygen):
        calculator = gpaw_for(sample)
        energy_and_iterations(sample.atoms, calculator)
        theirs = calculator.get_all_electron_density(gridrefinement=2)
        ours = all_electron_density(gpaw_for(sample), KnownDensity([sample]), sample.atoms)
        assert np.abs(ours.values - theirs).sum() < 1e-3 * theirs.sum()
    assert ours.integrate_spin() == pytest.approx(2, abs=0.01)


def test_without_matrices_these_come_from_wave_functions(silicon):
    known, bare = KnownDensity([silicon]), KnownDensity([silicon], onsite=False)
    expected = all_electron_density(gpaw_for(silicon), known, silicon.atoms, refinement=1)

    def error(**options):
        found = all_electron_density(
            gpaw_for(silicon), bare, silicon.atoms, refinement=1, **options
        )
        assert found.integrate() == pytest.approx(28, abs=1e-6)
        return np.abs(found.values - expected.values).sum() / expected.values.sum()

    # Two passes by default; none leaves the matrices of free atoms.
    with pytest.warns(UserWarning, match="no matrices D"):
        of_free_atoms = error(refresh=0)
    assert error() < 0.2 * of_free_atoms

    kept = fixed_density(gpaw_for(silicon), bare, refresh=2)
    energy, _ = energy_and_iterations(silicon.atoms, kept)
    exact, _ = energy_and_iterations(silicon.atoms, fixed_density(gpaw_for(silicon), known))
    assert energy == pytest.approx(exact, abs=0.01)
    assert kept.predicted_start.starts[0].passes == 2


# -- what is interrupted, changed or copied ----------------------------------------------------


def interrupted(monkeypatch, name):
    """The first call of a function of the adapter is interrupted, as by Ctrl-C."""
    adapter = sys.modules[start_from_density.__module__]
    original, left = getattr(adapter, name), [1]

    def once(*arguments, **keywords):
        if left:
            left.pop()
            raise KeyboardInterrupt
        return original(*arguments, **keywords)

    monkeypatch.setattr(adapter, name, once)


def test_fixed_densities_stay_fixed_after_an_interruption(silicon, monkeypatch):
    calculator = fixed_density(gpaw_for(silicon), KnownDensity([free_atoms(silicon)]), refresh=1)
    expected, _ = energy_and_iterations(silicon.atoms, calculator)
    again = fixed_density(gpaw_for(silicon), KnownDensity([free_atoms(silicon)]), refresh=1)
    interrupted(monkeypatch, "eigensolver_passes")
    with pytest.raises(KeyboardInterrupt):
        energy_and_iterations(silicon.atoms, again)
    found, _ = energy_and_iterations(silicon.atoms, again)
    assert found == pytest.approx(expected, abs=1e-6)
    assert abs(found - silicon.calculation.energy) > 1e-2  # of the self-consistent state


def test_starts_are_predicted_after_an_interruption(silicon, monkeypatch):
    calculator = start_from_density(gpaw_for(silicon), KnownDensity([silicon]))
    interrupted(monkeypatch, "hold_density")
    with pytest.raises(KeyboardInterrupt):
        energy_and_iterations(silicon.atoms, calculator)
    calculator.create_new_calculation(silicon.atoms)
    assert [start.predicted for start in calculator.predicted_start.starts] == [True]
    assert calculator.dft.scf_loop.mixer.beta == STEP


def test_moves_that_were_interrupted_spoil_no_extrapolation(monkeypatch):
    parameters = {"mode": {"name": "pw", "ecut": 150}, "xc": "PBE", "symmetry": "off"}
    atoms = hydrogen()
    atoms.calc = start_from_density(GPAW(**parameters, txt=None), tiny_model())
    atoms.get_potential_energy()
    atoms.positions[0, 2] -= 0.1
    with monkeypatch.context() as patch:
        interrupted(patch, "fill_density")
        with pytest.raises(KeyboardInterrupt):
            atoms.get_potential_energy()
    atoms.get_potential_energy()
    corrections = []
    taken = Correction.of

    def watched(density, state):
        corrections.append((density.nt_sR.data.copy(), taken(density, state)))
        return corrections[-1][1]

    monkeypatch.setattr(Correction, "of", watched)
    before = atoms.copy()
    atoms.positions[0, 2] -= 0.1
    atoms.get_potential_energy()
    ((converged, correction),) = corrections
    # The prediction that it corrects is that for the geometry that was converged.
    shape = tuple(converged.shape[1:])
    expected = predict_state(atoms.calc.predicted_start.model, before, shape).total
    np.testing.assert_allclose(converged[0] - correction.density.data[0], expected, atol=1e-6)


def test_fixed_densities_stay_fixed_when_gpaw_s_settings_are_changed(silicon):
    calculator = fixed_density(gpaw_for(silicon), KnownDensity([free_atoms(silicon)]))
    expected, _ = energy_and_iterations(silicon.atoms, calculator)
    calculator.dft.change(convergence={"eigenstates": 1e-9})
    found, _ = energy_and_iterations(silicon.atoms, calculator)
    assert found == pytest.approx(expected, abs=1e-4)


def test_fixed_densities_converge_by_energy_where_nothing_else_is_asked_for(silicon):
    model = KnownDensity([silicon])
    criteria = {"energy": 1e-5, "density": np.inf, "eigenstates": np.inf}
    calculator = fixed_density(gpaw_for(silicon, convergence=criteria), model)
    energy, _ = energy_and_iterations(silicon.atoms, calculator)
    assert energy == pytest.approx(silicon.calculation.energy, abs=1e-3)


def test_fixed_densities_with_moments_need_a_model_with_spin(oxygen):
    spinless = KnownDensity([replace(oxygen, spin_density=None, onsite_spin=None)])
    with pytest.raises(ConfigurationError, match="predicts no spin density"):
        energy_and_iterations(oxygen.atoms, fixed_density(gpaw_for(oxygen), spinless))
    with pytest.raises(ConfigurationError, match="predicts no spin density"):
        all_electron_density(gpaw_for(oxygen), spinless, oxygen.atoms)


def test_moments_of_hund_s_rule_are_compared_with_the_predicted_ones(oxygen):
    class Deaf(KnownDensity):
        def get_density_grid(self, atoms, *, like, progress=None):
            return super().get_density_grid(oxygen.atoms, like=like)

    calculator = fixed_density(gpaw_for(oxygen, hund=True), Deaf([oxygen]))
    with pytest.warns(UserWarning, match=r"begins with a moment of 2\.00"):
        calculator.create_new_calculation(oxygen.atoms)


def test_atoms_of_another_mode_are_extrapolated_on_its_grid():
    atoms = hydrogen()
    lcao = {"mode": "lcao", "basis": "sz(dzp)", "h": 0.3, "xc": "PBE", "symmetry": "off"}
    atoms.calc = start_from_density(GPAW(**lcao, txt=None), tiny_model())
    atoms.get_potential_energy()
    atoms.calc.dft.change_mode({"name": "pw", "ecut": 250})
    atoms.positions[0, 2] -= 0.05
    atoms.get_potential_energy()
    assert [start.kind for start in atoms.calc.predicted_start.starts][-1] == "moved"


def test_a_copy_calculates_by_itself(silicon):
    calculator = start_from_density(gpaw_for(silicon), KnownDensity([silicon]))
    other = copy.copy(calculator)
    other.create_new_calculation(silicon.atoms)
    assert calculator.predicted_start.starts == []
    assert calculator._dft is None
    assert len(other.predicted_start.starts) == 1


def test_direct_minimisers_change_no_density_that_is_to_be_kept(silicon):
    model = KnownDensity([silicon])
    direct = gpaw_for(silicon, eigensolver={"name": "etdm-fdpw"})
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="minimises the energy directly"):
            energy_and_iterations(silicon.atoms, fixed_density(direct, model))
    with pytest.raises(ConfigurationError, match="minimises the energy directly"):
        all_electron_density(direct, model, silicon.atoms, refresh=1)


# -- refusals ----------------------------------------------------------------------------------


def with_provenance(sample, **changes):
    return replace(sample, provenance=replace(sample.provenance, **changes))


def test_other_densities_and_functionals_are_refused(silicon):
    for changes, message in (
        ({"density_kind": "valence", "code": "VASP"}, r"'known density' predicts valence .*VASP"),
        ({"functional": "LDA"}, r"xc='PBE', the model 'known density' predicts LDA"),
    ):
        model = KnownDensity([with_provenance(silicon, **changes)])
        for use in (start_from_density, fixed_density):
            with pytest.raises(ConfigurationError, match=message):
                use(gpaw_for(silicon), model)
        with pytest.raises(ConfigurationError, match=message):
            all_electron_density(gpaw_for(silicon), model, silicon.atoms)


def with_layout(sample, **changes):
    model = KnownDensity([sample])
    config = model.network.config
    config.onsite = config.onsite.model_copy(update=changes)
    return model


def test_other_data_sets_are_refused(silicon):
    vasp = with_layout(silicon, code="VASP")
    with pytest.raises(ConfigurationError, match="on-site data of VASP"):
        start_from_density(gpaw_for(silicon), vasp)
    for changes, message in (
        ({"channels": {"Si": (0, 0, 1, 1)}}, r"l = 0 1 0 1 2 in GPAW's 'Si.PBE', 0 0 1 1 in"),
        ({"datasets": {"Si": "Si.PBE 0123"}}, r"Si.PBE [0-9a-f]{32} in .*, Si.PBE 0123 in"),
        ({"datasets": {"Si": "Si.14.PBE"}}, r"Si.PBE .* in the calculation, Si.14.PBE"),
    ):
        calculator = start_from_density(gpaw_for(silicon), with_layout(silicon, **changes))
        with pytest.raises(ConfigurationError, match=message):
            energy_and_iterations(silicon.atoms, calculator)


def test_unknown_elements_and_structures_are_refused(silicon):
    calculator = start_from_density(gpaw_for(silicon), tiny_model())
    with pytest.raises(UnknownElementError, match="Si"):
        energy_and_iterations(silicon.atoms, calculator)
    calculator = start_from_density(gpaw_for(silicon), KnownDensity([silicon]))
    with pytest.raises(ConfigurationError, match="None of the 1 stored"):
        energy_and_iterations(bulk("Si"), calculator)
    with pytest.raises(ConfigurationError, match="lacks its calculation"):
        KnownDensity([replace(silicon, calculation=None)])


def test_other_calculators_and_options_are_refused(silicon):
    model = KnownDensity([silicon])
    with pytest.raises(ConfigurationError, match="EMT is no calculator of GPAW"):
        start_from_density(EMT(), model)
    with pytest.raises(ConfigurationError, match="one of reuse, extrapolate, predict, restart"):
        start_from_density(gpaw_for(silicon), model, moves="never")
    start_from_density(gpaw_for(silicon), model, refresh=np.int64(1))
    for wrong in ({"refresh": -1}, {"hold": 1.5}, {"refresh": True}):
        with pytest.raises(ConfigurationError, match="a number of passes"):
            start_from_density(gpaw_for(silicon), model, **wrong)
    for refinement in (0, 1.5, True):
        with pytest.raises(ConfigurationError, match=f"refinement={refinement}"):
            all_electron_density(gpaw_for(silicon), model, silicon.atoms, refinement=refinement)
    classic = gpaw_for(silicon, legacy_gpaw=True)
    with pytest.raises(ConfigurationError, match="new code"):
        start_from_density(classic, model, hold=2)
    with pytest.raises(ConfigurationError, match="'si-pbe' is no model"):
        start_from_density(classic, "si-pbe")
    with pytest.raises(ConfigurationError, match="classic GPAW"):
        fixed_density(classic, model)
    # GPAW knows non-collinear spins with the LDA only
    model = KnownDensity([with_provenance(silicon, functional="LDA")])
    moments = [[1.0, 0, 0], [0, 1.0, 0]]
    twisted = gpaw_for(silicon, xc="LDA", magmoms=moments, symmetry="off")
    with pytest.raises(ConfigurationError, match="non-collinear"):
        energy_and_iterations(silicon.atoms, start_from_density(twisted, model))


def test_ghost_atoms_are_refused():
    atoms = Atoms("H3", [(0, 0, 0), (0, 0, 0.8), (0, 0, 1.6)])
    atoms.center(2.0)
    lcao = {"mode": "lcao", "basis": "sz(dzp)", "h": 0.3, "xc": "PBE"}
    calculator = start_from_density(GPAW(**lcao, setups={2: "ghost"}, txt=None), tiny_model())
    with pytest.raises(ConfigurationError, match="H has ghost atoms"):
        calculator.create_new_calculation(atoms)


def test_charged_cells_are_warned_of(silicon):
    model = KnownDensity([silicon])
    with pytest.warns(UserWarning, match=r"charge \+1"):
        start_from_density(gpaw_for(silicon, charge=1.0), model)
    with pytest.warns(UserWarning, match=r"charge \+1"):
        start_from_density(gpaw_for(silicon, charge=1.0, legacy_gpaw=True), model)
    with pytest.warns(UserWarning, match=r"charge \+1"):
        all_electron_density(gpaw_for(silicon, charge=1.0), model, silicon.atoms)


# -- classic GPAW ------------------------------------------------------------------------------


def test_classic_gpaw_with_other_parameters_predicts_too(silicon, tmp_path):
    classic = gpaw_for(silicon, legacy_gpaw=True, txt=None)
    first = start_from_density(classic, KnownDensity([silicon]))
    text = tmp_path / "gpaw.txt"
    calculator = first.new(txt=str(text))
    calculator.initialize(silicon.atoms)
    calculator.set_positions(silicon.atoms)
    calculator.log.fd.flush()
    assert text.read_text().count("Density predicted by the model") == 1
    with pytest.raises(ConfigurationError, match="xc='LDA'"):
        first.new(xc="LDA")


def test_classic_gpaw_runs_as_by_itself_from_its_own_arrays(silicon):
    energy, iterations = energy_and_iterations(silicon.atoms, gpaw_for(silicon, legacy_gpaw=True))
    model = KnownDensity([free_atoms(silicon)])
    calculator = start_from_density(gpaw_for(silicon, legacy_gpaw=True), model)
    found, count = energy_and_iterations(silicon.atoms, calculator)
    assert count == iterations
    assert found == pytest.approx(energy, abs=1e-8)


def test_classic_gpaw_holds_the_prediction_with_spin(oxygen, tmp_path):
    text = tmp_path / "gpaw.txt"
    classic = gpaw_for(oxygen, legacy_gpaw=True, txt=str(text))
    calculator = start_from_density(classic, KnownDensity([oxygen]))
    calculator.initialize(oxygen.atoms)
    calculator.set_positions(oxygen.atoms)
    total, spin = calculator.density.nt_sG.sum(axis=0), calculator.density.nt_sG[0]
    np.testing.assert_allclose(total / Bohr**3, oxygen.density, atol=1e-4)
    up = (oxygen.density + oxygen.spin_density) / 2
    np.testing.assert_allclose(spin / Bohr**3, up, atol=1e-4)
    calculator.log.fd.flush()
    assert "Density predicted by the model known density" in text.read_text()


def test_cards_without_words_are_taken_at_their_word():
    assert tiny_model().card.provenance == Provenance()
    start_from_density(GPAW(mode="pw", xc="PBE", txt=None), tiny_model())


# -- bundled models ----------------------------------------------------------------------------


def test_silicon_starts_from_the_bundled_model_and_needs_no_self_consistency():
    atoms = bulk("Si")
    atoms.rattle(0.05, seed=3)
    settings = {
        "mode": {"name": "pw", "ecut": 400},
        "xc": "PBE",
        "kpts": {"size": (4, 4, 4), "gamma": True},
        "occupations": {"name": "fermi-dirac", "width": 0.1},
        "convergence": {"density": 1e-5},
        "txt": None,
    }
    energy, iterations = energy_and_iterations(atoms, GPAW(**settings))
    model = EACDensity("si-pbe", device="cpu")
    calculator = start_from_density(GPAW(**settings), model)
    found, count = energy_and_iterations(atoms, calculator)
    assert found == pytest.approx(energy, abs=1e-5)
    assert count + calculator.predicted_start.starts[0].passes <= iterations
    kept, _ = energy_and_iterations(atoms, fixed_density(GPAW(**settings), model))
    assert kept == pytest.approx(energy, abs=1e-3)


def test_the_water_molecule_of_the_bundled_model_has_gpaw_s_dipole_moment():
    atoms = molecule("H2O", vacuum=3.0)
    settings = {"mode": {"name": "pw", "ecut": 400}, "xc": "PBE", "txt": None}
    atoms.calc = start_from_density(GPAW(**settings), EACDensity("water-pbe", device="cpu"))
    exact = atoms.get_dipole_moment()
    found = dipole_moment(EACDensity("water-pbe", device="cpu").get_density_grid(atoms))
    assert found.vector == pytest.approx(exact, abs=0.01)
    assert np.linalg.norm(exact) > 0.3


# -- states that must not be taken -------------------------------------------------------------


def test_meta_ggas_have_no_fixed_density_and_no_held_one(silicon):
    model = KnownDensity([with_provenance(silicon, functional="unknown")])
    atoms = silicon.atoms.copy()
    atoms.calc = fixed_density(gpaw_for(silicon, xc="TPSS"), model)
    with pytest.raises(ConfigurationError, match="kinetic energy density"):
        atoms.get_potential_energy()
    calculator = start_from_density(gpaw_for(silicon, xc="TPSS", maxiter=1), model)
    with contextlib.suppress(Exception):
        energy_and_iterations(silicon.atoms, calculator)
    assert [start.passes for start in calculator.predicted_start.starts] == [0]


@pytest.mark.parametrize("place", [0.9, 2.0])
def test_plane_waves_have_no_border_whatever_the_atoms_say(place):
    water = molecule("H2O")
    water.set_cell([4.5, 4.5, 4.5])
    water.center()
    water.positions[:, 2] += place - water.positions[0, 2]
    seen = []

    class Model(EACDensity):
        def get_density_grid(self, atoms, **options):
            seen.append(super().get_density_grid(atoms, **options))
            return seen[-1]

    parameters = {"mode": {"name": "pw", "ecut": 200}, "xc": "PBE", "txt": None}
    for legacy in (False, True):
        calculator = GPAW(**parameters, **({"legacy_gpaw": True, "maxiter": 1} if legacy else {}))
        calculator = start_from_density(calculator, Model("water-pbe", device="cpu"))
        if legacy:
            with contextlib.suppress(Exception):
                energy_and_iterations(water, calculator)
        else:
            calculator.create_new_calculation(water)
        assert seen[-1].pbc == (True, True, True)
    # Nothing is lost beyond the face.
    assert [grid.integrate() for grid in seen] == pytest.approx([7.62, 7.62], abs=0.05)


def test_all_electron_densities_refuse_atoms_at_an_open_border():
    water = molecule("H2O")
    water.set_cell([4.5, 4.5, 4.5])
    calculator = GPAW(mode={"name": "pw", "ecut": 200}, xc="PBE", txt=None)
    with pytest.raises(Exception, match="too close to boundary"):
        all_electron_density(calculator, EACDensity("water-pbe", device="cpu"), water)


def test_every_data_set_of_an_element_is_checked(silicon):
    known = silicon.calculation.datasets["Si"]
    right = SimpleNamespace(
        symbol="Si",
        l_j=known.channels,
        fingerprint=known.fingerprint,
        type="PBE",
        data=SimpleNamespace(stdfilename=known.name),
    )
    wrong = SimpleNamespace(**{**vars(right), "data": SimpleNamespace(stdfilename="Si.other.PBE")})
    for onsite in (True, False):
        model = KnownDensity([silicon], onsite=onsite)
        check_setups(model, silicon.atoms, [right, right])
        for setups in ([wrong, right], [right, wrong]):
            with pytest.raises(ConfigurationError, match=r"PAW data set of Si: Si\.other\.PBE"):
                check_setups(model, silicon.atoms, setups)


def test_another_functional_or_charge_by_new_is_noticed(silicon):
    calculator = fixed_density(gpaw_for(silicon), KnownDensity([silicon]))
    with pytest.raises(ConfigurationError, match="Functional"):
        calculator.new(xc="SCAN", txt=None)
    with pytest.warns(UserWarning, match=r"charge \+1"):
        calculator.new(charge=1, txt=None)
    with pytest.warns(UserWarning, match=r"charge \+1"):
        fixed_density(gpaw_for(silicon, charge=1), KnownDensity([silicon]))


def test_stored_calculations_are_told_apart_by_their_moments(oxygen):
    reversed_spins = replace(
        oxygen,
        atoms=oxygen.atoms.copy(),
        spin_density=-oxygen.spin_density,
        onsite_spin=tuple(-rows for rows in oxygen.onsite_spin),
    )
    moments = oxygen.atoms.get_initial_magnetic_moments()
    reversed_spins.atoms.set_initial_magnetic_moments(-moments)
    model = KnownDensity([oxygen, reversed_spins])
    grid = DensityGrid.from_sample(oxygen)
    for sample in (oxygen, reversed_spins):
        found = model.get_density_grid(sample.atoms, like=grid)
        np.testing.assert_array_equal(found.spin, sample.spin_density)
    other = oxygen.atoms.copy()
    other.set_initial_magnetic_moments([1.0, -1.0])
    with pytest.raises(ConfigurationError, match="None of the 2 stored calculations"):
        model.get_density_grid(other, like=grid)


def test_moments_given_to_gpaw_stay_when_atoms_move():
    atoms = hydrogen()
    calculator = GPAW(
        mode={"name": "pw", "ecut": 150},
        xc="PBE",
        magmoms=[1.0, -1.0],
        symmetry="off",
        txt=None,
        convergence={"density": 1e-2, "eigenstates": 1e-3, "energy": 1.0},
    )
    seen = []

    class Model(EACDensity):
        def get_density_grid(self, atoms, **options):
            seen.append(atoms.get_initial_magnetic_moments().tolist())
            return super().get_density_grid(atoms, **options)

    atoms.calc = start_from_density(
        calculator, Model(tiny_model(spin=True).network), moves="predict"
    )
    atoms.get_potential_energy()
    atoms.positions[0, 0] += 0.05
    atoms.get_potential_energy()
    assert seen == [[1.0, -1.0], [1.0, -1.0]]


@pytest.mark.parametrize("unfamiliar", [False, True])
def test_classic_gpaw_gives_hund_s_moments_to_models_and_distrusts_unfamiliar_ones(
    tmp_path, unfamiliar
):
    seen = []

    class Model(EACDensity):
        def get_density_grid(self, atoms, **options):
            seen.append(atoms.get_initial_magnetic_moments().tolist())
            return super().get_density_grid(atoms, **options)

        def get_error_estimate(self, atoms):
            return ErrorEstimate(9.0, np.full(1, 9.0), np.full(1, 5.0 if unfamiliar else 1.0), 2.0)

    atoms = Atoms("H", [(1, 1, 1)], cell=[3.6, 3.6, 4.2], pbc=True)
    text = tmp_path / "gpaw.txt"
    mode = {"name": "pw", "ecut": 150}
    classic = GPAW(mode=mode, xc="PBE", hund=True, legacy_gpaw=True, txt=str(text))
    calculator = start_from_density(classic, Model(tiny_model(spin=True).network))
    calculator.initialize(atoms)
    calculator.set_positions(atoms)
    assert seen == [[1.0]]
    calculator.log.fd.flush()
    assert ("Density predicted" in text.read_text()) != unfamiliar
    assert ("GPAW's own, surroundings unknown" in text.read_text()) == unfamiliar
