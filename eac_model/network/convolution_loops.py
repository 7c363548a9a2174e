"""The convolution over neighbours as a loop over edges, compiled by numba.

16 channels at a time: features of the sender, weights, and the sums of the receiver stay in the
innermost cache and in registers; of an edge nothing is written but the gradient of its weights.
The innermost products are spelled out for LLVM as vectors of 16 numbers, because its own
vectorisation gives up on loops as short as these. numba compiles at the first call of an
installation (some ten seconds) and keeps the machine code.

Importing this module raises ImportError where numba is not installed.
"""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from eac_model.compiled import compiled

LANES = 16
"""Channels taken together: a register of AVX-512 in float32."""

L_MAX = 6
"""Highest angular momentum that is spelled out below."""

_FUSED = ("contract", "nsz")
_INTEGER = ir.IntType(64)


class _Vectors:
    """Instructions on vectors of :data:`LANES` numbers, at places in flat memory."""

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Any) -> None:
        self.builder = builder
        kind = next(t.dtype for t in signature.args if isinstance(t, types.Array))
        self.vector = ir.VectorType(context.get_value_type(kind), LANES)
        self.align = kind.bitwidth // 8
        self.values = [
            context.make_array(t)(context, builder, value=value).data
            if isinstance(t, types.Array)
            else value
            for t, value in zip(signature.args, arguments, strict=True)
        ]

    def at(self, first: Any, step: Any, count: Any) -> Any:
        """first + step · count, of which the last two may be plain numbers."""
        step = _INTEGER(step) if isinstance(step, int) else step
        count = _INTEGER(count) if isinstance(count, int) else count
        return self.builder.add(first, self.builder.mul(step, count))

    def _pointer(self, data: Any, place: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(data, [place]), self.vector.as_pointer())

    def load(self, data: Any, place: Any) -> Any:
        value = self.builder.load(self._pointer(data, place))
        value.align = self.align
        return value

    def store(self, value: Any, data: Any, place: Any) -> None:
        self.builder.store(value, self._pointer(data, place)).align = self.align

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        return self.builder.fadd(self.builder.fmul(a, b, flags=_FUSED), c, flags=_FUSED)

    def combination(self, data: Any, places: list[Any], vectors: list[Any]) -> Any:
        """Σ_k data[places[k]] · vectors[k]."""
        sums: list[Any] = []
        for k, (place, vector) in enumerate(zip(places, vectors, strict=True)):
            number = self.builder.load(self.builder.gep(data, [place]))
            empty = ir.Constant(self.vector, ir.Undefined)
            first = self.builder.insert_element(empty, number, ir.IntType(32)(0))
            lanes = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
            factor = self.builder.shuffle_vector(first, empty, lanes)
            # Two sums: each would wait for its own last product.
            if k < 2:
                sums.append(self.builder.fmul(factor, vector, flags=_FUSED))
            else:
                sums[k % 2] = self.multiply_add(factor, vector, sums[k % 2])
        return sums[0] if len(sums) == 1 else self.builder.fadd(sums[0], sums[1], flags=_FUSED)


@intrinsic(prefer_literal=True)
def _gather_path(
    _: Any, n1: Any, n3: Any, g: Any, g0: Any, x: Any, x0: Any, w: Any, w0: Any, a: Any, a0: Any,
    step: Any,
) -> Any:  # fmt: skip
    """a[m₃] += w Σ_m₁ g[m₃, m₁] x[m₁] for m₃ < n3; n1 is known when this is compiled."""
    if not isinstance(n1, types.IntegerLiteral):
        return None
    count = n1.literal_value
    place = types.int64
    signature = types.void(n1, place, g, place, x, place, w, place, a, place, place)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v = _Vectors(context, builder, signature, arguments)
        _, n3, g, g0, x, x0, w, w0, a, a0, step = v.values
        features = [v.load(x, v.at(x0, LANES, k)) for k in range(count)]
        weight = v.load(w, w0)
        with cgutils.for_range(builder, n3) as loop:
            begin = v.at(g0, count, loop.index)
            places = [v.at(begin, 1, k) for k in range(count)]
            product = v.combination(g, places, features)
            here = v.at(a0, step, loop.index)
            v.store(v.multiply_add(weight, product, v.load(a, here)), a, here)
        return context.get_dummy_value()

    return signature, generate


