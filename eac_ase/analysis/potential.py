"""The electrostatic potential that follows from a density, by fast Fourier transforms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import factorial, isqrt, pi
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io.cube import write_cube
from ase.units import Bohr, Hartree
from numpy.typing import NDArray
from scipy.fft import irfftn, next_fast_len, rfftn

from eac_ase.analysis.dipoles import Gap, charges_of, vacuum_gaps
from eac_ase.analysis.paw import sphere_moments
from eac_ase.grid import DensityGrid
from eac_model.errors import AnalysisError
from eac_model.files import replacing
from eac_model.lattice import grid_shape

Array = NDArray[np.floating]

COULOMB = Hartree * Bohr
"""e²/4πε₀, eV·Å."""

ION_WIDTH = 0.25
"""Å. Ions are Gaussians exp(−(r/w)²); beyond 4 w of a nucleus nobody can tell."""

RESOLUTION = 2.5
"""Grid points in the width of the narrowest ion."""

PLANES = 2**21
"""Waves whose multipoles are summed at once: some 300 MB."""

FLAT = 0.02
"""eV. The vacuum level may vary by this much in the outer half of the vacuum."""


@dataclass(frozen=True)
class PlaneAverage:
    """A potential averaged over the planes of two cell vectors."""

    distance: Array
    """Position of the planes along their normal, Å, shape (n,)."""
    values: Array
    """eV, shape (n,)."""


@dataclass(frozen=True, eq=False)
class Potential:
    """Potential energy of an electron in the electrostatic field, as in VASP's LOCPOT and GPAW."""

    values: Array
    """eV, shape (n1, n2, n3); the first point is at ``origin``."""
    atoms: Atoms
    """The structure."""
    cell: Array
    """Vectors that span the grid, Å, shape (3, 3)."""
    origin: Array
    """Å, shape (3,)."""
    pbc: tuple[bool, bool, bool]
    """Directions in which it repeats."""
    description: str
    """What was solved, and where its zero is."""
    gaps: tuple[Gap | None, Gap | None, Gap | None]
    """Vacuum along the three vectors."""

    def planar_average(self, axis: int = 2) -> PlaneAverage:
        """Average over the planes along a cell vector (0, 1, 2)."""
        others = tuple(k for k in range(3) if k != axis)
        normal = np.linalg.inv(self.cell)[:, axis]
        height = 1 / float(np.linalg.norm(normal))
        start = float(self.origin @ normal) * height
        n = self.values.shape[axis]
        return PlaneAverage(start + height * np.arange(n) / n, self.values.mean(axis=others))

    def vacuum_levels(self, axis: int = 2) -> tuple[float, float]:
        """Potential in the vacuum below and above a slab, eV.

        Raises
        ------
        AnalysisError
            There is no vacuum along the axis, or too little for the potential to become flat.
        """
        gap = self.gaps[axis]
        if gap is None:
            raise AnalysisError(
                f"There is no vacuum along cell vector {axis + 1}: a vacuum level exists for slabs "
                "and molecules only."
            )
        average = self.planar_average(axis)
        n = len(average.values)
        height = float(np.ptp(average.distance)) * n / (n - 1)
        reach = gap.width / 4 / height
        from_middle = np.arange(n) / n - gap.middle
        from_middle -= np.round(from_middle)
        # At the cut itself an open direction jumps.
        above = (from_middle > 0.5 / n) & (from_middle < reach)
        below = (from_middle < -0.5 / n) & (from_middle > -reach)
        levels = []
        for side, chosen in (("below", above), ("above", below)):
            found = average.values[chosen]
            if len(found) < 2 or np.ptp(found) > FLAT:
                raise AnalysisError(
                    f"The potential {side} the slab is not flat ({np.ptp(found):.3f} eV over "
                    f"{gap.width / 4:.1f} Å): give it more vacuum, and if it has a dipole moment, "
                    "make its normal an open direction (pbc)."
                    if len(found) > 1
                    else f"The vacuum of {gap.width:.1f} Å is too thin for a vacuum level."
                )
            levels.append(float(found.mean()))
        return levels[0], levels[1]

    def work_functions(self, fermi_level: float, axis: int = 2) -> tuple[float, float]:
        """Vacuum levels minus the Fermi level, below and above the slab, eV.

        Parameters
        ----------
        fermi_level
            eV, from a calculation whose zero is this potential's: where all directions repeat, the
            mean of the electrostatic potential is 0 here and in GPAW's plane-wave mode.
        """
        below, above = self.vacuum_levels(axis)
        return below - fermi_level, above - fermi_level

    def write(self, path: str | Path) -> None:
        """Write a cube file; its values are in eV."""
        atoms = self.atoms.copy()
        atoms.set_cell(self.cell)
        with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            write_cube(file, atoms, self.values, origin=self.origin, comment=self.description)


