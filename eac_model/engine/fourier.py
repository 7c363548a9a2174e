"""Densities of linear decoders on plane-wave grids, from closed-form Fourier coefficients.

With f_lb(G) = 4π ∫ r² j_l(Gr) (r/√(r² + a²))^l B_b(r) S(r) dr the density of a crystal of volume Ω
has the coefficients

    ρ(G) = 1/Ω Σ_i e^{−iG·R_i} Σ_lm (−i)^l Y_lm(Ĝ) Σ_b A_i[lm, b] f_lb(|G|).

On an interval of |G| the f_lb are polynomials, so that the inner sums are one matrix product:
(Y_lm times polynomials at the plane waves) · (coefficients of the atoms). Phases are products of
one of the line of plane waves and one of the place in it. One inverse FFT gives the values.

Evaluation at points samples the density; this keeps the plane waves the grid can hold and drops
the others, instead of folding them back. The cost is that of atoms times plane waves: small cells
win, large ones lose (``docs/performance.md``).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import spherical_jn
from torch import Tensor

from eac_model.engine.inference import EncodedAtoms, Progress
from eac_model.engine.kernels import fingerprint
from eac_model.engine.linear import linear_coefficients, radial_basis_of
from eac_model.engine.shells import sort_by
from eac_model.errors import ConfigurationError, GridError
from eac_model.lattice import checked_shape
from eac_model.network import DensityNetwork, EACNet
from eac_model.network.harmonics import solid_harmonics
from eac_model.network.radial import SplineBasis

TERMS = 8
"""Chebyshev polynomials of |G| on an interval."""

TOLERANCE = {torch.float32: 1e-8, torch.float64: 1e-13}
"""Bound on the error of f_lb(G), in units of 4π ∫ r² |B_b S| dr, which bounds f_lb itself."""

NODES = 16
"""Gauss–Legendre nodes of a panel of r."""

PANEL_PHASE = 10.0
"""Largest G times width of a panel: the rule is exact to 1e-15 well beyond."""

ATOMS_AT_ONCE = 256
"""Atoms whose phases are held at once."""

WAVES_AT_ONCE = 2**17
"""Plane waves that are put into the order of |G| at once, about."""

WIDTH = 1024
"""Rows of a matrix product."""


@dataclass(frozen=True)
class RadialTransforms:
    """f_lb as polynomials on equal intervals of |G|, from 0 on."""

    width: float
    """Of an interval, Å⁻¹."""
    coefficients: Tensor
    """(l_max+1, basis, intervals, TERMS) float64 | of Chebyshev polynomials."""

    @property
    def count(self) -> int:
        """Number of intervals."""
        return self.coefficients.shape[2]

    def at(self, wave_numbers: NDArray[np.float64]) -> Tensor:
        """f_lb interpolated, (q,) Å⁻¹ → (l_max+1, basis, q)."""
        found = torch.from_numpy(wave_numbers)
        chosen = self.coefficients[:, :, self.interval(found)]
        return torch.einsum("lbqt,tq->lbq", chosen, self.polynomials(found))

    def interval(self, wave_numbers: Tensor) -> Tensor:
        """In which interval each wave number lies, (q,) int64."""
        return (wave_numbers / self.width).long().clamp_(max=self.count - 1)

    def polynomials(self, wave_numbers: Tensor) -> Tensor:
        """Chebyshev polynomials of their places in it, (TERMS, q)."""
        x = 2 * (wave_numbers / self.width - self.interval(wave_numbers)) - 1
        result = x.new_empty(TERMS, len(x))
        result[0], result[1] = 1, x
        for order in range(2, TERMS):
            result[order] = 2 * x * result[order - 1] - result[order - 2]
        return result


_known: WeakKeyDictionary[EACNet, tuple[tuple[int, float], RadialTransforms]] = WeakKeyDictionary()


def radial_transforms(network: EACNet, largest: float) -> RadialTransforms:
    """f_lb of a network up to a wave number (Å⁻¹); kept, and extended where more is asked for.

    Interpolation at TERMS Chebyshev nodes of an interval of width h misses f_lb by no more than
    2 (Rh/4)^TERMS / TERMS! times its largest derivative of that order in units of R = cutoff,
    which is no more than 4π ∫ r² |B_b S| dr / (TERMS + 1): j_l is the Fourier transform of a
    Legendre polynomial. h follows from :data:`TOLERANCE`.
    """
    tolerance = TOLERANCE[network.dtype]
    reach = network.config.point_cutoff
    bound = tolerance * math.factorial(TERMS) * (TERMS + 1) / 2
    width = 4 * bound ** (1 / TERMS) / reach
    count = int(largest / width) + 1
    state = (fingerprint(network), tolerance)
    before = _known.get(network)
    found = None if before is None or before[0] != state else before[1]
    first = 0 if found is None else found.count
    if first < count:
        roots = np.cos(np.pi * (np.arange(TERMS) + 0.5) / TERMS)
        nodes = width * (np.arange(first, count)[:, None] + (roots + 1) / 2)
        values = transform(network, nodes.ravel()).unflatten(2, (-1, TERMS))
        order = np.arange(TERMS)
        inverse = np.cos(np.pi * order[:, None] * (order + 0.5) / TERMS) * (2 / TERMS)
        inverse[0] /= 2
        new = values @ torch.from_numpy(inverse.T.copy())
        found = RadialTransforms(
            width, new if found is None else torch.cat([found.coefficients, new], dim=2)
        )
        _known[network] = (state, found)
    assert found is not None
    return found


def transform(network: EACNet, wave_numbers: NDArray[np.float64]) -> Tensor:
    """f_lb(G) = 4π ∫ r² j_l(Gr) (r/√(r² + a²))^l B_b(r) S(r) dr, by quadrature.

    Parameters
    ----------
    wave_numbers
        (q,) G, Å⁻¹.

    Returns
    -------
    Tensor
        (l_max+1, basis, q) float64; l_max is 0 without a linear decoder.
    """
    basis = copy.deepcopy(radial_basis_of(network)).double().cpu()
    l_max = 0 if network.linear is None else network.config.l_max
    core = network.config.linear_basis.core_radius
    edges = _panels(basis.cutoff, core, basis.basis, float(wave_numbers.max()))
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    half = np.diff(edges)[:, None] / 2
    r = (edges[:-1, None] + half * (nodes + 1)).ravel()
    with torch.no_grad():
        functions = basis(torch.from_numpy(r))
    functions *= torch.from_numpy(4 * np.pi * (half * weights).ravel() * r**2).unsqueeze(1)
    regular = torch.from_numpy(r / np.sqrt(r**2 + core**2)).unsqueeze(1)
    result = torch.empty(l_max + 1, functions.shape[1], len(wave_numbers), dtype=torch.float64)
    step = max(1, 2**20 // len(r))
    for begin in range(0, len(wave_numbers), step):
        some = slice(begin, begin + step)
        bessel = spherical_bessel(l_max, wave_numbers[some, None] * r)
        for l in range(l_max + 1):
            result[l, :, some] = (torch.from_numpy(bessel[l]) @ (functions * regular**l)).T
    return result


def spherical_bessel(l_max: int, x: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """j_0 … j_l_max; upwards from j_0 and j_1 where that is stable."""
    safe = np.maximum(x, 0.5)
    sine = np.sin(safe)
    found = [sine / safe]
    if l_max > 0:
        found.append((found[0] - np.cos(safe)) / safe)
    for l in range(2, l_max + 1):
        found.append((2 * l - 1) / safe * found[-1] - found[-2])
    for l in range(l_max + 1):
        # Upwards, errors grow below x = l.
        small = x < max(l, 0.5) + 0.5
        found[l][small] = spherical_jn(l, x[small])
    return found


def _panels(
    cutoff: float, core: float, basis: torch.nn.Module, largest: float
) -> NDArray[np.float64]:
    """Ends of the panels of r: the knots of splines, and as many between as G asks for."""
    knots = basis.intervals + 1 if isinstance(basis, SplineBasis) else 49
    edges = core * np.sqrt(np.expm1(np.linspace(0, np.log1p((cutoff / core) ** 2), knots)))
    edges[-1] = cutoff
    parts = np.ceil(np.diff(edges) * max(largest, 1.0) / PANEL_PHASE).astype(int)
    pieces = [
        np.linspace(a, b, n, endpoint=False)
        for a, b, n in zip(edges[:-1], edges[1:], parts, strict=True)
    ]
    return np.append(np.concatenate(pieces), cutoff)


def evaluate_band_limited(
    network: DensityNetwork,
    encoded: EncodedAtoms,
    shape: tuple[int, int, int],
    *,
    origin: NDArray | None = None,
    progress: Progress | None = None,
) -> NDArray[np.floating]:
    """Density of a crystal on a grid of its cell, with the plane waves that the grid can hold.

    Parameters
    ----------
    shape
        Points (n1, n2, n3) along the three cell vectors, no end point repeated.
    origin
        (3,) position of the first point, Å; 0 if None.
    progress
        Called with numbers of points that add up to all.

    Returns
    -------
    ndarray
        Shape (n_spin, n1, n2, n3), e/Å³. Its sum is the exact integral of the model's density.
        It may turn slightly negative where the density is small, as any band-limited density.

    Raises
    ------
    ConfigurationError
        The density is not linear in the descriptors.
    GridError
        The structure is not periodic in three directions, or the shape is none.

    Notes
    -----
    Frequencies −n/2 and n/2 of an even number of points n are the same on the grid, and the
    coefficients are added: that is the grid's function next to the density in the mean square,
    and what :meth:`eac_ase.DensityGrid.resample` makes of a finer grid. All work is done on the
    CPU, in the network's type.
    """
    linear = _linear(network)
    if not encoded.atoms.pbc.all():
        raise GridError(
            "A band-limited density repeats in three directions, and this structure does not. "
            "Put it into a cell with vacuum around it and set atoms.pbc = True, or evaluate the "
            "density at the points of the grid (without band_limited)."
        )
    shape = checked_shape(shape)
    waves = _Waves.of(np.asarray(encoded.atoms.cell), shape)
    table = radial_transforms(linear, waves.largest())
    fractions = np.linalg.solve(
        np.asarray(encoded.atoms.cell).T,
        (encoded.atoms.positions - (0.0 if origin is None else np.asarray(origin))).T,
    ).T
    elements = linear.element_index[encoded.numbers]
    coefficients = torch.stack(
        [linear_coefficients(linear, spin, elements).cpu() for spin in encoded.descriptors]
    )
    n_spin, n_atoms = coefficients.shape[:2]
    found = torch.zeros(n_spin, len(waves.lines), waves.along, dtype=_complex(linear.dtype))
    blocks = list(waves.blocks())
    steps = -(-n_atoms // ATOMS_AT_ONCE) * len(blocks)
    done = 0
    for start in range(0, n_atoms, ATOMS_AT_ONCE):
        atoms = slice(start, start + ATOMS_AT_ONCE)
        matrices = _Matrices.of(coefficients[:, atoms], table)
        for lines in blocks:
            _add_lines(found[:, lines], waves, lines, fractions[atoms], matrices, table)
            done += 1
            if progress is not None:
                size = math.prod(shape)
                progress(size * done // steps - size * (done - 1) // steps)
    # Wave 0 is the number of electrons: in all digits.
    average = coefficients[:, :, 0].double().sum(1) @ transform(linear, np.zeros(1))[0, :, 0]
    found[:, 0, 0] = average.to(found.dtype)
    values = waves.to_grid(found)
    values /= encoded.atoms.cell.volume
    return np.repeat(values, network.n_spin // n_spin, axis=0)


def _linear(network: DensityNetwork) -> EACNet:
    if isinstance(network, EACNet) and network.value_weight is None:
        return network
    what = (
        f"the decoder {network.config.decoder!r}"
        if isinstance(network, EACNet)
        else f"the architecture {network.config.architecture!r}"
    )
    raise ConfigurationError(
        "Fourier coefficients have a closed form for models with the linear decoder; this one has "
        f"{what}. Evaluate a finer grid at its points, and take the plane waves of the coarser one "
        "from it: get_density_grid(shape=…).resample(…)."
    )


@dataclass(frozen=True)
class _Waves:
    """Plane waves of a grid of a cell: lines along the third reciprocal vector, from 0 on."""

    shape: tuple[int, int, int]
    reciprocal: NDArray[np.float64]
    """(3, 3) rows b1, b2, b3 with factors 2π, Å⁻¹."""
    axes: tuple[NDArray[np.int64], NDArray[np.int64]]
    """Frequencies along the first two vectors in the order of an FFT; of even numbers of points n
    both −n/2 and n/2, the former at the end."""
    lines: NDArray[np.int64]
    """(lines, 2) places of each line among the axes' frequencies."""
    along: int
    """Plane waves in a line."""

    @classmethod
    def of(cls, cell: NDArray, shape: tuple[int, int, int]) -> _Waves:
        axes = _frequencies(shape[0]), _frequencies(shape[1])
        places = np.meshgrid(*(np.arange(len(axis)) for axis in axes), indexing="ij")
        return cls(
            shape,
            2 * np.pi * np.linalg.inv(cell).T,
            axes,
            np.stack(places, axis=-1).reshape(-1, 2),
            shape[2] // 2 + 1,
        )

    def largest(self) -> float:
        """The largest wave number, Å⁻¹."""
        corners = np.array([[h1, h2, 1] for h1 in (-1, 1) for h2 in (-1, 1)])
        halves = np.array(self.shape) // 2
        return float(np.linalg.norm((corners * halves) @ self.reciprocal, axis=1).max())

    def blocks(self) -> Iterator[slice]:
        """Lines that are treated together."""
        step = max(1, WAVES_AT_ONCE // self.along)
        for begin in range(0, len(self.lines), step):
            yield slice(begin, begin + step)

    def vectors(self, lines: slice) -> NDArray[np.float64]:
        """G of all plane waves in some lines, (3, lines · along), Å⁻¹."""
        chosen = self.lines[lines]
        starts = (
            self.axes[0][chosen[:, 0], None] * self.reciprocal[0]
            + self.axes[1][chosen[:, 1], None] * self.reciprocal[1]
        )
        steps = np.arange(self.along)[:, None] * self.reciprocal[2]
        return (starts.T[:, :, None] + steps.T[:, None, :]).reshape(3, -1)

    def phases(
        self, lines: slice, fractions: NDArray[np.float64], dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """e^{−iG·R} as products: of lines (lines, n) and of places along them (along, n)."""
        chosen = self.lines[lines]
        one, two, three = (
            _phases(frequencies, fractions[:, axis])
            for axis, frequencies in enumerate([*self.axes, np.arange(self.along)])
        )
        of_lines = one[chosen[:, 0]] * two[chosen[:, 1]]
        return torch.from_numpy(of_lines).to(dtype), torch.from_numpy(three).to(dtype)

    def to_grid(self, found: Tensor) -> NDArray[np.floating]:
        """Values on the grid of coefficients (spins, lines, along), (spins, n1, n2, n3)."""
        n1, n2, n3 = self.shape
        by_axis = found.unflatten(1, (len(self.axes[0]), len(self.axes[1])))
        if n1 % 2 == 0:
            by_axis[:, n1 // 2] += by_axis[:, n1]
        if n2 % 2 == 0:
            by_axis[:, :, n2 // 2] += by_axis[:, :, n2]
        by_axis = by_axis[:, :n1, :n2]
        if n3 % 2 == 0:
            # Of real values the coefficient of −G is the conjugate of that of G.
            last = by_axis[..., n3 // 2]
            opposite = torch.roll(last.flip(1, 2), (1, 1), (1, 2)).conj()
            by_axis[..., n3 // 2] = last + opposite
        values: NDArray[np.floating] = torch.fft.irfftn(
            by_axis, s=self.shape, dim=(1, 2, 3), norm="forward"
        ).numpy()
        return values


@dataclass(frozen=True)
class _Matrices:
    """Coefficients of some atoms on all intervals of |G|, for even and for odd l."""

    parity: tuple[Tensor, Tensor]
    """(intervals, components · TERMS, spins · n) each."""
    components: tuple[Tensor, Tensor]
    """Which components (l, m) these are."""
    signs: tuple[Tensor, Tensor]
    """(components, 1) (−1)^⌊l/2⌋ of each."""
    spins: int

    @classmethod
    def of(cls, coefficients: Tensor, table: RadialTransforms) -> _Matrices:
        """From A (spins, n, (l_max+1)², basis)."""
        spins = coefficients.shape[0]
        by_l = []
        for l, of_l in enumerate(table.coefficients.to(coefficients.dtype)):
            some = coefficients[:, :, l * l : (l + 1) ** 2]
            found = (some @ of_l.flatten(1)).unflatten(-1, (-1, TERMS))
            # (spins, n, m, intervals, TERMS) → (intervals, m, TERMS, spins, n)
            by_l.append(found.permute(3, 2, 4, 0, 1))
        parity, components, signs = [], [], []
        for odd in (0, 1):
            degrees = [l for l in range(len(by_l)) if l % 2 == odd]
            rows = [lm for l in degrees for lm in range(l * l, (l + 1) ** 2)]
            sign = [(-1.0) ** (l // 2) for l in degrees for _ in range(2 * l + 1)]
            parts = [by_l[l] for l in degrees]
            joined = torch.cat(parts, dim=1) if parts else by_l[0][:, :0]
            parity.append(joined.flatten(3).flatten(1, 2).contiguous())
            components.append(torch.tensor(rows, dtype=torch.int64))
            signs.append(torch.tensor(sign, dtype=coefficients.dtype).unsqueeze(1))
        return cls(
            (parity[0], parity[1]), (components[0], components[1]), (signs[0], signs[1]), spins
        )


def _add_lines(
    found: Tensor,
    waves: _Waves,
    lines: slice,
    fractions: NDArray[np.float64],
    matrices: _Matrices,
    table: RadialTransforms,
) -> None:
    """Add Σ_i e^{−iG·R_i} Σ_lm … of some atoms to the coefficients (spins, lines, along)."""
    dtype = matrices.parity[0].dtype
    vectors = torch.from_numpy(waves.vectors(lines))
    wave_numbers = torch.linalg.vector_norm(vectors, dim=0)
    keys = table.interval(wave_numbers).numpy()
    order = torch.from_numpy(sort_by(keys))
    ends = np.cumsum(np.bincount(keys, minlength=table.count))
    wave_numbers = wave_numbers[order]
    polynomials = table.polynomials(wave_numbers).to(dtype)
    directions = (vectors[:, order] / wave_numbers.clamp(min=1e-12)).to(dtype)
    harmonics = solid_harmonics(directions, len(table.coefficients) - 1)
    by_parity = [
        harmonics[rows] * sign
        for rows, sign in zip(matrices.components, matrices.signs, strict=True)
    ]
    of_lines, of_places = waves.phases(lines, fractions, found.dtype)
    line, place = order // waves.along, order % waves.along
    sums = found.new_empty(len(found), len(order))
    for number in np.unique(keys).tolist():
        first = int(ends[number - 1]) if number else 0
        for begin in range(first, int(ends[number]), WIDTH):
            some = slice(begin, min(begin + WIDTH, int(ends[number])))
            even, odd = (
                (rows[:, None, some] * polynomials[:, some]).flatten(0, 1).T @ matrix[number]
                for rows, matrix in zip(by_parity, matrices.parity, strict=True)
            )
            phases = of_lines.index_select(0, line[some])
            phases *= of_places.index_select(0, place[some])
            # (−i)^l of odd l: conjugating puts the minus before the i.
            sums[:, some] = torch.linalg.vecdot(
                torch.complex(even, odd).unflatten(1, (matrices.spins, -1)), phases.unsqueeze(1)
            ).T
    flat = torch.empty_like(sums)
    flat[:, order] = sums
    found += flat.view(found.shape)


def _frequencies(n: int) -> NDArray[np.int64]:
    """0, 1, …, −1 as an FFT orders them, and −n/2 behind them where n is even."""
    found = np.rint(np.fft.fftfreq(n, 1 / n)).astype(np.int64)
    if n % 2:
        return found
    found[n // 2] = n // 2
    return np.append(found, -n // 2)


def _phases(
    frequencies: NDArray[np.int64], fractions: NDArray[np.float64]
) -> NDArray[np.complex128]:
    """e^{−2πi k s}, (frequencies, n)."""
    phases: NDArray[np.complex128] = np.exp(-2j * np.pi * np.outer(frequencies, fractions))
    return phases


def _complex(dtype: torch.dtype) -> torch.dtype:
    return torch.complex64 if dtype == torch.float32 else torch.complex128
