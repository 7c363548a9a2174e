"""The one sample type: a structure and what is known of its electron density."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from eac_model.errors import GridError

DensityKind = Literal["valence", "pseudo", "all-electron", "unknown"]
"""What a density counts.

``valence``: the valence electrons as VASP writes them to CHGCAR (integral = sum of ZVAL);
``pseudo``: GPAW's smooth ñ, pseudo core included; ``all-electron``: every electron.
"""


@dataclass(frozen=True)
class Provenance:
    """Where a sample comes from; travels with it into stores and model files."""

    code: str = "unknown"
    """Program that computed the density, and its version if known: ``"VASP"``, ``"GPAW 26.7"``."""
    functional: str = "unknown"
    """Exchange–correlation functional: ``"PBE"``, ``"SCAN"``."""
    density_kind: DensityKind = "unknown"
    paw_datasets: tuple[str, ...] = ()
    """Names of the PAW data sets, one an element, sorted by element symbol."""
    source: str = ""
    """File name (no directories) the sample was read from."""


@dataclass(frozen=True)
class FreeAtoms:
    """Superposition of free atoms as the code itself begins with; laid out as in the sample."""

    density: NDArray[np.floating]
    """e/Å³, the shape of the sample's density."""
    spin_density: NDArray[np.floating] | None = None
    """ρ↑ − ρ↓, e/Å³, where the calculation was spin-polarised."""
    onsite: tuple[NDArray[np.floating], ...] | None = None
    """On-site PAW data, one array an atom."""
    onsite_spin: tuple[NDArray[np.floating], ...] | None = None
    """Their spin part."""


@dataclass(frozen=True)
class Magnetization:
    """Spin of a non-collinear calculation: a vector field instead of ρ↑ − ρ↓."""

    density: NDArray[np.floating]
    """Magnetisation m(r), μ_B/Å³, shape (3, n1, n2, n3) or (3, p): one component after the other,
    along the axes of the spinor basis (Cartesian x, y, z for VASP's default SAXIS)."""
    onsite: tuple[tuple[NDArray[np.floating], ...], ...] | None = None
    """On-site PAW data of the three components, each like ``DensitySample.onsite``, or None."""


@dataclass(frozen=True)
class PawDataset:
    """The PAW data set of an element, as far as on-site data depend on it."""

    name: str
    """``Si.PBE``."""
    fingerprint: str
    """MD5 sum of the file."""
    channels: tuple[int, ...]
    """Angular momentum l of every projector channel, in the order of the data set."""
    electrons: float
    """Valence electrons of the neutral atom."""


@dataclass(frozen=True)
class Calculation:
    """What a self-consistent calculation gave beside the density."""

    energy: float
    """Total energy extrapolated to zero smearing, relative to the code's reference atoms, eV."""
    free_energy: float
    """Total energy with the entropy of the smearing, which the forces belong to, eV."""
    forces: NDArray[np.floating]
    """Shape (a, 3), eV/Å."""
    kpoints: NDArray[np.floating]
    """Irreducible k-points, fractions of the reciprocal cell, shape (k, 3)."""
    weights: NDArray[np.floating]
    """Weights of the k-points, sum 1, shape (k,)."""
    eigenvalues: NDArray[np.floating]
    """Shape (s, k, n) with s = 1 (paired spins) or 2, eV."""
    occupations: NDArray[np.floating]
    """Electrons in each state of one k-point: 0 … 2 for s = 1, 0 … 1 for s = 2; same shape."""
    fermi_level: float
    """Chemical potential, eV, on the scale of the eigenvalues."""
    iterations: int
    """Iterations to self-consistency from the code's default start."""
    seconds: float
    """CPU time of it all: set-up, iterations, forces."""
    moment: float = 0.0
    """Magnetic moment of the cell, μ_B."""
    moments: NDArray[np.floating] | None = None
    """Magnetic moments of the atoms as the code integrates them, μ_B, shape (a,)."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Input parameters of the calculation: numbers, texts, lists and mappings of them."""
    datasets: dict[str, PawDataset] = field(default_factory=dict)
    """Element symbol → PAW data set."""