def electrostatic_potential(
    grid: DensityGrid,
    *,
    valence_electrons: Mapping[str, float] | None = None,
    charge: float | None = None,
    normalize: bool = True,
) -> Potential:
    """Hartree potential of the electrons plus that of the ions.

    ∇²V = −4π e²/4πε₀ (n − n_ions). Three densities are solved for:

    ``pseudo`` with matrices D
        GPAW's ñ + Σ_aL Q_aL g_L, exactly what GPAW's ``get_electrostatic_potential`` solves: true
        outside of the augmentation spheres, smooth inside.
    ``valence``
        The valence electrons and ions of their charge, Gaussians of the width :data:`ION_WIDTH`:
        true where neither core electrons nor, in VASP's files, augmentation spheres reach.
    ``all-electron``
        All electrons and nuclei, as Gaussians, too: true beyond 4 widths of the nuclei, as far as
        the grid holds the cores.

    Boundaries follow ``grid.pbc``: all directions repeat (mean of the potential 0; a charged cell
    gets a uniform background), one is open (a slab without images, neutral; the zero is the mean
    of its two vacuum levels), or all are (a molecule without images; 0 far away).

    Parameters
    ----------
    grid
        The density; finer grids are made where the ions need it.
    valence_electrons, charge, normalize
        As for :func:`~eac_ase.analysis.partition`.

    Raises
    ------
    AnalysisError
        The density says too little of its ions; two directions are open; a slab is charged or has
        no vacuum at its open sides.
    """
    open_axes = [axis for axis in range(3) if not grid.pbc[axis]]
    if len(open_axes) == 2:
        raise AnalysisError(
            "Potentials of wires (two open directions) are not implemented. With enough vacuum "
            "and no charge, make all directions periodic."
        )
    charges = charges_of(grid, valence_electrons, charge, normalize)
    gaps = vacuum_gaps(grid)
    for axis in open_axes:
        if gaps[axis] is None:
            raise AnalysisError(f"No vacuum at the open sides along vector {axis + 1}.")
    if len(open_axes) == 1 and abs(charges.charge) > 1e-3:
        raise AnalysisError(
            f"The slab has the charge {charges.charge:+.3f} e: the potential of a charged plane "
            "has no limit. Neutralise it."
        )
    n = len(grid.atoms)
    widths: Array = np.full(n, ION_WIDTH)
    coefficients: Array = np.zeros((n, 9))
    coefficients[:, 0] = -charges.ions / np.sqrt(4 * pi)
    if grid.kind == "pseudo":
        spheres = sphere_moments(grid)
        widths, coefficients = spheres.widths, spheres.coefficients
    wanted = grid_shape(grid.cell, float(widths.min()) / RESOLUTION)
    n1, n2, n3 = (max(pair) for pair in zip(grid.shape, wanted, strict=True))
    fine = grid.resample((n1, n2, n3))
    values = charges.factor * np.asarray(fine.values, dtype=float)
    places = grid.atoms.positions - grid.origin
    text = {
        "pseudo": "GPAW's pseudo density with compensation charges",
        "all-electron": f"all electrons and nuclei of Gaussian width {ION_WIDTH} Å",
    }.get(grid.kind, f"valence electrons and ions of Gaussian width {ION_WIDTH} Å")
    if len(open_axes) == 3:
        solved = _isolated(values, grid.cell, places, coefficients, widths)
        text += "; isolated, 0 far away"
    else:
        solved = _periodic(values, grid.cell, places, coefficients, widths)
        text += "; periodic, mean 0"
        if open_axes:
            axis = open_axes[0]
            gap = gaps[axis]
            assert gap is not None
            moments = -charges.factor * fine.values, charges.ions, charges.firsts
            solved = _without_images(solved, grid.cell, places, moments, axis, gap)
            text = text.replace("periodic, mean 0", "slab, 0 midway between its vacuum levels")
        elif abs(charges.charge) > 1e-6:
            text += f", charge {charges.charge:+.4f} e on a uniform background"
    return Potential(
        values=solved,
        atoms=grid.atoms,
        cell=grid.cell,
        origin=grid.origin,
        pbc=grid.pbc,
        description=text,
        gaps=gaps,
    )


