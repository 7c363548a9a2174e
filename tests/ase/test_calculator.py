"""EACDensity: ASE's ways, densities, caching, charges, errors."""

import copy
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import CalculatorSetupError, PropertyNotImplementedError
from ase.io import Trajectory
from ase.optimize import BFGS

from eac_ase import DensityGrid, EACDensity
from eac_model.errors import (
    AnalysisError,
    GridError,
    ModelFileError,
    StructureError,
    UnfamiliarStructureWarning,
    UnknownElementError,
)
from eac_model.lattice import box_around, grid_shape


@pytest.fixture
def encoder_calls(calculator, monkeypatch):
    """Grows by one number (atoms encoded) with every call of the encoder."""
    return count_calls(calculator, monkeypatch)


def count_calls(calculator, monkeypatch):
    calls = []
    descriptors = calculator.network.descriptors

    def counting(graph):
        calls.append(graph.n_atoms)
        return descriptors(graph)

    monkeypatch.setattr(calculator.network, "descriptors", counting)
    return calls


# -- densities ---------------------------------------------------------------------------------


def test_contributions_add_up_to_the_density(calculator, crystal):
    points = np.random.default_rng(0).uniform(-8, 8, (50, 3))
    parts = calculator.evaluate(points, crystal, contributions=True)
    assert parts.shape == (50, len(crystal))
    assert np.allclose(parts.sum(axis=1), calculator.evaluate(points, crystal), atol=1e-12)


def test_points_may_have_any_leading_shape(calculator, water):
    points = np.random.default_rng(0).uniform(-1, 1, (4, 5, 3))
    values = calculator.evaluate(points, water)
    assert values.shape == (4, 5)
    assert np.allclose(values[2], calculator.evaluate(points[2], water))
    assert calculator.evaluate(points, water, contributions=True).shape == (4, 5, 3)


def test_the_density_vanishes_out_of_reach(calculator, water):
    assert calculator.evaluate([(50.0, 0, 0)], water)[0] == 0.0


def test_a_grid_holds_the_values_at_its_points(calculator, crystal):
    grid = calculator.get_density_grid(crystal, shape=(5, 6, 7))
    assert grid.shape == (5, 6, 7)
    assert np.allclose(grid.values.ravel(), calculator.evaluate(grid.points(), crystal))
    assert np.allclose(grid.cell, np.asarray(crystal.cell))
    assert grid.kind == "valence"
    assert grid.provenance.functional == "SCAN"


def test_a_grid_with_a_spacing_is_at_least_that_fine_and_fft_friendly(calculator, crystal):
    grid = calculator.get_density_grid(crystal, spacing=0.31)
    assert (grid.spacing <= 0.31).all()
    for n in grid.shape:
        for prime in (2, 3, 5):
            while n % prime == 0:
                n //= prime
        assert n == 1


def test_a_spacing_that_divides_the_cell_is_met_exactly():
    assert grid_shape(np.diag([4.8, 0.9, 3.0]), 0.3) == (16, 3, 10)


def test_a_grid_like_another_has_its_points(calculator, crystal, water):
    pattern = DensityGrid(
        np.zeros((4, 5, 6)), water, np.diag([2.0, 3, 4]), np.array([0.5, 0, -1]), pbc=(False,) * 3
    )
    grid = calculator.get_density_grid(crystal, like=pattern)
    assert np.allclose(grid.points(), pattern.points())
    assert np.allclose(grid.values.ravel(), calculator.evaluate(pattern.points(), crystal))


def test_only_one_way_to_choose_a_grid_at_a_time(calculator, water):
    with pytest.raises(GridError, match="one of"):
        calculator.get_density_grid(water, shape=(4, 4, 4), spacing=0.2)


@pytest.mark.parametrize(
    "choice", [{"shape": 4}, {"shape": (4, 4)}, {"shape": (4, 4, 0)}, {"spacing": -1.0}]
)
def test_impossible_grids_are_refused(calculator, water, choice):
    with pytest.raises(GridError):
        calculator.get_density_grid(water, **choice)


def test_a_molecule_without_a_cell_gets_a_box_that_holds_all_of_it(calculator, water):
    grid = calculator.get_density_grid(water, spacing=0.2)
    reach = calculator.network.config.point_cutoff
    assert np.allclose(grid.origin, water.positions.min(axis=0) - reach)
    assert np.allclose(grid.cell, np.diag(np.ptp(water.positions, axis=0) + 2 * reach))
    assert grid.pbc == (False, False, False)
    moved = water.copy()
    moved.positions += (10, -20, 5)
    assert calculator.get_density_grid(moved, spacing=0.2).integrate() == pytest.approx(
        grid.integrate(), rel=1e-6
    )


