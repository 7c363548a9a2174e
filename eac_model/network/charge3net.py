"""ChargE3Net: points gather messages of atoms, layer by layer (npj Comput. Mater. 10, 161)."""

from __future__ import annotations

import math

import torch
from e3nn import nn as e3nn_nn
from e3nn import o3
from e3nn.math import soft_one_hot_linspace
from torch import Tensor, nn

from eac_model.graph import AtomGraph, PointPairs
from eac_model.network.config import ChargE3NetConfig
from eac_model.network.density_network import DensityNetwork
from eac_model.network.embedding import MomentEmbedding
from eac_model.network.radial import lengths, polynomial_cutoff

SPECIES = 119
"""Elements are told apart by a vector with a one at their atomic number."""

MOMENT_CHANNELS = 16
"""Scalars that say an atom's initial moment, in spin models."""

MESSAGE_BYTES = 2**28
"""Memory for the messages of a block of points, outside of training."""


class ChargE3Net(DensityNetwork):
    """Convolutions on atoms, and from every layer of atoms one onto the points.

    Points begin with nothing, gather messages from the atoms within the cutoff (features of both
    parities, up to ``l_max``), mix them with what they gathered before, and are read out after the
    last layer.

    Parameters
    ----------
    config
        Shape of the network.

    Notes
    -----
    Beyond the paper: messages fade at the cutoff (``cutoff_power``) and are smooth at nuclei
    (``core_radius``), so that the density is twice continuously differentiable; and spin densities
    come from initial moments, ρ↑ = g(m), ρ↓ = g(−m). What points need of the atoms is computed
    once a structure (:meth:`descriptors`).
    """

    config: ChargE3NetConfig

    def __init__(self, config: ChargE3NetConfig) -> None:
        super().__init__(config)
        self.embed_moments: MomentEmbedding | None = None
        features = o3.Irreps(f"{SPECIES}x0e")
        if config.spin and config.spin_from == "moments":
            self.embed_moments = MomentEmbedding(SPECIES, MOMENT_CHANNELS)
            features = o3.Irreps(f"{SPECIES + MOMENT_CHANNELS}x0e")
        self.harmonics = o3.SphericalHarmonics(
            list(range(config.l_max + 1)), normalize=False, normalization="component"
        )
        self.atom_basis = NormalizedGaussians(config.basis_size, config.atom_cutoff)
        self.point_basis = NormalizedGaussians(config.basis_size, config.point_cutoff)
        self.atom_layers, self.point_layers = nn.ModuleList(), nn.ModuleList()
        points, widest, self.widths = o3.Irreps("0e"), 1, list[int]()
        for _ in range(config.interactions):
            atom_layer = Convolution(config, features, features)
            features = atom_layer.irreps_out
            point_layer = Convolution(config, features, points)
            points = point_layer.irreps_out
            self.atom_layers.append(atom_layer)
            self.point_layers.append(point_layer)
            self.widths.append(point_layer.irreps_sent.dim)
            widest = max(widest, point_layer.product.irreps_out.dim)
        # An odd scalar for the second spin is what the published code takes.
        self.readout = o3.Linear(points, "0e + 0o" if config.spin_from == "outputs" else "0e")
        self.mirror_images_have_one_density = config.spin_from != "outputs"
        self.block_points = max(8, MESSAGE_BYTES // (widest * 8 * 50))

    def descriptors(self, graph: AtomGraph) -> Tensor:
        """What atoms send to points in every layer, side by side, (n, …)."""
        table = torch.eye(SPECIES, dtype=self.dtype, device=graph.numbers.device)
        features = table[graph.numbers]
        if self.embed_moments is not None:
            moments = self.embed_moments(features, graph.magmoms)
            features = torch.cat([features, moments], dim=1)
        # Messages travel from the sender to the receiver, and so do their vectors.
        geometry = self._geometry(
            -graph.vectors, self.atom_basis, self.config.atom_cutoff, core_radius=0.0
        )
        sent = []
        for atom_layer, point_layer in zip(self.atom_layers, self.point_layers, strict=True):
            features = atom_layer(
                atom_layer.send(features), features, graph.senders, graph.receivers, *geometry
            )
            sent.append(point_layer.send(features))
        return torch.cat(sent, dim=1)

    def decode(self, descriptors: Tensor, numbers: Tensor, pairs: PointPairs) -> Tensor:
        """Density at the points, (n_points,), e/Å³, without superposed free atoms."""
        return self._read(descriptors, pairs)[:, 0]

    def spin_descriptors(self, graph: AtomGraph) -> Tensor:
        """Descriptors that densities are made of, (n_spin, n, …).

        Of one set, (1, n, …), both spins are made where they are outputs (``config.spin_from``).
        """
        if self.config.spin_from == "outputs":
            return self.descriptors(graph).unsqueeze(0)
        return super().spin_descriptors(graph)

    def density(self, spin_descriptors: Tensor, numbers: Tensor, pairs: PointPairs) -> Tensor:
        """Density at the points, (n_spin, n_points), from :meth:`spin_descriptors`."""
        if self.config.spin_from == "moments":
            return super().density(spin_descriptors, numbers, pairs)
        # Their program overwrites ρ↑ by the density before it subtracts ρ↓. A network trained with
        # it learns, whatever the outputs were meant for: even + odd is the density, even the spin.
        even, odd = self._read(spin_descriptors[0], pairs).T
        found = torch.stack([even + odd / 2, odd / 2])
        if self.superposition is not None:
            free = self.superposition.at_points(self.element_index[numbers], pairs)
            found = found + free / 2
        return found

    def _read(self, descriptors: Tensor, pairs: PointPairs) -> Tensor:
        """What the points say in the end, (n_points, outputs)."""
        atom, point, vectors = pairs.edges()
        config = self.config
        geometry = self._geometry(
            vectors, self.point_basis, config.point_cutoff, core_radius=config.core_radius
        )
        features = descriptors.new_zeros(pairs.n_points, 1)
        sent = descriptors.split(self.widths, dim=1)
        for layer, of_atoms in zip(self.point_layers, sent, strict=True):
            features = layer(of_atoms, features, atom, point, *geometry)
        found: Tensor = self.readout(features)
        return found

    def _geometry(
        self, vectors: Tensor, basis: nn.Module, cutoff: float, *, core_radius: float
    ) -> tuple[Tensor, Tensor]:
        """Harmonics, faded at the cutoff, and radial basis of all edges."""
        distances = lengths(vectors)
        softened = distances
        if core_radius:
            softened = torch.sqrt(vectors.square().sum(-1) + core_radius**2)
        harmonics = self.harmonics(vectors / softened.clamp(min=1e-12).unsqueeze(-1))
        if self.config.cutoff_power is not None:
            fading = polynomial_cutoff(distances, cutoff, self.config.cutoff_power)
            harmonics = harmonics * fading.unsqueeze(-1)
        return harmonics, basis(softened)


class Convolution(nn.Module):
    """Messages of senders, gathered at receivers and turned into what these knew before.

    out = gate(cos α · own + sin α · gathered), with an angle α learned from what was gathered.
    """

    def __init__(self, config: ChargE3NetConfig, senders: o3.Irreps, receivers: o3.Irreps) -> None:
        super().__init__()
        harmonics = o3.Irreps.spherical_harmonics(config.l_max)
        self.gate = parity_gate(config.channels, config.l_max, receivers, harmonics)
        self.irreps_sent, self.irreps_out = senders, self.gate.irreps_out
        self.own = o3.Linear(receivers, self.gate.irreps_in)
        self.send = o3.Linear(senders, senders)
        self.product = all_paths(senders, harmonics, self.gate.irreps_in)
        mid = self.product.irreps_out.simplify()
        self.radial = e3nn_nn.FullyConnectedNet(
            [config.basis_size, *config.radial_hidden, self.product.weight_numel],
            nn.functional.silu,
        )
        self.gathered = o3.Linear(mid, self.gate.irreps_in)
        self.angle = o3.Linear(mid, "0e")
        self.normalization = 1 / math.sqrt(config.average_neighbors)
        # Components that come from the neighbours alone are not turned.
        mask = self.own.output_mask.to(torch.get_default_dtype())
        self.register_buffer("turned", mask, persistent=False)

    def forward(
        self,
        sent: Tensor,
        own: Tensor,
        source: Tensor,
        target: Tensor,
        harmonics: Tensor,
        basis: Tensor,
    ) -> Tensor:
        """Features (receivers, irreps out) from what was sent, (senders, irreps)."""
        messages = self.product(sent[source], harmonics, self.radial(basis))
        gathered = messages.new_zeros(len(own), messages.shape[1]).index_add(0, target, messages)
        gathered = gathered * self.normalization
        angle = 0.1 * self.angle(gathered)
        sine = 1 - self.turned + self.turned * angle.sin()
        found: Tensor = self.gate(angle.cos() * self.own(own) + sine * self.gathered(gathered))
        return found


class NormalizedGaussians(nn.Module):
    """Gaussians on a grid of distances, each with mean 0 and variance 1 up to the cutoff."""

    def __init__(self, size: int, cutoff: float) -> None:
        super().__init__()
        self.size, self.cutoff = size, cutoff
        sampled = self._functions(torch.linspace(0, cutoff, 4001)[1:])
        deviation, mean = torch.std_mean(sampled, dim=0)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("inverse", 1 / deviation, persistent=False)

    def forward(self, r: Tensor) -> Tensor:
        """Map distances (…,) in Å to basis values (…, size)."""
        return (self._functions(r) - self.mean) * self.inverse

    def _functions(self, r: Tensor) -> Tensor:
        return soft_one_hot_linspace(r, 0.0, self.cutoff, self.size, "gaussian", cutoff=False)


def hidden_irreps(channels: int, l_max: int) -> o3.Irreps:
    """Both parities of every l, with about equally many numbers for each l."""
    return o3.Irreps(
        [
            (round(channels / (l_max + 1) / (2 * l + 1)), (l, parity))
            for l in range(l_max + 1)
            for parity in (-1, 1)
        ]
    )


def parity_gate(
    channels: int, l_max: int, features: o3.Irreps, harmonics: o3.Irreps
) -> e3nn_nn.Gate:
    """SiLU on even scalars, tanh on odd ones; the rest times sigmoids of even scalars.

    Of the hidden irreps, those are left out that no product of features and harmonics leads to.
    """
    reached = {ir for mul, a in features if mul for _, b in harmonics for ir in a * b}
    kept = [(mul, ir) for mul, ir in hidden_irreps(channels, l_max) if ir in reached]
    scalars = o3.Irreps([(mul, ir) for mul, ir in kept if ir.l == 0]).simplify()
    gated = o3.Irreps([(mul, ir) for mul, ir in kept if ir.l > 0])
    even = o3.Irrep("0e") in reached
    gates = o3.Irreps([(mul, "0e" if even else "0o") for mul, _ in gated]).simplify()
    return e3nn_nn.Gate(
        scalars,
        [nn.functional.silu if ir.p == 1 else torch.tanh for _, ir in scalars],
        gates,
        [torch.sigmoid if even else torch.tanh for _ in gates],
        gated,
    )


def all_paths(features: o3.Irreps, harmonics: o3.Irreps, wanted: o3.Irreps) -> o3.TensorProduct:
    """Channel-wise product with an external weight a path and channel, to all irreps wanted.

    Even scalars, which the angle is made of, are always among them.
    """
    outputs, paths = [], []
    for i, (mul, ir_feature) in enumerate(features):
        for j, (_, ir_harmonic) in enumerate(harmonics):
            for ir in ir_feature * ir_harmonic:
                if ir in wanted or ir == o3.Irrep("0e"):
                    outputs.append((mul, ir))
                    paths.append((i, j))
    mid, position, _ = o3.Irreps(outputs).sort()
    return o3.TensorProduct(
        features,
        harmonics,
        mid,
        [(i, j, position[k], "uvu", True) for k, (i, j) in enumerate(paths)],
        shared_weights=False,
        internal_weights=False,
    )