# -- solvers -----------------------------------------------------------------------------------


def _solve(
    values: Array,
    cell: Array,
    places: Array,
    coefficients: Array,
    widths: Array,
    coulomb: Callable[[Array], Array],
    without_wave: float,
) -> Array:
    """Potential of n + Σ_aL Q_aL g_L, whose transforms are multiplied by ``coulomb(G²)``.

    g_L ∝ r^l exp(−(r/w)²) Y_L with the moment 1 has the transform
    (−iG)^l 4π/(2l + 1)!! exp(−(G w)²/4) Y_L(Ĝ). Where G = 0, ``without_wave`` is taken.

    Arrays of all waves are large, 1 GB and more for a molecule in a box: there is one.
    """
    n1, n2, n3 = values.shape
    total = rfftn(values) * (abs(np.linalg.det(cell)) / values.size)
    numbers = np.fft.fftfreq(n1) * n1, np.fft.fftfreq(n2) * n2, np.fft.rfftfreq(n3) * n3
    reciprocal = 2 * pi * np.linalg.inv(cell).T
    fractions = places @ np.linalg.inv(cell)
    phases = [
        np.exp(-2j * pi * np.outer(fractions[:, axis], along)) for axis, along in enumerate(numbers)
    ]
    beyond_charges = bool(np.any(coefficients[:, 1:]))
    step = max(1, PLANES // total[0].size)
    for start in range(0, n1, step):
        part = slice(start, start + step)
        waves = (
            numbers[0][part, None, None, None] * reciprocal[0]
            + numbers[1][:, None, None] * reciprocal[1]
            + numbers[2][:, None] * reciprocal[2]
        )
        squares = np.einsum("...v,...v->...", waves, waves)
        harmonics = _solid_harmonics(waves, squares) if beyond_charges else None
        for width in np.unique(widths):
            own = widths == width
            multipoles = np.zeros(squares.shape, dtype=complex)
            for row, amounts in enumerate(coefficients[own].T):
                if not np.any(amounts):
                    continue
                l = isqrt(row)
                odd = factorial(2 * l + 1) // (2**l * factorial(l))
                found = _structure_factor(
                    amounts, phases[0][own, part], phases[1][own], phases[2][own]
                )
                found *= (-1j) ** l * 4 * pi / odd
                found *= 1 / np.sqrt(4 * pi) if harmonics is None else harmonics[row]
                multipoles += found
            total[part] += multipoles * np.exp(-squares * (width**2 / 4))
        if start == 0:
            net = total[0, 0, 0]
            squares[0, 0, 0] = 1.0
        total[part] *= coulomb(squares)
    total[0, 0, 0] = net * without_wave
    total /= abs(np.linalg.det(cell)) / values.size
    solved: Array = irfftn(total, values.shape, overwrite_x=True)
    return solved


def _structure_factor(
    amounts: Array,
    first: NDArray[np.complexfloating],
    second: NDArray[np.complexfloating],
    third: NDArray[np.complexfloating],
) -> NDArray[np.complexfloating]:
    """Σ_a Q_a exp(−iG·r_a) on all waves, from exp(−iG·r_a) along the three axes, (atoms, n) each.

    Sums over atoms are matrix products, plane by plane.
    """
    weighted = (amounts[:, None] * first).T
    return np.stack([(plane[:, None] * second).T @ third for plane in weighted])


def _solid_harmonics(waves: Array, squares: Array) -> Array:
    """|G|^l Y_L(Ĝ), L = 0 … 8 in GPAW's order, shape (9, …)."""
    x, y, z = np.moveaxis(waves, -1, 0)
    first, second = np.sqrt(3 / (4 * pi)), np.sqrt(15 / (4 * pi))
    return np.stack(
        [
            np.full(x.shape, 1 / np.sqrt(4 * pi)),
            first * y,
            first * z,
            first * x,
            second * x * y,
            second * y * z,
            second / np.sqrt(12) * (3 * z * z - squares),
            second * z * x,
            second / 2 * (x * x - y * y),
        ]
    )


def _periodic(
    values: Array, cell: Array, places: Array, coefficients: Array, widths: Array
) -> Array:
    return _solve(
        values, cell, places, coefficients, widths, lambda squares: 4 * pi * COULOMB / squares, 0.0
    )


def _isolated(
    values: Array, cell: Array, places: Array, coefficients: Array, widths: Array
) -> Array:
    """With the Coulomb interaction cut off at the cell's diameter R, in a cell larger by R.

    4π/G² (1 − cos GR) (Jarvis et al., Phys. Rev. B 56, 14972): exact within the cell.
    """
    corners = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), -1).reshape(-1, 3) @ cell
    radius = float(np.linalg.norm(corners, axis=1).max())
    heights = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    # Gaussians of ions reach out of the cell where an atom is near a face.
    extra = (radius + 6 * float(widths.max())) / heights
    shape = [
        next_fast_len(int(np.ceil(n * (1 + e)))) for n, e in zip(values.shape, extra, strict=True)
    ]
    large = cell * (np.array(shape) / values.shape)[:, None]
    padded = np.zeros(shape)
    inside = tuple(slice(0, n) for n in values.shape)
    padded[inside] = values

    def cut_off(squares: Array) -> Array:
        found: Array = 4 * pi * COULOMB * (1 - np.cos(np.sqrt(squares) * radius)) / squares
        return found

    without_wave = 2 * pi * COULOMB * radius**2
    solved = _solve(padded, large, places, coefficients, widths, cut_off, without_wave)
    return solved[inside].copy()


