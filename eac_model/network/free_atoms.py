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


def fit_tables(
    basis: CutoffBasis, elements: tuple[int, ...], samples: Iterable[DensitySample], points: int
) -> tuple[Tensor, float]:
    """Fit the superposition of spherical densities that is nearest to the samples.

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
        ε_mae of the superposition on the points used, in percent.

    Raises
    ------
    ValueError
        There is no sample.
    """
    exact = copy.deepcopy(basis).double().cpu()
    size = basis.size
    rows, targets = [], []
    for sample in samples:
        stride = np.arange(0, sample.density.size, max(1, sample.density.size // points))[:points]
        chosen = sample.select(stride)
        assert chosen.points is not None
        pairs = point_pairs(sample.atoms, chosen.points, basis.cutoff, torch.float64)
        with torch.no_grad():
            values = exact(lengths(pairs.vectors)) * pairs.mask.unsqueeze(-1)
        numbers = torch.as_tensor(sample.atoms.numbers)[pairs.atom]
        design = torch.zeros(len(elements), pairs.n_points, size, dtype=torch.float64)
        for index, number in enumerate(elements):
            of_element = numbers == number
            design[index].index_add_(
                0, pairs.point[of_element].reshape(-1), values[of_element].reshape(-1, size)
            )
        rows.append(design.transpose(0, 1).reshape(pairs.n_points, -1))
        targets.append(torch.as_tensor(chosen.density, dtype=torch.float64))
    if not rows:
        raise ValueError("No sample to fit the free-atom densities to.")
    design, target = torch.cat(rows), torch.cat(targets)
    weight = 1 / (target.abs() + DENSITY_FLOOR)
    normal = design.T @ (design * weight.unsqueeze(-1) ** 2)
    # Elements and radii without data keep a zero coefficient.
    ridge = 1e-8 * normal.diagonal().max() * torch.eye(len(normal), dtype=torch.float64)
    solution = torch.linalg.solve(normal + ridge, design.T @ (target * weight**2))
    error = 100 * (design @ solution - target).abs().sum() / target.abs().sum()
    return solution.reshape(len(elements), size), float(error)
