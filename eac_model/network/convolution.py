"""Convolution of atomic features with harmonics and radial weights over neighbours.

What :class:`e3nn.o3.TensorProduct` and a sum over neighbours define, in two other forms. With
C^p the 3j symbols of path p = (l₁, l₂, l₃), normalised as e3nn does, and receivers i of edges ij,

    A_i[p, m₃, c] = Σ_j w_ij[p, c] Σ_m₁ G_ij[p, m₃, m₁] x_j[l₁ m₁, c],
    G_ij[p, m₃, m₁] = Σ_m₂ C^p[m₁, m₂, m₃] Y_ij[l₂ m₂].

The matrices G come from one matrix product. The rest is done by a compiled loop that keeps nothing
of an edge (:mod:`eac_model.network.convolution_loops`), in float32 on CPUs with numba, or by
batched products of torch, which any derivative passes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from e3nn import o3
from numpy.typing import NDArray
from torch import Tensor

from eac_model.compiled import arrays, compiled_module

EDGES_PER_THREAD = 256
"""Fewer edges than this are not worth the start of threads."""


@functools.cache
def compiled_convolution() -> ModuleType | None:
    """The compiled loops; None without numba, or if EAC_COMPILED=0 forbids them."""
    return compiled_module("eac_model.network.convolution_loops")


@dataclass(frozen=True)
class ProductPaths:
    """Paths of a channel-wise tensor product, in the order of its weights.

    Features have l = 0 … ``l_in``, harmonics and results l = 0 … ``l_max``, all one irrep each.
    """

    l_in: int
    l_max: int
    triples: tuple[tuple[int, int, int], ...]
    """l₁, l₂, l₃ of each path; l₁ ascends."""
    scales: tuple[float, ...]
    """Factor of each path's 3j symbols."""

    @staticmethod
    def of(product: o3.TensorProduct) -> ProductPaths:
        """Those of e3nn's product."""
        triples, scales = [], []
        for path in product.instructions:
            l1, l2 = product.irreps_in1[path.i_in1].ir.l, product.irreps_in2[path.i_in2].ir.l
            triples.append((l1, l2, product.irreps_out[path.i_out].ir.l))
            scales.append(float(path.path_weight))
        return ProductPaths(
            product.irreps_in1.lmax, product.irreps_in2.lmax, tuple(triples), tuple(scales)
        )

    @functools.cached_property
    def counts(self) -> list[int]:
        """Number of paths to each l₃."""
        return [sum(l3 == l for _, _, l3 in self.triples) for l in range(self.l_max + 1)]

    @functools.cached_property
    def rows(self) -> list[int]:
        """Rows (m₃, path) of the result for each l₃."""
        return [(2 * l + 1) * count for l, count in enumerate(self.counts)]

    @functools.cached_property
    def table(self) -> NDArray[np.int64]:
        """Where each path finds its numbers, (paths, 6).

        First component and number of m₁, number of m₃, first number of G, first row of the
        result and the step to that of the next m₃.
        """
        table, begin, seen = [], 0, [0] * (self.l_max + 1)
        for l1, _, l3 in self.triples:
            n1, n3 = 2 * l1 + 1, 2 * l3 + 1
            first = sum(self.rows[:l3]) + seen[l3]
            table.append((l1 * l1, n1, n3, begin, first, self.counts[l3]))
            seen[l3] += 1
            begin += n1 * n3
        return np.array(table, dtype=np.int64)


@functools.cache
def couplings(paths: ProductPaths, dtype: torch.dtype, device: torch.device) -> Tensor:
    """C^p times its scale, ((l_max+1)², Σ_p (2l₃+1)(2l₁+1)): Y times it are the matrices G."""
    blocks = []
    # What is kept must serve training too, whoever asks first.
    with torch.inference_mode(False):
        for (l1, l2, l3), scale in zip(paths.triples, paths.scales, strict=True):
            symbols = o3.wigner_3j(l1, l2, l3, dtype=torch.float64).permute(1, 2, 0) * scale
            block = torch.zeros((paths.l_max + 1) ** 2, symbols[0].numel(), dtype=torch.float64)
            block[l2 * l2 : (l2 + 1) ** 2] = symbols.flatten(1)
            blocks.append(block)
        return torch.cat(blocks, dim=1).to(device, dtype)


@functools.cache
def _row_order(paths: ProductPaths, device: torch.device) -> tuple[Tensor, Tensor]:
    """Path of every row in the order (path, m₃), and where rows (l₃, m₃, path) are among them."""
    path_of_row, place = [], []
    for path, (_, _, n3, _, first, step) in enumerate(paths.table.tolist()):
        path_of_row += [path] * n3
        place += [first + m * step for m in range(n3)]
    with torch.inference_mode(False):
        order = torch.tensor(np.argsort(place), device=device)
        return torch.tensor(path_of_row, device=device), order


