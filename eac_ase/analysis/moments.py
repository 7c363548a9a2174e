"""Sums over the points of a grid: electrons, moments and volumes of atoms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray
from torch import Tensor

from eac_ase.charge import stated_charge
from eac_ase.grid import DensityGrid
from eac_model.errors import AnalysisError

Array = NDArray[np.floating]

ELECTRONS = 0.25
"""A file's density may hold this many electrons more or less than its neutral atoms; beyond, its
charge or its valence electrons have to be given."""

PART = 0.1
"""Of the electrons, that a density may be off if the charge of its cell is stated."""


def charge_of(atoms: Atoms, given: float | None, found: float, neutral: float) -> float:
    """Charge of the cell: what is stated, or 0 if the density holds the electrons of neutral atoms.

    Raises
    ------
    AnalysisError
        The density holds others.
    """
    stated = stated_charge(atoms, given)
    wanted = neutral - (stated or 0.0)
    allowed = ELECTRONS if stated is None else max(ELECTRONS, PART * neutral)
    # Predictions know nothing of a charge: they hold the electrons of neutral atoms.
    if min(abs(found - wanted), abs(found - neutral)) > allowed:
        charge = "" if stated is None else f", with the charge {stated:g} of the cell {wanted:g}"
        raise AnalysisError(
            f"The density holds {found:.3f} electrons, its neutral atoms {neutral:g}{charge}. Give "
            "the charge of the cell, check the valence electrons, or do not normalise."
        )
    return stated or 0.0


def valences_of(grid: DensityGrid, known: Mapping[str, float] | None) -> Array | None:
    """Electrons of each neutral atom that a density counts, (n,); None where nothing says it.

    Raises
    ------
    AnalysisError
        An element is missing in what is known.
    """
    if known is None:
        return grid.atoms.numbers.astype(float) if grid.kind == "all-electron" else None
    missing = sorted(set(grid.atoms.symbols) - set(known))
    if missing:
        raise AnalysisError(
            f"valence_electrons does not say how many of {', '.join(missing)} the density counts."
        )
    return np.array([float(known[symbol]) for symbol in grid.atoms.symbols])


def check_inside(grid: DensityGrid) -> None:
    """A density that ends at the faces of a box has to have its atoms in there.

    Raises
    ------
    AnalysisError
        An atom lies outside, along an open direction.
    """
    fractions = (grid.atoms.positions - grid.origin) @ np.linalg.inv(grid.cell)
    outside = (np.abs(fractions - 0.5) > 0.5 + 1e-6) & ~np.asarray(grid.pbc)
    if outside.any():
        atom, axis = np.argwhere(outside)[0]
        raise AnalysisError(
            f"Atom {atom} ({grid.atoms.symbols[atom]}) lies outside of the grid's box along vector "
            f"{axis + 1}, an open direction. Move it to the image that the density is of, or take "
            "a box that holds all atoms."
        )


@dataclass(frozen=True)
class Moments:
    """What a density holds around every atom; electrons count positive."""

    populations: Array
    """∫ρ_i dr, electrons, shape (n,)."""
    spins: Array | None
    """∫(ρ↑ − ρ↓)_i dr, μ_B, shape (n,)."""
    firsts: Array
    """∫ρ_i (r − R_i) dr, e·Å, shape (n, 3)."""
    seconds: Array
    """∫ρ_i (r − R_i)(r − R_i) dr, e·Å², shape (n, 3, 3); the trace may be missing."""
    volumes: Array | None
    """Å³, shape (n,)."""
    vacuum: float = 0.0
    """Electrons that no atom gets."""
    vacuum_spin: float = 0.0
    """Their moment, μ_B."""
    vacuum_volume: float = 0.0
    """Å³."""

    @property
    def electrons(self) -> float:
        """All electrons."""
        return float(self.populations.sum()) + self.vacuum


class Sums:
    """Collects the moments of atoms from points of a grid.

    Parameters
    ----------
    grid
        Density to integrate.
    device
        Where the sums are done.
    """

    def __init__(self, grid: DensityGrid, device: torch.device | str = "cpu") -> None:
        n = len(grid.atoms)
        self.voxel = grid.volume / grid.values.size
        self.grid = grid
        self.density = torch.as_tensor(np.ascontiguousarray(grid.values), device=device).flatten()
        self.spin = None
        if grid.spin is not None:
            self.spin = torch.as_tensor(np.ascontiguousarray(grid.spin), device=device).flatten()
        # electrons, spin, volume, 3 first and 9 second moments
        self.table = torch.zeros(n, 15, dtype=torch.float64, device=device)

    def add(self, atom: Tensor | int, point: Tensor, vectors: Tensor, weight: Tensor) -> None:
        """Give points to atoms.

        Parameters
        ----------
        atom
            Index of each point's atom (m,), or that of all.
        point
            Flat indices of grid points (m,).
        vectors
            From the atom to the point, Å, (m, 3).
        weight
            Part of the point that the atom gets, (m,).
        """
        electrons = weight * self.density[point].double()
        spin = torch.zeros_like(electrons)
        if self.spin is not None:
            spin = weight * self.spin[point].double()
        if isinstance(atom, int):
            row = self.table[atom]
            row[0] += electrons.sum()
            row[1] += spin.sum()
            row[2] += weight.sum()
            row[3:6] += electrons @ vectors
            row[6:] += (vectors.T @ (electrons[:, None] * vectors)).flatten()
            return
        firsts = electrons[:, None] * vectors
        seconds = (firsts[:, :, None] * vectors[:, None, :]).flatten(1)
        plain = torch.stack([electrons, spin, weight.to(electrons)], dim=1)
        self.table.index_add_(0, atom, torch.cat([plain, firsts, seconds], dim=1))

    def result(self, vacuum: Tensor | None = None) -> Moments:
        """The moments; `vacuum` is a mask (or weights) of points that no atom got, flat."""
        table = self.table.cpu().numpy() * self.voxel
        empty, empty_spin, volume = 0.0, 0.0, 0.0
        if vacuum is not None:
            share = vacuum.double()
            empty = float(share @ self.density.double()) * self.voxel
            volume = float(share.sum()) * self.voxel
            if self.spin is not None:
                empty_spin = float(share @ self.spin.double()) * self.voxel
        return Moments(
            populations=table[:, 0],
            spins=None if self.spin is None else table[:, 1],
            firsts=table[:, 3:6],
            seconds=table[:, 6:].reshape(-1, 3, 3),
            volumes=table[:, 2],
            vacuum=empty,
            vacuum_spin=empty_spin,
            vacuum_volume=volume,
        )


@dataclass(frozen=True)
class Sphere:
    """The grid points within a radius of an atom, images of the cell included."""

    point: Tensor
    """Flat indices, (m,); a point occurs once for every image of the atom in reach."""
    vectors: Tensor
    """From the atom to the point, Å, (m, 3)."""
    distance: Tensor
    """Å, (m,)."""


POINTS_AT_ONCE = 2**20
"""A sphere comes in parts of about this many points."""


def sphere(
    grid: DensityGrid, center: Array, radius: float, device: torch.device | str = "cpu"
) -> Iterator[Sphere]:
    """Grid points around a place, in parts.

    Along periodic directions the grid repeats; along the others it ends.
    """
    inverse = np.linalg.inv(grid.cell)
    middle = (np.asarray(center) - grid.origin) @ inverse
    reach = radius * np.linalg.norm(inverse, axis=0)
    axes = []
    for axis, n in enumerate(grid.shape):
        low = int(np.ceil((middle[axis] - reach[axis]) * n))
        high = int(np.floor((middle[axis] + reach[axis]) * n))
        if not grid.pbc[axis]:
            low, high = max(low, 0), min(high, n - 1)
        if high < low:
            return
        axes.append(torch.arange(low, high + 1, device=device))
    cell = torch.as_tensor(grid.cell, device=device)
    steps = [
        (axis.double() / n - middle[k])[:, None] * cell[k]
        for k, (axis, n) in enumerate(zip(axes, grid.shape, strict=True))
    ]
    wrapped = [axis % n for axis, n in zip(axes, grid.shape, strict=True)]
    slab = max(1, POINTS_AT_ONCE // (len(axes[1]) * len(axes[2])))
    for first in range(0, len(axes[0]), slab):
        part = slice(first, first + slab)
        vectors = (steps[0][part, None, None] + steps[1][:, None] + steps[2]).reshape(-1, 3)
        distance = torch.linalg.vector_norm(vectors, dim=1)
        inside = (distance < radius).nonzero().squeeze(1)
        flat = (wrapped[0][part, None, None] * grid.shape[1] + wrapped[1][:, None]) * grid.shape[
            2
        ] + wrapped[2]
        yield Sphere(flat.flatten()[inside], vectors[inside], distance[inside])
