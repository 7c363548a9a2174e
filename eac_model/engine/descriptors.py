"""Descriptors of any number of atoms in bounded memory."""

from __future__ import annotations

import torch
from e3nn import o3
from torch import Tensor, nn

from eac_model.graph import AtomGraph
from eac_model.network import EACNet
from eac_model.network.interaction import by_component

EDGES_AT_ONCE = 2**14
"""Atom–atom pairs whose messages are held at once; they take some kB each."""


def descriptors_in_blocks(
    network: EACNet,
    graph: AtomGraph,
    edges_at_once: int = EDGES_AT_ONCE,
) -> Tensor:
    """What ``network.descriptors`` computes, block by block of atoms and layer by layer.

    Every interaction updates all atoms before the next begins, so that nothing is computed twice
    and nothing is neglected: a block needs the features of its neighbours of the layer before.

    Parameters
    ----------
    graph
        Receivers in ascending order, as :func:`eac_model.neighbors.atom_graph` lists them.
    edges_at_once
        Pairs of atoms in a block, unless a single atom has more.

    Returns
    -------
    Tensor
        (n, (l_max+1)², channels).
    """
    if len(graph.receivers) <= edges_at_once:
        return network.descriptors(graph)
    config = network.config
    kinds = network.kinds(graph.numbers)
    features = network.embedded(kinds, graph.magmoms)
    irreps: o3.Irreps = o3.Irreps(f"{config.channels}x0e")
    place = torch.empty(graph.n_atoms, dtype=torch.int64, device=graph.numbers.device)
    blocks = _blocks(graph, edges_at_once)
    for interaction in network.interactions:
        irreps = interaction.irreps_out
        updated = features.new_empty(graph.n_atoms, irreps.dim)
        for atoms, edges in blocks:
            senders, vectors = graph.senders[edges], graph.vectors[edges]
            own = torch.arange(atoms.start, atoms.stop, device=senders.device)
            others = torch.unique(senders)
            others = others[(others < atoms.start) | (others >= atoms.stop)]
            needed = torch.cat([own, others])
            place[needed] = torch.arange(len(needed), device=senders.device)
            basis, rows = network.distance_basis(vectors)
            updated[atoms] = interaction(
                features[needed],
                kinds.part(needed),
                place[senders],
                graph.receivers[edges] - atoms.start,
                network.atom_harmonics(vectors),
                basis,
                rows,
            )[: len(own)]
        features = updated
    by_l = by_component(features, irreps)
    missing = (config.l_max + 1) ** 2 - by_l.shape[1]
    return nn.functional.pad(by_l, (0, 0, 0, missing))


def _blocks(graph: AtomGraph, edges_at_once: int) -> list[tuple[slice, slice]]:
    """Consecutive atoms and their consecutive edges."""
    ends = torch.cumsum(torch.bincount(graph.receivers, minlength=graph.n_atoms), 0).cpu()
    blocks, atom, edge = [], 0, 0
    while atom < graph.n_atoms:
        stop = int(torch.searchsorted(ends, edge + edges_at_once, right=True))
        stop = min(max(stop, atom + 1), graph.n_atoms)
        last = int(ends[stop - 1])
        blocks.append((slice(atom, stop), slice(edge, last)))
        atom, edge = stop, last
    return blocks