def test_a_cell_around_a_molecule_is_used(calculator, water):
    water.center(vacuum=3.0)
    grid = calculator.get_density_grid(water, shape=(8, 8, 8))
    assert np.allclose(grid.cell, np.asarray(water.cell))
    assert np.allclose(grid.origin, 0)


def test_a_cell_that_does_not_hold_the_molecule_is_replaced_by_a_box(calculator, water):
    water.set_cell([8, 8, 8])  # the molecule sits at its corner
    grid = calculator.get_density_grid(water, spacing=0.2)
    assert grid.integrate() == pytest.approx(calculator.get_number_of_electrons(water), rel=2e-2)


@pytest.mark.parametrize("vacuum", [0.5, 1.5, 2.5])
def test_a_tight_cell_around_a_molecule_loses_no_electrons(calculator, water, vacuum):
    free = calculator.get_density_grid(water, spacing=0.15).integrate()
    water.center(vacuum=vacuum)
    assert calculator.get_density_grid(water, spacing=0.15).integrate() == pytest.approx(
        free, rel=1e-3
    )


def test_a_slab_keeps_its_periodic_vectors_and_gets_a_box_along_the_open_one(calculator, crystal):
    crystal.cell[2] = 0
    crystal.pbc = (True, True, False)
    grid = calculator.get_density_grid(crystal, spacing=0.3)
    assert np.allclose(grid.cell[:2], crystal.cell[:2])
    assert grid.pbc == (True, True, False)
    heights = crystal.positions @ grid.cell[2] / np.linalg.norm(grid.cell[2])
    reach = calculator.network.config.point_cutoff
    assert np.linalg.norm(grid.cell[2]) == pytest.approx(np.ptp(heights) + 2 * reach)
    above = grid.points().reshape(*grid.shape, 3)[:, :, 0]
    assert np.allclose(calculator.evaluate(above, crystal), 0)


def test_boxes_of_skewed_cells_keep_their_distance(crystal):
    cell, origin = box_around(crystal, 2.0, [0, 2])
    normals = np.linalg.inv(cell)
    fractions = (crystal.positions - origin) @ normals
    for axis in (0, 2):
        face = 2.0 * np.linalg.norm(normals[:, axis])
        assert fractions[:, axis].min() == pytest.approx(face)
        assert fractions[:, axis].max() == pytest.approx(1 - face)
    assert np.allclose(cell[1], crystal.cell[1])


def test_the_density_of_some_atoms_is_their_contributions(calculator, crystal):
    chosen = [0, 4]
    grid = calculator.get_atomic_density(chosen, crystal, shape=(6, 7, 8))
    parts = calculator.evaluate(grid.points(), crystal, contributions=True)
    assert np.allclose(grid.values.ravel(), parts[:, chosen].sum(axis=1), atol=1e-12)


def test_atoms_are_chosen_by_index_or_mask(calculator, crystal):
    one = calculator.get_atomic_density(3, crystal, shape=(4, 4, 4))
    mask = np.arange(len(crystal)) == 3
    same = calculator.get_atomic_density(mask, crystal, shape=(4, 4, 4))
    assert np.array_equal(one.values, same.values)


def test_the_densities_of_all_atoms_add_up(calculator, water, monkeypatch):
    monkeypatch.setattr("eac_model.engine.inference._default_block", lambda *_: 100)
    whole = calculator.get_density_grid(water, spacing=0.4)
    parts = [calculator.get_atomic_density(i, water, spacing=0.4) for i in range(3)]
    assert np.allclose((parts[0] + parts[1] + parts[2] - whole).values, 0, atol=1e-12)


def test_the_pseudo_density_follows_gpaws_signature(spin_calculator, crystal, monkeypatch):
    monkeypatch.setattr("eac_ase.calculator.SPACING", 0.3)
    crystal.set_initial_magnetic_moments([1.0, 0, 0, 0.5, 0, 0])
    crystal.calc = spin_calculator
    total = spin_calculator.get_pseudo_density(pad=False, broadcast=False)
    up, down = (spin_calculator.get_pseudo_density(spin=s) for s in (0, 1))
    assert np.allclose(up + down, total)
    assert np.abs(up - down).max() > 1e-6
    fine = spin_calculator.get_pseudo_density(gridrefinement=2)
    assert fine.shape == tuple(2 * n for n in total.shape)
    assert np.allclose(fine[::2, ::2, ::2], total)


