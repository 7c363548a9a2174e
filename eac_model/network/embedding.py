"""From elements and initial moments to network inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eac_model.elements import shell_filling
from eac_model.network.config import NetworkConfig
from eac_model.network.radial import dense_network


class TypeEmbedding(nn.Module):
    """Attributes Z of the elements: one-hot, shell filling, both concatenated, or learned."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        index = torch.full((119,), -1)
        index[list(config.elements)] = torch.arange(len(config.elements))
        self.register_buffer("index", index, persistent=False)
        if config.embedding == "learned":
            self.size = config.embedding_size
            self.table = nn.Parameter(torch.randn(len(config.elements), self.size))
            return
        shells = torch.tensor(shell_filling(config.elements))
        one_hot = torch.eye(len(config.elements), dtype=shells.dtype)
        parts = {"one-hot": [one_hot], "shell-filling": [shells], "both": [one_hot, shells]}
        table = torch.cat(parts[config.embedding], dim=1)
        # Mean square 1, which the initial weights behind it count on.
        table = table * (table.shape[1] / table.square().sum(dim=1, keepdim=True)).sqrt()
        self.register_buffer("table", table.to(torch.get_default_dtype()))
        self.size = table.shape[1]

    def elements(self, numbers: Tensor) -> Tensor:
        """Position of each atomic number in ``config.elements``, (n,) → (n,)."""
        return self.index[numbers]

    def forward(self, numbers: Tensor) -> Tensor:
        """Map atomic numbers (n,) to attributes (n, size)."""
        return self.table[self.index[numbers]]


class MomentEmbedding(nn.Module):
    """Scalars from an atom's initial moment and its attributes; zero for a zero moment.

    Neither even nor odd in the moment: the oddness of the spin density comes from evaluating the
    network with both signs (:class:`~eac_model.network.eacnet.EACNet`).
    """

    def __init__(self, attributes: int, channels: int) -> None:
        super().__init__()
        self.network = dense_network((attributes + 1, 32, channels))

    def forward(self, attributes: Tensor, magmoms: Tensor) -> Tensor:
        """Map attributes (n, t) and moments (n,) in μ_B to scalars (n, channels)."""
        moments = magmoms.unsqueeze(-1)
        with_moment = self.network(torch.cat([attributes, moments], dim=-1))
        without = self.network(torch.cat([attributes, torch.zeros_like(moments)], dim=-1))
        return with_moment - without