@dataclass(frozen=True)
class DensitySample:
    """A structure and its density, on a full grid or at scattered points.

    Exactly one of the two layouts holds. *Grid*: ``points is None`` and ``density`` has shape
    ``(n1, n2, n3)``; value ``[i, j, k]`` sits at the fractional coordinates
    ``(i/n1, j/n2, k/n3)``, no end point repeated. *Points*: ``points`` has shape ``(p, 3)`` and
    ``density`` shape ``(p,)``.
    """

    atoms: Atoms
    """Structure. Initial magnetic moments (μ_B) are inputs of spin models."""
    density: NDArray[np.floating]
    """Total electron density ρ = ρ↑ + ρ↓, e/Å³, shape (n1, n2, n3) or (p,); electrons are
    positive."""
    points: NDArray[np.floating] | None = None
    """Cartesian positions of the density values, Å, shape (p, 3); None for a full grid."""
    spin_density: NDArray[np.floating] | None = None
    """ρ↑ − ρ↓, e/Å³, same shape as ``density``; None where the calculation was spin-paired."""
    onsite: tuple[NDArray[np.floating], ...] | None = None
    """On-site PAW data, one array an atom: for VASP the augmentation occupancies in the order of
    CHGCAR, for GPAW the matrix D↑ + D↓ of shape (i, i) over the projectors. None where the source
    has none."""
    onsite_spin: tuple[NDArray[np.floating], ...] | None = None
    """Spin part of the on-site data (VASP's second set of occupancies; D↑ − D↓), or None."""
    provenance: Provenance = field(default_factory=Provenance)
    free_atoms: FreeAtoms | None = None
    """The code's own superposition of free atoms, which its default start is, or None."""
    calculation: Calculation | None = None
    """Energy, forces, eigenvalues and settings of the calculation, or None."""
    magnetization: Magnetization | None = None
    """Spin of a non-collinear calculation, or None; such a sample has no ``spin_density``."""
    onsite_imaginary: tuple[tuple[NDArray[np.floating], ...], ...] | None = None
    """Imaginary parts of the on-site data where VASP wrote them: those of ``onsite``, then of
    ``onsite_spin`` or of the three components of ``magnetization.onsite``. They vanish but for
    noise where spins are collinear."""

    def __post_init__(self) -> None:
        shape = np.shape(self.density)
        if self.points is None:
            if len(shape) != 3:
                raise GridError(f"A full grid has three axes; this density has shape {shape}.")
        elif np.shape(self.points) != (*shape, 3) or len(shape) != 1:
            raise GridError(
                f"{np.shape(self.points)} points do not match a density of shape {shape}."
            )
        if self.spin_density is not None and np.shape(self.spin_density) != shape:
            raise GridError(
                f"Spin density {np.shape(self.spin_density)} and density {shape} differ in shape."
            )
        if self.magnetization is not None:
            if np.shape(self.magnetization.density) != (3, *shape):
                raise GridError(
                    f"Magnetisation {np.shape(self.magnetization.density)} and density {shape} "
                    "differ in shape."
                )
            if self.spin_density is not None:
                raise GridError("A sample has a spin density or a magnetisation, not both.")
        if self.free_atoms is not None and np.shape(self.free_atoms.density) != shape:
            raise GridError(
                f"Free atoms {np.shape(self.free_atoms.density)} and density {shape} differ in "
                "shape."
            )

    @property
    def is_grid(self) -> bool:
        """Whether the density fills a regular grid of the cell."""
        return self.points is None

    def grid_points(self) -> NDArray[np.floating]:
        """Cartesian positions of all values, Å, shape (p, 3), in C order of the grid."""
        if self.points is not None:
            return self.points
        axes = [np.arange(n) / n for n in self.density.shape]
        fractions = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        return fractions @ np.asarray(self.atoms.cell)

    def select(self, indices: NDArray[np.integer]) -> DensitySample:
        """The sample at some of its points (flat C-order indices), as a point sample."""
        if self.points is None:
            shape = self.density.shape
            triples = np.stack(np.unravel_index(indices, shape), axis=-1)
            points = (triples / np.asarray(shape)) @ np.asarray(self.atoms.cell)
        else:
            points = self.points[indices]
        free = self.free_atoms
        if free is not None:
            free = replace(
                free,
                density=free.density.reshape(-1)[indices],
                spin_density=_at(free.spin_density, indices),
            )
        magnetization = self.magnetization
        if magnetization is not None:
            components = magnetization.density.reshape(3, -1)[:, indices]
            magnetization = replace(magnetization, density=components)
        return replace(
            self,
            points=points,
            density=self.density.reshape(-1)[indices],
            spin_density=_at(self.spin_density, indices),
            free_atoms=free,
            magnetization=magnetization,
        )


def _at(
    values: NDArray[np.floating] | None, indices: NDArray[np.integer]
) -> NDArray[np.floating] | None:
    return None if values is None else values.reshape(-1)[indices]
