"""Atom–grid coupling: from descriptors to scalars of every atom–point pair.

It exists twice on the same parameters. The plain e3nn form is the definition; the zonal form is
what runs. Every step is equivariant and knows the direction only through Y^l(r̂), so in the frame
whose polar axis is r̂ all operations are diagonal in m and the scalars at the end depend on the
m = 0 components alone: tensor products become multiplications by 3j symbols
(l₁ 0 l₂ 0 | l₃ 0), linear layers matrices per l, species terms one matrix an element.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from e3nn import nn as e3nn_nn
from e3nn import o3
from torch import Tensor, nn

from eac_model.graph import PointPairs
from eac_model.network.config import NetworkConfig
from eac_model.network.interaction import (
    by_irrep,
    feature_gate,
    linear_paths,
    natural_irreps,
    tensor_product,
)
from eac_model.network.radial import radial_network


def polar_3j(l1: int, l2: int, l3: int) -> float:
    """e3nn's 3j symbol at m = 0 of the polar axis (the middle component)."""
    return float(o3.wigner_3j(l1, l2, l3, dtype=torch.float64)[l1, l2, l3])


class EdgeUpdate(nn.Module):
    """One update of the edge features: product with R(r) Y(r̂), linear, species term, gate."""

    def __init__(self, config: NetworkConfig, attributes: int, *, last: bool) -> None:
        super().__init__()
        self.channels, self.l_max, self.last = config.channels, config.l_max, last
        features = natural_irreps(self.channels, self.l_max)
        harmonics = o3.Irreps.spherical_harmonics(self.l_max)
        self.product, mid = tensor_product(features, harmonics, 0 if last else self.l_max)
        self.radial = radial_network(
            (config.point_basis.size, *config.point_radial_hidden, self.product.weight_numel),
            config.biases,
        )
        self.gate: nn.Module
        if last:
            target = o3.Irreps(f"{config.coupling_scalars}x0e")
            self.gate = e3nn_nn.Activation(target, [nn.functional.silu])
        else:
            self.gate = feature_gate(self.channels, self.l_max)
            target = self.gate.irreps_in
        self.linear = o3.Linear(mid, target, biases=config.biases)
        self.species = o3.FullyConnectedTensorProduct(features, f"{attributes}x0e", target)
        self._l_target = [ir.l for _, ir in target]

    def forward_e3nn(
        self, features: Tensor, harmonics: Tensor, basis: Tensor, attributes: Tensor
    ) -> Tensor:
        """Edge features (p, irreps) from Y (p, irreps), B(r)S(r) (p, b) and Z (p, t)."""
        product = self.product(features, harmonics, self.radial(basis))
        return self.gate(self.linear(product) + self.species(features, attributes))

    def forward(
        self, features: list[Tensor], basis: Tensor, table: Tensor, element: Tensor
    ) -> list[Tensor]:
        """The zonal form.

        Parameters
        ----------
        features
            m = 0 components per l, each (p, channels).
        basis
            B(r)·S(r), (p, b).
        table
            Attributes of all elements, (elements, t).
        element
            Element of each pair, (p,).

        Returns
        -------
        list of Tensor
            Updated m = 0 components per l; only l = 0, (p, coupling_scalars), from the last update.
        """
        weights = self.radial(basis)
        outputs: dict[int, Tensor] = {}
        mid = self._zonal_product(features, weights)
        for instruction, view in linear_paths(self.linear):
            part = mid[instruction.i_in] @ (view * instruction.path_weight)
            _accumulate(outputs, instruction.i_out, part)
        if self.linear.bias_numel:
            _accumulate(outputs, 0, self.linear.bias)
        for instruction, view in zip(
            self.species.instructions, self.species.weight_views(), strict=True
        ):
            l = instruction.i_in1
            scale = instruction.path_weight * polar_3j(l, 0, l)
            matrices = torch.einsum("et,utw->euw", table, view) * scale
            _accumulate(outputs, instruction.i_out, _by_element(features[l], matrices, element))
        return self._zonal_gate([outputs[i] for i in range(len(self._l_target))])

    def _zonal_product(self, features: list[Tensor], weights: Tensor) -> dict[int, Tensor]:
        mid: dict[int, Tensor] = {}
        # Unbinding, unlike slicing, costs the gradient no array of zeros for every path.
        paths = weights.unflatten(-1, (-1, self.channels)).unbind(-2)
        for instruction, path in zip(self.product.instructions, paths, strict=True):
            l1, l2 = instruction.i_in1, instruction.i_in2
            l3 = self.product.irreps_out[instruction.i_out].ir.l
            # Y^l in the polar frame has the one component √(2l+1).
            scale = instruction.path_weight * polar_3j(l1, l2, l3) * (2 * l2 + 1) ** 0.5
            _accumulate(mid, instruction.i_out, features[l1] * path * scale)
        return mid

    def _zonal_gate(self, outputs: list[Tensor]) -> list[Tensor]:
        if self.last:
            return [self.gate.acts[0](outputs[0])]
        # o3.Gate sorts its inputs: all scalars (features first, then gates), then l = 1, 2, …
        scalars = torch.cat([o for o, l in zip(outputs, self._l_target, strict=True) if l == 0], -1)
        higher = [o for o, l in zip(outputs, self._l_target, strict=True) if l > 0]
        plain = self.gate.act_scalars.acts[0](scalars[:, : self.channels])
        if not higher:
            return [plain]
        gates = self.gate.act_gates.acts[0](scalars[:, self.channels :])
        gated = [
            feature * gate
            for feature, gate in zip(higher, gates.split(self.channels, dim=-1), strict=True)
        ]
        return [plain, *gated]


