from __future__ import annotations

import numpy as np
import pytest
from ase.build import molecule
from ase.data import atomic_numbers, covalent_radii
from ase.formula import Formula
from ase.neighborlist import neighbor_list

from eac_ase.reference.prototypes import PROTOTYPES, lattice_constant
from eac_ase.reference.recipe import Recipe
from eac_ase.reference.structures import build
from eac_model.errors import ConfigurationError, StructureError

CHARACTERISTIC = {
    # formula, a / Å, coordination of the first element, distance to its neighbours / Å
    "sc": ("Po", 3.35, 6, 3.35),
    "fcc": ("Cu", 3.61, 12, 2.553),
    "bcc": ("Fe", 2.87, 8, 2.486),
    "hcp": ("Mg", 3.21, 12, 3.21),
    "diamond": ("Si", 5.43, 4, 2.351),
    "lonsdaleite": ("Si", 3.84, 4, 2.352),
    "beta-tin": ("Sn", 5.83, 6, 3.05),
    "bc8": ("Si", 6.64, 4, 2.32),
    "omega": ("Ti", 4.63, 4, 2.673),
    "graphite": ("C", 2.46, 3, 1.42),
    "rocksalt": ("NaCl", 5.64, 6, 2.82),
    "zincblende": ("GaAs", 5.65, 4, 2.447),
    "wurtzite": ("ZnS", 3.82, 4, 2.34),
    "nickeline": ("NiAs", 3.62, 6, 2.49),
    "cscl": ("CsCl", 4.12, 8, 3.568),
    "l10": ("CuAu", 2.80, 8, 2.74),
    "fluorite": ("CaF2", 5.46, 8, 2.364),
    "antifluorite": ("Li2O", 4.62, 4, 2.0),
    "rutile": ("TiO2", 4.59, 6, 1.96),
    "cdi2": ("CdI2", 4.24, 6, 2.98),
    "cuprite": ("Cu2O", 4.27, 2, 1.849),
    "pyrite": ("FeS2", 5.42, 6, 2.26),
    "alb2": ("MgB2", 3.09, 12, 2.5),
    "l12": ("Cu3Au", 3.75, 4, 2.652),
    "d03": ("Li3Bi", 6.72, 8 / 3, 2.91),
    "laves": ("MgCu2", 7.03, 12, 2.915),
    "cristobalite": ("SiO2", 7.16, 4, 1.55),
    "quartz": ("SiO2", 4.91, 4, 1.61),
    "corundum": ("Al2O3", 4.76, 6, 1.92),
    "perovskite": ("SrTiO3", 3.905, 12, 2.761),
    "half-heusler": ("TiNiSn", 5.93, 4, 2.568),
    "heusler": ("Cu2MnAl", 5.95, 8, 2.576),
    "chalcopyrite": ("CuInS2", 5.52, 4, 2.35),
}


def first(entry, **recipe):
    return next(iter(Recipe.model_validate({"structures": [entry], **recipe}).tasks()))


def crystal(**changes):
    return {"name": "c", "kind": "crystal", "lattices": "fcc", "formulas": {"Al": 4.0}, **changes}


def made(**changes):
    return build(first(crystal(**changes)))


def test_every_prototype_is_described():
    assert CHARACTERISTIC.keys() == PROTOTYPES.keys()


@pytest.mark.parametrize("lattice", PROTOTYPES)
def test_prototypes_have_their_stoichiometry_and_coordination(lattice):
    formula, a, coordination, distance = CHARACTERISTIC[lattice]
    atoms = made(lattices=lattice, formulas={formula: a})
    assert len(neighbor_list("d", atoms, 1.0)) == 0
    i, j, d = neighbor_list("ijd", atoms, 1.13 * distance)
    centre = atomic_numbers[next(iter(Formula(formula).count()))]
    around = atoms.numbers[i] == centre
    if len(set(atoms.numbers)) > 1:
        around &= atoms.numbers[j] != centre
    assert around.sum() / np.sum(atoms.numbers == centre) == pytest.approx(coordination)
    assert d[around].min() == pytest.approx(distance, rel=0.08)


@pytest.mark.parametrize(
    ("formula", "lattice", "a"),
    [
        ("Al", "fcc", 4.05),
        ("Fe", "bcc", 2.87),
        ("Si", "diamond", 5.43),
        ("MgO", "rocksalt", 4.21),
        ("GaAs", "zincblende", 5.65),
        ("CsCl", "cscl", 4.12),
        ("CuZn", "cscl", 2.95),
        ("Cu3Au", "l12", 3.75),
        ("TiNiSn", "half-heusler", 5.93),
    ],
)
def test_estimated_lattice_constants_are_within_five_per_cent(formula, lattice, a):
    assert lattice_constant(formula, lattice) == pytest.approx(a, rel=0.05)


