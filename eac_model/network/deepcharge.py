"""Deep Charge: the density at a point from the invariants of the point's own environment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from eac_model.data.sample import DensitySample
from eac_model.graph import AtomGraph, PointPairs
from eac_model.network.config import DeepChargeConfig
from eac_model.network.density_network import DensityNetwork
from eac_model.network.radial import SplineBasis, lengths

POINTS_OF_SCALES = 300
"""Points of a sample that scales are taken from."""

KNOTS = 512
"""Of the splines that the rows of G are expanded in."""


FIRST_WEIGHTS, FIRST_OFFSETS, LATER_WEIGHTS = 1.0, 2.5, 3.0
"""Of embedding networks that start: root mean squares of the first layer's weights and offsets, and
how much larger the weights of later layers are than DeePMD-kit's."""


class DeepCharge(DensityNetwork):
    """DeepPot-SE embedding of the atoms around a point (Phys. Rev. B 108, 235159).

    With x the vector from a point to atom j, r its length and s(r) ≈ 1/r the switched inverse
    distance (:func:`switched_inverse`), every atom within the cutoff has a row
    R_j = s(r)·(1, x/r, y/r, z/r) and, from the embedding network of its element, a row
    G_j = N_Z(s(r)). The density is a fitting network of the invariants
    D = (GᵀR)(RᵀG_<)/N² (DeepPot-SE, arXiv 1805.09003, eq. 8), G_< the first columns of G.

    Notes
    -----
    G is a function of one distance. So RᵀG = Σ_k (Σ_j R_j B_k(r_j)) g_k with cubic splines B_k,
    whose coefficients g_k are made of the embedding network at the knots: neighbours cost a few
    additions each, and the embedding network is evaluated at :data:`KNOTS` distances, however many
    pairs there are. Spin models evaluate it at every pair, since moments enter there.

    Beyond the paper: r is √(r² + a²), so that densities are smooth at nuclei; the fitting network F
    enters as F(D) − F(0), so that the density vanishes, smoothly, where no atom is in reach; R is
    divided by its root mean square and D shifted and divided by its mean and spread in the training
    data; and, in spin models, the initial moment of atom j is a second input of N_Z.
    """

    config: DeepChargeConfig
    scale_rows: Tensor
    scale_neighbors: Tensor
    scale_mean: Tensor
    scale_spread: Tensor
    scale_density: Tensor

    block_points = 2048

    def __init__(self, config: DeepChargeConfig) -> None:
        super().__init__(config)
        inputs = 2 if config.spin else 1
        self.embeddings = nn.ModuleList(
            ResidualNetwork((inputs, *config.embedding_widths)) for _ in config.elements
        )
        for network in self.embeddings:
            network.resolve_input()
        invariants = config.embedding_widths[-1] * config.axis_neurons
        self.fitting = ResidualNetwork((invariants, *config.fitting_widths))
        self.last = nn.Linear(config.fitting_widths[-1], 1, bias=False)
        self.splines = SplineBasis(KNOTS, config.point_cutoff, config.core_radius)
        self.register_buffer("scale_rows", torch.ones(2))
        self.register_buffer("scale_neighbors", torch.tensor(50.0))
        self.register_buffer("scale_mean", torch.zeros(invariants))
        self.register_buffer("scale_spread", torch.ones(invariants))
        self.register_buffer("scale_density", torch.tensor(0.1))

    def descriptors(self, graph: AtomGraph) -> Tensor:
        """Initial moments, (n, 1), or nothing, (n, 0): atoms know nothing of each other."""
        return graph.magmoms[:, None][:, : 1 if self.config.spin else 0]

    def decode(
        self, descriptors: Tensor, numbers: Tensor, pairs: PointPairs, *, tabulated: bool = True
    ) -> Tensor:
        """Density at the points, (n_points,), e/Å³, without superposed free atoms.

        Parameters
        ----------
        tabulated
            Expand G in splines; False evaluates the embedding network at every pair, which defines
            what the splines approximate.
        """
        invariants = self.invariants(descriptors, numbers, pairs, tabulated=tabulated)
        # The last row has no neighbours.
        padded = nn.functional.pad(invariants, (0, 0, 0, 1))
        values = self.last(self.fitting((padded - self.scale_mean) / self.scale_spread)).squeeze(1)
        reached = torch.zeros(pairs.n_points, dtype=torch.bool, device=values.device)
        reached[pairs.point[pairs.mask]] = True
        return torch.where(reached, self.scale_density * (values[:-1] - values[-1]), 0.0)

    def invariants(
        self, descriptors: Tensor, numbers: Tensor, pairs: PointPairs, *, tabulated: bool = True
    ) -> Tensor:
        """D of every point, (n_points, columns · axis_neurons)."""
        atom, point, vectors = pairs.edges()
        rows = self._rows(vectors) / self.scale_rows[[0, 1, 1, 1]]
        elements = self.element_index[numbers][atom]
        if tabulated and not self.config.spin:
            mixed = self._mixed_by_splines(rows, lengths(vectors), elements, point, pairs.n_points)
        else:
            inputs = torch.cat([rows[:, :1], descriptors[atom]], dim=1)
            mixed = self._mixed_by_pairs(rows, inputs, elements, point, pairs.n_points)
        mixed = mixed / self.scale_neighbors
        first = mixed[:, :, : self.config.axis_neurons]
        return (mixed.transpose(1, 2) @ first).flatten(1)

    def fit_scales(self, samples: Iterable[DensitySample]) -> None:
        """Root mean squares of R and of what is to be learned, mean and spread of D."""
        environments, targets = [], []
        for sample in samples:
            stride = max(1, sample.density.size // POINTS_OF_SCALES)
            chosen = np.arange(0, sample.density.size, stride)[:POINTS_OF_SCALES]
            numbers, pairs, target = self.above_superposition(sample, chosen)
            environments.append((numbers, pairs))
            targets.append(target)
        n_pairs = sum(int(pairs.mask.sum()) for _, pairs in environments)
        if not n_pairs:
            return
        with torch.no_grad():
            rows = torch.cat([self._rows(pairs.edges()[2]) for _, pairs in environments])
            squares = rows.square().mean(dim=0)
            self.scale_rows.copy_(torch.stack([squares[0], squares[1:].mean()]).sqrt())
            self.scale_neighbors.fill_(n_pairs / sum(len(target) for target in targets))
            most = max(len(numbers) for numbers, _ in environments)
            no_moments = torch.zeros(most, 1 if self.config.spin else 0, dtype=self.dtype)
            found = torch.cat(
                [
                    self.invariants(no_moments[: len(numbers)], numbers, pairs)
                    for numbers, pairs in environments
                ]
            )
            self.scale_mean.copy_(found.mean(dim=0))
            spread = found.std(dim=0, correction=0)
            smallest = 1e-3 * float(spread.max())
            self.scale_spread.copy_(spread.clamp(min=smallest) if smallest else spread + 1)
            size = torch.cat(targets).square().mean().sqrt() / self.n_spin
            self.scale_density.copy_(size if size > 0 else torch.ones(()))

    def fitted(self) -> Iterator[tuple[str, Tensor]]:
        """What a model file holds beside the trained parameters, by name in the state dict."""
        yield from super().fitted()
        for name, value in self.named_buffers():
            if name.startswith("scale_"):
                yield name, value

    def _switched(self, softened: Tensor) -> Tensor:
        return switched_inverse(softened, self.config.switch_from, self.config.point_cutoff)

    def _rows(self, vectors: Tensor) -> Tensor:
        """R of every pair, (p, 4), before it is scaled."""
        softened = torch.sqrt(vectors.square().sum(1) + self.config.core_radius**2)
        switched = self._switched(softened)
        return torch.cat([switched[:, None], vectors * (switched / softened)[:, None]], dim=1)

    def _mixed_by_pairs(
        self, rows: Tensor, inputs: Tensor, elements: Tensor, point: Tensor, n_points: int
    ) -> Tensor:
        """RᵀG of every point, (n_points, 4, columns), from G of every pair."""
        embedded = inputs.new_zeros(len(inputs), self.config.embedding_widths[-1])
        for index, network in enumerate(self.embeddings):
            (chosen,) = (elements == index).nonzero(as_tuple=True)
            if len(chosen):
                found = network(inputs[chosen]).to(embedded.dtype)
                embedded = embedded.index_put((chosen,), found)
        counts = torch.bincount(point, minlength=n_points)
        column = torch.arange(len(point), device=point.device)
        column = column - (torch.cumsum(counts, 0) - counts)[point]
        width = int(counts.max()) if n_points else 0
        environment = rows.new_zeros(n_points, width, 4).index_put((point, column), rows)
        features = embedded.new_zeros(n_points, width, embedded.shape[1])
        features = features.index_put((point, column), embedded)
        return environment.transpose(1, 2) @ features

    def _mixed_by_splines(
        self, rows: Tensor, distances: Tensor, elements: Tensor, point: Tensor, n_points: int
    ) -> Tensor:
        """RᵀG of every point, (n_points, 4, columns), from coefficients g_k."""
        first, values = self.splines.local(distances)
        products = rows[:, :, None] * values[:, None, :]
        places = torch.arange(4, device=point.device)
        target = (4 * point[:, None] + places)[:, :, None] * KNOTS
        target = target + (first[:, None] + places)[:, None, :]
        softened = self.config.core_radius * torch.exp(
            torch.arange(-2, KNOTS, device=rows.device, dtype=rows.dtype) / self.splines.scale
        )
        inputs = (self._switched(softened) / self.scale_rows[0])[:, None]
        mixed = rows.new_zeros(4 * n_points, self.config.embedding_widths[-1])
        for index, network in enumerate(self.embeddings):
            (chosen,) = (elements == index).nonzero(as_tuple=True)
            if not len(chosen):
                continue
            at_knots = network(inputs)
            # Reproduces cubic polynomials: the error falls with the fourth power of the distance.
            coefficients = (8 * at_knots[1:-1] - at_knots[:-2] - at_knots[2:]) / 6
            sums = rows.new_zeros(4 * n_points * KNOTS)
            sums = sums.index_add(0, target[chosen].reshape(-1), products[chosen].reshape(-1))
            mixed = mixed + sums.view(-1, KNOTS) @ coefficients
        return mixed.view(n_points, 4, mixed.shape[1])


class ResidualNetwork(nn.Module):
    """Layers of tanh; one as wide, or twice as wide, as its input adds that once, or twice."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for n_in, n_out in pairwise(sizes):
            layer = nn.Linear(n_in, n_out)
            # As DeePMD-kit: offsets of order one spread the kinks over the range of the input.
            nn.init.normal_(layer.weight, std=(n_in + n_out) ** -0.5)
            nn.init.normal_(layer.bias, std=1.0)
            self.layers.append(layer)

    def resolve_input(self) -> None:
        """Start with functions of the input that differ from each other.

        Those of small weights are close to straight lines: the columns of G then span a few
        functions of the distance, and all of D but six combinations is lost to rounding.
        """
        first, *others = self.layers
        assert isinstance(first, nn.Linear)
        with torch.no_grad():
            nn.init.normal_(first.weight, std=FIRST_WEIGHTS)
            nn.init.normal_(first.bias, std=FIRST_OFFSETS)
            for layer in others:
                layer.get_parameter("weight").mul_(LATER_WEIGHTS)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, first size) to (…, last size)."""
        for layer in self.layers:
            y = torch.tanh(layer(x))
            if y.shape[-1] == x.shape[-1]:
                y = y + x
            elif y.shape[-1] == 2 * x.shape[-1]:
                y = y + torch.cat([x, x], dim=-1)
            x = y
        return x


def switched_inverse(r: Tensor, start: float, cutoff: float) -> Tensor:
    """1/r up to ``start``, then 1/r·(1 − 10x³ + 15x⁴ − 6x⁵), x from 0 to 1 at the cutoff.

    Value and two derivatives vanish at the cutoff (DeePMD-kit, descriptor se_e2_a).
    """
    x = ((r - start) / (cutoff - start)).clamp(0.0, 1.0)
    return (1 - x**3 * (10 - x * (15 - 6 * x))) / r
