"""Crystal structures by name, and estimates of their lattice constants."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.data import atomic_numbers, covalent_radii, reference_states
from ase.formula import Formula
from ase.neighborlist import neighbor_list
from ase.spacegroup import crystal
from numpy.typing import NDArray


@dataclass(frozen=True)
class Prototype:
    """A crystal structure, by the Wyckoff positions that the elements of a formula take."""

    spacegroup: int
    """Number of the space group."""
    sites: tuple[tuple[int, tuple[float, float, float]], ...]
    """Number of the element in the formula, and a position, fractions of the conventional
    cell."""
    ratio: float = 1.0
    """c / a."""
    hexagonal: bool = False
    """Whether the conventional cell is hexagonal."""
    setting: int = 1
    """Setting of the space group, as in ASE."""
    packed: bool = False
    """Elements: whether the atomic volume, rather than the bond length, is that of the metal."""
    bond: float = 0.95
    """Elements that are not packed: bond length over that of the close-packed metal."""

    @cached_property
    def shares(self) -> tuple[int, ...]:
        """Numbers of atoms of each element, without common factors."""
        counts = self.build(_STAND_INS, 10.0).symbols.formula.count()
        present = _STAND_INS[: len({element for element, _ in self.sites})]
        return without_common_factor([counts[symbol] for symbol in present])

    def build(self, elements: tuple[str, ...], a: float, *, primitive: bool = True) -> Atoms:
        """The crystal with lattice constant `a`, Å."""
        symbols, positions = zip(*((elements[e], place) for e, place in self.sites), strict=True)
        gamma = 120 if self.hexagonal else 90
        atoms = crystal(
            symbols,
            positions,
            spacegroup=self.spacegroup,
            setting=self.setting,
            cellpar=[a, a, a * self.ratio, 90, 90, gamma],
            primitive_cell=primitive,
        )
        return Atoms(atoms.symbols, atoms.positions, cell=atoms.cell, pbc=True)


_STAND_INS = ("H", "He", "Li", "Be")
"""Elements that take the places of any others where only places matter."""

_O = (0.0, 0.0, 0.0)
_Q = (0.25, 0.25, 0.25)
_H = (0.5, 0.5, 0.5)
_E = (0.125, 0.125, 0.125)
_THIRD = (1 / 3, 2 / 3, 0.25)
_HEX: dict[str, Any] = {"hexagonal": True}

PROTOTYPES: dict[str, Prototype] = {
    # elements
    "sc": Prototype(221, ((0, _O),), bond=0.95),
    "fcc": Prototype(225, ((0, _O),), packed=True),
    "bcc": Prototype(229, ((0, _O),), packed=True),
    "hcp": Prototype(194, ((0, _THIRD),), ratio=1.633, packed=True, **_HEX),
    "diamond": Prototype(227, ((0, _O),), bond=0.9),
    "lonsdaleite": Prototype(194, ((0, (1 / 3, 2 / 3, 0.0625)),), ratio=1.633, bond=0.9, **_HEX),
    "beta-tin": Prototype(141, ((0, _O),), ratio=0.55, bond=0.94),
    "bc8": Prototype(206, ((0, (0.1003, 0.1003, 0.1003)),), bond=0.9),
    "omega": Prototype(191, ((0, _O), (0, (1 / 3, 2 / 3, 0.5))), ratio=0.613, packed=True, **_HEX),
    "graphite": Prototype(194, ((0, (0, 0, 0.25)), (0, _THIRD)), ratio=2.72, bond=0.85, **_HEX),
    # binaries
    "rocksalt": Prototype(225, ((0, _O), (1, _H))),
    "zincblende": Prototype(216, ((0, _O), (1, _Q))),
    "wurtzite": Prototype(
        186, ((0, (1 / 3, 2 / 3, 0)), (1, (1 / 3, 2 / 3, 0.375))), ratio=1.633, **_HEX
    ),
    "nickeline": Prototype(194, ((0, _O), (1, _THIRD)), ratio=1.5, **_HEX),
    "cscl": Prototype(221, ((0, _O), (1, _H))),
    "l10": Prototype(123, ((0, _O), (1, _H)), ratio=1.35),
    "fluorite": Prototype(225, ((0, _O), (1, _Q))),
    "antifluorite": Prototype(225, ((0, _Q), (1, _O))),
    "rutile": Prototype(136, ((0, _O), (1, (0.305, 0.305, 0))), ratio=0.65),
    "cdi2": Prototype(164, ((0, _O), (1, (1 / 3, 2 / 3, 0.25))), ratio=1.6, **_HEX),
    "cuprite": Prototype(224, ((0, _O), (1, _Q)), setting=2),
    "pyrite": Prototype(205, ((0, _O), (1, (0.385, 0.385, 0.385)))),
    "alb2": Prototype(191, ((0, _O), (1, (1 / 3, 2 / 3, 0.5))), ratio=1.1, **_HEX),
    "l12": Prototype(221, ((0, (0, 0.5, 0.5)), (1, _O))),
    "d03": Prototype(225, ((0, _Q), (0, _H), (1, _O))),
    "laves": Prototype(227, ((0, _E), (1, _H)), setting=2),
    "cristobalite": Prototype(227, ((0, _E), (1, _O)), setting=2),
    "quartz": Prototype(
        154, ((0, (0.4697, 0, 2 / 3)), (1, (0.4133, 0.2672, 0.7855))), ratio=1.1, **_HEX
    ),
    "corundum": Prototype(167, ((0, (0, 0, 0.352)), (1, (0.306, 0, 0.25))), ratio=2.73, **_HEX),
    # ternaries
    "perovskite": Prototype(221, ((0, _O), (1, _H), (2, (0.5, 0.5, 0)))),
    "half-heusler": Prototype(216, ((0, _H), (1, _Q), (2, _O))),
    "heusler": Prototype(225, ((0, _Q), (1, _H), (2, _O))),
    "chalcopyrite": Prototype(
        122, ((0, _O), (1, (0, 0, 0.5)), (2, (0.23, 0.25, 0.125))), ratio=2.0
    ),
}
"""Crystal structures by name. The elements of a formula take the sites in their order: ``SrTiO3``
for ``perovskite``, ``Cu3Au`` for ``l12``, ``TiNiSn`` for ``half-heusler``, ``Cu2MnAl`` for
``heusler``; ``l10`` has the tetragonal cell of two atoms."""

_NONMETALS = frozenset(
    ["H", "B", "C", "N", "O", "F", "Si", "P", "S", "Cl", "Ge", "As", "Se", "Br", "Sb", "Te", "I"]
)

_CHAINS = ("Se", "Te")  # which ASE lists as hcp


def without_common_factor(counts: Iterable[int]) -> tuple[int, ...]:
    """Divide by the greatest common divisor: (2, 4) → (1, 2)."""
    counts = tuple(counts)
    divisor = math.gcd(*counts)
    return tuple(count // divisor for count in counts)


@cache
def lattice_constant(formula: str, lattice: str) -> float:
    """Estimate of a, Å, within some per cent.

    Elements have the volume of the metal at room temperature in packed structures, else its
    nearest-neighbour distance times a factor; where the element is no packed metal, that distance
    is 2.35 covalent radii. Compounds of metals have the sum of the volumes of the elements (Zen's
    law); with a non-metal, the closest unlike pair is 1.02 times the sum of the covalent radii
    apart.
    """
    elements = tuple(Formula(formula).count())
    prototype = PROTOTYPES[lattice]
    unit, first, second, distances = _unit(lattice)
    symbols = [elements[_STAND_INS.index(symbol)] for symbol in unit.symbols]
    if prototype.packed or (len(elements) > 1 and not _NONMETALS & set(elements)):
        volume = sum(map(metallic_volume, symbols))
        return float(10.0 * (volume / unit.get_volume()) ** (1 / 3))
    if len(elements) == 1:
        distance = (math.sqrt(2) * metallic_volume(elements[0])) ** (1 / 3)
        return float(10.0 * prototype.bond * distance / distances.min())
    numbers = np.array([atomic_numbers[symbol] for symbol in symbols])
    unlike = numbers[first] != numbers[second]
    radii = covalent_radii[numbers[first]] + covalent_radii[numbers[second]]
    return float(10.0 * 1.02 * (radii[unlike] / distances[unlike]).max())


@cache
def _unit(lattice: str) -> tuple[Atoms, NDArray, NDArray, NDArray]:
    """The crystal with a = 10 Å, of stand-ins, and its pairs: first, second, distances up to a."""
    unit = PROTOTYPES[lattice].build(_STAND_INS, 10.0)
    first, second, distances = neighbor_list("ijd", unit, 10.5)
    return unit, first, second, distances


@cache
def metallic_volume(symbol: str) -> float:
    """Volume of an atom of the close-packed metal, Å³."""
    state = reference_states[atomic_numbers[symbol]]
    if state is not None and state["symmetry"] in ("fcc", "bcc", "hcp") and symbol not in _CHAINS:
        atoms = bulk(symbol)
        return float(atoms.get_volume() / len(atoms))
    return float((2.35 * covalent_radii[atomic_numbers[symbol]]) ** 3 / math.sqrt(2))
