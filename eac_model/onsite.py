"""On-site PAW data: which numbers an atom has, and how they turn under rotations.

A PAW code keeps, beside the density on the grid, matrices D over the projectors of every atom.
Projector channel i has angular momentum l_i and the components m = −l_i … l_i; the block of two
channels i, j is a product l_i ⊗ l_j and decomposes into L = |l_i − l_j| … l_i + l_j.

``VASP`` writes for every pair i ≤ j only L = |l_i − l_j|, |l_i − l_j| + 2, …, those that a density
can have, 2L + 1 numbers each; ``GPAW`` holds the whole symmetric matrix. The real harmonics of both
codes at (x, y, z) are e3nn's at (y, z, x).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal, Self

import numpy as np
import torch
from ase.data import atomic_numbers
from e3nn import o3
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from eac_model.data.sample import PawDataset
from eac_model.errors import ConfigurationError

Code = Literal["VASP", "GPAW"]
Channels = tuple[Annotated[int, Field(ge=0, le=4)], ...]

_LETTERS = "spdfg"


@dataclass(frozen=True, eq=False)
class OnsiteBlock:
    """2L + 1 numbers that turn into each other under rotations."""

    name: str
    """Pair of channels and angular momentum, for instance ``s1p2 L=1``."""
    channels: tuple[int, int]
    """The pair, by number."""
    irrep: o3.Irrep
    """L and parity."""
    columns: slice
    """Where the block stands in the irreps of its element."""


class OnsiteLayout(BaseModel):
    """What on-site data a model predicts, by element."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    code: Code
    """Whose numbers they are. ``VASP``: augmentation occupancies in the order of CHGCAR;
    ``GPAW``: full matrices D, row by row."""
    channels: Annotated[dict[str, Channels], Field(min_length=1)]
    """Element symbol → l of every projector channel, in the order of the PAW data set:
    ``{H: [0, 0, 1], O: [0, 0, 1, 1]}``."""
    l_max: Annotated[int, Field(ge=0)] | None = None
    """``VASP``: highest L of numbers that are not zero (LMAXMIX of the calculations); None: all."""
    datasets: dict[str, str] = Field(default_factory=dict)
    """Element symbol → name of the PAW data set. Occupancies are numbers of one data set and mean
    nothing in another, even with the same channels."""

    @model_validator(mode="after")
    def _elements_exist(self) -> Self:
        for symbol in [*self.channels, *self.datasets]:
            if symbol not in self.channels or atomic_numbers.get(symbol, 0) < 1:
                raise ValueError(f"{symbol!r} is no element with channels")
        return self

    @classmethod
    def of_gpaw(cls, datasets: Mapping[str, PawDataset]) -> Self:
        """The layout of GPAW's matrices with these PAW data sets, by element symbol."""
        by_symbol = sorted(datasets.items())
        return cls(
            code="GPAW",
            channels={symbol: dataset.channels for symbol, dataset in by_symbol},
            datasets={s: f"{dataset.name} {dataset.fingerprint}" for s, dataset in by_symbol},
        )

    def covers(self, symbols: Iterable[str]) -> bool:
        """Whether the layout has channels of all these elements."""
        return set(symbols) <= self.channels.keys()

    def channels_of(self, symbol: str) -> Channels:
        """l of every projector channel of an element.

        Raises
        ------
        ConfigurationError
            The layout has none of it.
        """
        if symbol not in self.channels:
            raise ConfigurationError(
                f"There is no on-site layout of {symbol}, only of {', '.join(self.channels)} "
                "(network.onsite.channels)."
            )
        return self.channels[symbol]

    def size(self, symbol: str) -> int:
        """How many numbers an atom of this element has."""
        return self.basis(symbol).shape[0]

    def shape(self, symbol: str) -> tuple[int, ...]:
        """Shape of an atom's array: flat for VASP, a square matrix for GPAW."""
        size = self.size(symbol)
        return (size,) if self.code == "VASP" else (math.isqrt(size), math.isqrt(size))

    @property
    def width(self) -> int:
        """The largest size of any element; rows of arrays over atoms are padded to it."""
        return max(self.size(symbol) for symbol in self.channels)

    def check_size(self, symbol: str, size: int) -> None:
        """Refuse on-site data of another layout.

        Raises
        ------
        ConfigurationError
            An atom of this element has another number of them.
        """
        if size != self.size(symbol):
            raise ConfigurationError(
                f"An atom of {symbol} has {size} on-site numbers; the channels "
                f"{list(self.channels[symbol])} of {self.code} have {self.size(symbol)}. Take the "
                "channels of the PAW data sets that the data were computed with."
            )

    def irreps(self, symbol: str) -> o3.Irreps:
        """How these numbers turn: one irrep for each of :meth:`blocks`, in their order."""
        return o3.Irreps([(1, block.irrep) for block in self.blocks(symbol)])

    def blocks(self, symbol: str) -> tuple[OnsiteBlock, ...]:
        """The blocks of an element in the order of :meth:`irreps`."""
        return _blocks(self.code, self.channels_of(symbol), self.l_max)

    def basis(self, symbol: str) -> NDArray[np.float64]:
        """Matrix U from irreps (e3nn's components in the frame x, y, z) to the code's numbers.

        Returns
        -------
        ndarray
            Shape (size, dim of irreps), orthonormal columns: numbers = U @ irreps, and
            irreps = Uᵀ @ numbers.
        """
        return _basis(self.code, self.channels_of(symbol), self.l_max)


