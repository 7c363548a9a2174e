"""EAC-Net: atoms to descriptors, descriptors and points to atomic contributions of the density."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from e3nn import o3
from torch import Tensor, nn

from eac_model.data.sample import DensitySample
from eac_model.graph import AtomGraph, PointPairs
from eac_model.network.config import NetworkConfig
from eac_model.network.embedding import MomentEmbedding, TypeEmbedding
from eac_model.network.free_atoms import fit_tables
from eac_model.network.interaction import Interaction, by_component, natural_irreps
from eac_model.network.linear import LinearDecoder
from eac_model.network.onsite import OnsiteHead
from eac_model.network.radial import CutoffBasis, lengths
from eac_model.network.superposition import Superposition
from eac_model.network.value_weight import ValueWeightDecoder


class EACNet(nn.Module):
    """Equivariant atomic contributions (arXiv 2508.04052) with the decoders of this project.

    Parameters
    ----------
    config
        Shape of the network.

    Notes
    -----
    Natural-parity features 0e, 1o, 2e, …; Å in, e/Å³ out. Parameters and constants (Wigner 3j
    symbols) are created in torch's default dtype; :func:`build` makes them in any other.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.types = TypeEmbedding(config)
        t = self.types.size
        self.embed = nn.Linear(t, config.channels)
        self.embed_moments = MomentEmbedding(t, config.channels) if config.spin else None
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
                )
            )
            features = natural_irreps(config.channels, config.l_max)
        self.linear = LinearDecoder(config, t) if "linear" in config.decoder else None
        self.value_weight = (
            ValueWeightDecoder(config, t) if "value-weight" in config.decoder else None
        )
        self.superposition = Superposition(config) if config.superposition else None
        self.onsite = OnsiteHead(config) if config.onsite is not None else None

    @property
    def n_spin(self) -> int:
        """2 for spin models (ρ↑, ρ↓), else 1 (ρ)."""
        return 2 if self.config.spin else 1

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the parameters."""
        return self.embed.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.embed.weight.device

    def descriptors(self, graph: AtomGraph) -> Tensor:
        """Descriptors D_ic^lm of all atoms.

        Returns
        -------
        Tensor
            (n, (l_max+1)², channels); components of angular momentum l are rows l² … (l+1)² − 1 in
            e3nn's order.
        """
        attributes = self.types(graph.numbers)
        features = self.embed(attributes)
        if self.embed_moments is not None:
            features = features + self.embed_moments(attributes, graph.magmoms)
        harmonics = self.atom_harmonics(graph.vectors)
        basis = self.atom_basis(lengths(graph.vectors))
        irreps = o3.Irreps(f"{self.config.channels}x0e")
        for interaction in self.interactions:
            features = interaction(
                features, attributes, graph.senders, graph.receivers, harmonics, basis
            )
            irreps = interaction.irreps_out
        by_l = by_component(features, irreps)
        missing = (self.config.l_max + 1) ** 2 - by_l.shape[1]
        return nn.functional.pad(by_l, (0, 0, 0, missing)) if missing else by_l

    def contributions(
        self, descriptors: Tensor, numbers: Tensor, pairs: PointPairs, *, zonal: bool = True
    ) -> Tensor:
        """Atomic contributions ρ_i(r) of every pair, (m, k), e/Å³ (of one spin in spin models).

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
            total = self.linear(descriptors, self.types(numbers), pairs, spherical)
            free = None
        elif self.linear is not None:
            total = self.linear.forward_e3nn(descriptors, self.types(numbers), pairs)
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

    def spin_descriptors(self, graph: AtomGraph) -> Tensor:
        """Descriptors that the n_spin densities are made of, (n_spin, n, (l_max+1)², channels).

        For ρ↑ those of the given moments, for ρ↓ those of the flipped ones.
        """
        if not self.config.spin:
            return self.descriptors(graph).unsqueeze(0)
        both = self.descriptors(AtomGraph.concatenate([graph, graph.flipped()]))
        return torch.stack(both.split(graph.n_atoms))

    def density(
        self, spin_descriptors: Tensor, numbers: Tensor, pairs: PointPairs, *, zonal: bool = True
    ) -> Tensor:
        """Density at the points, (n_spin, n_points), from :meth:`spin_descriptors`."""
        return torch.stack(
            [
                pairs.sum_over_atoms(self.contributions(d, numbers, pairs, zonal=zonal))
                for d in spin_descriptors
            ]
        )

    def onsite_data(self, spin_descriptors: Tensor, numbers: Tensor) -> Tensor:
        """On-site data, (n_spin, n, width): of all electrons, or of spin up and spin down.

        ``width`` is the largest size of the layout's elements; shorter rows end in zeros.
        """
        if self.onsite is None:
            raise ValueError("This network predicts no on-site data (config.onsite is None).")
        return torch.stack([self.onsite(d, numbers) for d in spin_descriptors])

    def fit_superposition(self, samples: Iterable[DensitySample], points: int = 5000) -> float:
        """Fit the free-atom tables to densities by weighted least squares.

        The spherical densities whose superposition is nearest to the samples take the part of free
        atoms where no atomic calculation of the same code and PAW data sets is at hand.

        Parameters
        ----------
        samples
            Densities to fit; of each at most ``points`` values enter (evenly strided).

        Returns
        -------
        float
            ε_mae of the superposition on the points used, in percent.
        """
        if self.superposition is None:
            raise ValueError("This network has no superposition (config.superposition is False).")
        table, error = fit_tables(self.superposition.basis, self.config.elements, samples, points)
        with torch.no_grad():
            self.superposition.table.copy_(table)
        return error


def build(config: NetworkConfig, dtype: torch.dtype) -> EACNet:
    """A network made in a floating-point type, with constants exact in it.

    ``EACNet(config).double()`` has constants that were rounded to float32 before: equivariance
    then holds to 1e-8 only.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return EACNet(config)
    finally:
        torch.set_default_dtype(before)
