"""On-site data of one structure, from the descriptors that serve the density."""

from __future__ import annotations

import math

import numpy as np
import torch
from ase.data import chemical_symbols
from numpy.typing import NDArray

from eac_model.engine.inference import EncodedAtoms
from eac_model.errors import ConfigurationError
from eac_model.neighbors import atom_graph
from eac_model.network import DensityNetwork

Rows = list[NDArray[np.floating]]
"""One array an atom."""


def evaluate_onsite(network: DensityNetwork, encoded: EncodedAtoms) -> list[Rows]:
    """On-site data by spin and atom, in the shapes of the layout.

    Returns
    -------
    list of Rows
        One of all electrons, or, of spin models, two: spin up and spin down.

    Raises
    ------
    ConfigurationError
        The network predicts none.
    """
    layout = network.config.onsite
    if layout is None:
        raise ConfigurationError("This network predicts no on-site data (config.onsite is None).")
    descriptors = encoded.descriptors
    graph = atom_graph(
        encoded.atoms, network.config.atom_cutoff, descriptors.dtype, descriptors.device
    )
    with torch.no_grad():
        values = network.onsite_data(descriptors, graph).cpu().numpy()
    shapes = [layout.shape(chemical_symbols[number]) for number in encoded.atoms.numbers]
    return [
        [row[: math.prod(shape)].reshape(shape) for row, shape in zip(spin, shapes, strict=True)]
        for spin in values
    ]


def total_and_spin(spins: list[Rows]) -> tuple[Rows, Rows | None]:
    """Sum and difference of up and down, atom by atom; the total alone where there is one spin."""
    if len(spins) == 1:
        return spins[0], None
    pairs = list(zip(*spins, strict=True))
    return [up + down for up, down in pairs], [up - down for up, down in pairs]