def test_the_channels_of_a_spin_paired_pseudo_density_are_its_halves(calculator, water):
    water.calc = calculator
    assert np.allclose(2 * calculator.get_pseudo_density(spin=1), calculator.get_pseudo_density())


@pytest.mark.parametrize("wrong", [{"spin": 2}, {"gridrefinement": 0}, {"gridrefinement": 1.5}])
def test_gpaws_signature_is_checked(calculator, water, wrong):
    water.calc = calculator
    with pytest.raises(GridError):
        calculator.get_pseudo_density(**wrong)


def test_descriptors_have_one_row_an_atom(calculator, crystal):
    config = calculator.network.config
    shape = (len(crystal), (config.l_max + 1) ** 2, config.channels)
    assert calculator.get_descriptors(crystal).shape == shape


# -- which atoms -------------------------------------------------------------------------------


def test_attached_atoms_are_the_default(calculator, water):
    water.calc = calculator
    assert np.array_equal(calculator.evaluate([(0, 0, 0)]), calculator.evaluate([(0, 0, 0)], water))


def test_other_atoms_do_not_displace_the_attached_ones(calculator, water, crystal):
    water.calc = calculator
    before = calculator.evaluate([(0, 0, 0)])
    calculator.evaluate([(0, 0, 0)], crystal)
    assert np.array_equal(calculator.evaluate([(0, 0, 0)]), before)


def test_the_last_atoms_used_stand_in_where_none_are_attached(calculator, water):
    before = calculator.evaluate([(0, 0, 0)], water)
    assert np.array_equal(calculator.evaluate([(0, 0, 0)]), before)


def test_a_box_made_for_a_file_moves_no_later_density(calculator, water, tmp_path):
    before = calculator.evaluate(water.positions, water)
    calculator.write_density(tmp_path / "rho.h5", water, spacing=0.5)
    assert np.array_equal(calculator.evaluate(water.positions), before)


def test_what_is_no_structure_is_refused(calculator):
    with pytest.raises(TypeError, match=r"ase\.Atoms object, not str"):
        calculator.get_density_grid("water.xyz")


def test_a_calculator_says_what_it_is_in_a_line(model_file):
    calculator = EACDensity(model_file, device="cpu", normalize=True)
    assert repr(calculator) == "EACDensity('tiny', device='cpu', normalize=True)"


def test_without_any_atoms_the_error_says_so(calculator):
    for ask in (calculator.get_charges, calculator.get_density_grid):
        with pytest.raises(CalculatorSetupError, match="attach"):
            ask()


# -- caching -----------------------------------------------------------------------------------


def test_one_structure_is_encoded_once_for_everything(calculator, crystal, encoder_calls):
    crystal.calc = calculator
    crystal.get_charges()
    calculator.evaluate([(0, 0, 0)])
    calculator.evaluate([(1, 0, 0)], contributions=True)
    calculator.get_density_grid(spacing=0.5)
    calculator.get_atomic_density(0, spacing=0.5)
    calculator.get_number_of_electrons()
    calculator.get_descriptors()
    crystal.get_charges()
    calculator.evaluate([(0, 0, 0)], crystal.copy())
    assert encoder_calls == [len(crystal)]


