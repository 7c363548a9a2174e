import pytest
import torch

from eac_model.training.config import LossSection
from eac_model.training.data import Batch
from eac_model.training.losses import absolute_sums, density_loss
from eac_model.training.module import nmae_percents


@pytest.fixture
def batch():
    return Batch(
        graph=None,
        pairs=None,
        density=torch.tensor([1.0, 2.0, 5.0]),
        spin_density=torch.tensor([0.5, 0.0, -1.0]),
        weights=torch.tensor([1.0, 1.0, 2.0]),
    )


PREDICTION = torch.tensor([[1.5, 1.0, 4.0]])  # errors 0.5, 1, 1; Σ w = 4, Σ w|ρ| = 13


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("l1", (0.5 + 1 + 2) / 4), ("l2", (0.25 + 1 + 2) / 4), ("nmae", (0.5 + 1 + 2) / 13)],
)
def test_losses_of_the_density_by_hand(batch, kind, expected):
    assert density_loss(LossSection(kind=kind), PREDICTION, batch).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kind", "density", "spin"),
    [
        ("l1", (0.5 + 1 + 2) / 4, (0.5 + 1 + 0) / 4),
        ("l2", (0.25 + 1 + 2) / 4, (0.25 + 1 + 0) / 4),
        ("nmae", (0.5 + 1 + 2) / 13, (0.5 + 1 + 0) / 13),
    ],
)
def test_losses_of_two_spins_by_hand(batch, kind, density, spin):
    # ρ as above; s = 1, 1, −1, so its errors are 0.5, 1, 0.
    up_down = torch.tensor([[1.25, 1.0, 1.5], [0.25, 0.0, 2.5]])
    loss = density_loss(LossSection(kind=kind, spin_weight=3.0), up_down, batch)
    assert loss.item() == pytest.approx(density + 3 * spin)
    without = density_loss(LossSection(kind=kind, spin_weight=0.0), up_down, batch)
    assert without.item() == pytest.approx(density)


def test_sums_and_percentages_by_hand(batch):
    up_down = torch.tensor([[1.25, 1.0, 1.5], [0.25, 0.0, 2.5]])
    sums = absolute_sums(up_down, batch)
    assert sums.tolist() == pytest.approx([3.5, 13.0, 1.5, 2.5])
    assert sums.dtype == torch.float64
    paired = torch.tensor([1.0, 10.0, 0.2, 0.0], dtype=torch.float64)
    total, spin = nmae_percents(torch.stack([sums, paired]))
    assert total == pytest.approx(100 * (3.5 / 13 + 0.1) / 2)
    assert spin == pytest.approx(60)


def test_a_spin_error_without_polarised_structures_is_unknown():
    sums = torch.tensor([[1.0, 10.0, 0.0, 0.0]], dtype=torch.float64)
    assert nmae_percents(sums) == (pytest.approx(10), None)
