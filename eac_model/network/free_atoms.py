"""Least-squares fit of spherical atomic densities to densities of whole structures."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from eac_model.data.sample import DensitySample
from eac_model.neighbors import point_pairs
from eac_model.network.radial import CutoffBasis, lengths

DENSITY_FLOOR = 0.05
"""e/Å³. Residuals are weighted by 1/(ρ + floor), between absolute and relative errors."""


PRIOR_STRUCTURES = 0.3
"""The code's own free atoms, where samples know them, count as much as so many structures."""


def fit_tables(
    basis: CutoffBasis, elements: tuple[int, ...], samples: Iterable[DensitySample], points: int
) -> tuple[Tensor, float]:
    """Fit the superposition of spherical densities that is nearest to the samples.

    Where samples know the free atoms that their code begins with, elements of few samples stay
    near these.

    Parameters
    ----------
    basis
        Radial functions the densities are expanded in.
    elements
        Atomic numbers, ascending.
    samples
        Densities; of each at most ``points`` values enter, evenly strided.

    Returns
    -------
    table
        (elements, basis) coefficients, float64.
    error
        ε_mae of the superposition on the points used of the first 64 samples, in percent.

    Raises
    ------
    ValueError
        There is no sample.
    """
    exact = copy.deepcopy(basis).double().cpu()
    size = basis.size
    n = len(elements) * size
    normal, prior = torch.zeros(2, n, n, dtype=torch.float64)
    moments, free_moments = torch.zeros(2, n, dtype=torch.float64)
    structures = torch.zeros(len(elements), dtype=torch.float64)
    shown: list[tuple[Tensor, Tensor, Tensor]] = []
    for sample in samples:
        stride = np.arange(0, sample.density.size, max(1, sample.density.size // points))[:points]
        chosen = sample.select(stride)
        present = [index for index, z in enumerate(elements) if z in sample.atoms.numbers]
        design = _design(exact, [elements[index] for index in present], chosen)
        target = torch.as_tensor(chosen.density, dtype=torch.float64)
        weighted = design / (target.abs() + DENSITY_FLOOR).square().unsqueeze(-1)
        columns = (torch.tensor(present).unsqueeze(-1) * size + torch.arange(size)).reshape(-1)
        block = design.T @ weighted
        normal[columns.unsqueeze(-1), columns] += block
        moments[columns] += weighted.T @ target
        structures[present] += 1
        if chosen.free_atoms is not None:
            free = torch.as_tensor(chosen.free_atoms.density, dtype=torch.float64)
            prior[columns.unsqueeze(-1), columns] += block
            free_moments[columns] += weighted.T @ free
        if len(shown) < 64:
            shown.append((columns, design.float(), target))
    if not shown:
        raise ValueError("No sample to fit the free-atom densities to.")
    # Elements and radii without data keep a zero coefficient.
    ridge = 1e-8 * normal.diagonal().max() * torch.eye(n, dtype=torch.float64)
    free_atoms = torch.linalg.solve(prior + ridge, free_moments)
    share = PRIOR_STRUCTURES / structures.clamp(min=1).repeat_interleave(size)
    prior *= torch.block_diag(*torch.ones(len(elements), size, size, dtype=torch.float64))
    prior *= share.unsqueeze(-1)
    solution = torch.linalg.solve(normal + prior + ridge, moments + prior @ free_atoms)
    deviations = [(d.double() @ solution[c] - target).abs().sum() for c, d, target in shown]
    error = 100 * sum(deviations) / sum(target.abs().sum() for *_, target in shown)
    return solution.reshape(len(elements), size), float(error)


def _design(basis: CutoffBasis, elements: list[int], sample: DensitySample) -> Tensor:
    """Summed radial functions of every element at the points of a sample, (points, e · basis)."""
    assert sample.points is not None
    pairs = point_pairs(sample.atoms, sample.points, basis.cutoff, torch.float64)
    with torch.no_grad():
        values = basis(lengths(pairs.vectors)) * pairs.mask.unsqueeze(-1)
    numbers = torch.as_tensor(sample.atoms.numbers)[pairs.atom]
    design = torch.zeros(len(elements), pairs.n_points, basis.size, dtype=torch.float64)
    for index, number in enumerate(elements):
        of_element = numbers == number
        design[index].index_add_(
            0, pairs.point[of_element].reshape(-1), values[of_element].reshape(-1, basis.size)
        )
    return design.transpose(0, 1).reshape(pairs.n_points, -1)