def test_the_same_task_gives_the_same_structure_and_another_number_another():
    tasks = list(
        Recipe.model_validate({"structures": [crystal(rattle=0.1, count=2)], "seed": 4}).tasks()
    )
    one, again, other = build(tasks[0]), build(tasks[0]), build(tasks[1])
    np.testing.assert_array_equal(one.positions, again.positions)
    assert np.abs(one.positions - other.positions).max() > 1e-3


def test_scale_strain_and_rattle_do_what_they_say():
    plain = made(repeat=[3, 3, 3])
    scaled = made(repeat=[3, 3, 3], scale=1.1)
    np.testing.assert_allclose(scaled.cell, 1.1 * plain.cell)
    np.testing.assert_allclose(scaled.positions, 1.1 * plain.positions, atol=1e-12)
    strain = np.linalg.solve(plain.cell, made(repeat=[3, 3, 3], strain=0.05).cell) - np.eye(3)
    np.testing.assert_allclose(strain, strain.T, atol=1e-12)
    assert 0.005 < np.abs(strain).max() <= 0.05
    rattled = made(repeat=[5, 5, 5], rattle=0.1).positions - made(repeat=[5, 5, 5]).positions
    assert rattled.std() == pytest.approx(0.1, rel=0.1)


def test_vacancies_are_missing_and_may_not_take_everything():
    assert len(made(conventional=True, vacancies=1)) == 3
    with pytest.raises(ConfigurationError, match="1 vacancies in 1 atoms"):
        made(vacancies=1)


def test_moments_are_ferromagnetic_alternating_or_drawn():
    def moments(order):
        return made(
            lattices="rocksalt",
            formulas={"NiO": 4.2},
            conventional=True,
            repeat=[2, 1, 1],
            moments={"Ni": 1.7},
            order=order,
        )

    atoms = moments("ferromagnetic")
    nickel = atoms.symbols == "Ni"
    assert set(atoms.get_initial_magnetic_moments()[nickel]) == {1.7}
    assert not atoms.get_initial_magnetic_moments()[~nickel].any()
    alternating = moments("antiferromagnetic").get_initial_magnetic_moments()
    assert alternating[nickel].tolist() == [1.7, -1.7] * 4
    drawn = moments("random").get_initial_magnetic_moments()
    assert set(drawn[nickel]) == {1.7, -1.7}
    assert not made().has("initial_magmoms")


def test_alloys_hold_two_elements_or_more_at_the_volume_of_their_mixture():
    entry = {"name": "a", "kind": "alloy", "elements": ["Al", "Mg"], "count": 20}
    for task in Recipe.model_validate({"structures": [entry]}).tasks():
        atoms = build(task)
        aluminium = np.mean(atoms.symbols == "Al")
        assert 0 < aluminium < 1
        volume = aluminium * 16.6 + (1 - aluminium) * 23.2
        assert atoms.get_volume() / len(atoms) == pytest.approx(volume, rel=0.01)


@pytest.mark.parametrize(
    ("miller", "atoms_in_layer", "area"),
    [([1, 1, 1], 1, 7.0146), ([1, 0, 0], 1, 8.1), ([1, 1, 0], 1, 11.4551)],
)
def test_slabs_have_the_smallest_surface_cell_and_vacuum(miller, atoms_in_layer, area):
    entry = {
        "name": "s",
        "kind": "slab",
        "lattices": "fcc",
        "formulas": {"Al": 4.025},
        "miller": miller,
        "layers": 4,
        "vacuum": 5.0,
    }
    atoms = build(first(entry))
    assert len(atoms) == 4 * atoms_in_layer
    assert atoms.pbc.tolist() == [True, True, False]
    normal = np.cross(atoms.cell[0], atoms.cell[1])
    assert np.linalg.norm(normal) == pytest.approx(area, rel=1e-3)
    heights = atoms.positions @ normal / np.linalg.norm(normal)
    assert heights.min() == pytest.approx(5.0)
    assert np.linalg.norm(atoms.cell[2]) - heights.max() == pytest.approx(5.0)


def test_slabs_are_cut_along_any_plane():
    entry = {"name": "s", "kind": "slab", "lattices": "fcc", "formulas": {"Al": 4.05}, "layers": 1}
    atoms = build(first({**entry, "miller": [2, 3, 4]}))
    area = np.linalg.norm(np.cross(atoms.cell[0], atoms.cell[1]))
    # Of the reciprocal bcc lattice: 2π / d of (4, 6, 8), volume of a cell over the distance d.
    assert area == pytest.approx(4.05**2 / 4 * 116**0.5, rel=1e-6)


