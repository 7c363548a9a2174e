"""EAC-Net: atoms to descriptors, descriptors and points to atomic contributions of the density."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from statistics import geometric_mean

import numpy as np
import torch
from e3nn import o3
from torch import Tensor, nn

from eac_model.data.sample import DensitySample
from eac_model.graph import AtomGraph, PointPairs
from eac_model.network.config import NetworkConfig
from eac_model.network.density_network import DensityNetwork
from eac_model.network.embedding import MomentEmbedding, TypeEmbedding
from eac_model.network.interaction import (
    Interaction,
    Kinds,
    by_component,
    natural_irreps,
    quick_codegen,
)
from eac_model.network.linear import LinearDecoder, with_spherical
from eac_model.network.onsite import OnsiteHead
from eac_model.network.radial import CutoffBasis, lengths
from eac_model.network.spherical_averages import spherical_averages
from eac_model.network.value_weight import ValueWeightDecoder

FUNCTION_SIZE = 0.3
"""Size of the radial functions of the linear decoder beside weights of size one."""

POINTS_OF_SCALES = 1000
"""Points of a sample that scales are taken from."""

TYPICAL_CONTRIBUTION = 1.5e-3
"""What an atom in reach adds to the superposed atoms at a point of water or silicon, e/Å³: the
learning rates of the recipes count on contributions of this size."""


class EACNet(DensityNetwork):
    """Equivariant atomic contributions (arXiv 2508.04052) with the decoders of this project.

    Parameters
    ----------
    config
        Shape of the network.

    Notes
    -----
    Natural-parity features 0e, 1o, 2e, …; its density is a sum of atomic contributions, which
    the fast engine evaluates on shells around the atoms and from which charges and moments come.
    """

    config: NetworkConfig
    scale_contributions: Tensor

    @quick_codegen()
    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        self.types = TypeEmbedding(config)
        t = self.types.size
        self.embed = nn.Linear(t, config.channels)
        self.embed_moments: MomentEmbedding | None = None
        if config.spin and config.spin_from == "moments":
            self.embed_moments = MomentEmbedding(t, config.channels)
        self.atom_basis = CutoffBasis(config.atom_basis, config.atom_cutoff)
        self.atom_harmonics = o3.SphericalHarmonics(
            list(range(config.l_max + 1)), normalize=True, normalization="component"
        )
        self.interactions = nn.ModuleList()
        features = o3.Irreps(f"{config.channels}x0e")
        for _ in range(config.interactions):
            self.interactions.append(
                Interaction(
                    features,
                    config.channels,
                    config.l_max,
                    t,
                    config.atom_basis.size,
                    config.atom_radial_hidden,
                    config.average_neighbors,
                    biases=config.biases,
                    residual=config.residual,
                )
            )
            features = natural_irreps(config.channels, config.l_max)
        self.linear = LinearDecoder(config, t) if "linear" in config.decoder else None
        self.value_weight = (
            ValueWeightDecoder(config, t) if "value-weight" in config.decoder else None
        )
        self.onsite = OnsiteHead(config) if config.onsite is not None else None
        if self.linear is not None:
            self.register_buffer("scale_contributions", torch.ones(len(config.elements)))

    def descriptors(self, graph: AtomGraph) -> Tensor:
        """Descriptors D_ic^lm of all atoms.

        Returns
        -------
        Tensor
            (n, (l_max+1)², channels); components of angular momentum l are rows l² … (l+1)² − 1 in
            e3nn's order.
        """
        kinds = self.kinds(graph.numbers)
        features = self.embedded(kinds, graph.magmoms)
        harmonics = self.atom_harmonics(graph.vectors)
        basis, rows = self.distance_basis(graph.vectors)
        irreps = o3.Irreps(f"{self.config.channels}x0e")
        for interaction in self.interactions:
            features = interaction(
                features, kinds, graph.senders, graph.receivers, harmonics, basis, rows
            )
            irreps = interaction.irreps_out
        by_l = by_component(features, irreps)
        missing = (self.config.l_max + 1) ** 2 - by_l.shape[1]
        return nn.functional.pad(by_l, (0, 0, 0, missing)) if missing else by_l

    def kinds(self, numbers: Tensor) -> Kinds:
        """The elements of atoms, from their numbers (n,)."""
        elements, of_atom = torch.unique(numbers, return_inverse=True)
        return Kinds(self.types(elements), of_atom)

    def embedded(self, kinds: Kinds, magmoms: Tensor) -> Tensor:
        """Scalars the interactions begin with, (n, channels)."""
        features: Tensor = self.embed(kinds.attributes)[kinds.of_atom]
        if self.embed_moments is not None:
            features = features + self.embed_moments(kinds.by_atom, magmoms)
        return features

    def distance_basis(self, vectors: Tensor) -> tuple[Tensor, Tensor | None]:
        """Radial basis of vectors (e, 3) between atoms, every distance once.

        Returns
        -------
        basis
            (u, size) of the distances that differ: of i → j and j → i there is one.
        rows
            (e,) where that of each vector is; None: u = e. Gradients with respect to the vectors
            need it so.
        """
        distances = lengths(vectors)
        if distances.requires_grad:
            return self.atom_basis(distances), None
        distances, rows = torch.unique(distances, return_inverse=True)
        return self.atom_basis(distances), rows

    def contributions(
        self, descriptors: Tensor, numbers: Tensor, pairs: PointPairs, *, zonal: bool = True
    ) -> Tensor:
        """Atomic contributions ρ_i(r) of every pair, (m, k), e/Å³ (of one spin in spin models).

        Models whose spins are outputs (``config.spin_from``) give those of both, (2, m, k).

        Parameters
        ----------
        descriptors
            From :meth:`descriptors`.
        numbers
            (n,) atomic numbers.
        pairs
            Atom–point pairs within the point cutoff.
        zonal
            Evaluate the zonal form; False evaluates the e3nn form that defines it.
        """
        total = torch.zeros_like(pairs.vectors[..., 0])
        elements = self.types.elements(numbers)
        free = self.superposition
        if self.linear is not None and zonal:
            # Free atoms ride along in the linear decoder's own coefficients.
            spherical = None if free is None else free.table[elements] / self.n_spin
            total = self.linear(descriptors, self.decoder_attributes(elements), pairs, spherical)
            free = None
        elif self.linear is not None:
            total = self.linear.forward_e3nn(descriptors, self.decoder_attributes(elements), pairs)
        if self.value_weight is not None:
            total = total + self.value_weight(
                descriptors, pairs, self.types.table, elements, zonal=zonal
            )
        if free is not None:
            densities = free(elements[pairs.atom], lengths(pairs.vectors))
            total = total + densities * pairs.mask / self.n_spin
        return total

    def forward(self, graph: AtomGraph, pairs: PointPairs, *, zonal: bool = True) -> Tensor:
        """Density at the points, (n_spin, n_points), e/Å³: ρ, or ρ↑ and ρ↓."""
        return self.density(self.spin_descriptors(graph), graph.numbers, pairs, zonal=zonal)

    def atom_invariants(self, spin_descriptors: Tensor) -> Tensor:
        """Scalars and lengths of the descriptors, means over the spins, (n, (l_max+1)·channels)."""
        parts = [spin_descriptors[:, :, 0]]
        for l in range(1, self.config.l_max + 1):
            of_l = spin_descriptors[:, :, l * l : (l + 1) ** 2]
            parts.append(of_l.square().mean(dim=2).sqrt())
        return torch.cat(parts, dim=2).mean(dim=0)

    @torch.no_grad()
    def spherical_averages(self, descriptors: Tensor, graph: AtomGraph) -> Tensor:
        """See :meth:`DensityNetwork.spherical_averages`: of what the linear decoder gives.

        Neighbours count within ``config.atom_cutoff``; an atom's own free-atom density, the same
        for all atoms of an element, does not. There are no gradients: the density is learned from
        densities alone.
        """
        if self.linear is None:
            return super().spherical_averages(descriptors, graph)
        elements = self.types.elements(graph.numbers)
        own = self.linear.coefficients(descriptors, self.decoder_attributes(elements))
        total = own
        if self.superposition is not None:
            free = self.superposition.table[elements] / self.n_spin
            total = with_spherical(own, free)
        return spherical_averages(self.linear, own, total, graph, self.config.atom_cutoff)

    def decoder_attributes(self, elements: Tensor) -> Tensor:
        """Attributes (n, t) that the linear decoder sees, by position in ``config.elements``.

        They carry the size of an element's contributions (:meth:`fit_scales`): a step that suits
        oxygen would ruin caesium, whose density is a hundred times lower.
        """
        scales = self.scale_contributions[elements].unsqueeze(-1)
        attributes: Tensor = self.types.table[elements] * scales
        return attributes

    def fit_scales(self, samples: Iterable[DensitySample]) -> None:
        """Σ |ρ − superposition| over Σ atoms in reach, mean over an element's structures."""
        if self.linear is None:
            return
        found: dict[int, list[float]] = {}
        for sample in samples:
            stride = max(1, sample.density.size // POINTS_OF_SCALES)
            chosen = np.arange(0, sample.density.size, stride)
            numbers, pairs, target = self.above_superposition(sample, chosen)
            size = float(target.abs().sum()) / max(int(pairs.mask.sum()), 1)
            if size > 0:
                for element in self.element_index[numbers].unique().tolist():
                    found.setdefault(element, []).append(size)
        for element, sizes in found.items():
            self.scale_contributions[element] = geometric_mean(sizes) / TYPICAL_CONTRIBUTION

    def fitted(self) -> Iterator[tuple[str, Tensor]]:
        """What a model file holds beside the trained parameters, by name in the state dict."""
        yield from super().fitted()
        if self.linear is not None:
            yield "scale_contributions", self.scale_contributions

    def step_scales(self) -> dict[str, float]:
        """See :meth:`DensityNetwork.step_scales`: radial functions of the linear decoder."""
        if self.linear is None:
            return {}
        # A step moves the functions of an element by itself times the sum of the attributes.
        attributes = float(self.types.table.detach().abs().sum(dim=1).mean())
        return {"linear.functions": FUNCTION_SIZE / attributes}

    def spin_descriptors(self, graph: AtomGraph) -> Tensor:
        """Descriptors that densities are made of, (n_spin, n, (l_max+1)², channels).

        Of one set, (1, n, …), both spins are made where they are outputs (``config.spin_from``).
        """
        if self.config.spin_from == "outputs":
            return self.descriptors(graph).unsqueeze(0)
        return super().spin_descriptors(graph)

    def density(
        self, spin_descriptors: Tensor, numbers: Tensor, pairs: PointPairs, *, zonal: bool = True
    ) -> Tensor:
        """Density at the points, (n_spin, n_points), from :meth:`spin_descriptors`."""
        found = [self.contributions(d, numbers, pairs, zonal=zonal) for d in spin_descriptors]
        of_spins = torch.cat([part.reshape(-1, *pairs.mask.shape) for part in found])
        densities = torch.stack([pairs.sum_over_atoms(part) for part in of_spins])
        return densities.expand(self.n_spin, -1)
