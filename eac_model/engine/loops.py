"""The linear decoder as one loop over pairs, compiled by numba.

Around every atom the points in reach are found, ordered by interval of the radial functions, and
taken together some dozens at a time: harmonics, polynomials and their product stay in registers
and the innermost cache, and of a pair nothing reaches memory but its place. numba compiles at the
first call of an installation (some seconds) and keeps the machine code beside this file, or in
the user's cache.

Importing this module raises ImportError where numba is not installed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eac_model.compiled import compiled
from eac_model.network.linear_loops import ROUND, directions, harmonics_of

WIDTH = 128
"""Pairs taken together: all about them fits into the innermost cache."""

_f4 = np.float32


@compiled
def sum_pairs(
    points: NDArray[np.float64],
    centers: NDArray[np.float64],
    rows: NDArray[np.int64],
    slots: NDArray[np.int64],
    cutoff: float,
    edges: NDArray[np.float64],
    bins: NDArray[np.int64],
    tables: NDArray[np.float32],
    l_max: int,
    core_radius: float,
    sectoral: NDArray[np.float32],
    recursion: NDArray[np.float32],
    density: NDArray[np.float32],
    integrals: NDArray[np.float64],
) -> None:
    """Add the contributions of atoms to the density at points.

    Parameters
    ----------
    points
        (3, p) Å.
    centers
        (m, 3) positions of atoms, images included, Å.
    rows, slots
        (m,) which tables and integrals, and which densities, belong to each of them.
    edges
        (n + 1,) ends of the intervals, from 0 to the cutoff.
    bins
        Equal steps from 0 to the cutoff: the interval in which each begins.
    tables
        (spins, rows, n, (l_max+1)², 6) coefficients of powers of t = −1 … 1 in the interval.
    core_radius
        a, Å: harmonics are those of r/√(r² + a²).
    sectoral, recursion
        (l_max+1,) and (l_max+1, l_max+1, 2), from :mod:`eac_model.engine.shells`.
    density
        (spins, slots, p), e/Å³, is added to.
    integrals
        (spins, rows, 10), is added to: sums of a row's contributions, of contributions times the
        vector from the atom, and times its products xx, yy, zz, xy, xz, yz. With no rows they are
        left out.
    """
    n_points = points.shape[1]
    n_spin, _, n_intervals, components, _ = tables.shape
    square = np.empty(n_points, np.float64)
    radius = np.empty(n_points, np.float64)
    found = np.empty(n_points + 1, np.int32)
    interval = np.empty(n_points, np.int32)
    local = np.empty(n_points, np.float32)
    order = np.empty(n_points, np.int32)
    # Rounded widths read beyond the last pair.
    pairs = np.zeros((4, n_points + ROUND), np.float32)
    ends = np.empty(n_intervals + 1, np.int64)
    unit = np.empty((4, WIDTH), np.float32)
    turn = np.empty((2, WIDTH), np.float32)
    harmonics = np.empty((components, WIDTH), np.float32)
    values = np.empty(WIDTH, np.float32)
    upper = edges[1:].copy()
    upper[-1] = np.inf
    scales = 2 / (edges[1:] - edges[:-1])
    bins_per_length = (len(bins) - 1) / cutoff
    for center in range(len(centers)):
        cx, cy, cz = centers[center, 0], centers[center, 1], centers[center, 2]
        row, slot = rows[center], slots[center]
        for p in range(n_points):
            dx, dy, dz = points[0, p] - cx, points[1, p] - cy, points[2, p] - cz
            square[p] = dx * dx + dy * dy + dz * dz
        count = 0
        for p in range(n_points):
            found[count] = p
            count += square[p] < cutoff * cutoff
        ends[:] = 0
        for k in range(count):
            radius[k] = np.sqrt(square[found[k]])
        for k in range(count):
            r = radius[k]
            s = bins[int(r * bins_per_length)]
            while r >= upper[s]:
                s += 1
            interval[k] = s
            # In float64: rounded before, r would miss its place by some 1e-6.
            local[k] = (r - edges[s]) * scales[s] - 1
            ends[s + 1] += 1
        for s in range(n_intervals):
            ends[s + 1] += ends[s]
        for k in range(count):
            p, s = found[k], interval[k]
            place = ends[s]
            ends[s] = place + 1
            order[place] = p
            pairs[0, place] = points[0, p] - cx
            pairs[1, place] = points[1, p] - cy
            pairs[2, place] = points[2, p] - cz
            pairs[3, place] = local[k]
        end = 0
        for s in range(n_intervals):
            start, end = end, ends[s]
            for begin in range(start, end, WIDTH):
                m = min(end - begin, WIDTH)
                width = (m + ROUND - 1) // ROUND * ROUND
                # Rows of their own: what is known to be contiguous is vectorised.
                x, y = pairs[0, begin : begin + width], pairs[1, begin : begin + width]
                z, t = pairs[2, begin : begin + width], pairs[3, begin : begin + width]
                directions(x, y, z, width, _f4(core_radius), unit)
                harmonics_of(unit, width, l_max, sectoral, recursion, turn, harmonics)
                for spin in range(n_spin):
                    _values(tables[spin, row, s], harmonics, t, width, values)
                    for q in range(m):
                        density[spin, slot, order[begin + q]] += values[q]
                    if integrals.shape[1] == 0:
                        continue
                    total, along_x, along_y, along_z = _f4(0), _f4(0), _f4(0), _f4(0)
                    xx, yy, zz = _f4(0), _f4(0), _f4(0)
                    xy, xz, yz = _f4(0), _f4(0), _f4(0)
                    for q in range(m):
                        vx, vy, vz = values[q] * x[q], values[q] * y[q], values[q] * z[q]
                        total += values[q]
                        along_x += vx
                        along_y += vy
                        along_z += vz
                        xx += vx * x[q]
                        yy += vy * y[q]
                        zz += vz * z[q]
                        xy += vx * y[q]
                        xz += vx * z[q]
                        yz += vy * z[q]
                    sums = integrals[spin, row]
                    sums[0] += total
                    sums[1] += along_x
                    sums[2] += along_y
                    sums[3] += along_z
                    sums[4] += xx
                    sums[5] += yy
                    sums[6] += zz
                    sums[7] += xy
                    sums[8] += xz
                    sums[9] += yz


@compiled
def _values(table: Any, harmonics: Any, place: Any, width: int, values: Any) -> None:
    """Σ_lm Y_lm · (polynomial of lm)."""
    for q in range(width):
        values[q] = _f4(0)
    for lm in range(len(table)):
        c0, c1, c2 = table[lm, 0], table[lm, 1], table[lm, 2]
        c3, c4, c5 = table[lm, 3], table[lm, 4], table[lm, 5]
        for q in range(width):
            t = place[q]
            radial = c0 + t * (c1 + t * (c2 + t * (c3 + t * (c4 + t * c5))))
            values[q] += harmonics[lm, q] * radial
