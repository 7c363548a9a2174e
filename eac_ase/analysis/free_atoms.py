"""Spherical densities of free atoms, ions and cores.

The tables in ``free_atoms.h5`` were made by :mod:`eac_ase.reference.free_atoms` (PBE, relativistic,
spin-paired). The superposition that a model carries takes no part here: it is fitted to densities
of whole structures, and its "atoms" may hold other numbers of electrons than neutral ones do.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import torch
from ase.data import chemical_symbols
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from torch import Tensor

from eac_model.errors import AnalysisError

TABLES = Path(__file__).with_name("free_atoms.h5")

STEP = 0.002
"""Å. Distance of radii at which densities are tabulated for linear interpolation."""

FAINT = 1e-6
"""e/Å³. A free atom ends where its density falls below this."""


@dataclass(frozen=True)
class RadialDensity:
    """A spherical density on equidistant radii."""

    values: NDArray[np.floating]
    """ρ(k · :data:`STEP`), e/Å³, shape (points,)."""

    @property
    def radius(self) -> float:
        """Where it ends, Å."""
        return STEP * (len(self.values) - 1)

    def at(self, distance: Tensor) -> Tensor:
        """Values at distances up to the radius, Å, by linear interpolation."""
        table = torch.as_tensor(self.values, device=distance.device)
        x = distance / STEP
        low = x.long().clamp(max=len(table) - 2)
        share = x - low
        return table[low] * (1 - share) + table[low + 1] * share

    def mixed(self, other: RadialDensity, share: float) -> RadialDensity:
        """(1 − share) · self + share · other."""
        size = max(len(self.values), len(other.values))
        first, second = (np.pad(d.values, (0, size - len(d.values))) for d in (self, other))
        return RadialDensity((1 - share) * first + share * second)

    def electrons(self) -> float:
        """Number of electrons, ∫4πr²ρ dr."""
        r = STEP * np.arange(len(self.values))
        return float(4 * np.pi * np.trapezoid(r**2 * self.values, r))


NOTHING = RadialDensity(np.zeros(2))


@dataclass(frozen=True)
class _Tables:
    radii: NDArray[np.floating]
    number: NDArray[np.integer]
    electrons: NDArray[np.floating]
    core: NDArray[np.bool_]
    logarithms: NDArray[np.floating]


@cache
def _tables() -> _Tables:
    with h5py.File(TABLES, "r") as file:
        names = ("radii", "number", "electrons", "core", "logarithms")
        return _Tables(*(file[name][...] for name in names))


@cache
def _radial(row: int) -> RadialDensity:
    tables = _tables()
    logarithm = CubicSpline(np.log(tables.radii), tables.logarithms[row].astype(float))
    r = np.arange(0, tables.radii[-1], STEP)
    values = np.exp(logarithm(np.log(np.maximum(r, tables.radii[0]))))
    bright = np.flatnonzero(values > FAINT)
    return RadialDensity(values[: bright[-1] + 2] if len(bright) else values[:2])


def _rows(number: int, core: bool) -> dict[int, int]:
    """Number of electrons → row of the tables."""
    tables = _tables()
    rows = np.flatnonzero((tables.number == number) & (tables.core == core))
    return {round(float(tables.electrons[row])): int(row) for row in rows}


def free_atom(number: int) -> RadialDensity:
    """The neutral atom, all its electrons.

    Parameters
    ----------
    number
        Atomic number.

    Raises
    ------
    AnalysisError
        There is no table of this element.
    """
    return free_ion(number, number)


def free_ion(number: int, electrons: float) -> RadialDensity:
    """An ion with any number of electrons.

    Between whole numbers densities are interpolated linearly (Bultinck et al., J. Chem. Phys. 126,
    144111, eq. 6); beyond the tables (charges −1 or −2 … +4) the last one is scaled.

    Raises
    ------
    AnalysisError
        There is no table of this element.
    """
    rows = _rows(number, core=False)
    if not rows:
        raise AnalysisError(
            f"There is no free atom of {chemical_symbols[number]} in the tables: Hirshfeld "
            "schemes cannot be used for it. Take bader or voronoi."
        )
    known = {n: _radial(row) for n, row in rows.items()}
    known.setdefault(0, NOTHING)
    lowest, highest = min(known), max(known)
    if electrons >= highest:
        return RadialDensity(known[highest].values * (electrons / highest))
    if electrons <= lowest:
        return RadialDensity(known[lowest].values * (max(electrons, 0.0) / max(lowest, 1)))
    below = max(n for n in known if n <= electrons)
    above = min(n for n in known if n > electrons)
    return known[below].mixed(known[above], (electrons - below) / (above - below))


def core_density(number: int, electrons: float) -> RadialDensity:
    """The deepest shells of the neutral atom that hold some number of electrons.

    Raises
    ------
    AnalysisError
        No set of whole shells holds that number.
    """
    if electrons == 0:
        return NOTHING
    rows = _rows(number, core=True)
    row = rows.get(round(electrons)) if abs(electrons - round(electrons)) < 1e-6 else None
    if row is None:
        symbol = chemical_symbols[number]
        known = ", ".join(str(number - n) for n in sorted(rows, reverse=True)) or "none"
        raise AnalysisError(
            f"{symbol} with {number - electrons:g} valence electrons: no whole shells remain for "
            f"the core (tables exist for {known}). Check the valence electrons, or give the "
            "reference density for the basins yourself."
        )
    return _radial(row)