@intrinsic(prefer_literal=True)
def _spread_path(
    _: Any, n3: Any, n1: Any, g: Any, g0: Any, x: Any, x0: Any, w: Any, w0: Any, a: Any, a0: Any,
    step: Any, dx: Any, dw: Any,
) -> Any:  # fmt: skip
    """u[m₁] = Σ_m₃ g[m₃, m₁] a[m₃]; dw += Σ_m₁ u x[m₁]; dx[m₁] += w u; n3 is known."""
    if not isinstance(n3, types.IntegerLiteral):
        return None
    count = n3.literal_value
    place = types.int64
    signature = types.void(n3, place, g, place, x, place, w, place, a, place, place, dx, dw)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v = _Vectors(context, builder, signature, arguments)
        _, n1, g, g0, x, x0, w, w0, a, a0, step, dx, dw = v.values
        above = [v.load(a, v.at(a0, step, k)) for k in range(count)]
        weight = v.load(w, w0)
        of_weight = cgutils.alloca_once_value(builder, v.load(dw, w0))
        with cgutils.for_range(builder, n1) as loop:
            places = [v.at(v.at(g0, 1, loop.index), n1, k) for k in range(count)]
            back = v.combination(g, places, above)
            here = v.at(x0, LANES, loop.index)
            sum_so_far = builder.load(of_weight)
            builder.store(v.multiply_add(back, v.load(x, here), sum_so_far), of_weight)
            v.store(v.multiply_add(weight, back, v.load(dx, here)), dx, here)
        v.store(builder.load(of_weight), dw, w0)
        return context.get_dummy_value()

    return signature, generate


@numba.njit(inline="always")
def _gather(n1, n3, g, g0, x, x0, w, w0, a, a0, step):  # type: ignore[no-untyped-def]
    if n1 == 1:
        _gather_path(1, n3, g, g0, x, x0, w, w0, a, a0, step)
    elif n1 == 3:
        _gather_path(3, n3, g, g0, x, x0, w, w0, a, a0, step)
    elif n1 == 5:
        _gather_path(5, n3, g, g0, x, x0, w, w0, a, a0, step)
    elif n1 == 7:
        _gather_path(7, n3, g, g0, x, x0, w, w0, a, a0, step)
    elif n1 == 9:
        _gather_path(9, n3, g, g0, x, x0, w, w0, a, a0, step)
    elif n1 == 11:
        _gather_path(11, n3, g, g0, x, x0, w, w0, a, a0, step)
    elif n1 == 13:
        _gather_path(13, n3, g, g0, x, x0, w, w0, a, a0, step)


@numba.njit(inline="always")
def _spread(n3, n1, g, g0, x, x0, w, w0, a, a0, step, dx, dw):  # type: ignore[no-untyped-def]
    if n3 == 1:
        _spread_path(1, n1, g, g0, x, x0, w, w0, a, a0, step, dx, dw)
    elif n3 == 3:
        _spread_path(3, n1, g, g0, x, x0, w, w0, a, a0, step, dx, dw)
    elif n3 == 5:
        _spread_path(5, n1, g, g0, x, x0, w, w0, a, a0, step, dx, dw)
    elif n3 == 7:
        _spread_path(7, n1, g, g0, x, x0, w, w0, a, a0, step, dx, dw)
    elif n3 == 9:
        _spread_path(9, n1, g, g0, x, x0, w, w0, a, a0, step, dx, dw)
    elif n3 == 11:
        _spread_path(11, n1, g, g0, x, x0, w, w0, a, a0, step, dx, dw)
    elif n3 == 13:
        _spread_path(13, n1, g, g0, x, x0, w, w0, a, a0, step, dx, dw)


