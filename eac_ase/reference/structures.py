"""Structures of a recipe: crystals, alloys, slabs, molecules, liquids, glasses, thermal motion.

Every builder is a function of an entry, one of its members and a random number generator.
"""

from __future__ import annotations

import itertools
import math
from itertools import combinations
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.build import bulk, molecule, surface
from ase.calculators.calculator import Calculator
from ase.data import atomic_numbers, covalent_radii, reference_states
from ase.formula import Formula
from ase.neighborlist import neighbor_list
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.spatial.distance import pdist

from eac_ase.reference.prototypes import PROTOTYPES, lattice_constant, metallic_volume
from eac_ase.reference.recipe import (
    AlloyEntry,
    AmorphousEntry,
    CrystalEntry,
    MoleculeEntry,
    PhononEntry,
    SlabEntry,
    Task,
    WaterEntry,
    split_member,
)
from eac_model.errors import ConfigurationError, StructureError

_CLOSEST = 0.55  # of the sum of covalent radii: H–H 0.34 Å, Si–Si 1.22 Å
_ATTEMPTS = 50
_BONDED = 1.25  # of the sum of covalent radii
_FAR_WEIGHT = 0.05  # of pairs that are neither bonded nor an angle apart, against those that are
_SOFTEST = 0.5  # THz; softer phonons, and unstable ones, are left alone


def build(task: Task) -> Atoms:
    """Structure of a task; the same every time.

    Raises
    ------
    StructureError
        Random displacements bring atoms too close, again and again.
    ConfigurationError
        A package is missing that this kind of structure needs.
    """
    rng = np.random.default_rng(task.seed)
    for _ in range(_ATTEMPTS):
        match task.entry:
            case CrystalEntry() as entry:
                atoms = _crystal(entry, task.member, rng)
            case PhononEntry() as entry:
                atoms = _phonons(entry, task.member, rng)
            case AlloyEntry() as entry:
                atoms = _alloy(entry, task.member, rng)
            case SlabEntry() as entry:
                atoms = _slab(entry, task.member, rng)
            case MoleculeEntry() as entry:
                atoms = _molecule(entry, task.member, rng)
            case WaterEntry() as entry:
                atoms = _water(entry, task.member, rng)
            case AmorphousEntry() as entry:
                atoms = _amorphous(entry, task.member, rng)
        atoms.positions += rng.normal(size=(len(atoms), 3)) * rng.uniform(*task.entry.rattle)
        if not atoms.pbc.any():
            atoms.center(vacuum=task.entry.vacuum)  # type: ignore[union-attr]
        if not _collide(atoms):
            break
    else:
        raise StructureError(
            f"{task.key}: atoms come closer than {_CLOSEST:g} of the sum of their covalent radii "
            f"in each of {_ATTEMPTS} attempts. Lower scale, strain or rattle."
        )
    if task.entry.moments:
        atoms.set_initial_magnetic_moments(
            _moments(atoms, task.entry.moments, task.entry.order, rng)
        )
    return atoms


def _unit(formula: str, lattice: str, a: float | None, *, primitive: bool) -> Atoms:
    """Undistorted cell."""
    if lattice == "own":
        state: Any = reference_states[atomic_numbers[formula]]
        cubic = not primitive and state["symmetry"] in ("sc", "fcc", "bcc", "diamond")
        return _plain(bulk(formula, a=a, cubic=cubic))
    elements = tuple(Formula(formula).count())
    return PROTOTYPES[lattice].build(
        elements, a or lattice_constant(formula, lattice), primitive=primitive
    )


def _crystal(entry: CrystalEntry, member: str, rng: Generator) -> Atoms:
    formula, lattice = split_member(member)
    atoms = _unit(formula, lattice, entry.formulas[formula], primitive=not entry.conventional)
    atoms = atoms.repeat(entry.repeat)
    _deform(atoms, entry, rng)
    _take_out(atoms, entry.vacancies, rng)
    return atoms


def _alloy(entry: AlloyEntry, member: str, rng: Generator) -> Atoms:
    lattice = member.split("-", 1)[1]
    atoms = PROTOTYPES[lattice].build(("X",), 1.0, primitive=not entry.conventional)
    atoms = atoms.repeat(entry.repeat)
    if len(atoms) < 2:
        raise ConfigurationError(f"{entry.name}: an alloy needs two atoms or more; use repeat.")
    while len(set(atoms.symbols)) < 2:
        shares = rng.dirichlet(np.ones(len(entry.elements)))
        atoms.symbols = rng.choice(entry.elements, size=len(atoms), p=shares)
    volume = sum(metallic_volume(symbol) for symbol in atoms.symbols)
    atoms.set_cell(atoms.cell * (volume / atoms.get_volume()) ** (1 / 3), scale_atoms=True)
    _deform(atoms, entry, rng)
    return atoms