def _accumulate(slots: dict[int, Tensor], index: int, value: Tensor) -> None:
    slots[index] = slots[index] + value if index in slots else value


def _by_element(features: Tensor, matrices: Tensor, element: Tensor) -> Tensor:
    """features[p] @ matrices[element[p]] without a matrix per pair."""
    if matrices.shape[0] == 1:
        return features @ matrices[0]
    result = features.new_zeros(features.shape[0], matrices.shape[2])
    for index, matrix in enumerate(matrices):
        members = (element == index).nonzero().squeeze(-1)
        if len(members):
            result = result.index_copy(0, members, features[members] @ matrix)
    return result


class Coupling(nn.Module):
    """Edge updates that turn atom descriptors into scalars of atom–point pairs."""

    def __init__(self, config: NetworkConfig, attributes: int) -> None:
        super().__init__()
        self.l_max = config.l_max
        last = config.coupling_updates - 1
        self.updates = nn.ModuleList(
            EdgeUpdate(config, attributes, last=step == last)
            for step in range(config.coupling_updates)
        )
        self.harmonics = o3.SphericalHarmonics(
            list(range(self.l_max + 1)), normalize=True, normalization="component"
        )

    def project(self, descriptors: Tensor, pairs: PointPairs) -> list[Tensor]:
        """M = 0 components Y^l(r̂)·D^l/√(2l+1) of all pairs, each (pairs, channels)."""
        harmonics = self.harmonics(pairs.vectors)
        rows = descriptors[pairs.atom]
        bounds = [l * l for l in range(self.l_max + 2)]
        return [
            torch.bmm(harmonics[..., a:b], rows[:, a:b])[pairs.mask] / (b - a) ** 0.5
            for a, b in pairwise(bounds)
        ]

    def forward(
        self,
        descriptors: Tensor,
        pairs: PointPairs,
        basis: Tensor,
        table: Tensor,
        element: Tensor,
    ) -> Tensor:
        """Scalars (p, coupling_scalars) of all pairs, zonal form."""
        features = self.project(descriptors, pairs)
        for update in self.updates:
            features = update(features, basis, table, element)
        return features[0]

    def forward_e3nn(
        self,
        descriptors: Tensor,
        pairs: PointPairs,
        basis: Tensor,
        table: Tensor,
        element: Tensor,
    ) -> Tensor:
        """The definition of :meth:`forward`: e3nn irreps on every pair."""
        rows = pairs.mask.nonzero()[:, 0]
        features = by_irrep(descriptors)[pairs.atom[rows]]
        harmonics = self.harmonics(pairs.vectors[pairs.mask])
        for update in self.updates:
            features = update.forward_e3nn(features, harmonics, basis, table[element])
        return features
