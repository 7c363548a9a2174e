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
from eac_model.network.convolution import ProductPaths, convolve
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
        self.channels = features[0].mul
        self.product, mid = tensor_product(features, harmonics, l_max)
        self.paths = ProductPaths.of(self.product)
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
        rows: Tensor | None = None,
    ) -> Tensor:
        """Update features (n, irreps in) to (n, irreps out) from edges (e, …).

        ``rows`` (e,) says which row of ``basis`` belongs to each edge, where edges share them.
        """
        degrees = range(self.paths.l_in + 1)
        parts = features.split([self.channels * (2 * l + 1) for l in degrees], dim=1)
        by_l = [part.unflatten(1, (self.channels, -1)).transpose(1, 2) for part in parts]
        gathered = convolve(
            self.paths,
            torch.cat(_mixed(self.linear_in, by_l), dim=1),
            self.radial(basis).unflatten(1, (-1, self.channels)),
            harmonics,
            senders,
            receivers,
            rows,
        )
        sums = (gathered * self.normalization).split(self.paths.rows, dim=1)
        to_l = [of_l.unflatten(1, (2 * l + 1, -1)).flatten(2) for l, of_l in enumerate(sums)]
        update = torch.cat([m.transpose(1, 2).flatten(1) for m in _mixed(self.linear_out, to_l)], 1)
        return self._updated(features, attributes, update)

    def forward_e3nn(
        self,
        features: Tensor,
        attributes: Tensor,
        senders: Tensor,
        receivers: Tensor,
        harmonics: Tensor,
        basis: Tensor,
    ) -> Tensor:
        """What defines :meth:`forward`: the products of e3nn."""
        messages = self.product(self.linear_in(features)[senders], harmonics, self.radial(basis))
        gathered = scatter(messages, receivers, dim=0, dim_size=features.shape[0])
        update = self.linear_out(gathered * self.normalization)
        return self._updated(features, attributes, update)

    def _updated(self, features: Tensor, attributes: Tensor, update: Tensor) -> Tensor:
        updated = self.gate(update + self.species(features, attributes))
        return features + updated if self.residual else updated


def _mixed(linear: o3.Linear, by_l: list[Tensor]) -> list[Tensor]:
    """An equivariant linear layer of features (n, 2l+1, channels in) that ascend in l.

    Where several irreps have one l, their channels follow each other.
    """
    sizes, scales = [0] * len(by_l), [0.0] * len(by_l)
    for path in linear.instructions:
        if path.i_in >= 0:
            l = linear.irreps_in[path.i_in].ir.l
            sizes[l] += math.prod(path.path_shape)
            scales[l] = path.path_weight
    # Splitting, unlike slicing, costs the gradient no array of zeros for every part.
    weights = linear.weight.split(sizes)
    mixed = [
        part @ (weight.view(part.shape[2], -1) * scale)
        for part, weight, scale in zip(by_l, weights, scales, strict=True)
    ]
    if linear.bias_numel:
        mixed[0] = mixed[0] + linear.bias
    return mixed


def by_component(features: Tensor, irreps: o3.Irreps) -> Tensor:
    """Reorder (n, channels × (0e + 1o + …)) to (n, (l_max+1)², channels)."""
    parts = features.split([mul * ir.dim for mul, ir in irreps], dim=1)
    blocks = [
        part.reshape(-1, mul, ir.dim).transpose(1, 2)
        for part, (mul, ir) in zip(parts, irreps, strict=True)
    ]
    return torch.cat(blocks, dim=1)


def by_irrep(features: Tensor) -> Tensor:
    """Inverse of :func:`by_component`."""
    n, components, _ = features.shape
    l_max = math.isqrt(components) - 1
    blocks = [
        features[:, l * l : (l + 1) ** 2].transpose(1, 2).reshape(n, -1) for l in range(l_max + 1)
    ]
    return torch.cat(blocks, dim=1)
