"""What a training step minimises."""

from __future__ import annotations

import torch
from torch import Tensor

from eac_model.network import DensityNetwork
from eac_model.training.config import LossSection
from eac_model.training.data import Batch


def total_and_spin(prediction: Tensor) -> tuple[Tensor, Tensor | None]:
    """ρ and, for two spins, s = ρ↑ − ρ↓, each (p,), from a prediction (n_spin, p), e/Å³."""
    if prediction.shape[0] == 1:
        return prediction[0], None
    return prediction.sum(0), prediction[0] - prediction[1]


def density_loss(config: LossSection, prediction: Tensor, batch: Batch) -> Tensor:
    """Loss of a prediction.

    Parameters
    ----------
    config
        Kind of the loss and weight of its spin term; see there for the formulas.
    prediction
        (n_spin, p), e/Å³.
    batch
        Reference densities and sampling weights at the same points.

    Returns
    -------
    Tensor
        Scalar; the spin term takes part only if the network has two spins.
    """
    total, spin = total_and_spin(prediction)
    weights = batch.weights
    norm = (weights * batch.density.abs()).sum() if config.kind == "nmae" else weights.sum()

    def term(predicted: Tensor, reference: Tensor) -> Tensor:
        deviation = predicted - reference
        size = deviation.square() if config.kind == "l2" else deviation.abs()
        return (weights * size).sum() / norm

    loss = term(total, batch.density)
    if spin is not None and config.spin_weight > 0:
        loss = loss + config.spin_weight * term(spin, batch.spin_density)
    return loss


def onsite_errors(network: DensityNetwork, spin_descriptors: Tensor, batch: Batch) -> Tensor | None:
    """Deviations of the blocks of on-site data in units of their spread.

    Returns
    -------
    Tensor or None
        (1 or 2, n, blocks): of the total and, in spin models, of the spin part; NaN where an atom
        has no such block or the batch no reference. None if there is nothing to compare.
    """
    if network.onsite is None or batch.onsite is None:
        return None
    numbers = batch.graph.numbers
    predicted = network.onsite_data(spin_descriptors, batch.graph)
    if len(predicted) == 2:
        predicted = torch.stack([predicted[0] + predicted[1], predicted[0] - predicted[1]])
    reference = batch.onsite[: len(predicted)]
    deviations = torch.where(reference.isnan(), 0.0, predicted - reference)
    # Spreads belong to one of n_spin parts of the total.
    errors = torch.stack([network.onsite.block_errors(d, numbers) for d in deviations])
    unknown = reference[..., :1].isnan()
    return errors.masked_fill(unknown, torch.nan) / len(predicted)


def onsite_loss(errors: Tensor) -> Tensor:
    """Mean of :func:`onsite_errors` over all that are known; 0 if none is."""
    known = ~errors.isnan()
    return torch.where(known, errors, 0.0).sum() / known.sum().clamp(min=1)


def absolute_sums(prediction: Tensor, batch: Batch) -> Tensor:
    """[Σ w|ρ−ρ̂|, Σ w|ρ|], or with spin [Σ w|ρ−ρ̂|, Σ w|ρ|, Σ w|s−ŝ|, Σ w|s|], float64."""
    total, spin = total_and_spin(prediction.detach().double())
    weights = batch.weights.double()
    pairs = [(total, batch.density.double())]
    if spin is not None:
        pairs.append((spin, batch.spin_density.double()))
    sums = [
        (weights * values.abs()).sum()
        for predicted, reference in pairs
        for values in (predicted - reference, reference)
    ]
    return torch.stack(sums)
