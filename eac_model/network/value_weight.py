"""The value × weight decoder of arXiv 2508.04052: ρ_i(r) = v(G_i)·w(G_i, r_i)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eac_model.graph import PointPairs
from eac_model.network.config import NetworkConfig
from eac_model.network.coupling import Coupling
from eac_model.network.radial import CutoffBasis, dense_network, lengths


class ValueWeightDecoder(nn.Module):
    """Coupling, bottleneck, value network and weight network."""

    def __init__(self, config: NetworkConfig, attributes: int) -> None:
        super().__init__()
        self.basis = CutoffBasis(config.point_basis, config.point_cutoff)
        self.coupling = Coupling(config, attributes)
        self.bottleneck = nn.Sequential(
            dense_network((config.coupling_scalars, *config.bottleneck)), nn.SiLU()
        )
        sizes = {"distance": 1, "basis": self.basis.size, "type": attributes}
        self.concatenate = config.concatenate
        features = config.bottleneck[-1] + sum(sizes[name] for name in config.concatenate)
        self.value = dense_network((features, *config.value_hidden, config.value_outputs))
        # A point sums some hundred atoms: start near zero, not at a hundred times the density.
        with torch.no_grad():
            self.value[-1].weight.mul_(0.01)
            self.value[-1].bias.zero_()
        self.offset = config.offset
        self.kind = config.weight
        if self.kind not in ("I", "S"):
            self.weight = dense_network((2 * features, *config.weight_hidden, 1))

    def forward(
        self,
        descriptors: Tensor,
        pairs: PointPairs,
        table: Tensor,
        elements: Tensor,
        *,
        zonal: bool = True,
    ) -> Tensor:
        """Contributions of all pairs, (m, k) or (outputs, m, k), e/Å³; padding gives zero.

        Parameters
        ----------
        descriptors
            (n, (l_max+1)², channels).
        table
            Attributes of all elements, (elements, t).
        elements
            (n,) index of each atom's element.
        zonal
            Use the zonal form of the coupling, else the e3nn form it equals.
        """
        rows, columns = pairs.mask.nonzero(as_tuple=True)
        distance = lengths(pairs.vectors[rows, columns])
        envelope = self.basis.envelope(distance)
        basis = self.basis(distance)
        element = elements[pairs.atom[rows]]
        couple = self.coupling if zonal else self.coupling.forward_e3nn
        scalars = couple(descriptors, pairs, basis, table, element)
        parts = [self.bottleneck(scalars)]
        for name in self.concatenate:
            match name:
                case "distance":
                    parts.append(distance.unsqueeze(-1))
                case "basis":
                    parts.append(basis)
                case "type":
                    parts.append(table[element])
        features = torch.cat(parts, dim=-1)
        point = pairs.point[rows, columns]
        weights = self._weights(features, envelope, point, pairs.n_points)
        weighted = self.value(features) * weights.unsqueeze(-1)
        if self.offset:
            weighted = weighted + self.shares(point, pairs.n_points, weighted.dtype).T
        empty = weighted.new_zeros(*pairs.mask.shape, weighted.shape[1])
        return empty.index_put((rows, columns), weighted).movedim(-1, 0).squeeze(0)

    def shares(self, point: Tensor, n_points: int, dtype: torch.dtype) -> Tensor:
        """What of the constant density each pair takes, (outputs, p): all at a point the same."""
        count = torch.bincount(point, minlength=n_points)[point].to(dtype)
        return torch.tensor(self.offset, dtype=dtype, device=point.device)[:, None] / count

    def _weights(self, features: Tensor, envelope: Tensor, point: Tensor, n_points: int) -> Tensor:
        """W of every pair, (p,); softmaxes run over the atoms at a point."""
        if self.kind == "I":
            return torch.ones_like(envelope)
        if self.kind == "S":
            return envelope
        gathered = features.new_zeros(n_points, features.shape[1]).index_add(
            0, point, features * envelope.unsqueeze(-1)
        )
        scores = self.weight(torch.cat([gathered[point], features], dim=-1)).squeeze(-1)
        return normalized_weights(self.kind, scores, envelope, point, n_points)


def normalized_weights(
    kind: str, scores: Tensor, envelope: Tensor, point: Tensor, n_points: int
) -> Tensor:
    """Weights of all pairs, (p,), from the scores of the weight network and S(r)."""
    if kind == "smooth":
        # Bounded scores: exp cannot overflow, and no maximum spoils the derivatives.
        grown = envelope * torch.exp(8 * torch.tanh(scores / 8))
        total = grown.new_zeros(n_points).index_add(0, point, grown)
        return grown / (1 + total)[point]
    # A second to import, and few models need it.
    from torch_geometric.utils import softmax

    match kind:
        case "MLP+S":
            return softmax(scores + envelope, point, num_nodes=n_points)
        case "SoftmaxxS":
            return softmax(scores, point, num_nodes=n_points) * envelope
        case _:
            # S exp(a)/Σ S exp(a): the logarithm keeps the softmax's protection from overflow.
            logs = scores + torch.log(envelope.clamp(min=torch.finfo(envelope.dtype).tiny))
            return softmax(logs, point, num_nodes=n_points)
