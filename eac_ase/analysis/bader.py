"""Bader's basins, by baderkit's weight method (Yu and Trinkle, J. Chem. Phys. 134, 064111)."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eac_ase.analysis.moments import Moments, Sums
from eac_ase.grid import DensityGrid
from eac_model.errors import AnalysisError

VACUUM = 1e-3
"""e/Å³. Points with a thinner reference density belong to no atom."""

NUCLEUS = 0.6
"""Å. An atom needs a maximum of the reference density within this distance."""

ELSEWHERE = 1.0
"""Å. Maxima farther than this from every atom are non-nuclear attractors."""


@dataclass(frozen=True)
class Basins:
    """Bader's basins, put together by atoms."""

    moments: Moments
    """First and second moments, and images, from points given whole to one basin."""
    attractors: int
    """Maxima far from every atom; their basins went to the nearest one."""
    attractor_electrons: float
    """Electrons in these basins."""


def bader(grid: DensityGrid, reference: NDArray[np.floating]) -> Basins:
    """Integrate a density over the basins of another.

    Parameters
    ----------
    grid
        Density to integrate.
    reference
        Density whose maxima and zero-flux surfaces make the basins, e/Å³, shape of the grid.

    Raises
    ------
    AnalysisError
        baderkit is missing, or an atom has no maximum of the reference density.
    """
    with _quiet():
        Bader, Grid, structure = _baderkit(grid)

        def of(values: NDArray[np.floating]) -> Any:
            scaled = np.ascontiguousarray(values, dtype=float) * grid.volume
            return Grid(structure, {"total": scaled}, data_type="charge", sig_figs=10)

        reference_grid = of(reference)

        def basins(values: NDArray[np.floating]) -> Any:
            found = Bader(
                charge_grid=of(values),
                total_charge_grid=reference_grid,
                reference_grid=reference_grid,
                method="weight",
                vacuum_tol=VACUUM,
            )
            found.run_atom_assignment()
            return found

        run = basins(grid.values)
        spins = None
        if grid.spin is not None:
            # baderkit divides by a basin's charge where points tie. Of a spin density that may be
            # zero; populations are linear in the density, and this one is positive.
            positive = 2 * np.asarray(grid.values) + grid.spin
            spins = basins(positive).atom_charges - 2 * np.asarray(run.atom_charges)
    distances = np.full(len(grid.atoms), np.inf)
    np.minimum.at(distances, run.basin_atoms, run.basin_atom_dists)
    _check(grid, distances)
    labels = np.asarray(run.atom_labels)
    rough = _by_points(grid, labels)
    vacuum = labels == len(grid.atoms)
    voxel = grid.volume / grid.values.size
    populations = np.array(run.atom_charges, dtype=float)
    far = run.basin_atom_dists > ELSEWHERE
    total = float(grid.values.sum(dtype=float)) * voxel
    empty = float(grid.values[vacuum].sum(dtype=float)) * voxel
    empty_spin = 0.0 if grid.spin is None else float(grid.spin[vacuum].sum(dtype=float)) * voxel
    # baderkit leaves out some 1e-7 of the charge where fluxes underflow.
    populations *= (total - empty) / populations.sum()
    moments = replace(
        rough,
        populations=populations,
        spins=spins,
        volumes=np.array(run.atom_volumes, dtype=float),
        vacuum=empty,
        vacuum_spin=empty_spin,
        vacuum_volume=float(vacuum.sum()) * voxel,
    )
    return Basins(moments, int(far.sum()), float(np.asarray(run.basin_charges)[far].sum()))


def _by_points(grid: DensityGrid, labels: NDArray[np.integer]) -> Moments:
    """Moments of whole points, each about the nearest image of its atom."""
    sums = Sums(grid)
    inverse = np.linalg.inv(grid.cell)
    shifts = _short_shifts(grid.cell, grid.pbc)
    n = np.array(grid.shape)
    for atom, place in enumerate(grid.atoms.positions):
        flat = np.flatnonzero(labels == atom)
        fractions = np.stack(np.unravel_index(flat, grid.shape), axis=1) / n
        fractions -= (place - grid.origin) @ inverse
        fractions -= np.where(grid.pbc, np.round(fractions), 0)
        vectors = fractions @ grid.cell
        best = vectors.copy()
        for shift in shifts:
            moved = vectors + shift
            nearer = (moved**2).sum(1) < (best**2).sum(1) - 1e-9
            best[nearer] = moved[nearer]
        ones = torch.ones(len(flat), dtype=torch.float64)
        sums.add(atom, torch.from_numpy(flat), torch.from_numpy(best), ones)
    return sums.result()


def _short_shifts(cell: NDArray[np.floating], pbc: tuple[bool, bool, bool]) -> NDArray[np.floating]:
    """The neighbouring lattice vectors; further ones matter for very skewed cells only."""
    sides = [[-1, 0, 1] if periodic else [0] for periodic in pbc]
    steps = np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1).reshape(-1, 3)
    return steps[np.any(steps, axis=1)] @ cell


def _check(grid: DensityGrid, distances: NDArray[np.floating]) -> None:
    lost = np.flatnonzero(distances > NUCLEUS)
    if len(lost):
        names = ", ".join(f"{grid.atoms.symbols[a]} {a}" for a in lost[:5])
        remedy = "Take a finer grid, or a"
        if set(grid.atoms.symbols[lost]) == {"H"}:
            remedy = "Hydrogen has no core that could be added: take hirshfeld, or a"
        raise AnalysisError(
            f"The reference density has no maximum at {len(lost)} atoms ({names}"
            f"{' …' if len(lost) > 5 else ''}): they have no basins. {remedy} "
            "reference with core electrons (AECCAR0 + AECCAR2, an all-electron density)."
        )


def _baderkit(grid: DensityGrid) -> tuple[Any, Any, Any]:
    try:
        from baderkit import Bader, Grid
        from pymatgen.core.structure import Structure
    except ImportError as error:
        raise AnalysisError(
            "Bader's partition needs baderkit: pip install 'eac-density[bader]'"
        ) from error
    structure = Structure(
        grid.cell,
        [str(symbol) for symbol in grid.atoms.symbols],
        grid.atoms.positions - grid.origin,
        coords_are_cartesian=True,
        to_unit_cell=True,
    )
    return Bader, Grid, structure


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep baderkit's messages, and the handler it gives the root logger, to itself."""
    root = logging.getLogger()
    level, handlers, disabled = root.level, root.handlers[:], logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        root.handlers[:] = handlers
        root.setLevel(level)
