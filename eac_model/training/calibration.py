"""Expected errors of a trained network, from the structures left out of its training."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from ase.data import covalent_radii
from torch import Tensor

from eac_model.checkpoint import load_model, save_model
from eac_model.data.sampling import SamplingMixture
from eac_model.graph import PointPairs
from eac_model.neighbors import atom_graph
from eac_model.network import DensityNetwork
from eac_model.network.expected_error import (
    REACH,
    CalibrationStructure,
    ExpectedError,
    atoms_in_reach,
)
from eac_model.network.radial import lengths
from eac_model.training.config import TrainingConfig
from eac_model.training.data import (
    EXAMPLE_STRUCTURES,
    VALIDATION_BLOCK,
    BatchBuilder,
    Source,
    covering,
    with_progress,
)
from eac_model.training.draws import point_generator

log = logging.getLogger(__name__)

POINTS = 8000
"""Points of a left-out structure at which errors are looked at."""


@torch.no_grad()
def calibrate(
    path: Path, config: TrainingConfig, train: Sequence[Source], left_out: Sequence[Source]
) -> None:
    """Add expected errors to a model file.

    Nothing happens to networks without invariants, or if all structures left out hold elements that
    the training data lack.
    """
    network, card = load_model(path)
    training = [
        found
        for index in with_progress(
            covering(train, config.seed, EXAMPLE_STRUCTURES), "familiar surroundings"
        )
        if (found := _environments(network, train[index])) is not None
    ]
    if not training:
        return
    network.expected_error = ExpectedError(
        len(network.config.elements), training[0].invariants.shape[1]
    ).to(network.dtype)
    network.expected_error.fit(training, _with_errors(network, config, left_out))
    if not torch.isfinite(network.expected_error.limit):
        return
    if not network.expected_error.slope > 0:
        log.warning(
            "Errors of the structures left out do not grow with their distance from the training "
            "data, so that expected errors will differ between elements only. Leave out some "
            "structures that are near to the others, and some that are far (data.validation)."
        )
    save_model(network, card, path)


def _environments(network: DensityNetwork, source: Source) -> CalibrationStructure | None:
    graph = atom_graph(source.atoms, network.config.atom_cutoff, network.dtype, network.device)
    invariants = network.atom_invariants(network.spin_descriptors(graph))
    if invariants is None:
        return None
    elements = network.element_index[graph.numbers]
    return CalibrationStructure(invariants, elements, atoms_in_reach(source.atoms, REACH))


def _with_errors(
    network: DensityNetwork, config: TrainingConfig, sources: Sequence[Source]
) -> Iterator[CalibrationStructure]:
    builder = BatchBuilder(sources, network.config, network.dtype, cache_bytes=0)
    for index, source in enumerate(with_progress(sources, "expected errors")):
        graph = atom_graph(source.atoms, network.config.atom_cutoff, network.dtype)
        descriptors = network.spin_descriptors(graph)
        n_points = min(POINTS, source.n_points)
        chosen, _ = source.draw(n_points, SamplingMixture(), point_generator(config.seed, index))
        sums = torch.zeros(2, graph.n_atoms, dtype=network.dtype)
        for start in range(0, n_points, VALIDATION_BLOCK):
            batch = builder.at_points(index, chosen[start : start + VALIDATION_BLOCK], onsite=False)
            predicted = network.density(descriptors, graph.numbers, batch.pairs).sum(dim=0)
            owner = nearest_atoms(batch.pairs, graph.numbers)
            inside = owner >= 0
            for row, values in enumerate([predicted - batch.density, batch.density]):
                sums[row].index_add_(0, owner[inside], values[inside].abs())
        volume = source.atoms.cell.volume if source.atoms.cell.rank == 3 else 1.0
        errors, electrons = sums * (volume / n_points)
        invariants = network.atom_invariants(descriptors)
        assert invariants is not None
        elements = network.element_index[graph.numbers]
        pairs = atoms_in_reach(source.atoms, REACH)
        yield CalibrationStructure(invariants, elements, pairs, errors, electrons)


def nearest_atoms(pairs: PointPairs, numbers: Tensor) -> Tensor:
    """The atom nearest to each point in units of covalent radii, (n_points,); −1 out of reach."""
    radii = torch.as_tensor(covalent_radii, dtype=pairs.vectors.dtype)[numbers]
    distances = lengths(pairs.vectors) / radii[pairs.atom].unsqueeze(1)
    distances = torch.where(pairs.mask, distances, torch.inf)
    points, flat = pairs.point.reshape(-1), distances.reshape(-1)
    nearest = flat.new_full((pairs.n_points,), torch.inf)
    nearest = nearest.scatter_reduce(0, points, flat, "amin")
    atoms = pairs.atom.unsqueeze(1).expand_as(distances).reshape(-1)
    found = flat.isfinite() & (flat == nearest[points])
    owner = torch.full((pairs.n_points,), -1)
    owner[points[found]] = atoms[found]
    return owner
