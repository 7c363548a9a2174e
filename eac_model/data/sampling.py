"""Where to look at a density: random points by importance, with weights that undo the choice.

A strategy is a probability for every grid point. To draw from it without the grid at hand, the
grid is cut into boxes of a few points, at most 40 along an axis, and a :class:`SamplingMap` keeps
three numbers a box: the sums of |ρ| and |∇ρ|, and the distance of its centre from the nearest
nucleus. Points are drawn box by box, uniformly within a box; their probabilities follow from the
map alone, so the weights are exact however coarse the boxes are. The store keeps the map (a few
hundred kB at most) beside each grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Self

import numpy as np
from ase import Atoms
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy.spatial import cKDTree

from eac_model.data.sample import DensitySample
from eac_model.errors import ConfigurationError, GridError
from eac_model.lattice import periodic_images

MAX_CUTOFF = 10.0
"""Distances from the nuclei are known up to here, Å."""

_BOXES_PER_AXIS = 40
_MIN_HEIGHT = 0.5
_UNIFORM_SHARE = 0.01
Share = Annotated[float, Field(ge=0)]


class SamplingMixture(BaseModel):
    """Proportions of the sampling strategies; only their ratios count.

    Every strategy draws grid points within `cutoff` of an atom only. One per cent of each
    weighted strategy is uniform, so that no such point is out of reach and no weight exceeds 100.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    uniform: Share = 1.0
    """All grid points alike."""
    density: Share = 0.0
    """In proportion to \\|ρ\\|."""
    core: Share = 0.0
    """Close to the nuclei: in proportion to exp(−d²/2σ²), d the distance of the nearest one."""
    gradient: Share = 0.0
    """In proportion to \\|∇ρ\\|."""
    cutoff: Annotated[float, Field(gt=0, le=MAX_CUTOFF)] = 6.0
    """Reach of the atoms, Å; the network's point cutoff."""
    core_width: Annotated[float, Field(gt=0)] = 0.4
    """σ of the core strategy, Å."""

    @model_validator(mode="after")
    def _something_to_draw(self) -> Self:
        if self.uniform + self.density + self.core + self.gradient <= 0:
            raise ValueError("all proportions of the sampling mixture are zero")
        return self

    @property
    def is_uniform(self) -> bool:
        """Whether nothing but the uniform strategy takes part."""
        return self.density == self.core == self.gradient == 0


@dataclass(frozen=True)
class SamplingMap:
    """What sampling has to know of a grid, in boxes of a few grid points."""

    shape: tuple[int, int, int]
    """Points of the grid."""
    box: tuple[int, int, int]
    """Points of a box along each axis; the last box of an axis may have fewer."""
    reach: float
    """Largest distance of a grid point from the centre of its box, Å."""
    density: NDArray[np.float32]
    """Σ|ρ| over the points of each box, e/Å³, shape (m1, m2, m3)."""
    gradient: NDArray[np.float32]
    """Σ|∇ρ| over the points of each box, e/Å⁴, shape (m1, m2, m3)."""
    distance: NDArray[np.float32]
    """From the centre of each box to the nearest nucleus, Å, shape (m1, m2, m3); infinite beyond
    ``MAX_CUTOFF`` and `reach`."""

    @classmethod
    def from_grid(cls, atoms: Atoms, density: NDArray[np.floating]) -> SamplingMap:
        """Build the map of a full grid.

        Parameters
        ----------
        atoms
            Structure, with the cell the grid spans.
        density : shape (n1, n2, n3)
            e/Å³.

        Raises
        ------
        GridError
            If the cell has no volume, or is too thin to be real.
        """
        n1, n2, n3 = density.shape
        box = (_box_size(n1), _box_size(n2), _box_size(n3))
        cell = atoms.cell.array
        if abs(np.linalg.det(cell)) < 1e-6:
            raise GridError("A density grid needs a cell of three independent vectors.")
        height = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0).max()
        if height < _MIN_HEIGHT:  # the number of periodic images in reach would explode
            raise GridError(f"The cell is only {height:.2g} Å thick; are its lengths in Å?")
        steps = cell * (np.array(box) / density.shape)[:, None]
        corners = np.array([[1, 1, 1], [1, 1, -1], [1, -1, 1], [-1, 1, 1]]) / 2
        reach = float(np.linalg.norm(corners @ steps, axis=1).max())
        return cls(
            shape=(n1, n2, n3),
            box=box,
            reach=reach,
            density=_box_sums(np.abs(density), box),
            gradient=_box_sums(_gradient_norm(density, cell), box),
            distance=_nearest_distances(atoms, density.shape, box, MAX_CUTOFF + reach),
        )

    def points_per_box(self) -> NDArray[np.int64]:
        """Number of grid points in each box, shape (m1, m2, m3)."""
        a, b, c = (
            np.diff(np.append(np.arange(0, n, size), n))
            for n, size in zip(self.shape, self.box, strict=True)
        )
        return a[:, None, None] * b[:, None] * c

    def box_probabilities(self, mixture: SamplingMixture) -> NDArray[np.float64]:
        """Probability that a drawn point lies in each box, shape (m1, m2, m3), sum 1.

        Raises
        ------
        ConfigurationError
            No point lies within the mixture's cutoff of an atom.
        """
        points = np.where(self.distance <= mixture.cutoff + self.reach, self.points_per_box(), 0)
        if not points.any():
            raise ConfigurationError(
                f"No point of the grid lies within the sampling cutoff, {mixture.cutoff} Å, of an "
                "atom."
            )
        uniform = points / points.sum()
        with np.errstate(over="ignore"):
            core = np.exp(-0.5 * (self.distance.astype(np.float64) / mixture.core_width) ** 2)
        total = np.zeros(self.density.shape)
        for share, weight in (
            (mixture.uniform, None),
            (mixture.density, self.density),
            (mixture.core, core * points),
            (mixture.gradient, self.gradient),
        ):
            if share == 0:
                continue
            strategy = uniform
            if weight is not None:
                within = np.where(points > 0, weight, 0.0).astype(np.float64)
                if (size := within.sum()) > 0:
                    strategy = (1 - _UNIFORM_SHARE) * within / size + _UNIFORM_SHARE * uniform
            total += share * strategy
        return total / total.sum()


