"""Search for pairs of atoms and points, compiled by numba.

Every image of an atom is compared with every point: for the points of a training step that takes a
tenth of the time of a search tree, which has to write, and sort, what it finds.

Importing this module raises ImportError where numba is not installed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eac_model.compiled import compiled


@compiled
def count_pairs(
    points: NDArray[np.float64],
    centers: NDArray[np.float64],
    atoms: NDArray[np.int64],
    cutoff: float,
    counts: NDArray[np.int64],
) -> None:
    """Add the numbers of points within the cutoff to ``counts``, (n,).

    Parameters
    ----------
    points
        (3, p), Å.
    centers, atoms
        (m, 3) positions of images, Å, and (m,) the atom each belongs to.
    """
    for m in range(len(centers)):
        x, y, z = centers[m]
        count = 0
        for p in range(points.shape[1]):
            dx, dy, dz = points[0, p] - x, points[1, p] - y, points[2, p] - z
            count += dx * dx + dy * dy + dz * dz <= cutoff * cutoff
        counts[atoms[m]] += count


@compiled
def write_pairs(
    points: NDArray[np.float64],
    centers: NDArray[np.float64],
    atoms: NDArray[np.int64],
    cutoff: float,
    vectors: NDArray[Any],
    mask: NDArray[np.bool_],
    index: NDArray[np.int64],
) -> None:
    """Write pairs into rows of atoms, by image and then by point.

    Parameters
    ----------
    points, centers, atoms, cutoff
        As for :func:`count_pairs`.
    vectors, mask, index
        (n, k, 3), (n, k), (n, k) of :class:`eac_model.graph.PointPairs`, wide enough for all; the
        mask false everywhere.
    """
    written = np.zeros(len(mask), np.int64)
    near = np.empty(points.shape[1] + 1, np.int64)
    for m in range(len(centers)):
        x, y, z = centers[m]
        count = 0
        for p in range(points.shape[1]):
            dx, dy, dz = points[0, p] - x, points[1, p] - y, points[2, p] - z
            near[count] = p
            count += dx * dx + dy * dy + dz * dz <= cutoff * cutoff
        atom = atoms[m]
        for k in range(count):
            p, place = near[k], written[atom] + k
            vectors[atom, place, 0] = points[0, p] - x
            vectors[atom, place, 1] = points[1, p] - y
            vectors[atom, place, 2] = points[2, p] - z
            mask[atom, place] = True
            index[atom, place] = p
        written[atom] += count
