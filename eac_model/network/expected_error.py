"""How far a prediction may be trusted: expected errors, from distances between descriptors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

REFERENCES = 48
"""Environments of every element that a model file keeps, as different from each other as can be."""

SHRINKAGE = 4.0
"""So many atoms of an element have to be known until its own error counts as much as the mean."""

MARGIN = 2.0
"""Beyond so many times the distances met in calibration an environment is called unknown."""


@dataclass(frozen=True)
class CalibrationStructure:
    """What a structure with a reference density says of the errors of a network."""

    invariants: Tensor
    """(n, features) from :meth:`DensityNetwork.atom_invariants`."""
    elements: Tensor
    """(n,) position of the atoms' elements in ``config.elements``."""
    errors: Tensor | None = None
    """(n,) electrons by which the density is wrong nearer to this atom than to others."""
    electrons: Tensor | None = None
    """(n,) electrons there."""


class ExpectedError(nn.Module):
    """Expected error of the density around an atom.

    d is the Euclidean distance of the atom's invariants to the nearest of :data:`REFERENCES`
    environments of its element in the training data, in units of the distance that is usual between
    atoms of different training structures. Then log ε = offset(element) + slope · log(1 + d), by
    least squares on structures left out of training, and the error of a structure is the mean over
    its atoms, weighted with their electrons.

    Parameters
    ----------
    elements, features
        Numbers of elements and of invariants.
    """

    references: Tensor
    unit: Tensor
    offset: Tensor
    slope: Tensor
    electrons: Tensor
    limit: Tensor

    def __init__(self, elements: int, features: int) -> None:
        super().__init__()
        self.register_buffer("references", torch.full((elements, REFERENCES, features), torch.inf))
        self.register_buffer("unit", torch.ones(elements))
        self.register_buffer("offset", torch.zeros(elements))
        self.register_buffer("slope", torch.zeros(()))
        self.register_buffer("electrons", torch.ones(elements))
        self.register_buffer("limit", torch.full((), torch.inf))

    def fitted(self) -> Iterator[tuple[str, Tensor]]:
        """What a model file holds, by name."""
        yield from self.named_buffers()

    def distances(self, invariants: Tensor, elements: Tensor) -> Tensor:
        """d of every atom, (n,); infinite for elements that were not in the training data."""
        differences = self.references[elements] - invariants.unsqueeze(1)
        return differences.square().sum(dim=2).amin(dim=1).sqrt() / self.unit[elements]

    def forward(self, invariants: Tensor, elements: Tensor) -> tuple[Tensor, Tensor]:
        """Expected ε_mae around every atom and of the structure, in percent: (n,) and ()."""
        d = self.distances(invariants, elements)
        errors = torch.exp(self.offset[elements] + self.slope * torch.log1p(d))
        weights = self.electrons[elements]
        return errors, (errors * weights).sum() / weights.sum()

    @torch.no_grad()
    def fit(
        self,
        training: Iterable[CalibrationStructure],
        left_out: Iterable[CalibrationStructure],
    ) -> None:
        """Take references from the training data and errors from structures left out of it."""
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
        usual = {}
        for element, parts in rows.items():
            points = torch.cat(parts)
            chosen = _spread_out(points, REFERENCES)
            self.references[element] = torch.inf
            self.references[element, : len(chosen)] = points[chosen]
            owner = torch.tensor(owners[element], device=points.device)
            between = torch.cdist(points[:2000], points)
            between[owner[:2000, None] == owner[None]] = torch.inf
            nearest = between.amin(dim=1)
            if nearest.isfinite().any():
                usual[element] = nearest[nearest.isfinite()].median()
        # Elements of one structure, or of equal ones: what is usual for the others.
        positive = [value for value in usual.values() if value > 0]
        common = torch.stack(positive).median() if positive else self.unit.new_tensor(1.0)
        for element in range(len(self.unit)):
            self.unit[element] = torch.maximum(usual.get(element, common), 0.1 * common)

    def _calibrate(self, left_out: list[CalibrationStructure]) -> None:
        elements = torch.cat([s.elements for s in left_out])
        invariants = torch.cat([s.invariants for s in left_out])
        electrons = torch.cat([_known(s.electrons) for s in left_out]).double()
        errors = torch.cat([_known(s.errors) for s in left_out]).double()
        d = self.distances(invariants, elements)
        usable = (errors > 0) & (electrons > 0) & d.isfinite()
        x = torch.log1p(d[usable].double())
        y = torch.log(100 * errors[usable] / electrons[usable])
        of = elements[usable]
        # Deviations from the element's own mean say how errors grow with d.
        counts = torch.bincount(of, minlength=len(self.unit)).double().clamp(min=1)
        means = [torch.zeros_like(counts).index_add(0, of, v) / counts for v in (x, y)]
        dx, dy = x - means[0][of], y - means[1][of]
        slope = ((dx * dy).sum() / (dx.square().sum() + 1e-9)).clamp(0.0, 2.0)
        residual = y - slope * x
        mean = residual.mean()
        own = torch.zeros_like(counts).index_add(0, of, residual - mean)
        seen = torch.bincount(of, minlength=len(self.unit))
        self.offset.copy_(mean + own / (seen + SHRINKAGE))
        self.slope.copy_(slope)
        totals = torch.zeros_like(counts).index_add(0, of, electrons[usable])
        self.electrons.copy_(torch.where(seen > 0, totals / counts, electrons[usable].mean()))
        self.limit.copy_(MARGIN * torch.quantile(d[usable].double(), 0.99))
        # Means of logarithms are too small for means: let the sum over the structures agree.
        expected = sum(float(self(s.invariants, s.elements)[1]) for s in left_out)
        found = sum(float(_known(s.errors).sum() / _known(s.electrons).sum()) for s in left_out)
        self.offset += torch.log(torch.tensor(100 * found / expected))


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