def test_molecules_are_turned_and_keep_their_bonds_and_moments():
    atoms = build(first({"name": "m", "kind": "molecule", "molecules": "O2", "vacuum": 2.5}))
    assert not atoms.pbc.any()
    assert atoms.get_distance(0, 1) == pytest.approx(1.245, abs=0.01)
    assert atoms.get_initial_magnetic_moments().tolist() == [1, 1]
    np.testing.assert_allclose(
        np.diag(atoms.cell) - np.ptp(atoms.positions, axis=0), 5.0, atol=1e-9
    )


def test_substituted_molecules_have_bonds_of_their_elements_and_the_old_angles():
    entry = {"name": "m", "kind": "molecule", "molecules": "CH4"}
    entry["substitute"] = {"C": ["Si"], "H": ["H", "Cl"]}
    atoms = build(first(entry))
    assert atoms.symbols[0] == "Si"
    assert set(atoms.symbols[1:]) <= {"H", "Cl"}
    radii = covalent_radii[atoms.numbers]
    old = 1.09 / (covalent_radii[6] + covalent_radii[1])
    for hydrogen in range(1, 5):
        wanted = old * (radii[0] + radii[hydrogen])
        assert atoms.get_distance(0, hydrogen) == pytest.approx(wanted, rel=0.02)
        for other in range(1, hydrogen):
            assert atoms.get_angle(hydrogen, 0, other) == pytest.approx(109.47, abs=2)
    many = Recipe.model_validate({"structures": [entry | {"count": 20}]}).tasks()
    assert len({str(build(task).symbols) for task in many}) > 4


def test_a_single_atom_can_be_exchanged():
    entry = {"name": "m", "kind": "molecule", "molecules": "Na", "substitute": {"Na": "K"}}
    assert build(first(entry)).get_chemical_symbols() == ["K"]


def test_a_molecule_substituted_by_itself_stays_as_it_is():
    entry = {"name": "m", "kind": "molecule", "molecules": "CH3CH2OH"}
    entry["substitute"] = {"C": "C"}
    atoms = build(first(entry))
    np.testing.assert_allclose(
        atoms.get_all_distances(), molecule("CH3CH2OH").get_all_distances(), atol=1e-6
    )


def test_water_is_whole_molecules_at_its_density():
    entry = {"name": "w", "kind": "water", "molecules": 4, "steps": 20}
    atoms = build(first(entry))
    assert atoms.get_chemical_formula() == "H8O4"
    assert atoms.pbc.all()
    grams = atoms.get_masses().sum() * 1.66054e-24
    assert grams / (atoms.get_volume() * 1e-24) == pytest.approx(1.0, rel=1e-3)
    bonds = [atoms.get_distance(o, o + k, mic=True) for o in range(0, 12, 3) for k in (1, 2)]
    assert min(bonds) > 0.85
    assert max(bonds) < 1.1


def test_clusters_of_water_are_cut_out_whole():
    entry = {"name": "w", "kind": "water", "molecules": 2, "vacuum": 3.0, "steps": 20}
    atoms = build(first(entry))
    assert atoms.get_chemical_formula() == "H4O2"
    assert not atoms.pbc.any()
    assert atoms.get_distance(0, 3) < 4.5
    assert max(atoms.get_distance(o, o + k) for o in (0, 3) for k in (1, 2)) < 1.1


def test_amorphous_silicon_is_dense_and_not_crystalline():
    pytest.importorskip("matscipy")
    entry = {"name": "a", "kind": "amorphous", "atoms": 8, "steps": 60, "density": 2.3}
    atoms = build(first(entry))
    assert atoms.get_volume() / 8 == pytest.approx(20.28, rel=1e-3)
    assert neighbor_list("d", atoms, 4.0).min() > 1.9


def test_phonons_move_atoms_more_at_a_higher_temperature():
    pytest.importorskip("phonopy")

    def spread(temperature):
        entry = {
            "name": "p",
            "kind": "phonons",
            "lattices": "fcc",
            "formulas": {"Al": 4.0},
            "potential": "emt",
            "temperature": temperature,
            "count": 6,
        }
        tasks = Recipe.model_validate({"structures": [entry]}).tasks()
        fractions = np.array([build(task).get_scaled_positions() for task in tasks])
        return 4.0 * ((2 * fractions + 0.25) % 1 - 0.25).std() / 2

    assert 0.02 < spread(100) < spread(900) < 0.3


def test_structures_whose_atoms_collide_are_refused():
    with pytest.raises(StructureError, match=r"c/Al-fcc/0000 .*closer than 0\.55"):
        made(scale=0.4)
    atoms = made(repeat=[2, 2, 2], rattle=0.45)
    radii = covalent_radii[atoms.numbers]
    assert len(neighbor_list("i", atoms, 0.55 * radii)) == 0
