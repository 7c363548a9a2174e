"""Blocks of neighbouring points and their pairs with atoms, in an order fit for matrix products."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eac_model.engine.shells import TERMS, Shells, sort_by
from eac_model.network.harmonics import solid_harmonics

CANDIDATES = 2**20
"""Distances computed at once."""

BATCH = 2**15
"""Pairs whose harmonics are computed at once."""

BATCH_WIDTH = 128
"""Columns of the pieces that are evaluated many at once."""

WIDTHS = (64, 128, 192, 256, 384, 512, 768, 1024)
"""Numbers of columns in matrix products: few, for some libraries compile a kernel for each."""


@dataclass(frozen=True)
class TilePairs:
    """Pairs of points and atoms (of any periodic image) within the cutoff."""

    image: Tensor
    """(p,) int64 | periodic image, a row of the positions given."""
    point: Tensor
    """(p,) int64 | point."""
    vectors: Tensor
    """(3, p) | from the image to the point, Å."""
    distance: Tensor
    """(p,) float64 | their lengths, Å."""

    def __len__(self) -> int:
        return len(self.point)


def tile_pairs(
    points: NDArray, positions: NDArray, cutoff: float, dtype: torch.dtype, device: torch.device
) -> TilePairs:
    """All pairs of points (n, 3) and positions (m, 3) closer than ``cutoff``, Å."""
    low, high = points.min(axis=0), points.max(axis=0)
    outside = np.maximum(np.maximum(low - positions, positions - high), 0.0)
    near = np.flatnonzero((outside**2).sum(axis=1) < cutoff**2)
    columns = torch.as_tensor(points.T.copy(), device=device)
    step = max(1, CANDIDATES // len(points))
    found: list[tuple[Tensor, ...]] = []
    for start in range(0, len(near), step):
        rows = near[start : start + step]
        # Differences in float64, then rounded: positions far from the origin lose nothing.
        centers = torch.as_tensor(positions[rows].T.copy(), device=device)
        vectors = columns.unsqueeze(1) - centers.unsqueeze(2)
        square = vectors[0].square()
        square.addcmul_(vectors[1], vectors[1]).addcmul_(vectors[2], vectors[2])
        inside = (square < cutoff**2).flatten().nonzero().squeeze(1)
        found.append(
            (
                torch.as_tensor(rows, device=device)[inside // len(points)],
                inside % len(points),
                vectors.flatten(1).index_select(1, inside).to(dtype),
                square.flatten().index_select(0, inside).sqrt_(),
            )
        )
    if not found:
        empty = torch.zeros(0, dtype=torch.int64, device=device)
        nothing = torch.zeros(3, 0, dtype=dtype, device=device)
        return TilePairs(empty, empty, nothing, nothing[0].double())
    image, point, vectors, distance = (
        torch.cat(parts, dim=-1) for parts in zip(*found, strict=True)
    )
    return TilePairs(image, point, vectors, distance)


@dataclass(frozen=True)
class Piece:
    """Some pairs of one atom on one shell."""

    atom: int
    """Index among the structure's atoms."""
    shell: int
    pairs: slice
    """Their places among the pairs of the tile."""
    polynomials: Tensor
    """(TERMS, width) | Chebyshev polynomials of their place in the shell; padding holds anything
    finite."""
    harmonics: Tensor
    """((l_max+1)², width) | of their directions; empty where none were asked for."""

    @property
    def count(self) -> int:
        """Number of pairs."""
        return self.pairs.stop - self.pairs.start

    @property
    def width(self) -> int:
        """Number of columns, padding included."""
        return self.polynomials.shape[1]


