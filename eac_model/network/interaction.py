"""Atom–atom interactions: NequIP-style convolutions of natural-parity features."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import e3nn
import torch
from e3nn import nn as e3nn_nn
from e3nn import o3
from torch import Tensor, nn

from eac_model.network.config import Hidden
from eac_model.network.convolution import ProductPaths, convolve
from eac_model.network.radial import radial_network


@dataclass(frozen=True)
class Kinds:
    """The elements of some atoms."""

    attributes: Tensor
    """Those of each element, (t, size)."""
    of_atom: Tensor
    """Which one each atom is, (n,)."""

    @cached_property
    def order(self) -> Tensor:
        """The atoms, sorted by element, (n,)."""
        return torch.argsort(self.of_atom, stable=True)

    @cached_property
    def place(self) -> Tensor:
        """Where each atom is in that order, (n,)."""
        return torch.argsort(self.order)

    @cached_property
    def counts(self) -> list[int]:
        """Number of atoms of each element."""
        counts: list[int] = torch.bincount(self.of_atom, minlength=len(self.attributes)).tolist()
        return counts

    @property
    def by_atom(self) -> Tensor:
        """Attributes of every atom, (n, size)."""
        return self.attributes[self.of_atom]

    def part(self, atoms: Tensor) -> Kinds:
        """Those of some of the atoms, given by index."""
        return Kinds(self.attributes, self.of_atom[atoms])


@contextmanager
def quick_codegen() -> Iterator[None]:
    """Leave out e3nn's search for the best order of the sums in the code that it writes.

    The search takes more than half of the time in which a network is built or loaded, a second or
    two, and gains nothing where products of ours do the work.
    """
    before = e3nn.get_optimization_defaults()["optimize_einsums"]
    e3nn.set_optimization_defaults(optimize_einsums=False)
    try:
        yield
    finally:
        e3nn.set_optimization_defaults(optimize_einsums=before)


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
        kinds: Kinds,
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
        updates = _mixed(self.linear_out, to_l)
        for l, of_species in enumerate(_mixed_by_element(self.species, by_l, kinds)):
            updates[l] = updates[l] + of_species
        return self._updated(features, torch.cat([m.mT.flatten(1) for m in updates], 1))

    def forward_e3nn(
        self,
        features: Tensor,
        kinds: Kinds,
        senders: Tensor,
        receivers: Tensor,
        harmonics: Tensor,
        basis: Tensor,
    ) -> Tensor:
        """What defines :meth:`forward`: the products of e3nn."""
        messages = self.product(self.linear_in(features)[senders], harmonics, self.radial(basis))
        gathered = messages.new_zeros(len(features), messages.shape[1])
        gathered = gathered.index_add(0, receivers, messages)
        update = self.linear_out(gathered * self.normalization)
        return self._updated(features, update + self.species(features, kinds.by_atom))

    def _updated(self, features: Tensor, update: Tensor) -> Tensor:
        updated = self.gate(update)
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


def _mixed_by_element(
    product: o3.FullyConnectedTensorProduct, by_l: list[Tensor], kinds: Kinds
) -> list[Tensor]:
    """The product with the attributes of the atoms, of features as in :func:`_mixed`.

    It is a linear layer for every element, whose matrices are made first.
    """
    paths = product.instructions
    weights = product.weight.split([math.prod(path.path_shape) for path in paths])
    mixed = []
    for part, path, weight in zip(by_l, paths, weights, strict=True):
        inputs, attributes, outputs = path.path_shape
        scale = path.path_weight / math.sqrt(part.shape[1])  # 3j symbols of l with 0
        by_attribute = weight.view(path.path_shape).transpose(0, 1).reshape(attributes, -1)
        matrices = (kinds.attributes @ by_attribute * scale).view(-1, inputs, outputs)
        of_elements = part[kinds.order].split(kinds.counts)
        updates = [own @ m for own, m in zip(of_elements, matrices.unbind(), strict=True)]
        mixed.append(torch.cat(updates)[kinds.place])
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
