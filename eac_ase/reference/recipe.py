"""What decides a set of reference data: one frozen object, read from YAML.

The field docstrings are the documentation of the keys. An entry of a recipe describes a family of
structures, by members (crystals, molecules …) and a number of random variants of each. A structure
is a function of its entry, its member, its number and the seed alone, so entries may be added and
counts raised at any time without changing a structure that is there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from ase.build import bulk
from ase.data import atomic_numbers
from ase.formula import Formula
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from eac_ase.reference.prototypes import PROTOTYPES, lattice_constant, without_common_factor
from eac_model.errors import ConfigurationError, list_problems
from eac_model.files import read_mapping

Split = Literal["train", "validation", "test"]

Count = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Index = Annotated[int, Field(ge=0)]
Repeats = tuple[Count, Count, Count]

_VERSION = 1  # of the builders: raise it when they make other structures of the same recipe


def _as_range(value: Any) -> Any:
    return (value, value) if isinstance(value, int | float) else value


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _as_numbers(value: Any) -> Any:
    return (value,) if isinstance(value, int) else value


def _as_mapping(value: Any) -> Any:
    if isinstance(value, str):
        value = [value]
    return dict.fromkeys(value) if isinstance(value, list | tuple) else value


def _ascending(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError(f"the range {value[0]:g} … {value[1]:g} is empty")
    return value


Range = Annotated[
    tuple[NonNegativeFloat, NonNegativeFloat],
    BeforeValidator(_as_range),
    AfterValidator(_ascending),
]
Symbols = Annotated[tuple[str, ...], BeforeValidator(_as_tuple), Field(min_length=1)]
Counts = Annotated[tuple[Count, ...], BeforeValidator(_as_numbers), Field(min_length=1)]
LatticeConstants = Annotated[
    dict[str, PositiveFloat | None], BeforeValidator(_as_mapping), Field(min_length=1)
]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Settings(_Section):
    """Settings of the calculations: plane waves, GPAW's default PAW data sets and mixer."""

    xc: str = "PBE"
    """Exchange–correlation functional."""
    cutoff: PositiveFloat = 400.0
    """Cutoff of the plane waves, eV."""
    kpoint_density: PositiveFloat | None = 2.2
    """Γ-centred k-points, n_i = ⌈kpoint_density · |b_i|⌉ with the reciprocal vectors b_i in Å⁻¹
    (2π included), 1 along directions without periodicity; null: Γ alone."""
    smearing: NonNegativeFloat = 0.1
    """Width of the Fermi–Dirac distribution, eV; 0: none."""
    density_convergence: PositiveFloat = 1e-5
    """Convergence of the density, electrons for each valence electron."""
    max_iterations: Count = 150
    """A calculation that needs more has failed."""


class SettingsChange(_Section):
    """Settings that an entry has different from the rest of the recipe."""

    xc: str | None = None
    """As in the settings of the recipe."""
    cutoff: PositiveFloat | None = None
    """As in the settings of the recipe."""
    kpoint_density: PositiveFloat | None = None
    """As in the settings of the recipe; null, where it is given: Γ alone."""
    smearing: NonNegativeFloat | None = None
    """As in the settings of the recipe."""
    density_convergence: PositiveFloat | None = None
    """As in the settings of the recipe."""
    max_iterations: Count | None = None
    """As in the settings of the recipe."""


class _Entry(_Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    """Name of the entry; part of the seed of its structures and of their keys."""
    split: Split = "train"
    """Where the samples go: into the store itself, or into one beside it for ``validation`` or
    ``test``. Random variants of one member belong into one split unless a model is meant to be
    judged on new displacements of structures it knows."""
    count: Count = 1
    """Number of random variants of every member."""
    settings: SettingsChange = SettingsChange()
    """Settings that differ from those of the recipe."""

    defaults: ClassVar[dict[str, Any]] = {}
    lists: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="after")
    def _members_differ(self) -> Self:
        names = self.members()
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{twice[0]!r} is there twice")
        return self

    def members(self) -> tuple[str, ...]:
        """Names of the members."""
        raise NotImplementedError


class _Distorted(_Entry):
    scale: Range = (1.0, 1.0)
    """Factor of all lengths of the lattice: a number, or a range to draw from."""
    strain: Annotated[float, Field(ge=0, le=0.3)] = 0.0
    """Largest component of the random symmetric strain."""
    rattle: Range = (0.0, 0.0)
    """Standard deviation of random displacements, Å, for each Cartesian component: a number, or a
    range to draw it from."""
    moments: dict[str, float] = Field(default_factory=dict)
    """Initial magnetic moments by element, μ_B; elements left out have none. Only structures with
    moments are calculated with spin."""
    order: Literal["ferromagnetic", "antiferromagnetic", "random"] = "ferromagnetic"
    """Signs of the moments: all positive; alternating among the atoms of an element; drawn."""

    @field_validator("moments")
    @classmethod
    def _elements_exist(cls, value: dict[str, float]) -> dict[str, float]:
        for symbol in value:
            _check_element(symbol)
        return value


