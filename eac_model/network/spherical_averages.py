"""Averages of a linear decoder's density over spheres about the atoms.

Occupancies of L = 0 fix the spherical part of the density near a nucleus, so readouts that see this
part are nearly linear in it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from eac_model.graph import AtomGraph
from eac_model.network.linear import LinearDecoder
from eac_model.network.radial import lengths, polynomial_cutoff

RADII = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2, 1.4)
"""Of the spheres, Å: up to the largest augmentation spheres. Model files of format 6 count on
them."""

NODES = 8
"""Gauss–Legendre nodes of an average. Few will do: whatever their number, averages do not depend on
directions and are continuous functions of the distances."""

FADE_POWER = 12
"""Of the polynomial by which neighbours fade at the end of an atom's neighbourhood."""

EDGES_AT_ONCE = 1024
"""Atom–atom pairs whose integrals are held at once; they take some 50 kB each."""


def spherical_averages(
    decoder: LinearDecoder, own: Tensor, total: Tensor, graph: AtomGraph, cutoff: float
) -> Tensor:
    """Averages of a density over spheres about every atom, e/Å³.

    A neighbour at d contributes, averaged over the azimuth about the line to it,
    Y^l(d̂)·A^l_b P_l(cos γ) B_b(v) at the distance v from it, where v cos γ = (r² − d² − v²) / 2d.
    What is left is an integral over v: ∫ … v dv / 2rd between |d − r| and d + r.

    Parameters
    ----------
    decoder
        Whose density it is.
    own
        (n, (l_max+1)², basis) coefficients of the atoms about themselves. What is the same for all
        atoms of an element, as the free atoms are, may be left out: readouts have a constant.
    total
        The coefficients of the atoms as neighbours, in the same shape.
    graph
        The atoms and their neighbours.
    cutoff
        Where the neighbours of the graph end, Å; their parts fade before.

    Returns
    -------
    Tensor
        (n, len(RADII)).
    """
    radii = own.new_tensor(RADII)
    result = own[:, 0] @ decoder.basis(radii).T
    index = decoder.get_buffer("l_of_component")
    all_distances = lengths(graph.vectors)
    # Sorted, so that i → j and j → i come together and are integrated once.
    for edges in torch.argsort(all_distances, stable=True).split(EDGES_AT_ONCE):
        distances, rows = torch.unique(all_distances[edges], return_inverse=True)
        functions = _averages_of_functions(decoder, distances, radii)
        directions = graph.vectors[edges] / distances[rows].unsqueeze(-1)
        harmonics = decoder.harmonics(directions).unsqueeze(-1)
        faded = harmonics * polynomial_cutoff(distances, cutoff, FADE_POWER)[rows, None, None]
        along = total.new_zeros(len(edges), decoder.l_max + 1, total.shape[2])
        along = along.index_add(1, index, faded * total[graph.senders[edges]])
        parts = torch.bmm(functions.flatten(2)[rows], along.flatten(1).unsqueeze(-1)).squeeze(-1)
        result = result.index_add(0, graph.receivers[edges], parts)
    return result


def _averages_of_functions(decoder: LinearDecoder, distances: Tensor, radii: Tensor) -> Tensor:
    """Averages of B_b(v) P_l(cos γ) over spheres at some distances, (d, radii, l, basis)."""
    nodes, weights = (radii.new_tensor(x) for x in np.polynomial.legendre.leggauss(NODES))
    d, r = distances[:, None, None], radii[:, None]
    low = (d - r).abs()
    half = (((d + r).clamp(max=decoder.basis.cutoff) - low) / 2).clamp(min=0)
    v = low + half * (1 + nodes)
    cosine = ((r * r - d * d - v * v) / (2 * d * v)).clamp(-1, 1)
    # As the harmonics of the decoder, which are solid near the nucleus.
    solid = v * torch.rsqrt(v * v + decoder.core_radius**2)
    parts = [half * weights * v / (2 * r * d)]
    parts.append(parts[0] * solid * cosine)
    for l in range(1, decoder.l_max):
        # Bonnet's recursion, of P_l times the power l of the factor.
        before = l * solid * solid * parts[l - 1]
        parts.append(((2 * l + 1) * solid * cosine * parts[l] - before) / (l + 1))
    angular = torch.stack(parts[: decoder.l_max + 1], dim=-2)
    return angular @ decoder.basis(v)