def _without_images(
    solved: Array,
    cell: Array,
    places: Array,
    moments: tuple[Array, Array, Array],
    axis: int,
    gap: Gap,
) -> Array:
    """A slab's potential without the field of its images.

    In the cell the two differ by a linear function: the potential of the slab alone rises by
    4π p/A from one side to the other (Bengtsson, Phys. Rev. B 59, 12301).
    """
    electrons, ions, firsts = moments
    normal = np.linalg.inv(cell)[:, axis]
    height = 1 / float(np.linalg.norm(normal))
    area = abs(np.linalg.det(cell)) / height
    n = solved.shape[axis]
    others = tuple(k for k in range(3) if k != axis)

    def across(fractions: Array) -> Array:
        shifted = fractions - gap.middle
        return shifted - np.floor(shifted)

    grid_places = across(np.arange(n) / n)
    profile = electrons.sum(axis=others) * (abs(np.linalg.det(cell)) / solved.size)
    dipole = height * (profile @ grid_places + ions @ across(places @ normal))
    dipole -= float((firsts @ normal).sum()) * height
    # An electron's energy falls towards the positive side.
    step = -4 * pi * COULOMB * dipole / area
    average = solved.mean(axis=others)
    corrected = average + step * (grid_places - 0.5)
    edge = np.interp(1.0, *_sorted(grid_places, corrected))
    shape = [1, 1, 1]
    shape[axis] = n
    shift = step * (grid_places - 0.5) - edge + step / 2
    return solved + shift.reshape(shape)


def _sorted(x: Array, y: Array) -> tuple[Array, Array]:
    order = np.argsort(x)
    return x[order], y[order]