def _slab(entry: SlabEntry, member: str, rng: Generator) -> Atoms:
    formula, lattice = split_member(member)
    a = entry.formulas[formula]
    conventional = _unit(formula, lattice, a, primitive=False)
    primitive = _unit(formula, lattice, a, primitive=True)
    scale = rng.uniform(*entry.scale)
    normal = np.array(entry.miller) @ conventional.cell.reciprocal()
    # the same plane in the primitive cell gives the smallest surface cell
    indices = primitive.cell.array @ normal
    indices = indices / np.abs(indices[np.abs(indices) > 1e-6]).min()
    whole = next(k for k in itertools.count(1) if np.allclose(k * indices, np.rint(k * indices)))
    h, k, l = (int(index) for index in np.rint(whole * indices))
    atoms = surface(primitive, (h, k, l), entry.layers)
    atoms = _plain(atoms.repeat((*entry.repeat, 1)))
    atoms.set_cell(atoms.cell * scale, scale_atoms=True)
    strain = _strain(entry.strain, rng)
    strain[2] = strain[:, 2] = 0
    atoms.set_cell(atoms.cell @ (np.eye(3) + strain), scale_atoms=True)
    _take_out(atoms, entry.vacancies, rng)
    atoms.center(vacuum=entry.vacuum, axis=2)
    atoms.pbc = (True, True, False)
    return atoms


def _molecule(entry: MoleculeEntry, member: str, rng: Generator) -> Atoms:
    atoms = molecule(member)
    if entry.substitute:
        _substitute(atoms, entry.substitute, rng)
    atoms.euler_rotate(*rng.uniform(0, 360, 3))
    _deform(atoms, entry, rng)
    atoms.center(vacuum=entry.vacuum)
    return atoms


def _substitute(atoms: Atoms, choices: dict[str, tuple[str, ...]], rng: Generator) -> None:
    """Draw elements for the atoms; bonds get the length of the new radii, angles stay."""
    distances, before = atoms.get_all_distances(), _bond_lengths(atoms)
    bonded = distances < _BONDED * before
    np.fill_diagonal(bonded, False)
    atoms.symbols = [str(rng.choice(choices.get(symbol, (symbol,)))) for symbol in atoms.symbols]
    wanted = distances * _bond_lengths(atoms) / before
    weights = np.where(bonded, 1.0, _FAR_WEIGHT)
    for middle in range(len(atoms)):
        arms = (atoms.positions - atoms.positions[middle]) * (
            wanted[middle] / np.maximum(distances[middle], 1e-9)
        )[:, None]
        for a, b in combinations(np.flatnonzero(bonded[middle]), 2):
            if not bonded[a, b]:
                wanted[a, b] = wanted[b, a] = np.linalg.norm(arms[a] - arms[b])
                weights[a, b] = weights[b, a] = 1.0
    one, other = np.triu_indices(len(atoms), 1)

    def residuals(positions: NDArray[np.float64]) -> NDArray[np.float64]:
        lengths = pdist(positions.reshape(-1, 3))
        return weights[one, other] * (lengths / wanted[one, other] - 1)

    atoms.positions = least_squares(residuals, atoms.positions.ravel()).x.reshape(-1, 3)


def _bond_lengths(atoms: Atoms) -> NDArray[np.float64]:
    """Sums of the covalent radii of all pairs, (n, n), Å."""
    radii = covalent_radii[atoms.numbers]
    return np.add.outer(radii, radii)