CHANGES = {
    "a position in place": lambda atoms: atoms.positions.__setitem__(
        (0, 0), atoms.positions[0, 0] + 1e-10
    ),
    "all positions": lambda atoms: atoms.rattle(0.01, seed=1),
    "an element in place": lambda atoms: atoms.numbers.__setitem__(0, 1),
    "the cell": lambda atoms: atoms.cell.__setitem__((0, 0), 3.7),
    "periodicity": lambda atoms: atoms.set_pbc((True, True, False)),
    "the number of atoms": lambda atoms: atoms.pop(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_structure_is_noticed(calculator, crystal, encoder_calls, change):
    crystal.calc = calculator
    crystal.get_charges()
    before = calculator.evaluate(crystal.positions + 0.3)
    points = crystal.positions + 0.3
    CHANGES[change](crystal)
    fresh = EACDensity(calculator.network).evaluate(points, crystal)
    del encoder_calls[:]
    assert np.array_equal(calculator.evaluate(points), fresh)
    assert len(encoder_calls) == 1
    assert not np.array_equal(before, fresh)
    crystal.get_charges()
    assert len(encoder_calls) == 1
    assert np.allclose(
        crystal.get_charges().sum(),
        calculator._valences(crystal).sum() - calculator.get_number_of_electrons(),
    )


def test_nothing_else_is_a_change(calculator, crystal, encoder_calls):
    crystal.calc = calculator
    charges = crystal.get_charges()
    crystal.set_velocities(np.ones((len(crystal), 3)))
    crystal.set_tags(range(len(crystal)))
    crystal.set_masses([2.0] * len(crystal))
    crystal.set_initial_charges([0.3] * len(crystal))
    crystal.set_initial_magnetic_moments([1.0] * len(crystal))
    crystal.info.update(charge=1, spin=3)
    assert not calculator.calculation_required(crystal, ["charges"])
    assert np.array_equal(crystal.get_charges(), charges)
    assert np.array_equal(calculator.evaluate([(0, 0, 0)]), calculator.evaluate([(0, 0, 0)]))
    assert len(encoder_calls) == 1


def test_new_weights_are_noticed(model_file, crystal):
    calculator = crystal.calc = EACDensity(model_file, device="cpu")
    before, charges = calculator.evaluate(crystal.positions), crystal.get_charges()
    with torch.no_grad():
        for parameter in calculator.network.interactions.parameters():
            parameter.neg_()
    new_charges = crystal.get_charges()
    fresh = EACDensity(copy.deepcopy(calculator.network))
    found = calculator.evaluate(crystal.positions)
    assert np.array_equal(found, fresh.evaluate(crystal.positions, crystal))
    assert not np.array_equal(found, before)
    populations = 16 - fresh.get_number_of_electrons()
    assert new_charges.sum() == pytest.approx(populations)
    assert abs(new_charges - charges).max() > 1e-6


def test_calculators_of_one_network_leave_each_other_alone(calculator, water):
    network = calculator.network
    before = calculator.evaluate(water.positions, water)
    other = EACDensity(network, dtype=torch.float32)
    assert np.allclose(other.evaluate(water.positions, water), before, rtol=1e-4)
    assert np.array_equal(calculator.evaluate(water.positions, water), before)
    assert calculator.network is network
    assert EACDensity(network).network is network


def test_structures_evaluated_in_several_threads_are_not_mixed_up(calculator, water):
    structures = [water.copy() for _ in range(4)]
    for index, atoms in enumerate(structures):
        atoms.positions[0, 0] += 0.1 * index
    points = water.positions + 0.2
    expected = [EACDensity(calculator.network).evaluate(points, atoms) for atoms in structures]

    def often(index):
        return [calculator.evaluate(points, structures[index]) for _ in range(10)]

    with ThreadPoolExecutor(4) as pool:
        for values, right in zip(pool.map(often, range(4)), expected, strict=True):
            assert all(np.array_equal(value, right) for value in values)


def test_calculators_that_are_gone_leave_no_network_behind(model_file, water):
    calculator = EACDensity(model_file, device="cpu", dtype=torch.float32)
    calculator.evaluate(water.positions, water)
    network = weakref.ref(calculator.network)
    del calculator
    gc.collect()
    assert network() is None


def test_moments_matter_to_models_that_use_them(spin_calculator, crystal, monkeypatch):
    calls = count_calls(spin_calculator, monkeypatch)
    crystal.calc = spin_calculator
    crystal.set_initial_magnetic_moments([1.0, 0, 0, 0.5, 0, 0])
    moments = crystal.get_magnetic_moments()
    crystal.set_initial_magnetic_moments([-1.0, 0, 0, -0.5, 0, 0])
    assert np.allclose(crystal.get_magnetic_moments(), -moments, atol=1e-12)
    assert len(calls) == 2


def test_a_refused_structure_leaves_no_stale_results(calculator, water, encoder_calls):
    water.calc = calculator
    water.get_charges()
    good = water.positions.copy()
    water.positions[0, 0] = np.nan
    with pytest.raises(StructureError):
        water.get_charges()
    with pytest.raises(StructureError):
        calculator.evaluate([(0, 0, 0)])
    water.positions[:] = good
    assert np.isfinite(water.get_charges()).all()


# -- ASE properties ----------------------------------------------------------------------------


def test_net_charges_are_valences_minus_populations(calculator, crystal):
    crystal.calc = calculator
    grid = calculator.get_density_grid(spacing=0.1)
    parts = calculator.evaluate(grid.points(), contributions=True)
    populations = parts.mean(axis=0) * grid.volume
    valences = [6, 1, 1, 6, 1, 1]
    assert np.allclose(crystal.get_charges(), valences - populations, atol=5e-3)
    assert calculator.get_number_of_electrons() == pytest.approx(populations.sum(), abs=5e-3)


def test_charges_of_molecules_do_not_depend_on_the_cell_around_them(calculator, water):
    water.calc = calculator
    free = water.get_charges()
    water.center(vacuum=0.5)
    assert np.allclose(water.get_charges(), free, atol=2e-3)


def test_the_dipole_moment_of_a_molecule_is_that_of_ions_and_density(calculator, water):
    water.calc = calculator
    grid = calculator.get_density_grid(spacing=0.08)
    center = water.get_center_of_mass()
    voxel = grid.volume / grid.values.size
    electronic = voxel * grid.values.ravel() @ (grid.points() - center)
    ionic = np.array([6, 1, 1]) @ (water.positions - center)
    assert np.allclose(water.get_dipole_moment(), ionic - electronic, atol=5e-3)


def test_the_dipole_moment_turns_with_a_neutral_molecule(model_file, water):
    calculator = EACDensity(model_file, device="cpu", normalize=True)
    water.calc = calculator
    dipole = water.get_dipole_moment()
    water.rotate(90, "x")
    water.positions += (3, -1, 2)
    turned = water.get_dipole_moment()
    assert np.allclose(turned, [dipole[0], -dipole[2], dipole[1]], atol=5e-3)
    assert np.linalg.norm(dipole) > 0.02


@pytest.mark.parametrize("pbc", [True, (True, False, False)])
def test_periodic_structures_have_no_dipole_moment(calculator, crystal, pbc):
    crystal.pbc = pbc
    crystal.calc = calculator
    with pytest.raises(PropertyNotImplementedError, match="periodic"):
        crystal.get_dipole_moment()
    assert "dipole" not in calculator.results


def test_models_without_spin_have_no_moments(calculator, water):
    water.calc = calculator
    for ask in (
        water.get_magnetic_moments,
        water.get_magnetic_moment,
        calculator.get_spin_density,
    ):
        with pytest.raises(PropertyNotImplementedError, match="knows no spin"):
            ask()


def test_moments_are_the_integrals_of_the_spin_density(spin_calculator, crystal):
    crystal.set_initial_magnetic_moments([1.0, 0, 0, 0.5, 0, 0])
    crystal.calc = spin_calculator
    grid = spin_calculator.get_density_grid()
    moments = crystal.get_magnetic_moments()
    assert moments.shape == (len(crystal),)
    assert abs(moments).max() > 1e-3
    assert crystal.get_magnetic_moment() == pytest.approx(moments.sum())
    assert grid.integrate_spin() == pytest.approx(moments.sum(), abs=1e-3)
    assert np.allclose(spin_calculator.get_spin_density(shape=grid.shape), grid.spin)
    points = grid.points()[::997]
    assert np.allclose(spin_calculator.get_spin_density(points=points), grid.spin.ravel()[::997])


def test_without_initial_moments_a_spin_model_gives_none(spin_calculator, crystal):
    crystal.calc = spin_calculator
    assert np.array_equal(crystal.get_magnetic_moments(), np.zeros(len(crystal)))
    assert crystal.get_magnetic_moment() == 0.0


def test_unknown_valences_leave_charges_out_and_say_why(model_file_of_unknown_oxygen, water):
    water.calc = EACDensity(model_file_of_unknown_oxygen, device="cpu")
    with pytest.raises(PropertyNotImplementedError, match="electrons of O"):
        water.get_charges()
    assert water.calc.get_number_of_electrons() != 0.0


def test_energies_and_forces_are_refused_with_a_pointer(calculator, water):
    water.calc = calculator
    for ask in (water.get_potential_energy, water.get_forces, lambda: BFGS(water).run(steps=1)):
        with pytest.raises(PropertyNotImplementedError, match=r"no (energy|forces).*fixed_density"):
            ask()


def test_results_hold_only_what_ase_knows(spin_calculator, water):
    water.calc = spin_calculator
    water.get_charges()
    assert set(spin_calculator.results) == {"charges", "dipole", "magmom", "magmoms"}
    properties = spin_calculator.export_properties()
    assert properties["charges"].shape == (3,)
    assert properties["dipole"].shape == (3,)


def test_a_trajectory_keeps_charges(calculator, water, tmp_path):
    water.calc = calculator
    charges = water.get_charges()
    with Trajectory(tmp_path / "a.traj", "w") as file:
        file.write(water)
    with Trajectory(tmp_path / "a.traj") as file:
        assert np.allclose(file[0].get_charges(), charges)


# -- normalisation -----------------------------------------------------------------------------


@pytest.mark.parametrize("charge", [None, 1, -1])
def test_normalised_densities_hold_the_exact_number_of_electrons(model_file, crystal, charge):
    calculator = EACDensity(model_file, device="cpu", normalize=True)
    if charge is not None:
        crystal.info["charge"] = charge
    exact = 16 - (charge or 0)
    crystal.calc = calculator
    assert calculator.get_number_of_electrons() == pytest.approx(exact, rel=1e-10)
    assert crystal.get_charges().sum() == pytest.approx(charge or 0, abs=1e-8)
    for spacing in (0.4, 0.2):
        grid = calculator.get_density_grid(spacing=spacing)
        assert grid.integrate() == pytest.approx(exact, rel=1e-10)


def test_normalisation_is_one_factor_for_a_structure(model_file, crystal):
    plain = EACDensity(model_file, device="cpu")
    scaled = EACDensity(model_file, device="cpu", normalize=True)
    points = np.random.default_rng(0).uniform(0, 3, (20, 3))
    factor = 16 / plain.get_number_of_electrons(crystal)
    assert abs(factor - 1) > 1e-3
    assert np.allclose(scaled.evaluate(points, crystal), factor * plain.evaluate(points, crystal))


def test_the_total_charge_matters_to_normalised_results(model_file, water):
    water.calc = EACDensity(model_file, device="cpu", normalize=True)
    water.get_charges()
    water.info["charge"] = 1
    assert water.get_charges().sum() == pytest.approx(1.0, abs=1e-8)


def test_normalisation_can_be_switched_on_later(model_file, water):
    calculator = water.calc = EACDensity(model_file, device="cpu")
    assert abs(water.get_charges().sum()) > 1e-3
    calculator.normalize = True
    assert water.get_charges().sum() == pytest.approx(0.0, abs=1e-8)


def test_ions_keep_some_electrons(model_file, water):
    water.info["charge"] = 8
    with pytest.raises(StructureError, match="none would be left"):
        EACDensity(model_file, device="cpu", normalize=True).evaluate([(0, 0, 0)], water)


def test_charges_may_be_arrays_of_one_number(model_file, water):
    water.info["charge"] = np.array(1.0)
    calculator = EACDensity(model_file, device="cpu")
    assert calculator.partition("eac", water).charges.sum() == pytest.approx(1.0)


def test_normalisation_needs_valences(calculator, water):
    bare = EACDensity(calculator.network, normalize=True)
    with pytest.raises(CalculatorSetupError, match="H, O"):
        bare.evaluate([(0, 0, 0)], water)


# -- what cannot work --------------------------------------------------------------------------


def broken(name: str) -> Atoms:
    atoms = molecule("H2O")
    match name:
        case "empty":
            return Atoms()
        case "nan":
            atoms.positions[1, 1] = np.nan
        case "infinite":
            atoms.positions[1, 1] = np.inf
        case "coinciding":
            atoms.positions[2] = atoms.positions[1] + 0.05
        case "no cell":
            atoms.pbc = (True, False, False)
        case "flat cell":
            atoms.set_cell([[5, 0, 0], [0, 5, 0], [5, 5, 0]])
            atoms.pbc = True
        case "coinciding images":
            atoms.set_cell([0.05, 5, 5])
            atoms.pbc = True
    return atoms


BROKEN = ["empty", "nan", "infinite", "coinciding", "no cell", "flat cell", "coinciding images"]


@pytest.mark.parametrize("name", BROKEN)
def test_broken_structures_are_refused_before_any_work(calculator, encoder_calls, name):
    atoms = broken(name)
    atoms.calc = calculator
    for ask in (
        lambda: calculator.evaluate([(0, 0, 0)]),
        calculator.get_density_grid,
        calculator.get_pseudo_density,
        calculator.get_number_of_electrons,
        atoms.get_charges,
        lambda: calculator.get_atomic_density([0]),
    ):
        with pytest.raises(StructureError):
            ask()
    assert encoder_calls == []


def test_unknown_elements_are_named(calculator, encoder_calls):
    atoms = molecule("CH4")
    atoms.calc = calculator
    with pytest.raises(UnknownElementError, match="C"):
        atoms.get_charges()
    assert encoder_calls == []


@pytest.mark.parametrize("points", [(0, 0), [(0, 0, np.nan)], [[0.0] * 4]])
def test_points_that_are_no_points_are_refused(calculator, water, points):
    with pytest.raises(GridError, match="Points"):
        calculator.evaluate(points, water)


def test_an_unknown_model_lists_the_known_ones():
    with pytest.raises(ModelFileError, match="bundled models are"):
        EACDensity("no-such-model")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_said_so(model_file):
    with pytest.raises(CalculatorSetupError, match="no GPU"):
        EACDensity(model_file, device="cuda")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int32, "float64"])