class _OfCrystals(_Distorted):
    lists: ClassVar[tuple[str, ...]] = ("lattices", "formulas")

    lattices: Symbols = ("own",)
    """Prototypes (see below), or ``own`` for the structure
    of an element at room temperature."""
    formulas: LatticeConstants
    """Formulas with lattice constants a in Å, or a list of formulas; without a lattice constant
    one is estimated from atomic volumes or radii. The elements of a formula take the sites of the
    prototype in their order."""

    @model_validator(mode="after")
    def _prototypes_exist(self) -> Self:
        for lattice in self.lattices:
            if lattice != "own" and lattice not in PROTOTYPES:
                raise ValueError(
                    f"lattices: no prototype {lattice!r}; known: own, {', '.join(PROTOTYPES)}"
                )
            for formula in self.formulas:
                shares = _shares(formula)
                wanted = (1,) if lattice == "own" else PROTOTYPES[lattice].shares
                if shares != wanted:
                    raise ValueError(
                        f"formulas: the elements of {formula} are as {_ratio(shares)}, those of "
                        f"{lattice} as {_ratio(wanted)}"
                    )
                if lattice == "own" and not _has_own_lattice(formula):
                    raise ValueError(
                        f"formulas: ASE knows no crystal of {formula!r} with one lattice constant; "
                        "name a lattice other than own"
                    )
        return self

    def members(self) -> tuple[str, ...]:
        """``formula-lattice``."""
        return tuple(f"{f}-{lattice}" for lattice in self.lattices for f in self.formulas)


class CrystalEntry(_OfCrystals):
    """Crystals of elements and compounds, strained and rattled, with vacancies if wanted."""

    kind: Literal["crystal"]
    """Crystals."""
    conventional: bool = False
    """Conventional instead of primitive cells."""
    repeat: Repeats = (1, 1, 1)
    """Cells along the lattice vectors."""
    vacancies: Annotated[int, Field(ge=0)] = 0
    """Atoms taken out at random."""


class PhononEntry(_OfCrystals):
    """Crystals displaced along their phonons at a temperature (phonopy, classical potential)."""

    kind: Literal["phonons"]
    """Thermal displacements."""
    conventional: bool = True
    """Conventional instead of primitive cells."""
    repeat: Repeats = (1, 1, 1)
    """Cells along the lattice vectors."""
    temperature: Range = (300.0, 300.0)
    """Temperature, K: a number, or a range to draw from."""
    potential: Literal["emt", "stillinger-weber"]
    """Source of the force constants: ``emt`` is ASE's for Al, Cu, Ag, Au, Ni, Pd, Pt, the other
    matscipy's for Si."""

    @model_validator(mode="after")
    def _potential_knows_the_elements(self) -> Self:
        for formula in self.formulas:
            if self.potential == "stillinger-weber" and set(Formula(formula).count()) != {"Si"}:
                raise ValueError(f"potential: stillinger-weber is of Si, not of {formula}")
        return self


class AlloyEntry(_Distorted):
    """Random alloys: elements drawn for the sites of a lattice, volume by Zen's law."""

    kind: Literal["alloy"]
    """Random alloys."""
    elements: Annotated[Symbols, Field(min_length=2)]
    """Elements to draw from; at least two occur in every structure."""
    lattices: Symbols = ("fcc",)
    """Prototypes of one element."""
    conventional: bool = True
    """Conventional instead of primitive cells."""
    repeat: Repeats = (1, 1, 1)
    """Cells along the lattice vectors."""

    lists: ClassVar[tuple[str, ...]] = ("lattices",)

    @model_validator(mode="after")
    def _lattices_exist(self) -> Self:
        for symbol in self.elements:
            _check_element(symbol)
        if len(set(self.elements)) < 2:
            raise ValueError("elements: an alloy has two elements or more")
        for lattice in self.lattices:
            if lattice not in PROTOTYPES or PROTOTYPES[lattice].shares != (1,):
                raise ValueError(f"lattices: {lattice!r} is no prototype of one element")
        return self

    def members(self) -> tuple[str, ...]:
        """``elements-lattice``."""
        return tuple(f"{''.join(self.elements)}-{lattice}" for lattice in self.lattices)