def _phonons(entry: PhononEntry, member: str, rng: Generator) -> Atoms:
    """Displacements drawn from the harmonic canonical ensemble of the supercell (phonopy)."""
    try:
        from phonopy import Phonopy
        from phonopy.structure.atoms import PhonopyAtoms
    except ImportError as error:
        raise _missing("phonons", "phonopy") from error
    formula, lattice = split_member(member)
    unit = _unit(formula, lattice, entry.formulas[formula], primitive=not entry.conventional)
    unit = unit.repeat(entry.repeat)
    _deform(unit, entry, rng)
    model: Any = Phonopy(
        PhonopyAtoms(
            symbols=unit.get_chemical_symbols(),
            cell=unit.cell.array,
            scaled_positions=unit.get_scaled_positions(),
        ),
        supercell_matrix=np.eye(3, dtype=int),
        primitive_matrix=np.eye(3),
        log_level=0,
    )
    potential = _potential(entry.potential)
    model.generate_displacements(distance=0.01)
    forces = []
    for displaced in model.supercells_with_displacements:
        atoms = _from_phonopy(displaced)
        atoms.calc = potential
        forces.append(atoms.get_forces())
    model.forces = np.array(forces)
    model.produce_force_constants()
    model.generate_displacements(
        number_of_snapshots=1,
        random_seed=int(rng.integers(2**31)),
        temperature=float(rng.uniform(*entry.temperature)),
        cutoff_frequency=_SOFTEST,
    )
    return _from_phonopy(model.supercells_with_displacements[0])


def _from_phonopy(cell: Any) -> Atoms:
    return Atoms(cell.symbols, cell=cell.cell, scaled_positions=cell.scaled_positions, pbc=True)


def _potential(name: str) -> Calculator:
    if name == "emt":
        from ase.calculators.emt import EMT

        return EMT()
    try:
        from matscipy.calculators.manybody import Manybody
        from matscipy.calculators.manybody.explicit_forms import StillingerWeber
        from matscipy.calculators.manybody.explicit_forms.stillinger_weber import (
            Stillinger_Weber_PRB_31_5262_Si,
        )
    except ImportError as error:
        raise _missing("Stillinger–Weber forces", "matscipy") from error
    return Manybody(**StillingerWeber(Stillinger_Weber_PRB_31_5262_Si))


def _missing(what: str, package: str) -> ConfigurationError:
    return ConfigurationError(
        f"{what} need the package {package}: pip install 'eac-density[reference]'"
    )