def test_types_that_nothing_is_evaluated_in_are_refused(model_file, dtype):
    with pytest.raises(CalculatorSetupError, match=r"torch\.float32, torch\.float64"):
        EACDensity(model_file, dtype=dtype)


def test_single_precision_is_close_to_double(model_file, crystal):
    points = np.random.default_rng(0).uniform(0, 3, (20, 3))
    single = EACDensity(model_file, device="cpu", dtype=torch.float32).evaluate(points, crystal)
    double = EACDensity(model_file, device="cpu", dtype=torch.float64).evaluate(points, crystal)
    assert single.dtype == np.float32
    assert double.dtype == np.float64
    assert np.allclose(single, double, rtol=1e-4, atol=1e-5)


def test_the_last_structure_keeps_its_charge(model_file, water):
    calculator = EACDensity(model_file, device="cpu", normalize=True)
    water.info["charge"] = 1
    given = calculator.get_number_of_electrons(water)
    assert calculator.get_number_of_electrons() == pytest.approx(given)
    water.info["charge"] = 0
    assert calculator.get_number_of_electrons(water) == pytest.approx(given + 1)
    assert calculator.get_number_of_electrons() == pytest.approx(given + 1)


def test_charges_that_are_no_numbers_are_refused(model_file, water):
    water.info["charge"] = "neutral"
    with pytest.raises(StructureError, match="not 'neutral'"):
        EACDensity(model_file, device="cpu", normalize=True).get_number_of_electrons(water)