def convolve(
    paths: ProductPaths,
    features: Tensor,
    weights: Tensor,
    harmonics: Tensor,
    senders: Tensor,
    receivers: Tensor,
    weight_rows: Tensor | None = None,
) -> Tensor:
    """Sums over neighbours A_i of products of features, harmonics and weights.

    Parameters
    ----------
    features
        (n, (l_in+1)², channels).
    weights
        (u, paths, channels).
    harmonics
        (e, (l_max+1)²) of the edges.
    senders, receivers
        (e,) int64 of the edges, in any order.
    weight_rows
        (e,) int64, the row of ``weights`` of each edge; None: u = e, each has its own.

    Returns
    -------
    Tensor
        (n, Σ_l₃ (2l₃+1) · number of paths to l₃, channels); of one l₃, paths run fastest.
    """
    matrices = harmonics @ couplings(paths, harmonics.dtype, harmonics.device)
    loops = compiled_convolution()
    if (
        loops is None
        or features.device.type != "cpu"
        # float64 is there for references.
        or {features.dtype, weights.dtype, matrices.dtype} != {torch.float32}
        or matrices.requires_grad
        or max(paths.l_in, paths.l_max) > loops.L_MAX
    ):
        return convolve_dense(paths, features, weights, matrices, senders, receivers, weight_rows)
    if weight_rows is None:
        weight_rows = torch.arange(len(senders))
    channels = features.shape[2]
    missing = -channels % loops.LANES
    if missing:
        features = torch.nn.functional.pad(features, (0, missing))
        weights = torch.nn.functional.pad(weights, (0, missing))
    gathered: Tensor = _CompiledConvolution.apply(
        paths, features, weights, matrices, senders, receivers, weight_rows
    )
    return gathered[..., :channels] if missing else gathered


def convolve_dense(
    paths: ProductPaths,
    features: Tensor,
    weights: Tensor,
    matrices: Tensor,
    senders: Tensor,
    receivers: Tensor,
    weight_rows: Tensor | None = None,
) -> Tensor:
    """:func:`convolve` by batched products of torch; ``matrices`` (e, …) are the G of the edges."""
    path_of_row, order = _row_order(paths, features.device)
    # Splitting, unlike slicing, costs the gradient no array of zeros for every part.
    sizes = [0] * (paths.l_in + 1)
    for l1, _, l3 in paths.triples:
        sizes[l1] += (2 * l1 + 1) * (2 * l3 + 1)
    parts = features.split([2 * l + 1 for l in range(paths.l_in + 1)], dim=1)
    products = [
        of_l.unflatten(1, (-1, 2 * l + 1)) @ part.index_select(0, senders)
        for l, (of_l, part) in enumerate(zip(matrices.split(sizes, dim=1), parts, strict=True))
    ]
    if weight_rows is not None:
        weights = weights.index_select(0, weight_rows)
    messages = torch.cat(products, dim=1) * weights.index_select(1, path_of_row)
    gathered = messages.new_zeros(features.shape[0], *messages.shape[1:])
    return gathered.index_add(0, receivers, messages).index_select(1, order)


class _CompiledConvolution(torch.autograd.Function):
    """The compiled loops; gradients with respect to features and weights only."""

    @staticmethod
    def forward(
        ctx: Any,
        paths: ProductPaths,
        features: Tensor,
        weights: Tensor,
        matrices: Tensor,
        senders: Tensor,
        receivers: Tensor,
        weight_rows: Tensor,
    ) -> Tensor:
        ctx.paths = paths
        ctx.save_for_backward(features, weights, matrices, senders, receivers, weight_rows)
        loops = compiled_convolution()
        assert loops is not None
        gathered = features.new_zeros(features.shape[0], sum(paths.rows), features.shape[2])
        known = arrays(features, weights, matrices, senders, receivers, weight_rows)
        (result,) = arrays(gathered)

        def gather(channel: int) -> None:
            lanes = _scratch(features, loops.LANES, features.shape[1], sum(paths.rows))
            loops.gather(*known, paths.table, channel, *lanes, result)

        _in_threads(gather, range(0, features.shape[2], loops.LANES), len(senders))
        return gathered

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        paths, (gradient,) = ctx.paths, gradients
        features, weights, matrices, senders, receivers, weight_rows = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody wants second derivatives
            gathered = convolve_dense(
                paths, features, weights, matrices, senders, receivers, weight_rows
            )
            inputs = [t for t in (features, weights) if t.requires_grad]
            found = iter(torch.autograd.grad(gathered, inputs, gradient, create_graph=True))
            pair = [next(found) if t.requires_grad else None for t in (features, weights)]
            return None, *pair, None, None, None, None
        loops = compiled_convolution()
        assert loops is not None
        of_features, of_weights = torch.zeros_like(features), torch.zeros_like(weights)
        known = arrays(features, weights, matrices, senders, receivers, weight_rows)
        above, *results = arrays(gradient, of_features, of_weights)
        components = features.shape[1]

        def spread(channel: int) -> None:
            lanes = _scratch(features, loops.LANES, components, sum(paths.rows), components)
            loops.spread(*known, paths.table, channel, *lanes, above, *results)

        _in_threads(spread, range(0, features.shape[2], loops.LANES), len(senders))
        return None, of_features, of_weights, None, None, None, None


def _scratch(like: Tensor, lanes: int, *rows: int) -> list[NDArray[Any]]:
    # torch aligns memory to cache lines, which vectors of 16 numbers should not cross.
    return arrays(*[like.new_empty(count, lanes, requires_grad=False) for count in rows])


def _in_threads(work: Callable[[int], None], channels: range, edges: int) -> None:
    """Blocks of channels share nothing that is written, whoever works on them."""
    threads = min(torch.get_num_threads(), len(channels))
    if threads == 1 or edges < EDGES_PER_THREAD:
        for channel in channels:
            work(channel)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, channels))