def draw_points(
    source: DensitySample | SamplingMap,
    count: int,
    mixture: SamplingMixture,
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Draw points of a density and their importance weights.

    Parameters
    ----------
    source
        The map of a grid; a grid sample, whose map is built on the spot (a fraction of a second
        for 140³ points: keep the map if you draw again); or a point sample, which can be drawn
        uniformly only.
    count
        Number of points.
    mixture
        Strategies and their proportions.
    rng
        Source of randomness; the same state draws the same points.

    Returns
    -------
    indices : shape (count,)
        Flat C-order indices. From grids they ascend box by box and may repeat; from point samples
        they are distinct as long as `count` allows it.
    weights : shape (count,)
        Positive; the mean of ``weights * f[indices]`` is an unbiased estimate of the mean of f
        over the whole grid (or over all points of a point sample), for every f that vanishes
        beyond the cutoff.

    Raises
    ------
    ConfigurationError
        If a point sample is to be drawn other than uniformly, or no point is in reach.

    Notes
    -----
    The draw is stratified, one point in each of `count` equal parts of the cumulative
    probability. That leaves the estimate unbiased and lowers its variance.
    """
    if count < 1:
        raise ConfigurationError(f"Cannot draw {count} points; at least one is needed.")
    if isinstance(source, DensitySample):
        if not source.is_grid:
            return _draw_scattered(len(source.density), count, mixture, rng)
        source = SamplingMap.from_grid(source.atoms, source.density)

    probabilities = source.box_probabilities(mixture).reshape(-1)
    cumulative = np.cumsum(probabilities)
    levels = (np.arange(count) + rng.random(count)) / count * cumulative[-1]
    boxes = np.searchsorted(cumulative, levels, side="right")
    # rounding may push a level past the last box with any probability
    boxes = np.minimum(boxes, np.flatnonzero(probabilities)[-1])

    axes = []
    places = np.unravel_index(boxes, source.density.shape)
    for place, n, size in zip(places, source.shape, source.box, strict=True):
        start = place * size
        length = np.minimum(size, n - start)
        axes.append(start + (rng.random(count) * length).astype(np.int64))
    indices = np.ravel_multi_index(axes, source.shape).astype(np.int64)
    points = source.points_per_box().reshape(-1)[boxes]
    weights = points / (probabilities[boxes] * np.prod(source.shape))
    return indices, weights


def _draw_scattered(
    n_points: int, count: int, mixture: SamplingMixture, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    if not mixture.is_uniform:
        raise ConfigurationError(
            "Density, core and gradient sampling need a density on a full grid; this sample has "
            "scattered points. Set their proportions to zero."
        )
    if n_points == 0:
        raise GridError("The sample has no points to draw from.")
    indices = rng.choice(n_points, size=count, replace=count > n_points)
    return indices.astype(np.int64), np.ones(count)


def _box_size(n: int) -> int:
    return -(-n // _BOXES_PER_AXIS)


def _box_sums(values: NDArray[np.floating], box: tuple[int, int, int]) -> NDArray[np.float32]:
    for axis, size in enumerate(box):
        if size > 1:
            values = np.add.reduceat(values, np.arange(0, values.shape[axis], size), axis=axis)
    return values.astype(np.float32)


def _gradient_norm(density: NDArray[np.floating], cell: NDArray[np.float64]) -> NDArray[np.float32]:
    """|∇ρ| by central differences around the periodic grid, e/Å⁴."""
    density = np.asarray(density, dtype=np.float32)
    reciprocal = np.linalg.inv(cell)
    differences = []
    for axis, n in enumerate(density.shape):
        forward = np.roll(density, -1, axis)
        forward -= np.roll(density, 1, axis)
        forward *= n / 2
        differences.append(forward)
    squared = np.zeros_like(density)
    for direction in range(3):
        component = sum(
            d * np.float32(reciprocal[direction, axis]) for axis, d in enumerate(differences)
        )
        squared += np.square(component)
    return np.sqrt(squared)


def _nearest_distances(
    atoms: Atoms, shape: tuple[int, ...], box: tuple[int, int, int], limit: float
) -> NDArray[np.float32]:
    """Distance of every box's centre from the nearest nucleus, infinite beyond `limit`."""
    axes = []
    for n, size in zip(shape, box, strict=True):
        starts = np.arange(0, n, size)
        axes.append((starts + (np.minimum(starts + size, n) - 1 - starts) / 2) / n)
    fractions = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    centres = fractions.reshape(-1, 3) @ atoms.cell.array
    if len(atoms) == 0:
        return np.full(fractions.shape[:3], np.inf, dtype=np.float32)
    tree = cKDTree(periodic_images(atoms, limit)[1])
    distances, _ = tree.query(centres, distance_upper_bound=limit)
    return distances.reshape(fractions.shape[:3]).astype(np.float32)