@lru_cache(maxsize=256)
def _blocks(code: Code, channels: Channels, l_max: int | None) -> tuple[OnsiteBlock, ...]:
    found = []
    start = 0
    for i, j, l_total in _products(code, channels, l_max):
        found.append(
            OnsiteBlock(
                name=f"{_name(channels, i)}{_name(channels, j)} L={l_total}",
                channels=(i, j),
                irrep=o3.Irrep(l_total, (-1) ** (channels[i] + channels[j])),
                columns=slice(start, start + 2 * l_total + 1),
            )
        )
        start += 2 * l_total + 1
    return tuple(found)


@lru_cache(maxsize=256)
def _basis(code: Code, channels: Channels, l_max: int | None) -> NDArray[np.float64]:
    columns = sum(2 * product[2] + 1 for product in _products(code, channels, l_max))
    if code == "VASP":
        return _basis_of_vasp(channels, l_max, columns)
    first = np.cumsum([0, *(2 * l + 1 for l in channels)])
    matrix = np.zeros((first[-1], first[-1], columns))
    start = 0
    for i, j, l_total in _products(code, channels, l_max):
        # Columns of √(2L+1)·3j are orthonormal.
        coupled = math.sqrt(2 * l_total + 1) * np.einsum(
            "ia,jb,abc->ijc",
            axes_of_codes(channels[i]),
            axes_of_codes(channels[j]),
            o3.wigner_3j(channels[i], channels[j], l_total, dtype=torch.float64).numpy(),
        )
        rows, cols = slice(first[i], first[i + 1]), slice(first[j], first[j + 1])
        part = slice(start, start + 2 * l_total + 1)
        if i == j:
            matrix[rows, cols, part] = coupled
        else:
            matrix[rows, cols, part] = coupled / math.sqrt(2)
            matrix[cols, rows, part] = coupled.transpose(1, 0, 2) / math.sqrt(2)
        start = part.stop
    return matrix.reshape(-1, columns)


def _products(code: Code, channels: Channels, l_max: int | None) -> Iterator[tuple[int, int, int]]:
    """Pairs of channels i ≤ j and their angular momenta L."""
    for i, l_i in enumerate(channels):
        for j, l_j in enumerate(channels[i:], start=i):
            # The antisymmetric part of a channel with itself has odd L; a symmetric D has none.
            step = 2 if code == "VASP" or i == j else 1
            for l_total in range(abs(l_i - l_j), l_i + l_j + 1, step):
                if l_max is None or l_total <= l_max:
                    yield i, j, l_total


def _basis_of_vasp(channels: Channels, l_max: int | None, columns: int) -> NDArray[np.float64]:
    everything = [product[2] for product in _products("VASP", channels, None)]
    matrix = np.zeros((sum(2 * l_total + 1 for l_total in everything), columns))
    row = column = 0
    for l_total in everything:
        width = 2 * l_total + 1
        if l_max is None or l_total <= l_max:
            matrix[row : row + width, column : column + width] = axes_of_codes(l_total)
            column += width
        row += width
    return matrix


@lru_cache(maxsize=16)
def axes_of_codes(l: int) -> NDArray[np.float64]:
    """Orthogonal matrix W of Y_code = W Y_e3nn for real harmonics of angular momentum l.

    The codes' harmonics at (x, y, z) are e3nn's at (y, z, x), a rotation of the axes.
    """
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(8 * l + 8, 3, dtype=torch.float64, generator=generator)
    ours = o3.spherical_harmonics(l, points, normalize=True)
    theirs = o3.spherical_harmonics(l, points[:, [1, 2, 0]], normalize=True)
    # Solved for, since e3nn's Wigner matrices are exact to single precision only.
    return np.asarray(torch.linalg.lstsq(ours, theirs).solution.T)


def _name(channels: Channels, index: int) -> str:
    """Channel as chemists count: the second channel of l = 1 is ``p2``."""
    return f"{_LETTERS[channels[index]]}{channels[: index + 1].count(channels[index])}"