class SlabEntry(_OfCrystals):
    """Surfaces: slabs with vacuum on both sides, periodic along the surface alone."""

    kind: Literal["slab"]
    """Slabs."""
    miller: tuple[Index, Index, Index]
    """Miller indices of the surface in the conventional cell."""
    layers: Count = 4
    """Repeats of the primitive surface cell along the normal."""
    repeat: tuple[Count, Count] = (1, 1)
    """Surface cells along the surface."""
    vacuum: PositiveFloat = 4.0
    """Vacuum on either side, Å."""
    vacancies: Annotated[int, Field(ge=0)] = 0
    """Atoms taken out at random."""

    @field_validator("miller")
    @classmethod
    def _is_a_plane(cls, value: tuple[int, int, int]) -> tuple[int, int, int]:
        if not any(value):
            raise ValueError("a plane has an index other than 0")
        return value

    def members(self) -> tuple[str, ...]:
        """``formula-lattice-hkl``."""
        plane = "".join(map(str, self.miller))
        return tuple(f"{member}-{plane}" for member in super().members())


class MoleculeEntry(_Distorted):
    """Molecules of ASE's G2 collection in vacuum."""

    kind: Literal["molecule"]
    """Molecules."""
    molecules: Symbols
    """Names known to ``ase.build.molecule``; open shells bring their magnetic moments."""
    vacuum: PositiveFloat = 3.5
    """Vacuum on every side, Å."""
    substitute: dict[str, Symbols] = Field(default_factory=dict)
    """For elements the elements that every atom of theirs becomes, drawn one by one; repeat those
    wanted more often. Bonds take the length of the new radii, angles stay. Elements of the same
    valence keep closed shells closed."""

    defaults: ClassVar[dict[str, Any]] = {"kpoint_density": None, "smearing": 0.0}
    lists: ClassVar[tuple[str, ...]] = ("molecules",)

    @field_validator("substitute")
    @classmethod
    def _substitutes_exist(cls, value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for symbol, others in value.items():
            for element in (symbol, *others):
                _check_element(element)
        return value

    @field_validator("molecules")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        from ase.build.molecule import extra
        from ase.collections import g2

        unknown = [name for name in value if name not in g2.names and name not in extra]
        if unknown:
            raise ValueError(f"ASE knows no molecules {', '.join(unknown)}")
        return value

    def members(self) -> tuple[str, ...]:
        """Names of the molecules."""
        return self.molecules


class WaterEntry(_Distorted):
    """Liquid water: snapshots of TIP3P molecular dynamics, bonds and angles redrawn."""

    kind: Literal["water"]
    """Liquid water."""
    molecules: Counts
    """Numbers of molecules in the cubic cell."""
    density: Range = (1.0, 1.0)
    """g/cm³: a number, or a range to draw from."""
    temperature: Range = (300.0, 300.0)
    """K: a number, or a range to draw from."""
    vacuum: PositiveFloat | None = None
    """Instead of the liquid, clusters of so many neighbouring molecules cut out of it, with this
    much vacuum on every side, Å."""
    steps: Count = 300
    """Steps of 2 fs, from molecules on a lattice."""

    defaults: ClassVar[dict[str, Any]] = {"kpoint_density": None, "smearing": 0.0}
    lists: ClassVar[tuple[str, ...]] = ("molecules",)

    @model_validator(mode="after")
    def _density_alone_decides_the_cell(self) -> Self:
        if self.scale != (1.0, 1.0) or self.strain:
            raise ValueError("scale and strain mean nothing for water; give a range of density")
        return self

    def members(self) -> tuple[str, ...]:
        """``H2Ox8``."""
        return tuple(f"H2Ox{count}" for count in self.molecules)


class AmorphousEntry(_Distorted):
    """Amorphous silicon: melted and quenched with a Stillinger–Weber potential."""

    kind: Literal["amorphous"]
    """Melt and quench."""
    atoms: Counts
    """Numbers of atoms in the cubic cell."""
    density: Range = (2.2, 2.35)
    """g/cm³: a number, or a range to draw from."""
    temperature: Range = (100.0, 600.0)
    """Temperature that the quench ends at, K: a number, or a range to draw from."""
    steps: Count = 600
    """Steps of 2 fs of the melt at 3500 K, and again of the quench."""

    lists: ClassVar[tuple[str, ...]] = ("atoms",)

    def members(self) -> tuple[str, ...]:
        """``Six8``."""
        return tuple(f"Six{count}" for count in self.atoms)


Entry = (
    CrystalEntry
    | PhononEntry
    | AlloyEntry
    | SlabEntry
    | MoleculeEntry
    | WaterEntry
    | AmorphousEntry
)


@dataclass(frozen=True)
class Task:
    """A structure to calculate."""

    key: str
    """Identity in the store: entry, member, number, and a digest of everything that decides the
    structure and its settings."""
    split: Split
    """Store that it goes to."""
    entry: Entry
    """The entry it belongs to."""
    member: str
    """Which of the members."""
    seed: tuple[int, ...]
    """Seed of its random numbers."""
    settings: Settings
    """Settings of the calculation."""


class Recipe(_Section):
    """A set of reference data."""

    settings: Settings = Settings()
    """Settings of all calculations; entries may differ."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of all structures."""
    time_limit: PositiveFloat = 600.0
    """Seconds of CPU time a structure may take, its making included; then it has failed."""
    structures: Annotated[
        tuple[Annotated[Entry, Field(discriminator="kind")], ...], Field(min_length=1)
    ]
    """Entries, see below. One variant of every member is calculated, then the next of every one, in
    an order drawn at random, so that an unfinished store is a fair part of the whole."""

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [entry.name for entry in self.structures]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"structures: two entries have the name {name!r}")
        return self

    @classmethod
    def from_yaml(cls, path: str | Path) -> Recipe:
        """Read a recipe.

        Raises
        ------
        ConfigurationError
            The file cannot be read or is no YAML, or a key is unknown, missing or of a wrong
            value; the message names the file, the entry and the key.
        """
        content = read_mapping(path)
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            problems = list_problems(error, lambda location: _key(location, content))
            raise ConfigurationError(f"{path}: {problems}") from error

    def tasks(self) -> Iterator[Task]:
        """All structures, in the order of calculation."""
        for index in range(max(entry.count for entry in self.structures)):
            variants = (
                self._task(entry, member, index)
                for entry in self.structures
                if index < entry.count
                for member in entry.members()
            )
            # A digest of the name, so that more entries leave the order of the others as it is.
            yield from sorted(variants, key=lambda task: task.seed)

    def _task(self, entry: Entry, member: str, index: int) -> Task:
        settings = self.settings_of(entry)
        place = f"{entry.name}/{member}/{index:04d}"
        # without lists of members: one more must not change the keys of those that are there
        aside = {"name", "split", "count", "settings", *entry.lists}
        everything = [
            _VERSION,
            self.seed,
            place,
            # without defaults: keys must survive a new field; a new default raises _VERSION
            entry.model_dump(mode="json", exclude=aside, exclude_defaults=True),
            _constant(entry, member),
            settings.model_dump(mode="json"),
        ]
        digest = hashlib.sha256(json.dumps(everything).encode()).hexdigest()
        name = hashlib.sha256(place.encode()).digest()
        return Task(
            key=f"{place} {digest[:12]}",
            split=entry.split,
            entry=entry,
            member=member,
            seed=(self.seed, int.from_bytes(name[:4], "little")),
            settings=settings,
        )

    def settings_of(self, entry: Entry) -> Settings:
        """Settings of an entry: its own, then what its kind needs, then the recipe's."""
        own = {
            key: value
            for key, value in entry.settings.model_dump(exclude_unset=True).items()
            if value is not None or key == "kpoint_density"
        }
        return self.settings.model_copy(update={**type(entry).defaults, **own})


