"""On-site head: occupancies or PAW matrices of every atom from its descriptors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

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

SMALLEST_SPREAD = 1e-6
"""Blocks that vary less over the training data, by symmetry say, are constants."""

PRODUCT_CHANNELS = 8
"""Channels of the descriptors that are multiplied with each other."""


class OnsiteHead(nn.Module):
    """On-site data of an atom: one linear readout for each element.

    A block (pair of channels, L) is shift + spread × (linear in the descriptors of that L). Blocks
    of unnatural parity, or with L beyond that of the descriptors, are linear in products of two
    descriptors, which reach both. Shift, the mean over the atoms of an element (L = 0), takes the
    part of the free atom; spread is the root mean square of what is left, a component. Both are
    data, fitted once (:meth:`fit`).
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        if config.onsite is None:
            raise ValueError("This configuration has no on-site layout (config.onsite).")
        self.layout = config.onsite
        self.symbols = [chemical_symbols[z] for z in config.elements]
        self.numbers = config.elements
        self.n_spin = 2 if config.spin else 1
        self.width = self.layout.width
        natural = {ir for _, ir in natural_irreps(1, config.l_max)}
        wanted = {block.irrep for s in self.symbols for block in self.layout.blocks(s)}
        self.products = Products(config, wanted - natural) if wanted - natural else None
        self.read = nn.ParameterDict()
        for symbol in self.symbols:
            blocks = self.layout.blocks(symbol)
            for ir in dict.fromkeys(block.irrep for block in blocks):
                sources = config.channels
                if ir not in natural:
                    assert self.products is not None
                    sources = self.products.multiplicity[ir]
                count = sum(block.irrep == ir for block in blocks)
                self.read[f"{symbol}_{ir}"] = nn.Parameter(
                    sources**-0.5 * torch.randn(sources, count)
                )
                first = [block.columns.start for block in blocks if block.irrep == ir]
                columns = torch.arange(ir.dim).unsqueeze(1) + torch.tensor(first)
                self.register_buffer(f"columns_{symbol}_{ir}", columns, persistent=False)
            dim = self.layout.irreps(symbol).dim
            self.register_buffer(f"shift_{symbol}", torch.zeros(dim))
            self.register_buffer(f"spread_{symbol}", torch.ones(dim))

    def forward(self, descriptors: Tensor, numbers: Tensor) -> Tensor:
        """On-site data in the code's order.

        Parameters
        ----------
        descriptors
            (n, (l_max+1)², channels).
        numbers
            (n,) atomic numbers.

        Returns
        -------
        Tensor
            (n, width); rows of elements with fewer numbers end in zeros.
        """
        features = {
            o3.Irrep(l, (-1) ** l): descriptors[:, l * l : (l + 1) ** 2]
            for l in range(round(descriptors.shape[1] ** 0.5))
        }
        if self.products is not None:
            features |= self.products(descriptors)
        result = descriptors.new_zeros(len(descriptors), self.width)
        for number, symbol in zip(self.numbers, self.symbols, strict=True):
            atoms = (numbers == number).nonzero().squeeze(-1)
            if len(atoms) == 0:
                continue
            shift = self.get_buffer(f"shift_{symbol}")
            values = descriptors.new_zeros(len(atoms), len(shift))
            for ir, found in features.items():
                if f"{symbol}_{ir}" in self.read:
                    columns = self.get_buffer(f"columns_{symbol}_{ir}")
                    values[:, columns] = found[atoms] @ self.read[f"{symbol}_{ir}"]
            irreps = shift + self.get_buffer(f"spread_{symbol}") * values
            numbers_of_code = irreps @ self._basis(symbol, irreps).T
            result[atoms, : numbers_of_code.shape[1]] = numbers_of_code
        return result

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
            atoms = (numbers == number).nonzero().squeeze(-1)
            basis = self._basis(symbol, deviation)
            spread = self.get_buffer(f"spread_{symbol}")
            irreps = deviation[atoms, : len(basis)] @ basis
            for index, block in enumerate(blocks, start=start):
                unit = spread[block.columns.start]
                if unit > 0:
                    mean_square = (irreps[:, block.columns] / unit).square().mean(dim=1)
                    # The root has no gradient at zero.
                    errors[atoms, index] = (mean_square + 1e-12).sqrt()
            start += len(blocks)
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
    def fit(self, samples: Iterable[DensitySample]) -> None:
        """Set shift and spread of every block from data.

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
            if not total:
                raise ConfigurationError(
                    f"network.onsite: the training data have no on-site data of {symbol}."
                )
            values = np.array(total)
            shift, spread = np.zeros(values.shape[1]), np.zeros(values.shape[1])
            for block in self.layout.blocks(symbol):
                if block.irrep == o3.Irrep("0e"):
                    shift[block.columns] = values[:, block.columns].mean()
                spread[block.columns] = _rms(values[:, block.columns] - shift[block.columns])
                if spin and self.n_spin == 2:
                    other = _rms(np.array(spin)[:, block.columns])
                    spread[block.columns] = np.maximum(spread[block.columns], other)
            self.get_buffer(f"shift_{symbol}").copy_(torch.as_tensor(shift))
            spread[spread < SMALLEST_SPREAD] = 0.0
            self.get_buffer(f"spread_{symbol}").copy_(torch.as_tensor(spread))


def _rms(values: NDArray[np.float64]) -> float:
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
