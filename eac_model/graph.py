"""What the network reads: atoms with their neighbours, and atom–point pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class AtomGraph:
    """Atoms of one or several structures and the directed pairs of neighbours among them."""

    numbers: Tensor
    """(n,) int64 | atomic numbers."""
    magmoms: Tensor
    """(n,) float | initial magnetic moments, μ_B; zeros where there are none."""
    receivers: Tensor
    """(e,) int64 | the atom that receives a message."""
    senders: Tensor
    """(e,) int64 | its neighbour, which sends it."""
    vectors: Tensor
    """(e, 3) float | from receiver to sender (nearest or any other periodic image), Å."""
    magnetic: bool = True
    """False: all moments are known to be zero, so both spins are the same."""

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return self.numbers.shape[0]

    def flipped(self) -> AtomGraph:
        """The same atoms with every initial moment reversed."""
        return replace(self, magmoms=-self.magmoms)

    def to(self, device: torch.device | str) -> AtomGraph:
        """The graph on another device."""
        return replace(
            self,
            numbers=self.numbers.to(device),
            magmoms=self.magmoms.to(device),
            receivers=self.receivers.to(device),
            senders=self.senders.to(device),
            vectors=self.vectors.to(device),
        )

    @staticmethod
    def concatenate(graphs: Sequence[AtomGraph]) -> AtomGraph:
        """Several structures side by side, none a neighbour of another."""
        offsets = _offsets([graph.n_atoms for graph in graphs])
        return AtomGraph(
            numbers=torch.cat([graph.numbers for graph in graphs]),
            magmoms=torch.cat([graph.magmoms for graph in graphs]),
            receivers=torch.cat([g.receivers + o for g, o in zip(graphs, offsets, strict=True)]),
            senders=torch.cat([g.senders + o for g, o in zip(graphs, offsets, strict=True)]),
            vectors=torch.cat([graph.vectors for graph in graphs]),
            magnetic=any(graph.magnetic for graph in graphs),
        )


@dataclass(frozen=True)
class PointPairs:
    """Atom–point pairs, grouped by atom so that projections on an atom are matrix products.

    Row m holds up to k points in reach of atom ``atom[m]`` (or of one periodic image of it); rows
    are padded, and ``mask`` tells pairs from padding. Several rows may belong to one atom, and a
    point may occur in a row several times, once for each image of the atom.
    """

    atom: Tensor
    """(m,) int64 | atom of each row."""
    vectors: Tensor
    """(m, k, 3) float | from the atom's image to the point, Å; padding holds any vector ≠ 0."""
    mask: Tensor
    """(m, k) bool | whether the entry is a pair within the cutoff."""
    point: Tensor
    """(m, k) int64 | point of each pair; padding holds any valid index."""
    n_points: int
    """Number of points, those without any atom in reach included."""

    def to(self, device: torch.device | str) -> PointPairs:
        """The pairs on another device."""
        return replace(
            self,
            atom=self.atom.to(device),
            vectors=self.vectors.to(device),
            mask=self.mask.to(device),
            point=self.point.to(device),
        )

    def sum_over_atoms(self, contributions: Tensor) -> Tensor:
        """Sum the contributions of all atoms at every point, (m, k) → (n_points,)."""
        total = contributions.new_zeros(self.n_points)
        if self.n_points == 0:  # padding has no valid index then
            return total
        return total.index_add(0, self.point.reshape(-1), contributions.reshape(-1))

    def edges(self) -> tuple[Tensor, Tensor, Tensor]:
        """All pairs as flat lists in the order of the points, without padding.

        Returns
        -------
        atom, point
            (p,) int64.
        vectors
            (p, 3), from the atom's image to the point, Å.
        """
        rows, columns = self.mask.nonzero(as_tuple=True)
        point, order = torch.sort(self.point[rows, columns], stable=True)
        rows, columns = rows[order], columns[order]
        return self.atom[rows], point, self.vectors[rows, columns]

    @staticmethod
    def concatenate(
        pairs: Sequence[PointPairs], atom_counts: Sequence[int], point_counts: Sequence[int]
    ) -> PointPairs:
        """Pairs of several structures, numbered as :meth:`AtomGraph.concatenate` numbers atoms."""
        widest = max(p.vectors.shape[1] for p in pairs)
        padded = [p.padded(widest) for p in pairs]
        atoms, points = _offsets(atom_counts), _offsets(point_counts)
        return PointPairs(
            atom=torch.cat([p.atom + o for p, o in zip(padded, atoms, strict=True)]),
            vectors=torch.cat([p.vectors for p in padded]),
            mask=torch.cat([p.mask for p in padded]),
            point=torch.cat([p.point + o for p, o in zip(padded, points, strict=True)]),
            n_points=sum(point_counts),
        )

    def padded(self, width: int) -> PointPairs:
        """The same pairs with rows of at least ``width`` entries."""
        extra = width - self.vectors.shape[1]
        if extra <= 0:
            return self
        pad = torch.nn.functional.pad
        return replace(
            self,
            vectors=pad(self.vectors, (0, 0, 0, extra), value=1.0),
            mask=pad(self.mask, (0, extra)),
            point=pad(self.point, (0, extra)),
        )


def _offsets(counts: Sequence[int]) -> list[int]:
    offsets = [0]
    for count in counts[:-1]:
        offsets.append(offsets[-1] + count)
    return offsets
