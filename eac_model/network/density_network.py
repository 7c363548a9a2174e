"""What all networks of densities have in common, and what the rest of the program asks of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eac_model.data.sample import DensitySample
from eac_model.graph import AtomGraph, PointPairs
from eac_model.neighbors import point_pairs
from eac_model.network.config import AnyNetworkConfig
from eac_model.network.expected_error import ExpectedError
from eac_model.network.free_atoms import fit_tables
from eac_model.network.onsite import OnsiteHead
from eac_model.network.superposition import Superposition


class DensityNetwork(nn.Module):
    """A network that predicts densities: descriptors of the atoms once, densities at any points.

    Calculator, evaluation, training and model files know networks by this class; only the shells of
    the fast engine, and charges and moments of atoms, need an
    :class:`~eac_model.network.eacnet.EACNet`. A new architecture is a subclass with
    :meth:`descriptors` and :meth:`decode`, a configuration in :mod:`eac_model.network.config`, and
    a line in :mod:`eac_model.network.architectures`.

    Parameters
    ----------
    config
        Shape of the network.

    Notes
    -----
    Å in, e/Å³ out. Parameters and constants are created in torch's default dtype;
    :func:`~eac_model.network.architectures.build` makes them in any other.

    Densities do not depend on the order of the atoms, turn, shift and repeat with the structure,
    and are exactly zero where no atom is in reach (``tests/network/test_contract.py``).
    """

    config: AnyNetworkConfig
    element_index: Tensor

    block_points = 512
    """Points evaluated at once on a CPU, so that they take some hundred MB; a GPU takes 16 times as
    many. Halved where memory runs out."""

    mirror_images_have_one_density = True
    """False if the density of a mirror image may be another than the mirror image of the density:
    then some output is a pseudoscalar."""

    def __init__(self, config: AnyNetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.superposition = (
            Superposition(config.superposition_basis, config.point_cutoff, len(config.elements))
            if config.superposition
            else None
        )
        self.onsite: OnsiteHead | None = None
        self.expected_error: ExpectedError | None = None
        """Set once the network is trained, if structures were left out of training."""
        index = torch.full((119,), -1)
        index[list(config.elements)] = torch.arange(len(config.elements))
        self.register_buffer("element_index", index, persistent=False)

    @property
    def n_spin(self) -> int:
        """2 for spin models (ρ↑, ρ↓), else 1 (ρ)."""
        return 2 if self.config.spin else 1

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the parameters."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def forward(self, graph: AtomGraph, pairs: PointPairs) -> Tensor:
        """Density at the points, (n_spin, n_points), e/Å³: ρ, or ρ↑ and ρ↓."""
        return self.density(self.spin_descriptors(graph), graph.numbers, pairs)

    def descriptors(self, graph: AtomGraph) -> Tensor:
        """All that the density at points needs to know of the atoms, (n, …).

        The calculator keeps it for all points of a structure.
        """
        raise NotImplementedError

    def decode(self, descriptors: Tensor, numbers: Tensor, pairs: PointPairs) -> Tensor:
        """Density at the points that one set of descriptors says, (n_points,), e/Å³.

        Superposed free atoms are not part of it.

        Parameters
        ----------
        descriptors
            (n, …) from :meth:`descriptors`.
        numbers
            (n,) atomic numbers.
        pairs
            All pairs of the points with atoms (and their periodic images) within
            ``config.point_cutoff``. Rows of the pairs may leave out atoms and come in any order.
        """
        raise NotImplementedError

    def spin_descriptors(self, graph: AtomGraph) -> Tensor:
        """Descriptors that the n_spin densities are made of, (1 or n_spin, n, …).

        For ρ↑ those of the given moments, for ρ↓ those of the flipped ones; one set for both where
        there are no moments.
        """
        if not (self.config.spin and graph.magnetic):
            return self.descriptors(graph).unsqueeze(0)
        both = self.descriptors(AtomGraph.concatenate([graph, graph.flipped()]))
        return torch.stack(both.split(graph.n_atoms))

    def density(self, spin_descriptors: Tensor, numbers: Tensor, pairs: PointPairs) -> Tensor:
        """Density at the points, (n_spin, n_points), from :meth:`spin_descriptors`."""
        found = torch.stack([self.decode(d, numbers, pairs) for d in spin_descriptors])
        if self.superposition is not None:
            free = self.superposition.at_points(self.element_index[numbers], pairs)
            found = found + free / self.n_spin
        return found.expand(self.n_spin, -1)

    def spherical_averages(self, descriptors: Tensor, graph: AtomGraph) -> Tensor:
        """Averages of the density over spheres about the atoms, for the on-site head.

        Parameters
        ----------
        descriptors
            (n, …) from :meth:`descriptors`.
        graph
            The atoms that they belong to.

        Returns
        -------
        Tensor
            (n, averages), e/Å³; none of them for networks without a linear decoder.
        """
        return descriptors.new_zeros(len(descriptors), 0)

    def onsite_data(self, spin_descriptors: Tensor, graph: AtomGraph) -> Tensor:
        """On-site data, (n_spin, n, width): of all electrons, or of spin up and spin down.

        ``width`` is the largest size of the layout's elements; shorter rows end in zeros.

        Parameters
        ----------
        spin_descriptors
            From :meth:`spin_descriptors`.
        graph
            The atoms that they belong to, with the neighbours within ``config.atom_cutoff``.
        """
        if self.onsite is None:
            raise ValueError("This network predicts no on-site data (config.onsite is None).")
        found = [
            self.onsite(d, self.spherical_averages(d, graph), graph.numbers)
            for d in spin_descriptors
        ]
        return torch.stack(found).expand(self.n_spin, -1, -1)

    def atom_invariants(self, spin_descriptors: Tensor) -> Tensor | None:
        """Numbers that tell surroundings of atoms apart, (n, …), the same however they are turned.

        None for networks without descriptors of atoms.
        """
        return None

    def fit_superposition(self, samples: Iterable[DensitySample], points: int = 5000) -> float:
        """Fit the free-atom tables to densities by weighted least squares.

        The spherical densities whose superposition is nearest to the samples take the part of free
        atoms where no atomic calculation of the same code and PAW data sets is at hand. Elements
        that occur in no sample keep theirs.

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
        # Elements that occur in no sample keep what they have.
        known = table.any(dim=1).nonzero().squeeze(-1)
        kept = self.superposition.get_buffer("table")
        with torch.no_grad():
            kept[known.to(kept.device)] = table[known].to(kept)
        return error

    def above_superposition(
        self, sample: DensitySample, chosen: NDArray[np.int64]
    ) -> tuple[Tensor, PointPairs, Tensor]:
        """Atomic numbers, pairs, and what is to be learned (e/Å³) at some points of a sample."""
        some = sample.select(chosen)
        assert some.points is not None
        pairs = point_pairs(sample.atoms, some.points, self.config.point_cutoff, self.dtype)
        numbers = torch.as_tensor(sample.atoms.numbers.astype(np.int64))
        target = torch.as_tensor(some.density, dtype=self.dtype)
        if self.superposition is not None:
            target = target - self.superposition.at_points(self.element_index[numbers], pairs)
        return numbers, pairs, target

    def fit_scales(self, samples: Iterable[DensitySample]) -> None:
        """Take scales of inputs and outputs from densities, after the superposition.

        Training calls it once, before the first step. Networks that need none do nothing; others
        keep the scales in buffers whose names begin with ``scale_``, and list them in
        :meth:`fitted`.
        """

    def step_scales(self) -> dict[str, float]:
        """Parameters whose natural size is not about one, and that size, by name.

        Training scales the learning rate with it, so that all parameters move at one pace.
        """
        return {}

    def fitted(self) -> Iterator[tuple[str, Tensor]]:
        """What a model file holds beside the trained parameters, by name in the state dict."""
        if self.superposition is not None:
            yield "superposition.table", self.superposition.get_buffer("table")
        if self.onsite is not None:
            yield from ((f"onsite.{name}", value) for name, value in self.onsite.fitted())
        if self.expected_error is not None:
            found = self.expected_error.fitted()
            yield from ((f"expected_error.{name}", value) for name, value in found)