def test_dipoles_follow_the_centre_of_mass(model_file, water):
    calculator = EACDensity(model_file, device="cpu", normalize=True)
    water.info["charge"] = 1
    water.calc = calculator
    before = water.get_dipole_moment()
    place = water.get_center_of_mass()
    water.set_masses([16, 2, 100])
    moved = before + place - water.get_center_of_mass()
    assert water.get_dipole_moment() == pytest.approx(moved, abs=1e-9)


def test_grids_that_miss_the_electrons_are_not_normalised(model_file, crystal, monkeypatch):
    calculator = EACDensity(model_file, device="cpu", normalize=True)
    monkeypatch.setattr(DensityGrid, "integrate", lambda grid: 0.0)
    with pytest.raises(GridError, match="finer grid"):
        calculator.get_density_grid(crystal, shape=(4, 4, 4))


@pytest.mark.parametrize("shape", [(np.nan, 1, 1), (np.inf, 1, 1), (1.5, 1, 1)])
def test_shapes_that_are_no_numbers_of_points_are_refused(calculator, crystal, shape):
    with pytest.raises(GridError, match="positive whole numbers"):
        calculator.get_density_grid(crystal, shape=shape)
    with pytest.raises(GridError, match="too many points"):
        calculator.get_density_grid(crystal, spacing=1e-300)


