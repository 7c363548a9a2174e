"""Pairs of atoms and points in the linear decoder, as loops compiled by numba.

ρ_i(r) = S(r) Σ_lm Y_lm(r/√(r² + a²)) Σ_b B_b(r) A_i[lm, b] is linear in A; of the splines B only
four differ from zero. Harmonics and splines of some dozens of pairs are computed together and stay
in the innermost cache; of a pair nothing is written but its density. :func:`spread_pairs` is the
transpose of :func:`sum_pairs`, the gradient of one is the other. :func:`add_contributions` is the
sum without gradients, for points that lie on grids or anywhere.

All loops that call each other are in this file: numba keeps machine code until the file of the
outer function changes, whatever happens to the inner ones.

Importing this module raises ImportError where numba is not installed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eac_model.compiled import compiled

WIDTH = 64
"""Pairs taken together: all about them fits into the innermost cache."""

WIDTH_AT_POINTS = 128
"""The same for :func:`add_contributions`."""

ROUND = 16
"""Widths are rounded up to this, a register of AVX-512: no pair is left to scalar code."""

_f4 = np.float32


@compiled
def sum_pairs(
    tables: NDArray[np.float32],
    atoms: NDArray[np.int64],
    vectors: NDArray[np.float32],
    mask: NDArray[np.bool_],
    shape: Any,
    values: NDArray[np.float32],
) -> None:
    """Contributions of all pairs.

    Parameters
    ----------
    tables
        (n, splines, c): the coefficients A of atoms by spline, from ((l_max+1)²) harmonics padded
        with zeros to a multiple of :data:`ROUND`.
    atoms, vectors, mask
        (m,), (m, k, 3), (m, k) of :class:`eac_model.graph.PointPairs`.
    shape
        l_max; a, Å; of the splines knot radius, steps per unit of x, number of intervals, cutoff
        and power of the envelope (:class:`eac_model.network.radial.SplineBasis`,
        ``polynomial_cutoff``); both of :func:`eac_model.network.harmonics.recursion_tables`.
    values
        (m, k), e/Å³, is written where the mask is true.
    """
    width = tables.shape[2]
    pairs, places, basis = _scratch(shape[0], mask.shape[1], width)
    harmonics, first, weights = basis[:3]
    for row in range(len(mask)):
        count = _compress(vectors[row], mask[row], pairs, places)
        table = tables[atoms[row]]
        for begin in range(0, count, WIDTH):
            m = min(count - begin, WIDTH)
            _write_basis(pairs, begin, m, shape, basis)
            for q in range(m):
                b = first[q]
                w0, w1, w2, w3 = weights[0, q], weights[1, q], weights[2, q], weights[3, q]
                total = _f4(0)
                for c in range(width):
                    radial = w0 * table[b, c] + w1 * table[b + 1, c]
                    radial += w2 * table[b + 2, c] + w3 * table[b + 3, c]
                    total += harmonics[q, c] * radial
                values[row, places[begin + q]] = total


@compiled
def spread_pairs(
    values: NDArray[np.float32],
    atoms: NDArray[np.int64],
    vectors: NDArray[np.float32],
    mask: NDArray[np.bool_],
    shape: Any,
    tables: NDArray[np.float32],
) -> None:
    """The transpose of :func:`sum_pairs`, with its parameters: is added to ``tables``."""
    width = tables.shape[2]
    pairs, places, basis = _scratch(shape[0], mask.shape[1], width)
    harmonics, first, weights = basis[:3]
    for row in range(len(mask)):
        count = _compress(vectors[row], mask[row], pairs, places)
        table = tables[atoms[row]]
        for begin in range(0, count, WIDTH):
            m = min(count - begin, WIDTH)
            _write_basis(pairs, begin, m, shape, basis)
            for q in range(m):
                value = values[row, places[begin + q]]
                # A loop of its own for every spline: rows of one array might overlap for all that
                # the compiler knows.
                for spline in range(4):
                    weight, b = value * weights[spline, q], first[q] + spline
                    for c in range(width):
                        table[b, c] += weight * harmonics[q, c]


@compiled
def add_contributions(
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
    """Add the contributions of atoms to the density at points: all of inference's work.

    Around every atom the points in reach are found, ordered by interval of the radial functions,
    and taken together some dozens at a time: harmonics, polynomials and their product stay in
    registers and the innermost cache, and of a pair nothing reaches memory but its place.

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
        (l_max+1,) and (l_max+1, l_max+1, 2), of
        :func:`eac_model.network.harmonics.recursion_tables`.
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
    unit = np.empty((4, WIDTH_AT_POINTS), np.float32)
    turn = np.empty((2, WIDTH_AT_POINTS), np.float32)
    harmonics = np.empty((components, WIDTH_AT_POINTS), np.float32)
    values = np.empty(WIDTH_AT_POINTS, np.float32)
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
            for begin in range(start, end, WIDTH_AT_POINTS):
                m = min(end - begin, WIDTH_AT_POINTS)
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
def _compress(vectors: Any, mask: Any, pairs: Any, places: Any) -> int:
    """Vectors of a row's pairs, without padding, to ``pairs`` (3, …); how many there are."""
    count = 0
    for k in range(len(mask)):
        pairs[0, count], pairs[1, count], pairs[2, count] = vectors[k]
        places[count] = k
        count += mask[k]
    return count


