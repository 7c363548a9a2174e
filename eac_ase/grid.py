"""A density on a regular grid, and what one does with it.

Conventions: values in e/Å³, electrons count positive; the value ``[i, j, k]`` sits at
``origin + (i/n1, j/n2, k/n3) @ cell``, no end point repeated. The grid repeats with its cell, also
in the directions in which the structure does not: there the cell is a box, and the density has to
have died away at its faces.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from ase import Atoms
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import map_coordinates, spline_filter

from eac_ase.formats import write_grid
from eac_model.data.readers import read_density
from eac_model.data.sample import DensityKind, DensitySample, Provenance
from eac_model.errors import GridError
from eac_model.lattice import Shape, checked_shape

Onsite = tuple[NDArray[np.floating], ...] | None


@dataclass(frozen=True, eq=False, repr=False)
class DensityGrid:
    """Electron density on a regular grid of a cell or of a box around a molecule.

    Examples
    --------
    >>> grid = DensityGrid.read("CHGCAR")                               # doctest: +SKIP
    >>> grid.integrate()                                                # doctest: +SKIP
    128.0
    >>> (grid - grid.resample((60, 60, 60)).resample(grid.shape)).write("loss.cube")
    ...                                                                 # doctest: +SKIP
    """

    values: NDArray[np.floating]
    """Total density ρ, e/Å³, shape (n1, n2, n3)."""
    atoms: Atoms
    """The structure the density belongs to, in the coordinates of ``origin`` and ``cell``."""
    cell: NDArray[np.floating]
    """Vectors that span the grid, one a row, Å, shape (3, 3). The structure's cell, or a box."""
    origin: NDArray[np.floating] = field(default_factory=lambda: np.zeros(3))
    """Position of the first value, Å, shape (3,)."""
    spin: NDArray[np.floating] | None = None
    """Spin density ρ↑ − ρ↓, e/Å³ (μ_B/Å³), shape of ``values``; None for spin-paired densities."""
    onsite: Onsite = None
    """On-site PAW data that belong to the density, one array an atom in the order of the code (a
    flat one in CHGCAR's order for VASP, a matrix for GPAW), or None."""
    onsite_spin: Onsite = None
    """Their spin part (up minus down), or None."""
    pbc: tuple[bool, bool, bool] = (True, True, True)
    """Directions in which the structure repeats; along the others ``cell`` is a box."""
    kind: DensityKind = "unknown"
    """What the density counts: ``valence``, ``pseudo``, ``all-electron``."""
    provenance: Provenance = field(default_factory=Provenance)
    """Code, functional and PAW data sets behind the density."""

    def __post_init__(self) -> None:
        cell = np.asarray(self.cell, dtype=float)
        origin = np.asarray(self.origin, dtype=float)
        if np.ndim(self.values) != 3 or 0 in np.shape(self.values):
            raise GridError(
                f"A density grid has three axes, none empty; shape {np.shape(self.values)}."
            )
        if self.spin is not None and np.shape(self.spin) != np.shape(self.values):
            raise GridError(
                f"Spin density {np.shape(self.spin)} and density {np.shape(self.values)} differ "
                "in shape."
            )
        if cell.shape != (3, 3) or origin.shape != (3,):
            raise GridError(f"cell has shape {cell.shape} and origin {origin.shape}; (3, 3), (3,).")
        if not abs(np.linalg.det(cell)) > 1e-9:
            raise GridError("The three vectors of a grid's cell have to span a volume.")
        object.__setattr__(self, "cell", cell)
        object.__setattr__(self, "origin", origin)
        object.__setattr__(self, "pbc", tuple(bool(flag) for flag in self.pbc))

    def __repr__(self) -> str:
        points = " × ".join(map(str, self.shape))
        return (
            f"DensityGrid({self.atoms.get_chemical_formula()}, {points} points, {self.kind}"
            f"{'' if self.spin is None else ', with spin'}, {self.integrate():.4f} electrons)"
        )

    # -- where it comes from, where it goes ----------------------------------------------------

    @classmethod
    def from_sample(cls, sample: DensitySample) -> DensityGrid:
        """The grid of a sample as the readers of :mod:`eac_model.data` return it.

        Of a non-collinear sample the total density; ``magnetization`` stays in the sample.

        Raises
        ------
        GridError
            The sample holds scattered points.
        """
        if not sample.is_grid:
            raise GridError(
                f"This sample holds {len(sample.density)} scattered points, not a grid."
            )
        return cls(
            values=sample.density,
            atoms=sample.atoms,
            cell=np.array(sample.atoms.cell),
            spin=sample.spin_density,
            onsite=sample.onsite,
            onsite_spin=sample.onsite_spin,
            pbc=tuple(sample.atoms.pbc),
            kind=sample.provenance.density_kind,
            provenance=sample.provenance,
        )

    def to_sample(self) -> DensitySample:
        """The grid as a sample; its atoms get the grid's cell and are shifted by ``-origin``."""
        atoms = self.atoms.copy()
        atoms.positions -= self.origin
        atoms.set_cell(self.cell)
        atoms.pbc = self.pbc
        return DensitySample(
            atoms=atoms,
            density=self.values,
            spin_density=self.spin,
            onsite=self.onsite,
            onsite_spin=self.onsite_spin,
            provenance=replace(self.provenance, density_kind=self.kind),
        )

    @classmethod
    def read(cls, path: str | Path) -> DensityGrid:
        """Read CHGCAR, cube, GPAW ``.gpw`` or ``.h5``; the grid begins at the origin.

        Of non-collinear files the total density is kept, see :meth:`from_sample`.

        Raises
        ------
        DensityFileError
            The file is damaged or of no known format.
        GridError
            It holds scattered points.
        """
        return cls.from_sample(read_density(Path(path)))

    def write(self, path: str | Path, progress: bool | None = None) -> None:
        """Write the grid; the name decides the format.

        Parameters
        ----------
        path
            Where to; the file appears whole or not at all.
        progress
            Progress bar on stderr: True, False, or None for only on a terminal.

        Notes
        -----
        The formats:

        ========================  ===============================================================
        ``CHGCAR*``, ``*.vasp``,  VASP; the spin density goes into the second block. VASP knows no
        ``*.chgcar`` (``.gz``)    origin: atoms are shifted so that the grid begins at 0.
                                  Augmentation occupancies are written where the grid has them.
        ``*.cube``                Gaussian cube, total density, in e/Bohr³ and Bohr, with origin.
        ``*.h5``                  A sample file (:mod:`eac_model.data.sample_file`), float32, with
                                  the spin density. Shifted as for VASP.
        ``*.xsf``                 XCrySDen, total density, in e/Å³, with origin.
        ========================  ===============================================================
        """
        write_grid(self, Path(path), progress)

    # -- numbers -------------------------------------------------------------------------------

    @property
    def shape(self) -> Shape:
        """Number of grid points along the three axes."""
        n1, n2, n3 = self.values.shape
        return n1, n2, n3

    @property
    def volume(self) -> float:
        """Volume of the cell, Å³."""
        return float(abs(np.linalg.det(self.cell)))

    @property
    def spacing(self) -> NDArray[np.floating]:
        """Distance of neighbouring points along the three axes, Å, shape (3,)."""
        return np.linalg.norm(self.cell, axis=1) / self.shape

    def integrate(self) -> float:
        """Number of electrons, ∫ρ dr over the cell."""
        return float(self.values.sum(dtype=float)) * self.volume / self.values.size

    def integrate_spin(self) -> float:
        """Magnetic moment, ∫(ρ↑ − ρ↓) dr over the cell, μ_B; 0 for a spin-paired density."""
        if self.spin is None:
            return 0.0
        return float(self.spin.sum(dtype=float)) * self.volume / self.values.size

    @property
    def up(self) -> NDArray[np.floating]:
        """Density of the electrons with spin up, e/Å³; half of ρ if it is spin-paired."""
        return (self.values + self._spin_or_zero()) / 2

    @property
    def down(self) -> NDArray[np.floating]:
        """Density of the electrons with spin down, e/Å³."""
        return (self.values - self._spin_or_zero()) / 2

    def points(self) -> NDArray[np.floating]:
        """Cartesian positions of all values in C order, Å, shape (n1 n2 n3, 3)."""
        axes = [np.arange(n) / n for n in self.shape]
        fractions = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        return self.origin + fractions @ self.cell

    # -- other grids and cuts ------------------------------------------------------------------

    def resample(self, shape: Shape) -> DensityGrid:
        """The density on a grid of another shape, by Fourier interpolation.

        Exact for densities without components beyond the coarser grid's Nyquist frequency. The
        integral is conserved; a finer grid and back is the identity.

        Parameters
        ----------
        shape
            Number of points along the three axes.
        """
        # Half a second to import, and seldom needed.
        from scipy.signal import resample

        shape = checked_shape(shape)

        def interpolate(values: NDArray[np.floating]) -> NDArray[np.floating]:
            # Axes that shrink come first: less is left to transform.
            for axis in sorted(range(3), key=lambda a: shape[a] / values.shape[a]):
                if shape[axis] != values.shape[axis]:
                    values = resample(values, shape[axis], axis=axis)
            return values

        spin = None if self.spin is None else interpolate(self.spin)
        return replace(self, values=interpolate(self.values), spin=spin)

    def interpolate(self, points: ArrayLike, *, spin: bool = False) -> NDArray[np.floating]:
        """Density at any points by periodic cubic splines.

        Parameters
        ----------
        points
            Cartesian positions, Å, shape (n, 3) or (…, 3).
        spin
            Interpolate ρ↑ − ρ↓ instead of ρ.

        Returns
        -------
        numpy.ndarray
            e/Å³, shape (n,) or (…); NaN where an open direction leaves the box, and for NaN.
        """
        values = self._spin_or_zero() if spin else self.values
        points = np.asarray(points, dtype=float)
        fractions = (points - self.origin) @ np.linalg.inv(self.cell)
        outside = (np.abs(fractions - 0.5) > 0.5 + 1e-9) & ~np.asarray(self.pbc)
        outside |= ~np.isfinite(fractions)
        coefficients = spline_filter(np.asarray(values, dtype=float), order=3, mode="grid-wrap")
        places = np.moveaxis(fractions * self.shape, -1, 0)
        result = map_coordinates(coefficients, places, order=3, mode="grid-wrap", prefilter=False)
        return np.where(outside.any(axis=-1), np.nan, result)

    def line(self, start: ArrayLike, end: ArrayLike, n: int = 201) -> LineCut:
        """The density along a straight line.

        Parameters
        ----------
        start, end
            Cartesian end points, Å, shape (3,); both are part of the line.
        n
            Number of points.

        Raises
        ------
        GridError
            Fewer than two points.
        """
        start, end = np.asarray(start, dtype=float), np.asarray(end, dtype=float)
        if n < 2:
            raise GridError(f"A line needs at least 2 points, not {n}.")
        points = start + np.linspace(0, 1, n)[:, None] * (end - start)
        return LineCut(
            distance=np.linspace(0, float(np.linalg.norm(end - start)), n),
            points=points,
            values=self.interpolate(points),
            spin=None if self.spin is None else self.interpolate(points, spin=True),
        )

    def plane(self, plane: Plane, spacing: float = 0.04) -> PlaneCut:
        """The density on a plane.

        Parameters
        ----------
        plane
            Where: :meth:`Plane.through_points`, :meth:`Plane.through_atoms`,
            :meth:`Plane.through_molecule`.
        spacing
            Distance of neighbouring points in the plane, Å.
        """
        x, y = plane.axes(spacing)
        points = plane.points(x, y)
        return PlaneCut(
            plane=plane,
            x=x,
            y=y,
            values=self.interpolate(points),
            spin=None if self.spin is None else self.interpolate(points, spin=True),
        )

    # -- arithmetic ----------------------------------------------------------------------------

    def __add__(self, other: DensityGrid) -> DensityGrid:
        return self._combine(other, 1.0)

    def __sub__(self, other: DensityGrid) -> DensityGrid:
        return self._combine(other, -1.0)

    def __mul__(self, factor: float) -> DensityGrid:
        if not isinstance(factor, int | float | np.number):
            return NotImplemented
        return replace(
            self,
            values=self.values * factor,
            spin=None if self.spin is None else self.spin * factor,
            onsite=_scaled(self.onsite, factor),
            onsite_spin=_scaled(self.onsite_spin, factor),
        )

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> DensityGrid:
        if not isinstance(divisor, int | float | np.number):
            return NotImplemented
        return self * (1 / divisor)

    def __neg__(self) -> DensityGrid:
        return self * -1.0

    def _combine(self, other: DensityGrid, sign: float) -> DensityGrid:
        if not isinstance(other, DensityGrid):
            return NotImplemented
        if self.shape != other.shape:
            raise GridError(
                f"Grids of shapes {self.shape} and {other.shape} do not match: "
                "resample one of them to the other's shape first."
            )
        if not (np.allclose(self.cell, other.cell) and np.allclose(self.origin, other.origin)):
            raise GridError("The two grids differ in cell or origin: their points do not coincide.")
        spin, onsite_spin = None, None
        if self.spin is not None or other.spin is not None:
            spin = self._spin_or_zero() + sign * other._spin_or_zero()
            onsite_spin = _added(
                self._onsite_spin_or_zero(), _scaled(other._onsite_spin_or_zero(), sign)
            )
        return replace(
            self,
            values=self.values + sign * other.values,
            spin=spin,
            onsite=_added(self.onsite, _scaled(other.onsite, sign)),
            onsite_spin=onsite_spin,
            kind=self.kind if self.kind == other.kind else "unknown",
        )

    def _spin_or_zero(self) -> NDArray[np.floating]:
        return np.zeros_like(self.values) if self.spin is None else self.spin

    def _onsite_spin_or_zero(self) -> Onsite:
        return _scaled(self.onsite, 0.0) if self.spin is None else self.onsite_spin