def test_models_without_spin_ignore_moments_of_three_components(calculator, crystal):
    expected = calculator.get_density_grid(crystal, shape=(4, 4, 4)).values
    crystal.set_initial_magnetic_moments(np.ones((len(crystal), 3)))
    found = EACDensity(calculator.network).get_density_grid(crystal, shape=(4, 4, 4)).values
    assert np.array_equal(found, expected)
    assert np.array_equal(calculator.get_density_grid(crystal, shape=(4, 4, 4)).values, expected)


@pytest.mark.parametrize("occupancy", [0.5, {"0": {"O": 1.0}, "1": {"H": 0.9999}}, {}])
def test_full_sites_and_other_uses_of_the_word_are_no_disorder(calculator, water, occupancy):
    water.info["occupancy"] = occupancy
    assert calculator.evaluate([(0.0, 0.0, 0.0)], water)[0] != 0


def test_a_box_in_a_crystal_is_open(calculator, crystal):
    box = DensityGrid(np.zeros((6, 6, 6)), crystal, 2 * np.eye(3), pbc=(False,) * 3)
    grid = calculator.get_density_grid(crystal, like=box)
    assert grid.pbc == (False, False, False)
    assert np.isnan(grid.interpolate([(2.5, 0, 0)])).all()
    own = calculator.get_density_grid(crystal, shape=(6, 6, 6))
    assert calculator.get_density_grid(crystal, like=own).pbc == (True, True, True)


