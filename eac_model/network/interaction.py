"""Atom–atom interactions: NequIP-style convolutions of natural-parity features."""

from __future__ import annotations

import math
from typing import Any

import torch
from e3nn import nn as e3nn_nn
from e3nn import o3
from torch import Tensor, nn
from torch_geometric.utils import scatter

from eac_model.network.config import Hidden
from eac_model.network.radial import radial_network


def natural_irreps(channels: int, l_max: int) -> o3.Irreps:
    """Channels × (0e + 1o + 2e + …) up to ``l_max``."""
    return o3.Irreps([(channels, (l, (-1) ** l)) for l in range(l_max + 1)])


def feature_gate(channels: int, l_max: int) -> e3nn_nn.Gate:
    """SiLU on scalars; every higher channel is multiplied by the SiLU of a scalar of its own."""
    gated = natural_irreps(channels, l_max)[1:]
    return e3nn_nn.Gate(
        f"{channels}x0e",
        [nn.functional.silu],
        [(mul, "0e") for mul, _ in gated],
        [nn.functional.silu] * len(gated),
        gated,
    )


def tensor_product(
    features: o3.Irreps, harmonics: o3.Irreps, l_out: int
) -> tuple[o3.TensorProduct, o3.Irreps]:
    """Channel-wise product of features and harmonics with an external weight a path and channel.

    Only natural parities leave it, so l_in + l_harmonic + l_out is even on every path.
    """
    outputs: list[tuple[int, o3.Irrep]] = []
    paths: list[tuple[int, int]] = []
    for i, (mul, ir_feature) in enumerate(features):
        for j, (_, ir_harmonic) in enumerate(harmonics):
            for ir in ir_feature * ir_harmonic:
                if ir.l <= l_out and ir.p == (-1) ** ir.l:
                    outputs.append((mul, ir))
                    paths.append((i, j))
    sorted_outputs, position, _ = o3.Irreps(outputs).sort()
    instructions = [(i, j, position[k], "uvu", True) for k, (i, j) in enumerate(paths)]
    product = o3.TensorProduct(
        features,
        harmonics,
        sorted_outputs,
        instructions,
        shared_weights=False,
        internal_weights=False,
    )
    return product, sorted_outputs


def linear_paths(linear: o3.Linear) -> list[tuple[Any, Tensor]]:
    """Instructions of an equivariant linear layer and their matrices (in, out), without biases."""
    paths = [path for path in linear.instructions if path.i_in >= 0]
    # Views of the biases, which come last, would be asked of the weights, and fail.
    return list(zip(paths, linear.weight_views(), strict=False))


class Interaction(nn.Module):
    """Linear, convolution over neighbours, species term, gate, residual."""

    def __init__(
        self,
        features: o3.Irreps,
        channels: int,
        l_max: int,
        attributes: int,
        basis_size: int,
        radial_hidden: Hidden,
        average_neighbors: float,
        *,
        biases: bool = False,
        residual: bool = True,
    ) -> None:
        super().__init__()
        harmonics = o3.Irreps.spherical_harmonics(l_max)
        self.irreps_out = natural_irreps(channels, l_max)
        self.gate = feature_gate(channels, l_max)
        self.linear_in = o3.Linear(features, features, biases=biases)
        self.product, mid = tensor_product(features, harmonics, l_max)
        self.radial = radial_network(
            (basis_size, *radial_hidden, self.product.weight_numel), biases
        )
        self.linear_out = o3.Linear(mid, self.gate.irreps_in, biases=biases)
        self.species = o3.FullyConnectedTensorProduct(
            features, f"{attributes}x0e", self.gate.irreps_in
        )
        self.residual = residual and features == self.irreps_out
        self.normalization = 1 / math.sqrt(average_neighbors)

    def forward(
        self,
        features: Tensor,
        attributes: Tensor,
        senders: Tensor,
        receivers: Tensor,
        harmonics: Tensor,
        basis: Tensor,
    ) -> Tensor:
        """Update features (n, irreps in) to (n, irreps out) from edges (e, …)."""
        messages = self.product(self.linear_in(features)[senders], harmonics, self.radial(basis))
        gathered = scatter(messages, receivers, dim=0, dim_size=features.shape[0])
        update = self.linear_out(gathered * self.normalization)
        updated = self.gate(update + self.species(features, attributes))
        return features + updated if self.residual else updated


def by_component(features: Tensor, irreps: o3.Irreps) -> Tensor:
    """Reorder (n, channels × (0e + 1o + …)) to (n, (l_max+1)², channels)."""
    blocks = []
    for part, (mul, ir) in zip(irreps.slices(), irreps, strict=True):
        blocks.append(features[:, part].reshape(-1, mul, ir.dim).transpose(1, 2))
    return torch.cat(blocks, dim=1)


def by_irrep(features: Tensor) -> Tensor:
    """Inverse of :func:`by_component`."""
    n, components, _ = features.shape
    l_max = math.isqrt(components) - 1
    blocks = [
        features[:, l * l : (l + 1) ** 2].transpose(1, 2).reshape(n, -1) for l in range(l_max + 1)
    ]
    return torch.cat(blocks, dim=1)
