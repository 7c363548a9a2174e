"""The network as Lightning trains it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from eac_model.errors import ConfigurationError
from eac_model.graph import AtomGraph
from eac_model.network import DensityNetwork, build
from eac_model.training.config import OptimisationSection, TrainingConfig
from eac_model.training.data import Batch
from eac_model.training.losses import (
    absolute_sums,
    density_loss,
    onsite_errors,
    onsite_loss,
)
from eac_model.training.schedule import learning_rate

REGRESS_EVERY = 200
"""Steps after which the readouts of on-site data are fitted anew."""


class TrainingModule(pl.LightningModule):
    """Steps of training and validation.

    Parameters
    ----------
    network
        Network to train.
    config
        Training run.
    n_validation
        Number of left-out structures.
    fingerprints
        Of the training and the left-out structures; kept in checkpoints.
    examples
        Atoms that the readouts of on-site data are fitted to, and their data, as in a
        :class:`~eac_model.training.data.Batch`.
    """

    def __init__(
        self,
        network: DensityNetwork,
        config: TrainingConfig,
        n_validation: int,
        fingerprints: Sequence[str] = (),
        examples: Sequence[tuple[AtomGraph, Tensor]] = (),
    ) -> None:
        super().__init__()
        self.network = network
        self.training_config = config
        self._fingerprints = list(fingerprints)
        self._examples = examples
        self._n_sums = 4 if network.config.spin else 2
        self.train_sums = torch.zeros(2 + self._n_sums, dtype=torch.float64)
        """Steps, Σ loss and :func:`absolute_sums` since the last row of the log."""
        self.validation_sums = torch.zeros(n_validation, self._n_sums, dtype=torch.float64)
        """:func:`absolute_sums` of every left-out structure, in the validation under way."""
        n_blocks = 0 if network.onsite is None else network.onsite.n_blocks
        self.onsite_sums = torch.zeros(2, network.n_spin, n_blocks, dtype=torch.float64)
        """Σ squares and number of :func:`onsite_errors`, in the validation under way."""

    def __deepcopy__(self, memo: dict[int, Any]) -> TrainingModule:
        # Averaging pairs the weights of the module and of its copy by their order. e3nn's generated
        # modules come back from a copy with other buffers than they went in: build anew instead.
        network = build(self.network.config, self.network.dtype).to(self.network.device)
        network.load_state_dict(self.network.state_dict())
        network.train(self.network.training)
        return TrainingModule(
            network,
            self.training_config,
            len(self.validation_sums),
            self._fingerprints,
            self._examples,
        )

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Now and then, fit the readouts of on-site data to the descriptors of the moment."""
        weight = self.training_config.loss.onsite_weight
        if weight > 0 and self.global_step % REGRESS_EVERY == 0:
            self.fit_readouts(self.network)

    @torch.no_grad()
    def fit_readouts(self, network: DensityNetwork) -> None:
        """Ridge regression of the on-site data on the descriptors of a network."""
        if network.onsite is None:
            return

        def examples() -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
            for graph, onsite in self._examples:
                here = graph.to(network.device)
                total, difference = onsite.to(network.device)
                descriptors = network.spin_descriptors(here)
                parts = [total / network.n_spin]
                if len(descriptors) == 2:
                    parts = [(total + difference) / 2, (total - difference) / 2]
                # The spins of a structure resemble each other: they are left out together.
                yield (
                    torch.cat(list(descriptors)),
                    torch.cat([network.spherical_averages(one, here) for one in descriptors]),
                    here.numbers.repeat(len(descriptors)),
                    torch.cat(parts),
                )

        network.onsite.regress(examples())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        weight = self.training_config.loss.onsite_weight
        prediction, onsite = self._predict(batch, with_onsite=weight > 0)
        loss = density_loss(self.training_config.loss, prediction, batch)
        if onsite is not None:
            loss = loss + weight * onsite_loss(onsite)
        with torch.no_grad():
            one = torch.ones(1, dtype=torch.float64, device=loss.device)
            now = torch.cat([one, loss.reshape(1).double(), absolute_sums(prediction, batch)])
            # Stays on the device: reading a value at every step would stall a GPU.
            self.train_sums = self.train_sums.to(now.device) + now
        return loss

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation; the network is the averaged one now."""
        self.fit_readouts(self.network)
        self.onsite_sums = torch.zeros_like(self.onsite_sums, device=self.device)
        self.validation_sums = torch.zeros_like(self.validation_sums, device=self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add one block of a left-out structure."""
        prediction, onsite = self._predict(batch, with_onsite=True)
        self.validation_sums[batch.structure] += absolute_sums(prediction, batch)
        if onsite is not None:
            known = ~onsite.isnan()
            squares = onsite.double().nan_to_num().square().sum(dim=1)
            self.onsite_sums += torch.stack([squares, known.sum(dim=1).double()])

    def _predict(self, batch: Batch, *, with_onsite: bool) -> tuple[Tensor, Tensor | None]:
        """Density at the points and errors of the on-site data."""
        descriptors = self.network.spin_descriptors(batch.graph)
        density = self.network.density(descriptors, batch.graph.numbers, batch.pairs)
        return density, onsite_errors(self.network, descriptors, batch) if with_onsite else None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what a resumed run is compared with."""
        checkpoint["training_config"] = self.training_config.model_dump(mode="json")
        checkpoint["fingerprints"] = self._fingerprints

    def configure_optimizers(self) -> Any:
        """The optimiser, and a scheduler that sets the learning rate of every step."""
        optimisation = self.training_config.optimisation
        optimizer = make_optimizer(optimisation, step_groups(self.network, optimisation))
        base = optimisation.learning_rate
        scheduler = LambdaLR(optimizer, lambda step: learning_rate(optimisation, step) / base)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def step_groups(network: DensityNetwork, config: OptimisationSection) -> list[dict[str, Any]]:
    """Parameters by the size of their steps: all but the network's small ones take the full rate.

    Their order is that of ``network.parameters()``, in groups.
    """
    scales = network.step_scales()
    groups: dict[float, list[torch.nn.Parameter]] = {1.0: []}
    for name, parameter in network.named_parameters():
        groups.setdefault(scales.get(name, 1.0), []).append(parameter)
    return [
        {"params": parameters, "lr": config.learning_rate * scale}
        for scale, parameters in groups.items()
    ]


def make_optimizer(config: OptimisationSection, parameters: list[dict[str, Any]]) -> Optimizer:
    """The optimiser of a configuration.

    Raises
    ------
    ConfigurationError
        ``lamb`` or ``muon`` without the package that holds them.
    """
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=rate, weight_decay=decay)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
    try:
        from pytorch_optimizer import Lamb, Muon
    except ImportError as error:
        raise ConfigurationError(
            f"optimisation.optimizer: {config.optimizer} needs the package pytorch-optimizer; "
            "install it with `pip install 'eac-density[optimizers]'`, or take adamw."
        ) from error
    if config.optimizer == "lamb":
        return Lamb(parameters, lr=rate, weight_decay=decay)
    parts = [
        {**group, "params": chosen, "use_muon": matrices, "weight_decay": decay}
        for group in parameters
        for matrices in (True, False)
        if (chosen := [p for p in group["params"] if _is_matrix(p) == matrices])
    ]
    # With adjusted rates, steps have the sizes that Adam's have.
    return Muon(parts, use_adjusted_lr=True)


def _is_matrix(parameter: Tensor) -> bool:
    """Whether a parameter is a matrix; rows and columns alone have nothing to orthogonalise."""
    return parameter.ndim == 2 and min(parameter.shape) > 1


def onsite_percents(sums: Tensor, names: Sequence[str]) -> dict[str, float]:
    """Root mean square error of every block in percent of its spread, by name of the block.

    Parameters
    ----------
    sums
        (2, 1 or 2, blocks) Σ squares and numbers; blocks that never occurred are left out.
    """
    found = {}
    for part, spin in enumerate(("", " spin")[: sums.shape[1]]):
        for index, name in enumerate(names):
            squares, count = sums[:, part, index].tolist()
            if count:
                found[f"{name}{spin}"] = 100 * (squares / count) ** 0.5
    return found


def nmae_percents(sums: Tensor) -> tuple[float, float | None]:
    """ε_mae of density and spin density (None without) from rows of sums, mean over the rows.

    Parameters
    ----------
    sums
        (structures, 2 or 4), see :func:`~eac_model.training.losses.absolute_sums`. Structures
        without spin density do not enter the mean of the spin.

    Raises
    ------
    ConfigurationError
        A structure holds no density.
    """
    if len(empty := (sums[:, 1] == 0).nonzero()):
        raise ConfigurationError(
            f"data.validation: structure {int(empty[0])} of those left out, counted from 0, holds "
            "no density at all, and no error has a meaning. Take it out."
        )
    total = float((sums[:, 0] / sums[:, 1]).mean())
    if sums.shape[1] == 2:
        return 100 * total, None
    polarised = sums[sums[:, 3] > 0]
    if len(polarised) == 0:
        return 100 * total, None
    return 100 * total, 100 * float((polarised[:, 2] / polarised[:, 3]).mean())
