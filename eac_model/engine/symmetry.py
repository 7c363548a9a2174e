"""Grid points that the symmetry of a crystal makes equivalent."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import spglib
from ase import Atoms
from numpy.typing import NDArray

PRECISION = 1e-6
"""Å. What is symmetric to less is taken for what it is."""

MOST_ATOMS = 200
"""Larger structures are rarely symmetric, and the search takes its time."""


@dataclass(frozen=True)
class UniquePoints:
    """One grid point of every set of equivalent ones."""

    indices: NDArray[np.int64]
    """(u, 3) | its place on the grid."""
    which: NDArray[np.int32]
    """(n1, n2, n3) | the row of ``indices`` a point is equivalent to."""


def unique_points(
    atoms: Atoms, shape: tuple[int, int, int], *, mirrors: bool = True
) -> UniquePoints | None:
    """Points of the grid of a crystal's cell that are not equivalent.

    All rotations, reflections and translations of the crystal that leave the grid as it is are
    taken (spglib); initial magnetic moments have to be left as they are, too.

    Parameters
    ----------
    mirrors
        False: of the symmetries that turn right hands into left ones, none.

    Returns
    -------
    UniquePoints or None
        None if there is nothing to gain: no symmetry, an open direction, or many atoms.
    """
    n_points = int(np.prod(shape))
    # Points are counted in 32 bits: tables as large as the grid are made here.
    if not atoms.pbc.all() or len(atoms) > MOST_ATOMS or n_points >= 2**31:
        return None
    operations = _operations(atoms, shape, mirrors)
    if len(operations) < 2:
        return None
    # A point stands for its set if no image of it comes earlier: of the points that are left after
    # some operations, few see the others.
    first = np.arange(n_points, dtype=np.int32)
    for operation in operations:
        first = first[_images(first, operation, shape) >= first]
    which = np.empty(n_points, dtype=np.int32)
    rows = np.arange(len(first), dtype=np.int32)
    for operation in operations:
        which[_images(first, operation, shape)] = rows
    indices = np.stack(np.unravel_index(first, shape), axis=1)
    return UniquePoints(indices.astype(np.int64), which.reshape(shape))


def _images(
    points: NDArray[np.int32],
    operation: tuple[NDArray[np.int32], NDArray[np.int32]],
    shape: tuple[int, int, int],
) -> NDArray[np.int32]:
    """Flat indices of the points that an operation takes points to."""
    matrix, shift = operation
    indices = np.unravel_index(points, shape)
    flat = np.zeros(len(points), dtype=np.int32)
    for row, offset, size in zip(matrix, shift, shape, strict=True):
        # Each coordinate of the image is a sum of functions of one index.
        image = np.full(len(points), offset % size, dtype=np.int32)
        for factor, index, n in zip(row, indices, shape, strict=True):
            if factor % size:
                image += (factor * np.arange(n, dtype=np.int32) % size)[index]
        flat *= size
        flat += image % size
    return flat


def _operations(
    atoms: Atoms, shape: tuple[int, int, int], mirrors: bool
) -> list[tuple[NDArray[np.int32], NDArray[np.int32]]]:
    """Integer matrices and shifts n → M n + s of the symmetries that map the grid to itself."""
    labels = list(zip(atoms.numbers.tolist(), atoms.get_initial_magnetic_moments(), strict=True))
    kinds = [labels.index(label) for label in labels]
    cell = (atoms.cell.tolist(), atoms.get_scaled_positions().tolist(), kinds)
    with warnings.catch_warnings():
        # Newer versions announce exceptions in place of None.
        warnings.simplefilter("ignore", DeprecationWarning)
        found = spglib.get_symmetry(cell, symprec=PRECISION)
    if found is None:
        return []
    size = np.array(shape)
    operations = []
    for rotation, translation in zip(found["rotations"], found["translations"], strict=True):
        if not mirrors and np.linalg.det(rotation) < 0:
            continue
        matrix = rotation * size[:, None] / size
        shift = translation * size
        if np.abs(matrix - np.rint(matrix)).max() < 1e-9 and (
            np.abs(shift - np.rint(shift)).max() < 1e-4
        ):
            operations.append((np.rint(matrix).astype(np.int32), np.rint(shift).astype(np.int32)))
    return operations