@dataclass(frozen=True)
class ShellPairs:
    """Pairs of a tile in the order of atom and shell."""

    atoms: list[int]
    """Atoms that have pairs, ascending."""
    atom: Tensor
    """(p,) int64 | index among the structure's atoms."""
    point: Tensor
    """(p,) int64."""
    vectors: Tensor
    """(3, p) | Å."""
    distance: Tensor
    """(p,) float64 | Å. Rounded to float32 it would miss places in shells by some 1e-6."""
    shells: Shells
    l_max: int
    core_radius: float
    """a, Å: harmonics are those of r/√(r² + a²)."""
    segments: NDArray[np.int64]
    """(s, 4) | atom, shell, first and last + 1 pair of every run of equal atom and shell."""

    def pieces(self, *, harmonics: bool = False) -> Iterator[Piece]:
        """All pairs in pieces of one atom and shell, some of :data:`WIDTHS` wide."""
        cut = [
            (atom, shell, begin, min(begin + WIDTHS[-1], end))
            for atom, shell, first, end in self.segments.tolist()
            for begin in range(first, end, WIDTHS[-1])
        ]
        batch: list[tuple[int, int, int, int]] = []
        for number, piece in enumerate(cut):
            batch.append(piece)
            if number + 1 == len(cut) or piece[3] - batch[0][2] >= BATCH:
                yield from self._batch(batch, harmonics)
                batch = []

    def batches(self, size: int = BATCH) -> Iterator[ShellBatch]:
        """All pairs in pieces of one atom and shell, many pieces (``size`` pairs) at once."""
        atom, shell, first, last = self.segments.T
        pieces = -(-(last - first) // BATCH_WIDTH)
        row = np.repeat(np.arange(len(pieces)), pieces)
        number = np.arange(len(row)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        starts = first[row] + number * BATCH_WIDTH
        device = self.distance.device
        columns = torch.arange(BATCH_WIDTH, device=device)
        at_once = max(1, size // BATCH_WIDTH)
        for begin in range(0, len(row), at_once):
            some = slice(begin, begin + at_once)
            present, place = np.unique(atom[row[some]], return_inverse=True)
            ends = torch.as_tensor(last[row[some]] - 1, device=device).unsqueeze(1)
            start = torch.as_tensor(starts[some], device=device).unsqueeze(1)
            pairs = torch.minimum(start + columns, ends)
            flat = pairs.flatten()
            vectors = self.vectors.index_select(1, flat)
            distance = self.distance.index_select(0, flat)
            polynomials = self.shells.polynomials(distance, vectors.dtype)
            harmonics = self._harmonics(vectors, distance)
            yield ShellBatch(
                atoms=present.tolist(),
                place=torch.as_tensor(place, device=device),
                atom=torch.as_tensor(atom[row[some]], device=device),
                shell=torch.as_tensor(shell[row[some]], device=device),
                pairs=pairs,
                mask=start + columns <= ends,
                polynomials=polynomials.unflatten(1, (-1, BATCH_WIDTH)),
                harmonics=harmonics.unflatten(1, (-1, BATCH_WIDTH)),
            )

    def _batch(self, cut: list[tuple[int, int, int, int]], harmonics: bool) -> Iterator[Piece]:
        begin, end = cut[0][2], cut[-1][3]
        size = end - begin
        vectors, distance = self.vectors[:, begin:end], self.distance[begin:end]
        polynomials = vectors.new_zeros(TERMS, size + WIDTHS[-1])
        polynomials[:, :size] = self.shells.polynomials(distance, vectors.dtype)
        components = (self.l_max + 1) ** 2 if harmonics else 0
        directions = vectors.new_zeros(components, size + WIDTHS[-1])
        if harmonics:
            directions[:, :size] = self._harmonics(vectors, distance)
        for atom, shell, first, last in cut:
            width = WIDTHS[bisect_left(WIDTHS, last - first)]
            columns = slice(first - begin, first - begin + width)
            yield Piece(
                atom,
                shell,
                slice(first, last),
                polynomials[:, columns].contiguous(),
                directions[:, columns],
            )

    def _harmonics(self, vectors: Tensor, distance: Tensor) -> Tensor:
        norm = distance.to(vectors.dtype)
        if self.core_radius:
            norm = torch.sqrt(norm**2 + self.core_radius**2)
        return solid_harmonics(vectors / norm.clamp_(min=1e-12), self.l_max)


@dataclass(frozen=True)
class ShellBatch:
    """Pieces of equal width, padded with pairs of their own."""

    atoms: list[int]
    """Atoms that the pieces belong to, ascending."""
    place: Tensor
    """(pieces,) int64 | index among these."""
    atom: Tensor
    """(pieces,) int64 | index among the structure's atoms."""
    shell: Tensor
    """(pieces,) int64."""
    pairs: Tensor
    """(pieces, width) int64 | places among the pairs of the tile; padding repeats the last."""
    mask: Tensor
    """(pieces, width) | False for padding."""
    polynomials: Tensor
    """(TERMS, pieces, width) | Chebyshev polynomials of their place in the shell."""
    harmonics: Tensor
    """((l_max+1)², pieces, width) | of their directions."""


def sort_pairs(
    pairs: TilePairs, members: Tensor, shells: Shells, l_max: int, core_radius: float = 0.0
) -> ShellPairs:
    """Order the pairs of a tile; ``members`` (p,) names the atom of each."""
    present = torch.bincount(members) > 0
    local = (torch.cumsum(present, 0) - 1)[members]
    keys = (local * shells.count + shells.number(pairs.distance)).cpu().numpy()
    order = torch.as_tensor(sort_by(keys), device=members.device)
    counts = np.bincount(keys)
    ends = np.cumsum(counts)
    names = present.nonzero().squeeze(1).cpu().numpy()
    filled = np.flatnonzero(counts)
    segments = [names[filled // shells.count], filled % shells.count, (ends - counts)[filled]]
    return ShellPairs(
        atoms=names.tolist(),
        atom=members.index_select(0, order),
        point=pairs.point.index_select(0, order),
        vectors=pairs.vectors.index_select(1, order),
        distance=pairs.distance.index_select(0, order),
        shells=shells,
        l_max=l_max,
        core_radius=core_radius,
        segments=np.stack([*segments, ends[filled]], axis=1),
    )
