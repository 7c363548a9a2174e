"""How far a prediction may be trusted: expected errors, from distances between descriptors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from ase import Atoms
from torch import Tensor, nn

from eac_model.neighbors import atom_graph

ATOMS_AT_ONCE = 256
"""Atoms whose distances from the references are computed together; bounds the memory."""

REFERENCES = 48
"""Environments of every element that a model file keeps, as different from each other as can be."""

SHRINKAGE = 1.0
"""So many structures with an element have to be known until its own error counts as much as the
mean."""

DAMPING = 0.3
"""Keeps the slope small where few structures, or all alike, say something of it."""

MARGIN = 2.0
"""Beyond so many times the largest distances of structures in calibration, but for the most distant
ones of these, an environment is called unknown."""

REACH = 4.0
"""Å. An atom in unknown surroundings spoils the density of those that are nearer than this, too."""


@dataclass(frozen=True)
class CalibrationStructure:
    """What a structure with a reference density says of the errors of a network."""

    invariants: Tensor
    """(n, features) from :meth:`DensityNetwork.atom_invariants`."""
    elements: Tensor
    """(n,) position of the atoms' elements in ``config.elements``."""
    pairs: tuple[Tensor, Tensor]
    """Atoms and their neighbours within :data:`REACH`, see :func:`atoms_in_reach`."""
    errors: Tensor | None = None
    """(n,) electrons by which the density is wrong nearer to this atom than to others."""
    electrons: Tensor | None = None
    """(n,) electrons there."""