def _constant(entry: Entry, member: str) -> float | None:
    """Lattice constant of a member, estimated if the recipe gives none."""
    if not isinstance(entry, CrystalEntry | PhononEntry | SlabEntry):
        return None
    formula, lattice = split_member(member)
    a = entry.formulas[formula]
    return round(lattice_constant(formula, lattice), 6) if a is None and lattice != "own" else a


def split_member(member: str) -> tuple[str, str]:
    """Formula and lattice of a member ``formula-lattice`` or ``formula-lattice-hkl``."""
    formula, lattice = member.split("-", 1)
    plane = lattice.rpartition("-")[2]
    return formula, lattice.removesuffix(f"-{plane}") if plane.isdigit() else lattice


def _check_element(symbol: str) -> None:
    if atomic_numbers.get(symbol, 0) < 1:
        raise ValueError(f"{symbol!r} is no element")


def _has_own_lattice(formula: str) -> bool:
    # Of some structures ASE knows the lattice and not the places of the atoms.
    try:
        bulk(formula)
    except (ValueError, KeyError, RuntimeError):  # the last also of what is not implemented
        return False
    return True


def _shares(formula: str) -> tuple[int, ...]:
    """Numbers of atoms of each element, in the order written, without common factors."""
    try:
        counts = Formula(formula).count()
    except ValueError:
        raise ValueError(f"formulas: {formula!r} is no formula") from None
    for symbol in counts:
        _check_element(symbol)
    return without_common_factor(counts.values())


def _ratio(shares: tuple[int, ...]) -> str:
    return ":".join(map(str, shares))


def _key(location: tuple[int | str, ...], content: dict[str, Any]) -> str:
    parts = list(location)
    if len(parts) > 1 and parts[0] == "structures" and isinstance(parts[1], int):
        entry = content["structures"][parts[1]]
        name = entry.get("name") if isinstance(entry, dict) else None
        # the third part is the kind, which pydantic chose the class by
        parts = [f"structures[{name or parts[1]}]", *parts[3:]]
    return ".".join(map(str, parts)) or "recipe"
