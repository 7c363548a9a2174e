"""Expected errors of a prediction, by structure and by atom."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray

from eac_model.engine import EncodedAtoms
from eac_model.network import DensityNetwork
from eac_model.network.expected_error import atoms_in_reach


@dataclass(frozen=True)
class ErrorEstimate:
    """How far the density of a structure may be expected to be off.

    Errors are those of similar structures that were left out of training: typical values, which a
    single prediction may well exceed twice. They know nothing of what the reference itself lacks.
    """

    structure: float
    """Expected ε_mae, 100·Σ|Δρ| / Σρ, of the whole structure, percent."""
    atoms: NDArray[np.float64]
    """(n,) | The same for the surroundings of every atom, percent."""
    distances: NDArray[np.float64]
    """(n,) | Distance of every atom's surroundings from the nearest in the training data, in units
    of the distance usual between training structures."""
    limit: float
    """Distances beyond which nothing is known of errors."""

    @property
    def unfamiliar(self) -> NDArray[np.int64]:
        """Indices of atoms in surroundings unlike all that the model was trained on."""
        return np.nonzero(self.distances > self.limit)[0]

    def describe_unfamiliar(self, atoms: Atoms) -> str:
        """The unfamiliar atoms in words, the worst first."""
        order = self.unfamiliar[np.argsort(-self.distances[self.unfamiliar])]
        shown = ", ".join(f"{atoms.symbols[index]} {index}" for index in order[:3])
        return f"{shown} and {len(order) - 3} more" if len(order) > 3 else shown


@torch.no_grad()
def estimate_error(network: DensityNetwork, encoded: EncodedAtoms) -> ErrorEstimate | None:
    """The estimate of a structure; None if the model knows nothing of its errors."""
    invariants = network.atom_invariants(encoded.descriptors)
    expected = network.expected_error
    if expected is None or invariants is None:
        return None
    elements = network.element_index[encoded.numbers]
    pairs = atoms_in_reach(encoded.atoms, float(expected.reach))
    errors, structure = expected(invariants, elements, pairs)
    distances = expected.distances(invariants, elements)
    found = ErrorEstimate(
        structure=float(structure),
        atoms=errors.double().cpu().numpy(),
        distances=distances.double().cpu().numpy(),
        limit=float(expected.limit),
    )
    # Calculators keep it.
    found.atoms.setflags(write=False)
    found.distances.setflags(write=False)
    return found