@dataclass(frozen=True, eq=False)
class LineCut:
    """A density along a straight line."""

    distance: NDArray[np.floating]
    """Distance from the start, Å, shape (n,)."""
    points: NDArray[np.floating]
    """Cartesian positions, Å, shape (n, 3)."""
    values: NDArray[np.floating]
    """ρ, e/Å³, shape (n,)."""
    spin: NDArray[np.floating] | None = None
    """ρ↑ − ρ↓, e/Å³, shape (n,), or None."""


@dataclass(frozen=True, eq=False)
class PlaneCut:
    """A density on a plane."""

    plane: Plane
    x: NDArray[np.floating]
    """Coordinates along ``plane.u``, measured from the centre, Å, shape (nx,)."""
    y: NDArray[np.floating]
    """Coordinates along ``plane.v``, Å, shape (ny,)."""
    values: NDArray[np.floating]
    """ρ, e/Å³, shape (nx, ny)."""
    spin: NDArray[np.floating] | None = None
    """ρ↑ − ρ↓, e/Å³, shape (nx, ny), or None."""


@dataclass(frozen=True, eq=False)
class Plane:
    """A rectangle in space."""

    center: NDArray[np.floating]
    """Its middle, Å, shape (3,)."""
    u: NDArray[np.floating]
    """Unit vector to the right, shape (3,)."""
    v: NDArray[np.floating]
    """Unit vector upwards, normal to ``u``, shape (3,)."""
    width: float = 6.0
    """Extent along ``u``, Å."""
    height: float = 6.0
    """Extent along ``v``, Å."""

    @classmethod
    def through_points(
        cls, a: ArrayLike, b: ArrayLike, c: ArrayLike, *, margin: float = 2.0
    ) -> Plane:
        """The plane of three points, Å, with ``margin`` (Å) around them; ``u`` runs from b to c.

        Raises
        ------
        GridError
            They lie on one line.
        """
        corners = np.array([a, b, c], dtype=float)
        along, across = corners[2] - corners[1], corners[0] - corners[1]
        if not np.linalg.norm(along) > 1e-6:
            raise GridError("Two of the three points of a plane coincide.")
        u = along / np.linalg.norm(along)
        across -= (across @ u) * u
        if not np.linalg.norm(across) > 1e-3:
            raise GridError("Three points on one line do not define a plane.")
        v = across / np.linalg.norm(across)
        flat = (corners - corners[0]) @ np.array([u, v]).T
        low, high = flat.min(axis=0), flat.max(axis=0)
        center = corners[0] + (low + high) / 2 @ np.array([u, v])
        width, height = high - low + 2 * margin
        return cls(center, u, v, float(width), float(height))

    @classmethod
    def through_atoms(
        cls, atoms: Atoms, indices: tuple[int, int, int], *, margin: float = 2.0
    ) -> Plane:
        """The plane of three atoms; of the second and third, the images nearest to the first."""
        first, *others = indices
        start = atoms.positions[first]
        near = atoms.get_distances(first, others, mic=bool(atoms.pbc.any()), vector=True)
        return cls.through_points(start, *(start + near), margin=margin)

    @classmethod
    def through_molecule(
        cls, atoms: Atoms, index: int | None = None, *, margin: float = 2.0
    ) -> Plane:
        """A telling plane: an atom and its two nearest neighbours that are not on one line.

        Parameters
        ----------
        index
            The atom; by default the first of the heaviest element.
        margin
            Space around the three atoms, Å.

        Raises
        ------
        GridError
            All neighbours coincide with the atom.
        """
        if index is None:
            index = int(np.argmax(atoms.numbers))
        others = [i for i in range(len(atoms)) if i != index]
        center = atoms.positions[index]
        vectors = np.zeros((0, 3))
        if others:
            vectors = atoms.get_distances(index, others, mic=bool(atoms.pbc.any()), vector=True)
        vectors = vectors[np.argsort(np.linalg.norm(vectors, axis=1), kind="stable")]
        # Where there are no three such atoms (one atom, a dimer, a chain) any direction will do.
        candidates = [*vectors, *np.eye(3)]
        first = candidates[0]
        for second in candidates[1:]:
            sine = np.linalg.norm(np.cross(first, second))
            if sine > 0.1 * np.linalg.norm(first) * np.linalg.norm(second):
                return cls.through_points(center, center + first, center + second, margin=margin)
        raise GridError("No plane through this atom: its neighbours coincide.")

    @property
    def normal(self) -> NDArray[np.floating]:
        """Unit vector towards the viewer, shape (3,)."""
        return np.cross(self.u, self.v)

    def axes(self, spacing: float) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """Coordinates along ``u`` and ``v`` about ``spacing`` (Å) apart, both ends included.

        Raises
        ------
        GridError
            The spacing is not positive.
        """
        if not spacing > 0:
            raise GridError(f"The spacing of a plane has to be positive, not {spacing} Å.")
        steps = [max(2, round(length / spacing) + 1) for length in (self.width, self.height)]
        return (
            np.linspace(-self.width / 2, self.width / 2, steps[0]),
            np.linspace(-self.height / 2, self.height / 2, steps[1]),
        )

    def points(self, x: NDArray[np.floating], y: NDArray[np.floating]) -> NDArray[np.floating]:
        """Cartesian positions of all (x, y), Å, shape (nx, ny, 3)."""
        return self.center + x[:, None, None] * self.u + y[None, :, None] * self.v


def _scaled(onsite: Onsite, factor: float) -> Onsite:
    return None if onsite is None else tuple(factor * values for values in onsite)


def _added(first: Onsite, second: Onsite) -> Onsite:
    """Sum of on-site data; None unless both are of the same atoms and channels."""
    if first is None or second is None or [*map(np.shape, first)] != [*map(np.shape, second)]:
        return None
    return tuple(a + b for a, b in zip(first, second, strict=True))