def _amorphous(entry: AmorphousEntry, member: str, rng: Generator) -> Atoms:
    """Random positions, molten and quenched at constant volume."""
    from ase.md.langevin import Langevin

    count = int(member.removeprefix("Six"))
    mass = units._amu * 1e3 * 28.085 * count  # g
    edge = (mass / rng.uniform(*entry.density)) ** (1 / 3) * 1e8
    atoms = Atoms(f"Si{count}", cell=[edge] * 3, pbc=True)
    atoms.set_scaled_positions(rng.random((count, 3)))
    atoms.calc = _potential("stillinger-weber")
    _push_apart(atoms, 1.8)
    temperature = 3500.0
    dynamics = Langevin(
        atoms,
        2 * units.fs,
        temperature_K=temperature,
        friction=0.02 / units.fs,
        rng=rng,
        fixcm=False,
    )
    dynamics.run(entry.steps)
    final = rng.uniform(*entry.temperature)
    stages = 20
    for stage in range(stages):
        share = (stage + 1) / stages
        dynamics.set_temperature(temperature_K=temperature * (final / temperature) ** share)
        dynamics.run(max(1, entry.steps // stages))
    atoms = _plain(atoms)
    atoms.wrap()
    _deform(atoms, entry, rng)
    return atoms


def _push_apart(atoms: Atoms, distance: float) -> None:
    """Move atoms until no two are closer than `distance`, Å, or for a thousand rounds."""
    for _ in range(1000):
        first, vectors, lengths = neighbor_list("iDd", atoms, distance)
        if len(first) == 0:
            return
        push = vectors * ((distance - lengths) / np.maximum(lengths, 1e-3) / 2)[:, None]
        np.subtract.at(atoms.positions, first, push)


def _water(entry: WaterEntry, member: str, rng: Generator) -> Atoms:
    """TIP3P dynamics of rigid molecules, then bonds and angles of flexible ones."""
    from ase.calculators.tip3p import TIP3P, angleHOH, rOH
    from ase.constraints import FixBondLengths
    from ase.md.langevin import Langevin

    count = int(member.removeprefix("H2Ox"))
    in_box = count if entry.vacuum is None else max(4, 2 * count)
    one = molecule("H2O")
    one.set_initial_magnetic_moments(None)
    one.set_angle(1, 0, 2, angleHOH)
    one.set_distance(0, 1, rOH, fix=0)
    one.set_distance(0, 2, rOH, fix=0)
    one.positions -= one.positions[0]
    mass = in_box * one.get_masses().sum() * units._amu * 1e3
    edge = (mass / rng.uniform(*entry.density)) ** (1 / 3) * 1e8
    side = math.ceil(in_box ** (1 / 3))
    places = np.array(list(np.ndindex(side, side, side))) / side
    water = Atoms(cell=[edge] * 3, pbc=True)
    for place in rng.choice(places, in_box, replace=False):
        copy = one.copy()
        copy.euler_rotate(*rng.uniform(0, 360, 3))
        copy.positions += place * edge
        water += copy
    first = 3 * np.arange(in_box)
    pairs = np.concatenate([[(o, o + 1), (o, o + 2), (o + 1, o + 2)] for o in first])
    water.set_constraint(FixBondLengths(pairs, tolerance=1e-6))
    water.calc = TIP3P(rc=0.49 * edge, width=min(0.8, 0.2 * edge))
    Langevin(
        water,
        2.0 * units.fs,
        temperature_K=rng.uniform(*entry.temperature),
        friction=0.05 / units.fs,
        rng=rng,
        fixcm=False,
    ).run(entry.steps)
    water.set_constraint()
    for o in first.tolist():
        _bend_and_stretch(water, o, rng)
    water = _plain(water)
    if entry.vacuum is not None:
        return _cluster(water, count, rng, entry.vacuum)
    water.wrap()
    return water


def _bend_and_stretch(water: Atoms, o: int, rng: Generator) -> None:
    """Redraw bonds and angle of a molecule about the values of the flexible liquid."""
    a, b = (water.positions[o + k] - water.positions[o] for k in (1, 2))
    middle, across = a / np.linalg.norm(a) + b / np.linalg.norm(b), b - a
    middle, across = middle / np.linalg.norm(middle), across / np.linalg.norm(across)
    half = math.radians(rng.normal(105.5, 4.0)) / 2
    for k, side in ((1, -1), (2, 1)):
        direction = math.cos(half) * middle + side * math.sin(half) * across
        water.positions[o + k] = water.positions[o] + rng.normal(0.98, 0.025) * direction


def _cluster(water: Atoms, count: int, rng: Generator, vacuum: float) -> Atoms:
    """A molecule of the liquid and those nearest to it, cut out whole."""
    oxygens = np.arange(0, len(water), 3)
    centre = int(rng.choice(oxygens))
    vectors = water.get_distances(centre, oxygens, mic=True, vector=True)
    nearest = np.argsort(np.linalg.norm(vectors, axis=1))[:count]
    cluster = Atoms()
    for i in nearest:
        o = oxygens[i]
        one = water[o : o + 3]
        one.positions += vectors[i] - water.positions[o]
        cluster += one
    cluster.pbc = False
    cluster.center(vacuum=vacuum)
    return cluster


def _plain(atoms: Atoms) -> Atoms:
    """Symbols, positions, cell and pbc alone."""
    return Atoms(atoms.symbols, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)


def _strain(largest: float, rng: Generator) -> NDArray[np.float64]:
    strain = rng.uniform(-largest, largest, size=(3, 3))
    return (strain + strain.T) / 2


def _deform(
    atoms: Atoms,
    entry: CrystalEntry | PhononEntry | AlloyEntry | MoleculeEntry | AmorphousEntry,
    rng: Generator,
) -> None:
    """Scale and strain, the atoms with the cell."""
    matrix = rng.uniform(*entry.scale) * (np.eye(3) + _strain(entry.strain, rng))
    if atoms.cell.rank == 3:
        atoms.set_cell(atoms.cell @ matrix, scale_atoms=True)
    else:
        atoms.positions = atoms.positions @ matrix


def _take_out(atoms: Atoms, count: int, rng: Generator) -> None:
    if count >= len(atoms):
        raise ConfigurationError(
            f"{count} vacancies in {len(atoms)} atoms leave nothing; use repeat."
        )
    del atoms[sorted(rng.choice(len(atoms), count, replace=False).tolist())]


def _collide(atoms: Atoms) -> bool:
    radii = _CLOSEST * covalent_radii[atoms.numbers]
    return len(neighbor_list("i", atoms, radii)) > 0


def _moments(
    atoms: Atoms, of_element: dict[str, float], order: str, rng: Generator
) -> NDArray[np.float64]:
    moments = np.array([of_element.get(symbol, 0.0) for symbol in atoms.symbols])
    if order == "random":
        return moments * rng.choice([-1.0, 1.0], size=len(atoms))
    if order == "antiferromagnetic":
        for symbol in set(atoms.symbols):
            same = np.flatnonzero(atoms.symbols == symbol)
            moments[same[1::2]] *= -1
    return moments