class ExpectedError(nn.Module):
    """Expected error of the density around an atom.

    d is the Euclidean distance of the atom's invariants, each in units of its spread among atoms of
    one element, to the nearest of :data:`REFERENCES` environments of its element in the training
    data, in units of the distance that is usual between atoms of different training structures.
    D is the largest d of an atom and its neighbours within :data:`REACH`, whose contributions
    overlap. Then log ε = offset(element) + slope · log(1 + D), by damped least squares on
    structures left out of training, all of which weigh the same; and the error of a structure is
    the mean over its atoms, weighted with their electrons.

    Parameters
    ----------
    elements, features
        Numbers of elements and of invariants.

    Notes
    -----
    Files of format 4 had neither ``scales`` nor ``reach``: their distances are those of the
    invariants themselves, and D is d.
    """

    references: Tensor
    scales: Tensor
    unit: Tensor
    offset: Tensor
    slope: Tensor
    electrons: Tensor
    limit: Tensor
    reach: Tensor

    def __init__(self, elements: int, features: int) -> None:
        super().__init__()
        self.register_buffer("references", torch.full((elements, REFERENCES, features), torch.inf))
        self.register_buffer("scales", torch.ones(features))
        self.register_buffer("unit", torch.ones(elements))
        self.register_buffer("offset", torch.zeros(elements))
        self.register_buffer("slope", torch.zeros(()))
        self.register_buffer("electrons", torch.ones(elements))
        self.register_buffer("limit", torch.full((), torch.inf))
        self.register_buffer("reach", torch.zeros(()))

    def fitted(self) -> Iterator[tuple[str, Tensor]]:
        """What a model file holds, by name."""
        yield from self.named_buffers()

    def distances(self, invariants: Tensor, elements: Tensor) -> Tensor:
        """d of every atom, (n,); infinite for elements that were not in the training data."""
        found = []
        # Differences from all references take some ten kB an atom.
        parts = zip(invariants.split(ATOMS_AT_ONCE), elements.split(ATOMS_AT_ONCE), strict=True)
        for some, of_element in parts:
            differences = self.references[of_element] - (some / self.scales).unsqueeze(1)
            nearest = differences.square().sum(dim=2).amin(dim=1).sqrt()
            found.append(nearest / self.unit[of_element])
        return torch.cat(found)

    def forward(
        self, invariants: Tensor, elements: Tensor, pairs: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Expected ε_mae around every atom and of the structure, in percent: (n,) and ().

        Infinite near elements that were not in the training data.
        """
        d = largest_nearby(self.distances(invariants, elements), pairs)
        known = torch.exp(self.offset[elements] + self.slope * torch.log1p(d))
        errors = torch.where(d.isfinite(), known, torch.inf)
        weights = self.electrons[elements]
        return errors, (errors * weights).sum() / weights.sum()

    @torch.no_grad()
    def fit(
        self,
        training: Iterable[CalibrationStructure],
        left_out: Iterable[CalibrationStructure],
    ) -> None:
        """Take references from the training data and errors from structures left out of it.

        Where all of the latter hold elements without references, ``limit`` stays infinite.
        """
        self.reach.fill_(REACH)
        self._keep_references(list(training))
        self._calibrate(list(left_out))

    def _keep_references(self, training: list[CalibrationStructure]) -> None:
        rows: dict[int, list[Tensor]] = defaultdict(list)
        owners: dict[int, list[int]] = defaultdict(list)
        for index, structure in enumerate(training):
            for element in structure.elements.unique().tolist():
                found = structure.invariants[structure.elements == element]
                rows[element].append(found)
                owners[element] += [index] * len(found)
        points = {element: torch.cat(parts) for element, parts in rows.items()}
        self.scales.copy_(_spread_within(list(points.values())))
        between = []
        for element, unscaled in points.items():
            scaled = unscaled / self.scales
            chosen = _spread_out(scaled, REFERENCES)
            self.references[element] = torch.inf
            self.references[element, : len(chosen)] = scaled[chosen]
            owner = torch.tensor(owners[element], device=scaled.device)
            distances = torch.cdist(scaled[:2000], scaled)
            distances[owner[:2000, None] == owner[None]] = torch.inf
            between.append(distances.amin(dim=1))
        usual = torch.cat(between)
        # Nothing but repetitions of one structure, or one structure of every element: any unit.
        usual = usual[usual.isfinite() & (usual > 0)]
        self.unit.fill_(float(usual.median()) if len(usual) else 1.0)

    def _calibrate(self, left_out: list[CalibrationStructure]) -> None:
        # What holds an element without references says nothing of errors at a distance.
        left_out = [
            s for s in left_out if self.distances(s.invariants, s.elements).isfinite().all()
        ]
        if not left_out:
            return
        elements = torch.cat([s.elements for s in left_out])
        electrons = torch.cat([_known(s.electrons) for s in left_out]).double()
        errors = torch.cat([_known(s.errors) for s in left_out]).double()
        own = [self.distances(s.invariants, s.elements) for s in left_out]
        near = [largest_nearby(d, s.pairs) for d, s in zip(own, left_out, strict=True)]
        weights = [d.new_full(d.shape, 1 / len(d), dtype=torch.float64) for d in own]
        nearby = torch.cat(near).double()
        usable = (errors > 0) & (electrons > 0)
        x = torch.log1p(nearby[usable])
        y = torch.log(100 * errors[usable] / electrons[usable])
        slope, offset = _damped_fit(
            x, y, torch.cat(weights)[usable], elements[usable], len(self.unit)
        )
        self.slope.copy_(slope)
        self.offset.copy_(offset)
        counts = torch.bincount(elements[usable], minlength=len(self.unit))
        totals = torch.zeros_like(offset).index_add(0, elements[usable], electrons[usable])
        mean = electrons[usable].mean()
        self.electrons.copy_(torch.where(counts > 0, totals / counts.clamp(min=1), mean))
        # Of structures, not atoms: what is far for one element is usual for another.
        farthest = torch.stack([d.amax() for d in own])
        self.limit.copy_(MARGIN * torch.quantile(farthest, 0.95))
        # Means of logarithms are too small for means: let the sum over the structures agree.
        expected = sum(float(self(s.invariants, s.elements, s.pairs)[1]) for s in left_out)
        found = sum(float(_known(s.errors).sum() / _known(s.electrons).sum()) for s in left_out)
        self.offset += torch.log(torch.tensor(100 * found / expected))


def atoms_in_reach(atoms: Atoms, reach: float) -> tuple[Tensor, Tensor]:
    """Pairs (atom, neighbour) within ``reach`` (Å), (m,) each; an atom is its own neighbour."""
    graph = atom_graph(atoms, reach)
    itself = torch.arange(graph.n_atoms)
    return torch.cat([itself, graph.receivers]), torch.cat([itself, graph.senders])


def largest_nearby(values: Tensor, pairs: tuple[Tensor, Tensor]) -> Tensor:
    """The largest value of an atom and its neighbours, (n,)."""
    receivers, senders = (indices.to(values.device) for indices in pairs)
    return values.scatter_reduce(0, receivers, values[senders], "amax")


def _damped_fit(
    x: Tensor, y: Tensor, weights: Tensor, elements: Tensor, n_elements: int
) -> tuple[Tensor, Tensor]:
    """Slope and offsets, (n_elements,), of y = offset(element) + slope · x.

    Minimises Σ w (y − ŷ)² + DAMPING · slope² + SHRINKAGE · Σ (offset − mean offset)².
    """
    of_element = nn.functional.one_hot(elements, n_elements).to(y)
    design = torch.cat([torch.ones_like(y)[:, None], x[:, None], of_element], dim=1)
    damping = torch.full((n_elements + 2,), SHRINKAGE).to(y)
    damping[:2] = torch.tensor([1e-6, DAMPING])
    weighted = (weights[:, None] * design).T
    found = torch.linalg.solve(weighted @ design + torch.diag(damping), weighted @ y)
    return found[1].clamp(min=0.0), found[0] + found[2:]


def _spread_within(points: list[Tensor]) -> Tensor:
    """Standard deviation of every invariant about the mean of its element, (features,).

    Invariants that hardly differ say little and do not count more than a thousandth of the rest.
    """
    squares = torch.cat([(rows - rows.mean(dim=0)).square() for rows in points])
    spread = squares.mean(dim=0).sqrt()
    typical = spread.mean()
    return (spread + 1e-3 * typical) if typical > 0 else torch.ones_like(spread)


def _known(values: Tensor | None) -> Tensor:
    if values is None:
        raise ValueError("structures for calibration need errors and electrons")
    return values


def _spread_out(points: Tensor, count: int) -> list[int]:
    """Farthest-point sampling: rows (n, f) that are far from each other, the first one included."""
    chosen = [0]
    nearest = (points - points[0]).square().sum(dim=1)
    while len(chosen) < min(count, len(points)) and float(nearest.max()) > 0:
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (points - points[chosen[-1]]).square().sum(dim=1))
    return chosen
