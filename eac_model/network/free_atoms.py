"""Least-squares fit of spherical atomic densities to densities of whole structures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from eac_model.data.sample import DensitySample
from eac_model.neighbors import point_pairs
from eac_model.network.radial import lengths

if TYPE_CHECKING:
    from eac_model.network.eacnet import EACNet

DENSITY_FLOOR = 0.05
"""e/Å³. Residuals are weighted by 1/(ρ + floor), between absolute and relative errors."""


def fit_tables(
    network: EACNet, samples: Iterable[DensitySample], points: int
) -> tuple[Tensor, float]:
    """Coefficients (elements, table size) of the superposition nearest to the samples; ε_mae in %.

    Raises
    ------
    ValueError
        There is no sample.
    """
    superposition = network.superposition
    assert superposition is not None
    basis = superposition.basis
    n_elements, size = len(network.config.elements), basis.size
    rows, targets = [], []
    for sample in samples:
        total = sample.density.size
        stride = np.arange(0, total, max(1, total // points))[:points]
        chosen = sample.select(stride)
        assert chosen.points is not None
        pairs = point_pairs(
            sample.atoms, chosen.points, network.config.point_cutoff, torch.float64, network.device
        )
        with torch.no_grad():
            values = basis.double()(lengths(pairs.vectors)) * pairs.mask.unsqueeze(-1)
        basis.to(network.dtype)
        numbers = torch.as_tensor(sample.atoms.numbers, device=network.device)
        element = network.types.elements(numbers)[pairs.atom]
        design = torch.zeros(
            n_elements, pairs.n_points, size, dtype=torch.float64, device=network.device
        )
        for index in range(n_elements):
            of_element = element == index
            design[index].index_add_(
                0, pairs.point[of_element].reshape(-1), values[of_element].reshape(-1, size)
            )
        rows.append(design.transpose(0, 1).reshape(pairs.n_points, -1))
        targets.append(torch.as_tensor(chosen.density, dtype=torch.float64, device=network.device))
    if not rows:
        raise ValueError("No sample to fit the free-atom densities to.")
    design, target = torch.cat(rows), torch.cat(targets)
    weight = 1 / (target.abs() + DENSITY_FLOOR)
    normal = design.T @ (design * weight.unsqueeze(-1) ** 2)
    # Elements and radii without data keep a zero coefficient.
    ridge = 1e-8 * normal.diagonal().max() * torch.eye(len(normal), dtype=torch.float64)
    solution = torch.linalg.solve(normal + ridge.to(normal.device), design.T @ (target * weight**2))
    error = 100 * (design @ solution - target).abs().sum() / target.abs().sum()
    return solution.reshape(n_elements, size).to(network.dtype), float(error)
