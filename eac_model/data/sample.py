"""The one sample type: a structure and what is known of its electron density."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

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
    """On-site PAW data, one array an atom, as the code writes them (CHGCAR order for VASP,
    (s, i, i) for GPAW); None where the source has none."""
    onsite_spin: tuple[NDArray[np.floating], ...] | None = None
    """Spin part of the on-site data (VASP's second set of occupancies), or None."""
    provenance: Provenance = field(default_factory=Provenance)

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
        spin = self.spin_density
        return replace(
            self,
            points=points,
            density=self.density.reshape(-1)[indices],
            spin_density=None if spin is None else spin.reshape(-1)[indices],
        )
