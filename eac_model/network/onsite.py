"""On-site head: occupancies or PAW matrices of every atom from its descriptors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from ase.data import chemical_symbols
from e3nn import o3
from numpy.typing import NDArray
from torch import Tensor, nn

from eac_model.data.sample import DensitySample
from eac_model.errors import ConfigurationError
from eac_model.network.config import NetworkConfig
from eac_model.network.interaction import by_irrep, natural_irreps
from eac_model.network.spherical_averages import RADII

SMALLEST_SPREAD = 1e-6
"""Blocks that vary less over the training data, by symmetry say, are constants."""

SPREAD_OF_SIZE = 1e-3
"""Spread of blocks that vary less than by this part of the largest size they could have: relative
to noise of symmetric crystals the error of another structure has no bounds."""

PENALTIES = np.logspace(-10, 1, 23)
"""Ridge penalties to choose from; the variances of the features of a group sum up to one."""

ONLY_PENALTY = 1e-4
"""The one that is taken where a single structure leaves no choice."""

NEGLIGIBLE = 1e-2
"""Components of the features with variances below this part of the least penalty are left out."""

ROUNDING = 1e-5
"""Groups of features that vary by less than this part of their size are left out: in symmetric
crystals those of some L vanish but for rounding, and made large it is all a readout learns from."""

SMALL_VARIATION = 1e-2
"""Groups of features that vary by less than this part of their size are not made as large as
others: what an element does in one or two structures says little about the next."""

FOLDS = 8
"""Parts of the data that are left out in turn to choose the penalties."""

DIRECTIONS = 12
"""Directions in the space of channels whose scalar products blocks of L = 0 are linear in."""

PRODUCT_CHANNELS = 8
"""Channels of the descriptors that are multiplied with each other for other irreps."""


SCALAR = o3.Irrep(0, 1)


class OnsiteHead(nn.Module):
    """On-site data of an atom: one linear readout for each element.

    A block (pair of channels, L) is shift + spread × (linear in the descriptors of that L; for
    L = 0 in their scalar products, too: the squared length of every channel, and all products of
    the :data:`DIRECTIONS` principal components of the channels, as in a power spectrum; and in the
    averages of the density over spheres about the atom, where the decoder is linear). Blocks of
    unnatural parity, or with L beyond that of the descriptors, are linear in products of two
    descriptors, which reach both. Spread is the root mean square of a component about its mean
    (L = 0) or about zero, which takes the part of the free atom, but not less than
    :data:`SPREAD_OF_SIZE` of √(d_ii d_jj), d_ii the number of L = 0 of a channel with itself
    (:meth:`fit`).

    The readouts are no trained parameters: they are the ridge regression of the data on the
    descriptors there are (:meth:`regress`). Descriptors of L = 0 hardly differ from atom to atom,
    so that gradients take thousands of steps to where least squares are at once.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        if config.onsite is None:
            raise ValueError("This configuration has no on-site layout (config.onsite).")
        self.layout = config.onsite
        self.numbers = tuple(z for z in config.elements if self._covers(z))
        self.symbols = [chemical_symbols[z] for z in self.numbers]
        self.n_spin = 2 if config.spin else 1
        self.width = self.layout.width
        natural = {ir for _, ir in natural_irreps(1, config.l_max)}
        wanted = {block.irrep for s in self.symbols for block in self.layout.blocks(s)}
        self.products = Products(config, wanted - natural) if wanted - natural else None
        self.n_averages = len(RADII) if "linear" in config.decoder else 0
        self.read = nn.ParameterDict()
        # Of no gradient, like the readouts, which mean nothing without them.
        self.directions = nn.ParameterDict()
        n_directions = min(DIRECTIONS, config.channels)
        for symbol in self.symbols:
            blocks = self.layout.blocks(symbol)
            for ir in dict.fromkeys(block.irrep for block in blocks):
                sources = config.channels
                if ir == SCALAR:
                    pairs = n_directions * (n_directions + 1) // 2
                    sources += config.l_max * (config.channels + pairs) + self.n_averages
                    start = torch.eye(config.channels)[:, :n_directions]
                    self.directions[symbol] = nn.Parameter(
                        start.repeat(config.l_max, 1, 1), requires_grad=False
                    )
                if ir not in natural:
                    assert self.products is not None
                    sources = self.products.multiplicity[ir]
                count = sum(block.irrep == ir for block in blocks)
                self.read[f"{symbol}_{ir}"] = nn.Parameter(
                    sources**-0.5 * torch.randn(sources, count), requires_grad=False
                )
                first = [block.columns.start for block in blocks if block.irrep == ir]
                columns = torch.arange(ir.dim).unsqueeze(1) + torch.tensor(first)
                self.register_buffer(f"columns_{symbol}_{ir}", columns, persistent=False)
            dim = self.layout.irreps(symbol).dim
            self.register_buffer(f"shift_{symbol}", torch.zeros(dim))
            self.register_buffer(f"spread_{symbol}", torch.ones(dim))

    def _covers(self, number: int) -> bool:
        return self.layout.covers([chemical_symbols[number]])

    def forward(self, descriptors: Tensor, averages: Tensor, numbers: Tensor) -> Tensor:
        """On-site data in the code's order.

        Parameters
        ----------
        descriptors
            (n, (l_max+1)², channels).
        averages
            (n, :attr:`n_averages`) of the density over spheres about the atoms, e/Å³, see
            :meth:`~eac_model.network.density_network.DensityNetwork.spherical_averages`.
        numbers
            (n,) atomic numbers.

        Returns
        -------
        Tensor
            (n, width); rows of elements with fewer numbers, or none, end in zeros.
        """
        result = descriptors.new_zeros(len(descriptors), self.width)
        for number, symbol in zip(self.numbers, self.symbols, strict=True):
            atoms = (numbers == number).nonzero().squeeze(-1)
            if len(atoms) == 0:
                continue
            shift = self.get_buffer(f"shift_{symbol}")
            values = descriptors.new_zeros(len(atoms), len(shift))
            found_features = self.features(symbol, descriptors[atoms], averages[atoms])
            for ir, found in found_features.items():
                columns = self.get_buffer(f"columns_{symbol}_{ir}")
                values[:, columns] = found @ self.read[f"{symbol}_{ir}"]
            irreps = shift + self.get_buffer(f"spread_{symbol}") * values
            numbers_of_code = irreps @ self._basis(symbol, irreps).T
            result[atoms, : numbers_of_code.shape[1]] = numbers_of_code
        return result

    def features(
        self, symbol: str, descriptors: Tensor, averages: Tensor
    ) -> dict[o3.Irrep, Tensor]:
        """What the blocks of an element are linear in, by irrep, (n, 2L+1, sources).

        Parameters
        ----------
        symbol
            The element.
        descriptors
            (n, (l_max+1)², channels) of atoms of this element.
        averages
            (n, :attr:`n_averages`).
        """
        parts = _by_l(descriptors)
        found = {o3.Irrep(l, (-1) ** l): part for l, part in enumerate(parts)}
        if symbol in self.directions:
            lengths = [part.square().mean(dim=1, keepdim=True) for part in parts[1:]]
            pairs = zip(parts[1:], self.directions[symbol], strict=True)
            products = [_scalar_products(part @ directions) for part, directions in pairs]
            found[SCALAR] = torch.cat([parts[0], *lengths, *products, averages.unsqueeze(1)], dim=2)
        if self.products is not None:
            found |= self.products(descriptors)
        return {ir: part for ir, part in found.items() if f"{symbol}_{ir}" in self.read}

    def _groups(self, key: str) -> NDArray[np.int64]:
        """Which features of :meth:`features` share one scale.

        Those of one angular momentum; averages over spheres each have their own.
        """
        symbol, ir = key.split("_")
        if o3.Irrep(ir) != SCALAR:
            return np.zeros(len(self.read[key]), dtype=np.int64)
        l_max, channels, n = self.directions[symbol].shape
        l = np.arange(1, l_max + 1)
        sizes = ([channels], np.full(l_max, channels), np.full(l_max, n * (n + 1) // 2))
        of_descriptors = np.repeat(np.concatenate([[0], l, l]), np.concatenate(sizes))
        of_averages = l_max + 1 + np.arange(self.n_averages)
        return np.concatenate([of_descriptors, of_averages])

    def _sizes(self, key: str, size: float) -> NDArray[np.float64]:
        """Of the groups of features where no symmetry makes them vanish.

        Parameters
        ----------
        size
            Norm of the descriptors of L = 0, which never do: others are about as large.
        """
        symbol, name = key.split("_")
        ir = o3.Irrep(name)
        if ir != SCALAR:
            is_product = self.products is not None and ir in self.products.multiplicity
            return np.array([size**2 if is_product else size])
        l_max = len(self.directions[symbol])
        # Averages are of the size that they have.
        return np.concatenate([[size], np.full(l_max, size**2), np.zeros(self.n_averages)])

    def block_errors(self, deviation: Tensor, numbers: Tensor) -> Tensor:
        """Root mean square of deviations over each block's components, in units of its spread.

        Parameters
        ----------
        deviation
            (n, width) in the code's order.
        numbers
            (n,) atomic numbers.

        Returns
        -------
        Tensor
            (n, :attr:`n_blocks`); NaN for the blocks of other elements than an atom's own, and for
            constant ones.
        """
        errors = deviation.new_full((len(deviation), self.n_blocks), torch.nan)
        start = 0
        for number, symbol in zip(self.numbers, self.symbols, strict=True):
            blocks = self.layout.blocks(symbol)
            stop = start + len(blocks)
            atoms = (numbers == number).nonzero().squeeze(-1)
            if len(atoms) > 0:
                irreps = deviation[atoms, : self.layout.size(symbol)]
                irreps = irreps @ self._basis(symbol, deviation)
                spread = self.get_buffer(f"spread_{symbol}")
                varies = spread > 0
                squares = (irreps / torch.where(varies, spread, 1.0)).square()
                dims = torch.tensor([block.irrep.dim for block in blocks], device=squares.device)
                block = torch.arange(len(blocks), device=squares.device).repeat_interleave(dims)
                sums = squares.new_zeros(len(atoms), len(blocks)).index_add(1, block, squares)
                # The root has no gradient at zero.
                found = (sums / dims + 1e-12).sqrt()
                firsts = varies[dims.cumsum(0) - dims]
                errors[atoms, start:stop] = torch.where(firsts, found, torch.nan)
            start = stop
        return errors

    def _basis(self, symbol: str, like: Tensor) -> Tensor:
        # No buffer: it would be rounded to the type the network is made in.
        return torch.as_tensor(self.layout.basis(symbol), dtype=like.dtype, device=like.device)

    @property
    def n_blocks(self) -> int:
        """Blocks of all elements together."""
        return len(self.block_names())

    def block_names(self) -> list[str]:
        """Names of the columns of :meth:`block_errors`: element, pair of channels, L."""
        return [f"{s} {block.name}" for s in self.symbols for block in self.layout.blocks(s)]

    def fitted(self) -> Iterator[tuple[str, Tensor]]:
        """Shift and spread by name: what a model file holds beside the parameters."""
        for symbol in self.symbols:
            for name in (f"shift_{symbol}", f"spread_{symbol}"):
                yield name, self.get_buffer(name)

    @torch.no_grad()
    def fit(self, samples: Iterable[DensitySample], *, all_elements: bool = True) -> None:
        """Set shift and spread of every block from data.

        Without ``all_elements`` those that have no data keep what they have.

        For spin models they belong to ρ↑ (or ρ↓) alone, and the spread is that of half the sum or
        of half the difference of the spins, whichever is larger.

        Raises
        ------
        ConfigurationError
            An element has no on-site data, or another number of them than the layout.
        """
        found: dict[str, list[list[NDArray[np.float64]]]] = {s: [[], []] for s in self.symbols}
        for sample in samples:
            for rows, onsite in zip((0, 1), (sample.onsite, sample.onsite_spin), strict=True):
                for symbol, values in zip(sample.atoms.symbols, onsite or (), strict=False):
                    basis = self.layout.basis(symbol)
                    self.layout.check_size(symbol, np.size(values))
                    found[symbol][rows].append(np.ravel(values) @ basis / self.n_spin)
        for symbol, (total, spin) in found.items():
            if not total and not all_elements:
                continue
            if not total:
                raise ConfigurationError(
                    f"network.onsite: the training data have no on-site data of {symbol}. Leave "
                    "the element out, or learn the density alone: network: {onsite: null}."
                )
            values = np.array(total)
            shift, spread = np.zeros(values.shape[1]), np.zeros(values.shape[1])
            sizes = {
                block.channels[0]: _rms(values[:, block.columns])
                for block in self.layout.blocks(symbol)
                if block.irrep == SCALAR and block.channels[0] == block.channels[1]
            }
            for block in self.layout.blocks(symbol):
                if block.irrep == SCALAR:
                    shift[block.columns] = values[:, block.columns].mean()
                spread[block.columns] = _rms(values[:, block.columns] - shift[block.columns])
                if spin and self.n_spin == 2:
                    other = _rms(np.array(spin)[:, block.columns])
                    spread[block.columns] = np.maximum(spread[block.columns], other)
                if spread[block.columns.start] < SMALLEST_SPREAD:
                    spread[block.columns] = 0.0
                else:
                    # |d_ij|² ≤ d_ii d_jj for matrices of any wave functions (Schwarz).
                    i, j = block.channels
                    smallest = SPREAD_OF_SIZE * (sizes[i] * sizes[j]) ** 0.5
                    spread[block.columns] = np.maximum(spread[block.columns], smallest)
            self.get_buffer(f"shift_{symbol}").copy_(torch.as_tensor(shift))
            self.get_buffer(f"spread_{symbol}").copy_(torch.as_tensor(spread))

    @torch.no_grad()
    def regress(self, examples: Iterable[tuple[Tensor, Tensor, Tensor, Tensor]]) -> None:
        """Set the readouts, and the shift of L = 0, by ridge regression on the data.

        Parameters
        ----------
        examples
            Of every structure: descriptors (n, (l_max+1)², channels), averages of the density
            (n, :attr:`n_averages`), atomic numbers (n,), and on-site data (n, width) as
            :meth:`forward` returns them; rows of NaN where there are none. With spins, atoms of
            spin up and then the same of spin down.
        """
        known = [
            (index, symbol, descriptors[atoms], averages[atoms], onsite[atoms])
            for index, (descriptors, averages, numbers, onsite) in enumerate(examples)
            for number, symbol in zip(self.numbers, self.symbols, strict=True)
            for atoms in [((numbers == number) & ~onsite[:, 0].isnan()).nonzero().squeeze(-1)]
            if len(atoms) > 0
        ]
        for symbol, directions in self.directions.items():
            of_element = [descriptors for _, s, descriptors, *_ in known if s == symbol]
            if of_element:
                directions.copy_(_principal_directions(of_element, directions.shape[2]))
        parts: dict[str, list[_Sums]] = {}
        squares: dict[str, list[Tensor]] = {}
        for index, symbol, descriptors, averages, onsite in known:
            squares.setdefault(symbol, []).append(_by_l(descriptors)[0].square().sum(dim=(1, 2)))
            basis = self._basis(symbol, onsite)
            irreps = onsite[:, : len(basis)] @ basis
            for ir, found in self.features(symbol, descriptors, averages).items():
                key = f"{symbol}_{ir}"
                targets = irreps[:, self.get_buffer(f"columns_{key}")].flatten(0, 1)
                rows = found.flatten(0, 1)
                new = _Sums.of(rows.double().cpu().numpy(), targets.double().cpu().numpy())
                sums = parts.setdefault(key, [])
                if len(sums) < FOLDS:
                    sums.append(new)
                else:
                    sums[index % FOLDS] += new
        for key, sums in parts.items():
            symbol, ir = key.split("_")
            columns = self.get_buffer(f"columns_{key}")
            size = float(torch.cat(squares[symbol]).mean()) ** 0.5
            solution = _ridge(sums, self._groups(key), self._sizes(key, size), constant=ir == "0e")
            coefficients, constants = solution[:-1], solution[-1]
            spread = self.get_buffer(f"spread_{symbol}")[columns[0]].double().cpu().numpy()
            unit = np.where(spread > 0, spread, np.inf)
            self.read[key].copy_(torch.as_tensor(coefficients / unit))
            if ir == "0e":
                # Constant blocks, whose readout counts nothing, keep their mean.
                shift = self.get_buffer(f"shift_{symbol}")
                varies = torch.as_tensor(spread > 0, device=shift.device)
                mean = torch.as_tensor(constants, dtype=shift.dtype, device=shift.device)
                shift[columns[0]] = torch.where(varies, mean, shift[columns[0]])


@dataclass
class _Sums:
    """What a ridge regression of several targets needs of its data."""

    gram: NDArray[np.float64]
    """(f + 1, f + 1) of the features and of 1."""
    moments: NDArray[np.float64]
    """(f + 1, targets) of features and targets."""
    squares: NDArray[np.float64]
    """(targets,) Σ target²."""

    @classmethod
    def of(cls, features: NDArray[np.float64], targets: NDArray[np.float64]) -> _Sums:
        """Rows of features (rows, f) and targets (rows, targets)."""
        columns = np.column_stack([features, np.ones(len(features))])
        return cls(columns.T @ columns, columns.T @ targets, (targets**2).sum(axis=0))

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(
            self.gram + other.gram, self.moments + other.moments, self.squares + other.squares
        )

    def __sub__(self, other: _Sums) -> _Sums:
        return _Sums(
            self.gram - other.gram, self.moments - other.moments, self.squares - other.squares
        )

    def components(
        self, groups: NDArray[np.int64], sizes: NDArray[np.float64], *, constant: bool
    ) -> NDArray[np.float64]:
        """Principal components of the features, all groups made equally large.

        Those that vary by less than :data:`SMALL_VARIATION` of their size, which is the given one
        at least, stay smaller; by less than :data:`ROUNDING`, they are left out.

        Returns
        -------
        ndarray
            (f + 1, components + 1), the last one for the constant.
        """
        n = self.gram[-1, -1]
        mean = self.gram[-1, :-1] / n * constant
        covariance = self.gram[:-1, :-1] / n - np.outer(mean, mean)
        variances = np.bincount(groups, np.maximum(np.diag(covariance), 0.0))
        squares = np.maximum(np.bincount(groups, np.diag(self.gram)[:-1] / n), sizes**2)
        varies = variances > np.maximum(ROUNDING**2 * squares, 1e-20)
        variances = np.maximum(variances, SMALL_VARIATION**2 * squares)
        scale = np.sqrt(np.where(varies, variances, np.inf))[groups]
        values, vectors = np.linalg.eigh(covariance / np.outer(scale, scale))
        kept = vectors[:, values > NEGLIGIBLE * PENALTIES[0]] / scale[:, None]
        found = np.zeros((len(kept) + 1, kept.shape[1] + 1))
        found[:-1, :-1], found[-1, -1] = kept, 1.0
        return found

    def transformed(self, features: NDArray[np.float64]) -> _Sums:
        """The sums for linear combinations of the features, (f + 1, new)."""
        return _Sums(features.T @ self.gram @ features, features.T @ self.moments, self.squares)

    def solutions(self, *, constant: bool) -> NDArray[np.float64]:
        """Coefficients and constants for each of :data:`PENALTIES`, (penalties, f + 1, targets)."""
        n = self.gram[-1, -1]
        mean, mean_target = self.gram[-1, :-1] / n * constant, self.moments[-1] / n * constant
        gram = self.gram[:-1, :-1] - n * np.outer(mean, mean)
        moments = self.moments[:-1] - n * np.outer(mean, mean_target)
        values, vectors = np.linalg.eigh(gram)
        projected = vectors.T @ moments
        damped = np.maximum(values, 0.0) + n * PENALTIES[:, None]
        found = vectors @ (projected / damped[:, :, None])
        return np.concatenate([found, (mean_target - mean @ found)[:, None]], axis=1)

    def errors(self, solutions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Σ squares of the deviations, (penalties, targets)."""
        cross = (solutions * self.moments).sum(axis=1)
        return self.squares - 2 * cross + (solutions * (self.gram @ solutions)).sum(axis=1)


def _ridge(
    parts: list[_Sums],
    groups: NDArray[np.int64],
    sizes: NDArray[np.float64],
    *,
    constant: bool,
) -> NDArray[np.float64]:
    """Coefficients and constants, (f + 1, targets), of the data in all parts.

    Of the penalties, each target takes the one of least error on parts left out. The atoms of a
    structure resemble each other: what is left out has to be structures, not atoms. Features keep
    their relative sizes within a group: the network has made large what matters to the density.
    """
    components = sum(parts[1:], start=parts[0]).components(groups, sizes, constant=constant)
    parts = [part.transformed(components) for part in parts]
    total = sum(parts[1:], start=parts[0])
    found = total.solutions(constant=constant)
    left_out = [
        part.errors((total - part).solutions(constant=constant)) for part in parts if len(parts) > 1
    ]
    if not left_out:
        return components @ found[np.searchsorted(PENALTIES, ONLY_PENALTY)]
    best = np.sum(left_out, axis=0).argmin(axis=0)
    chosen: NDArray[np.float64] = np.take_along_axis(found, best[None, None], axis=0)[0]
    return components @ chosen


def _by_l(descriptors: Tensor) -> list[Tensor]:
    """Parts of each angular momentum, (n, 2l+1, channels)."""
    l_max = round(descriptors.shape[1] ** 0.5) - 1
    return [descriptors[:, l * l : (l + 1) ** 2] for l in range(l_max + 1)]


def _scalar_products(vectors: Tensor) -> Tensor:
    """Σ_m a_m b_m / (2l+1) of all pairs of channels, (n, 2l+1, k) → (n, 1, k (k+1) / 2)."""
    products = vectors.transpose(1, 2) @ vectors / vectors.shape[1]
    i, j = torch.triu_indices(vectors.shape[2], vectors.shape[2], device=vectors.device)
    # With √2 the sum of all squares does not depend on the choice of axes in channel space.
    return (products[:, i, j] * torch.where(i == j, 1.0, 2**0.5).to(products)).unsqueeze(1)


def _principal_directions(descriptors: list[Tensor], count: int) -> Tensor:
    """Directions of the largest descriptors of each l ≥ 1, (l_max, channels, count)."""
    found = []
    for parts in zip(*(_by_l(d)[1:] for d in descriptors), strict=True):
        moments = sum(part.double().flatten(0, 1).T @ part.double().flatten(0, 1) for part in parts)
        assert isinstance(moments, Tensor)
        found.append(torch.linalg.eigh(moments).eigenvectors.flip(1)[:, :count])
    return torch.stack(found)


def _rms(values: NDArray[np.floating]) -> float:
    return float(np.sqrt(np.mean(values**2)))


class Products(nn.Module):
    """Products of two descriptors, of the irreps that descriptors themselves do not have."""

    def __init__(self, config: NetworkConfig, wanted: set[o3.Irrep]) -> None:
        super().__init__()
        factor = natural_irreps(PRODUCT_CHANNELS, config.l_max)
        found = [
            (i, j, ir)
            for i, (_, left) in enumerate(factor)
            for j, (_, right) in enumerate(factor[i:], start=i)
            for ir in left * right
            if ir in wanted
        ]
        if missing := wanted - {ir for *_, ir in found}:
            raise ConfigurationError(
                f"network.onsite: blocks {', '.join(map(str, sorted(missing)))} cannot be made "
                f"from descriptors up to l_max = {config.l_max}. Raise network.l_max."
            )
        self.irreps_out = o3.Irreps([(PRODUCT_CHANNELS, ir) for *_, ir in found])
        self.multiplicity = {ir: self.irreps_out.count(ir) for ir in wanted}
        descriptors = natural_irreps(config.channels, config.l_max)
        # Two different factors: the antisymmetric products of one with itself vanish.
        self.left, self.right = o3.Linear(descriptors, factor), o3.Linear(descriptors, factor)
        self.product = o3.TensorProduct(
            factor,
            factor,
            self.irreps_out,
            [(i, j, k, "uuu", False) for k, (i, j, _) in enumerate(found)],
        )

    def forward(self, descriptors: Tensor) -> dict[o3.Irrep, Tensor]:
        """Irrep → (n, 2L+1, multiplicity) from descriptors (n, (l_max+1)², channels)."""
        flat = by_irrep(descriptors)
        values = self.product(self.left(flat), self.right(flat))
        parts: dict[o3.Irrep, list[Tensor]] = {}
        for part, (channels, ir) in zip(self.irreps_out.slices(), self.irreps_out, strict=True):
            block = values[:, part].reshape(-1, channels, ir.dim).transpose(1, 2)
            parts.setdefault(ir, []).append(block)
        return {ir: torch.cat(blocks, dim=2) for ir, blocks in parts.items()}
