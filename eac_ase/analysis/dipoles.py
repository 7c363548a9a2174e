"""Dipole moments of molecules and slabs, from a density on a grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eac_ase.analysis.moments import PART, charge_of, check_inside, valences_of
from eac_ase.analysis.paw import sphere_moments
from eac_ase.grid import DensityGrid
from eac_model.errors import AnalysisError

Array = NDArray[np.floating]

EMPTY = 3e-3
"""e/Å³. A layer with less everywhere is vacuum."""

GAP = 0.5
"""Å. Thinner vacuum does not separate a structure from its periodic images."""


@dataclass(frozen=True)
class Charges:
    """Ions of a density, and the factor that makes it hold the right number of electrons."""

    ions: Array
    """Charges at the nuclei, e, shape (n,): valences, or nuclei and augmentation spheres."""
    firsts: Array
    """Dipoles of electrons at the nuclei, e·Å, electrons positive, shape (n, 3)."""
    factor: float
    """Multiplies the values of the grid."""
    charge: float
    """Charge of the cell, e."""


def charges_of(
    grid: DensityGrid,
    valence_electrons: Mapping[str, float] | None,
    charge: float | None,
    normalize: bool = True,
) -> Charges:
    """What has to be added to a density on a grid so that it is the charge density.

    Raises
    ------
    AnalysisError
        The density does not say how many electrons the neutral atoms have, it holds others, or
        atoms lie outside of its box.
    """
    check_inside(grid)
    firsts: Array = np.zeros((len(grid.atoms), 3))
    if grid.kind == "pseudo":
        spheres = sphere_moments(grid)
        ions, firsts = -np.sqrt(4 * np.pi) * spheres.coefficients[:, 0], spheres.firsts
    elif (valences := valences_of(grid, valence_electrons)) is not None:
        ions = valences
    else:
        raise AnalysisError(
            f"The charges of the ions are not known: this density is of the kind {grid.kind!r}. "
            "Give valence_electrons, the electrons of each neutral atom that it counts."
        )
    found = grid.integrate()
    total = charge_of(grid.atoms, charge, found, float(ions.sum())) if normalize else 0.0
    factor = (ions.sum() - total) / found if normalize and found > 0 else 1.0
    if abs(factor - 1) > PART:
        raise AnalysisError(
            f"The density holds {found:.3f} electrons, its ions have the charge {ions.sum():.3f} "
            f"and the cell {total:g}: give its charge, or check the valence electrons."
        )
    return Charges(ions, firsts, float(factor), float(ions.sum() - factor * found))


@dataclass(frozen=True)
class Gap:
    """Vacuum between a structure and its image along one vector of the grid."""

    middle: float
    """Where it is, fraction of the vector, 0 … 1."""
    width: float
    """Thickness normal to the other two vectors, Å."""


def vacuum_gaps(grid: DensityGrid) -> tuple[Gap | None, Gap | None, Gap | None]:
    """The widest vacuum along each vector.

    None where there is less than :data:`GAP`; along open directions the vacuum at the faces of the
    box, None where these lie in the density.
    """
    a, b, c = (_gap(grid, axis) for axis in range(3))
    return a, b, c


def _gap(grid: DensityGrid, axis: int) -> Gap | None:
    others = tuple(k for k in range(3) if k != axis)
    n = grid.shape[axis]
    layers = np.asarray(grid.values, dtype=float).max(axis=others)
    empty = layers < EMPTY
    # The upper face is a step beyond the last layer, and densities fall off exponentially.
    before_last = layers[-2] if n > 1 else 0.0
    upper = layers[-1] * min(1.0, layers[-1] / before_last) if before_last > 0 else layers[-1]
    whole = empty[0] and upper < EMPTY
    height = 1 / float(np.linalg.norm(np.linalg.inv(grid.cell)[:, axis]))
    if empty.all() or not empty.any() or not (grid.pbc[axis] or whole):
        return None
    if not grid.pbc[axis]:
        # What counts is the vacuum at the faces of the box.
        before, after = int(np.argmin(empty)), int(np.argmin(empty[::-1]))
        return Gap(((before - 1 - after) / 2 / n) % 1.0, height * (before + after) / n)
    # Begin where the density does, so that no gap is cut in two.
    first = int(np.flatnonzero(~empty)[0])
    best, start, length = 0, 0, 0
    for k in range(n):
        length = length + 1 if empty[(first + k) % n] else 0
        if length > best:
            best, start = length, first + k - length + 1
    width = height * best / n
    middle = ((start + (best - 1) / 2) / n) % 1.0
    return Gap(middle, width) if width >= GAP else None


@dataclass(frozen=True)
class DipoleMoment:
    """A dipole moment, as far as there is one."""

    vector: Array
    """e·Å, from negative to positive charge, shape (3,); without the components along directions in
    which the structure repeats, which mean nothing."""
    directions: Array
    """Orthonormal directions in which it is defined, shape (k, 3): three for molecules, the normal
    for slabs."""
    charge: float
    """Charge of the cell, e."""
    origin: Array
    """What it is taken about, Å, shape (3,): the centre of mass. Of no effect without charge."""


def dipole_moment(
    grid: DensityGrid,
    *,
    valence_electrons: Mapping[str, float] | None = None,
    charge: float | None = None,
    normalize: bool = True,
) -> DipoleMoment:
    """Dipole moment of a molecule or slab, periodic cells with vacuum included.

    The cell is cut in the middle of its vacuum, so that nothing is cut but vacuum.

    Parameters
    ----------
    grid
        Valence or all-electron density, or GPAW's pseudo density with matrices D.
    valence_electrons, charge, normalize
        As for :func:`~eac_ase.analysis.partition`.

    Raises
    ------
    AnalysisError
        There is no vacuum in any direction; an open direction ends in the density; or the charges
        of the ions are not known.
    """
    charges = charges_of(grid, valence_electrons, charge, normalize)
    gaps = vacuum_gaps(grid)
    for axis, (gap, periodic) in enumerate(zip(gaps, grid.pbc, strict=True)):
        if gap is None and not periodic:
            raise AnalysisError(
                f"The box cuts through the density along vector {axis + 1}, an open direction: "
                "take a larger one."
            )
    repeats = np.array([gap is None for gap in gaps])
    if repeats.all():
        raise AnalysisError(
            "The dipole moment of a crystal depends on where its cell is cut and means nothing by "
            "itself. Differences of polarisation need a Berry phase; only molecules and slabs "
            "with vacuum around them have a dipole moment."
        )
    cuts = np.array([0.0 if gap is None else gap.middle for gap in gaps])
    inverse = np.linalg.inv(grid.cell)

    def unwrapped(fractions: Array) -> Array:
        shifted = fractions - cuts
        return (shifted - np.floor(shifted)) @ grid.cell

    places = unwrapped((grid.atoms.positions - grid.origin) @ inverse)
    masses = grid.atoms.get_masses()
    center = masses @ places / masses.sum()
    voxel = grid.volume / grid.values.size
    electrons = np.zeros(3)
    for axis, n in enumerate(grid.shape):
        others = tuple(k for k in range(3) if k != axis)
        profile = np.asarray(grid.values, dtype=float).sum(axis=others) * voxel * charges.factor
        shifted = np.arange(n) / n - cuts[axis]
        electrons += (profile @ (shifted - np.floor(shifted))) * grid.cell[axis]
    total = charges.ions.sum() - charges.charge
    vector = charges.ions @ (places - center) - (electrons - total * center)
    vector -= charges.firsts.sum(axis=0)
    directions = _normal_to(grid.cell[repeats])
    fractions = center @ inverse + cuts
    origin = (fractions - np.floor(fractions)) @ grid.cell + grid.origin
    return DipoleMoment(directions.T @ (directions @ vector), directions, charges.charge, origin)


def _normal_to(vectors: Array) -> Array:
    """An orthonormal basis of what is normal to up to two vectors, (k, 3)."""
    if not len(vectors):
        return np.eye(3)
    *_, right = np.linalg.svd(vectors)
    result: Array = right[len(vectors) :]
    return result