def test_elements_that_only_the_model_before_had_seen_are_warned_of(calculator, water):
    calculator.card = replace(calculator.card, elements=("O", "C"))
    with pytest.warns(UnfamiliarStructureWarning, match="was not trained on H,"):
        calculator.evaluate([(0.0, 0.0, 0.0)], water)


def test_a_grid_of_another_cell_is_no_pattern_for_a_crystal(calculator, crystal):
    own = calculator.get_density_grid(crystal, shape=(4, 4, 4))
    for other in (2 * own.cell, 1.001 * own.cell, own.cell * [[1], [1], [2]]):
        with pytest.raises(GridError, match="another one than the structure's"):
            calculator.get_density_grid(crystal, like=replace(own, cell=other))
    # The same lattice may have other edges.
    sheared = replace(own, cell=np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1]]) @ own.cell)
    for same in (sheared, replace(own, cell=own.cell[[2, 0, 1]])):
        grid = calculator.get_density_grid(crystal, like=same)
        assert grid.integrate() == pytest.approx(own.integrate(), rel=0.1)


def test_grids_keep_the_charge_and_the_masses_of_their_structure(calculator, water):
    water.info["charge"] = 1
    water.set_masses([1, 2, 3])
    atoms = calculator.get_density_grid(water, spacing=0.4).atoms
    assert atoms.info == {"charge": 1}
    assert list(atoms.get_masses()) == [1, 2, 3]


def test_models_without_spin_write_structures_with_moments_of_any_kind(
    calculator, crystal, tmp_path
):
    crystal.set_initial_magnetic_moments(np.ones((len(crystal), 3)))
    calculator.get_density_grid(crystal, shape=(8, 8, 8)).write(tmp_path / "CHGCAR")
    assert (tmp_path / "CHGCAR").exists()


@pytest.mark.parametrize("device", ["gpu", "cpu0x", object()])
def test_devices_that_are_none_are_refused_by_name(model_file, device):
    with pytest.raises(CalculatorSetupError, match="cuda"):
        EACDensity(model_file, device=[device])


def test_atoms_that_are_not_there_are_refused(calculator, water):
    with pytest.raises(StructureError, match=r"0 … 2"):
        calculator.get_atomic_density(7, water, shape=(6, 6, 6))


def test_a_density_is_written_somewhere(calculator, water):
    with pytest.raises(GridError, match="No path"):
        calculator.write_density([], water)


def test_a_reference_does_not_go_with_learned_charges(calculator, crystal):
    grid = calculator.get_density_grid(crystal, shape=(8, 8, 8))
    with pytest.raises(AnalysisError, match="not of eac"):
        calculator.partition("eac", crystal, reference=grid)


def test_what_cannot_be_normalised_is_refused_before_it_is_evaluated(calculator, water):
    calculator.normalize = True
    water.info["charge"] = 20
    with pytest.raises(StructureError, match="none would be left"):
        calculator.get_density_grid(water, shape=(2000, 2000, 2000))


def test_models_of_pseudo_densities_are_not_made_to_normalise():
    with pytest.raises(CalculatorSetupError, match="Leave normalize out"):
        EACDensity("si-pbe", device="cpu", normalize=True)


def test_partitions_that_are_kept_have_the_masses_of_the_structure(calculator, water):
    calculator.partition("eac", water)
    water.set_masses([1, 2, 3])
    assert list(calculator.partition("eac", water).structure.get_masses()) == [1, 2, 3]