@compiled
def _scratch(l_max: int, most: int, width: int) -> Any:
    """Memory for a row's pairs (vectors, places), and for the basis of :data:`WIDTH` of them.

    The basis: harmonics (pair, component), first and weights of four splines, and what they are
    made in.
    """
    pairs, places = np.zeros((3, most + ROUND), _f4), np.empty(most + 1, np.int64)
    harmonics = np.zeros((WIDTH, width), _f4)
    first, weights = np.empty(WIDTH, np.int32), np.empty((4, WIDTH), _f4)
    by_component = np.empty(((l_max + 1) ** 2, WIDTH), _f4)
    unit, turn = np.empty((4, WIDTH), _f4), np.empty((2, WIDTH), _f4)
    return pairs, places, (harmonics, first, weights, by_component, unit, turn)


@compiled
def _write_basis(pairs: Any, begin: int, m: int, shape: Any, basis: Any) -> None:
    """Harmonics and splines of m pairs, into ``basis`` of :func:`_scratch`."""
    l_max, core_radius, splines, sectoral, recursion = shape
    harmonics, first, weights, by_component, unit, turn = basis
    width = (m + ROUND - 1) // ROUND * ROUND
    x, y, z = (
        pairs[0, begin : begin + width],
        pairs[1, begin : begin + width],
        pairs[2, begin : begin + width],
    )
    directions(x, y, z, width, _f4(core_radius), unit)
    harmonics_of(unit, width, l_max, sectoral, recursion, turn, by_component)
    for c in range(len(by_component)):
        for q in range(m):
            harmonics[q, c] = by_component[c, q]
    knot_radius, scale, intervals, cutoff, power = splines
    p = int(power)
    a, b, d = _f4((p + 1) * (p + 2) / 2), _f4(p * (p + 2)), _f4(p * (p + 1) / 2)
    half, closest = _f4(0.5) * scale, _f4(1) / (knot_radius * knot_radius)
    square, place, reach, falling = turn[0], turn[1], unit[0], unit[1]
    for q in range(width):
        square[q] = x[q] * x[q] + y[q] * y[q] + z[q] * z[q]
        reach[q] = min(np.sqrt(square[q]) / cutoff, _f4(1))
        falling[q] = _f4(1 / 6)
    # Loops of their own: a logarithm, or a loop inside, keeps a loop from becoming vectors. log1p
    # takes twice the time and gains nothing: rounding of 1 + x moves splines by 1e-6 of a knot.
    for q in range(width):
        place[q] = np.log(_f4(1) + square[q] * closest)
    for _ in range(p):
        for q in range(width):
            falling[q] *= reach[q]
    for q in range(width):
        x_of_r = half * place[q]
        interval = min(np.floor(x_of_r), intervals - _f4(1))
        envelope = _f4(1 / 6) - falling[q] * (a - reach[q] * (b - reach[q] * d))
        t = x_of_r - interval
        u = _f4(1) - t
        first[q] = np.int32(interval)
        weights[0, q] = envelope * u * u * u
        weights[1, q] = envelope * (_f4(4) + t * t * (_f4(3) * t - _f4(6)))
        weights[2, q] = envelope * (_f4(4) + u * u * (_f4(3) * u - _f4(6)))
        weights[3, q] = envelope * t * t * t


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


@compiled
def directions(x: Any, y: Any, z: Any, width: int, core_radius: Any, unit: Any) -> None:
    """x, y, z and the square of r/√(r² + a²)."""
    for q in range(width):
        square = x[q] * x[q] + y[q] * y[q] + z[q] * z[q]
        inverse = _f4(1) / np.sqrt(square + core_radius * core_radius + _f4(1e-24))
        unit[0, q] = x[q] * inverse
        unit[1, q] = y[q] * inverse
        unit[2, q] = z[q] * inverse
        unit[3, q] = square * inverse * inverse


@compiled
def harmonics_of(
    unit: Any, width: int, l_max: int, sectoral: Any, recursion: Any, turn: Any, result: Any
) -> None:
    """Solid harmonics, as :func:`eac_model.network.harmonics.solid_harmonics` computes them."""
    for q in range(width):
        turn[0, q] = _f4(1)
        turn[1, q] = _f4(0)
    for m in range(l_max + 1):
        if m > 0:
            for q in range(width):
                cosine, sine = turn[0, q], turn[1, q]
                turn[0, q] = cosine * unit[2, q] - sine * unit[0, q]
                turn[1, q] = cosine * unit[0, q] + sine * unit[2, q]
        first = sectoral[m]
        for l in range(m, l_max + 1):
            row = l * l + l + m
            a, b = recursion[l, m, 0], recursion[l, m, 1]
            before, two_before = row - 2 * l, row - 4 * l + 2
            if l == m:
                for q in range(width):
                    result[row, q] = first
            elif l == m + 1:
                for q in range(width):
                    result[row, q] = a * unit[1, q] * first
            else:
                for q in range(width):
                    result[row, q] = (
                        a * unit[1, q] * result[before, q] - b * unit[3, q] * result[two_before, q]
                    )
        if m > 0:
            for l in range(m, l_max + 1):
                row = l * l + l
                for q in range(width):
                    polynomial = result[row + m, q]
                    result[row + m, q] = polynomial * turn[0, q]
                    result[row - m, q] = polynomial * turn[1, q]
