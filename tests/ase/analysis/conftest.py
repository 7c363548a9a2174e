"""Densities whose parts are known: sums of Gaussians."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from ase import Atoms

from eac_ase import DensityGrid


def gaussian_density(
    atoms: Atoms, electrons, alphas, shape, *, spins=None, kind="valence"
) -> DensityGrid:
    """Σ_i N_i (α_i/π)^(3/2) exp(−α_i r²) over all images, on the grid of the cell."""
    grid = DensityGrid(
        np.zeros(shape), atoms, np.array(atoms.cell), pbc=tuple(atoms.pbc), kind=kind
    )
    points = grid.points()
    parts = []
    for place, n, alpha in zip(atoms.positions, electrons, alphas, strict=True):
        total = np.zeros(len(points))
        shifts = product(*[(-1, 0, 1) if p else (0,) for p in atoms.pbc])
        for shift in shifts:
            squares = ((points - place - np.array(shift) @ np.array(atoms.cell)) ** 2).sum(1)
            total += n * (alpha / np.pi) ** 1.5 * np.exp(-alpha * squares)
        parts.append(total.reshape(shape))
    spin = None if spins is None else sum(s * p for s, p in zip(spins, parts, strict=True))
    return replace(grid, values=sum(parts), spin=spin)


@pytest.fixture(scope="session")
def salt() -> DensityGrid:
    """Well separated Gaussians of 1 and 7 electrons in a small cubic cell, spins up and down."""
    atoms = Atoms("NaCl", [(0, 0, 0), (1.8, 1.8, 1.8)], cell=[3.6] * 3, pbc=True)
    return gaussian_density(atoms, [1, 7], [6.0, 6.0], (30, 30, 30), spins=[0.5, -0.25])


@pytest.fixture(scope="session")
def gaussians():
    """The function :func:`gaussian_density`."""
    return gaussian_density
