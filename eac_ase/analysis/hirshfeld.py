"""Hirshfeld's stockholder partition, and its self-consistent variant."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from eac_ase.analysis.free_atoms import RadialDensity, free_atom, free_ion
from eac_ase.analysis.moments import Moments, Sums, sphere
from eac_ase.grid import DensityGrid
from eac_ase.progress import Advance, progress_bar
from eac_model.errors import AnalysisError

TOLERANCE = 1e-4
"""Electrons. The iteration ends when no population changes by more."""

MAX_ITERATIONS = 200

DILUTE = 1e-7
"""e/Å³. Where free atoms together are thinner than this, points belong to no atom."""


def hirshfeld(
    grid: DensityGrid,
    *,
    device: torch.device | str = "cpu",
    progress: bool | None = None,
) -> Moments:
    """Share every point among the atoms in proportion to free-atom densities.

    w_i = ρ_i⁰ / Σ_j ρ_j⁰, j over all atoms and images (Hirshfeld, Theor. Chim. Acta 44, 129).
    """
    radials = [free_atom(int(number)) for number in grid.atoms.numbers]
    with progress_bar("hirshfeld", 2 * len(radials), progress) as advance:
        return _share(grid, radials, device, advance)


def iterative_hirshfeld(
    grid: DensityGrid,
    hidden: NDArray[np.floating],
    nuclear: NDArray[np.floating],
    *,
    device: torch.device | str = "cpu",
    progress: bool | None = None,
) -> tuple[Moments, int]:
    """The same with ions that have the populations they get (Bultinck et al., JCP 126, 144111).

    Parameters
    ----------
    hidden
        Electrons of each atom that the density does not count, its core, (n,).
    nuclear
        Electrons that belong to the atoms beside those of the grid, (n,).

    Returns
    -------
    moments, iterations

    Raises
    ------
    AnalysisError
        No convergence.
    """
    numbers = [int(number) for number in grid.atoms.numbers]
    radials = [free_atom(number) for number in numbers]
    with progress_bar("iterative hirshfeld", MAX_ITERATIONS, progress) as advance:
        populations = np.array(numbers, dtype=float)
        for iteration in range(1, MAX_ITERATIONS + 1):
            moments = _share(grid, radials, device)
            found = moments.populations + nuclear + hidden
            if np.abs(found - populations).max() < TOLERANCE:
                return moments, iteration
            populations = found
            radials = [
                free_ion(number, float(electrons))
                for number, electrons in zip(numbers, populations, strict=True)
            ]
            advance(1)
    raise AnalysisError(
        f"iterative-hirshfeld: populations still change by "
        f"{np.abs(found - populations).max():.1e} electrons after {MAX_ITERATIONS} iterations. "
        "Take hirshfeld or bader."
    )


def _share(
    grid: DensityGrid,
    radials: list[RadialDensity],
    device: torch.device | str,
    advance: Advance = lambda count: None,
) -> Moments:
    places = grid.atoms.positions
    total = torch.zeros(grid.values.size, dtype=torch.float64, device=device)
    for place, radial in zip(places, radials, strict=True):
        for part in sphere(grid, place, radial.radius, device):
            total.index_add_(0, part.point, radial.at(part.distance))
        advance(1)
    empty = total < DILUTE
    inverse = torch.where(empty, 0.0, 1 / total.clamp(min=DILUTE))
    sums = Sums(grid, device)
    for atom, (place, radial) in enumerate(zip(places, radials, strict=True)):
        for part in sphere(grid, place, radial.radius, device):
            weight = radial.at(part.distance) * inverse[part.point]
            sums.add(atom, part.point, part.vectors, weight)
        advance(1)
    return sums.result(empty)