@compiled
def gather(
    features: NDArray[Any],
    weights: NDArray[Any],
    matrices: NDArray[Any],
    senders: NDArray[Any],
    receivers: NDArray[Any],
    weight_rows: NDArray[Any],
    paths: NDArray[Any],
    channel: int,
    x: NDArray[Any],
    sums: NDArray[Any],
    gathered: NDArray[Any],
) -> None:
    """Add the messages of all edges, :data:`LANES` channels of them, to their receivers.

    Fastest where edges of one receiver follow each other; right in any order.

    Parameters
    ----------
    features
        (n, (l_in+1)², channels), channels a multiple of :data:`LANES`.
    weights
        (u, paths, channels).
    matrices
        (e, Σ_p (2l₃+1)(2l₁+1)), the G of :mod:`eac_model.network.convolution`.
    senders, receivers, weight_rows
        (e,) int64.
    paths
        (paths, 6), :attr:`eac_model.network.convolution.ProductPaths.table`.
    channel
        First of the channels to work on.
    x, sums
        ((l_in+1)², LANES) and (rows, LANES), to work in.
    gathered
        (n, rows, channels), is added to.
    """
    components, channels, rows = features.shape[1], features.shape[2], gathered.shape[1]
    n_paths = len(paths)
    size = matrices.shape[1]
    # Views of a row in every turn would cost more than the products.
    flat_weights, flat_matrices = weights.reshape(-1), matrices.reshape(-1)
    flat_x, flat_sums = x.reshape(-1), sums.reshape(-1)
    last = -1
    for edge in range(len(senders)):
        receiver, sender = receivers[edge], senders[edge]
        weight = weight_rows[edge] * n_paths * channels + channel
        if receiver != last:
            if last >= 0:
                for row in range(rows):
                    for c in range(LANES):
                        gathered[last, row, channel + c] += sums[row, c]
            sums[:] = 0
            last = receiver
        for row in range(components):
            for c in range(LANES):
                x[row, c] = features[sender, row, channel + c]
        for p in range(n_paths):
            _gather(
                paths[p, 1],
                paths[p, 2],
                flat_matrices,
                edge * size + paths[p, 3],
                flat_x,
                paths[p, 0] * LANES,
                flat_weights,
                weight + p * channels,
                flat_sums,
                paths[p, 4] * LANES,
                paths[p, 5] * LANES,
            )
    if last >= 0:
        for row in range(rows):
            for c in range(LANES):
                gathered[last, row, channel + c] += sums[row, c]


@compiled
def spread(
    features: NDArray[Any],
    weights: NDArray[Any],
    matrices: NDArray[Any],
    senders: NDArray[Any],
    receivers: NDArray[Any],
    weight_rows: NDArray[Any],
    paths: NDArray[Any],
    channel: int,
    x: NDArray[Any],
    above: NDArray[Any],
    of_x: NDArray[Any],
    gradient: NDArray[Any],
    of_features: NDArray[Any],
    of_weights: NDArray[Any],
) -> None:
    """Gradients of :func:`gather`; what it shares with it means the same.

    Parameters
    ----------
    above, of_x
        (rows, LANES) and ((l_in+1)², LANES), to work in.
    gradient
        (n, rows, channels) with respect to what was gathered.
    of_features, of_weights
        Gradients with respect to features and weights, are added to.
    """
    components, channels, rows = features.shape[1], features.shape[2], gradient.shape[1]
    n_paths = len(paths)
    size = matrices.shape[1]
    flat_weights, flat_matrices = weights.reshape(-1), matrices.reshape(-1)
    flat_x, flat_above = x.reshape(-1), above.reshape(-1)
    flat_of_x, flat_of_weights = of_x.reshape(-1), of_weights.reshape(-1)
    last = -1
    for edge in range(len(senders)):
        receiver, sender = receivers[edge], senders[edge]
        weight = weight_rows[edge] * n_paths * channels + channel
        if receiver != last:
            for row in range(rows):
                for c in range(LANES):
                    above[row, c] = gradient[receiver, row, channel + c]
            last = receiver
        for row in range(components):
            for c in range(LANES):
                x[row, c] = features[sender, row, channel + c]
        of_x[:] = 0
        for p in range(n_paths):
            _spread(
                paths[p, 2],
                paths[p, 1],
                flat_matrices,
                edge * size + paths[p, 3],
                flat_x,
                paths[p, 0] * LANES,
                flat_weights,
                weight + p * channels,
                flat_above,
                paths[p, 4] * LANES,
                paths[p, 5] * LANES,
                flat_of_x,
                flat_of_weights,
            )
        for row in range(components):
            for c in range(LANES):
                of_features[sender, row, channel + c] += of_x[row, c]
