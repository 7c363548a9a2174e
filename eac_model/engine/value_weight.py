"""The value × weight decoder on shells around atoms: matrix products and little else.

Seen from an atom, everything the first edge update does is linear in the atom's descriptors. On
one shell its radial functions are polynomials of r, and what enters its gate is
Σ_{lm,j} H[lm, j] Y_lm(r̂) T_j(r) with a matrix H that belongs to the atom and the shell: projection,
tensor product, radial network, linear layer and species term are one product. Later updates see
m = 0 components; their radial functions are polynomials as well. Columns are pairs: all arithmetic
runs along contiguous points.
"""

from __future__ import annotations

import copy
import threading
import typing
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

from eac_model.engine.memory import free_memory
from eac_model.engine.shells import TERMS, TOLERANCE, Radial, Shells, fit_shells
from eac_model.engine.tiles import BATCH, BATCH_WIDTH, Piece, ShellBatch, ShellPairs
from eac_model.network import EACNet
from eac_model.network.coupling import EdgeUpdate, polar_3j
from eac_model.network.interaction import linear_paths
from eac_model.network.radial import CutoffBasis
from eac_model.network.value_weight import ValueWeightDecoder, normalized_weights

TABLE_BYTES = 2**29
"""Memory for the matrices H of the atoms last used."""

ATOMS_AT_ONCE = 8
"""Atoms whose matrices are computed together."""

Cast = Callable[[Tensor], Tensor]
"""From float64 on the CPU to the network's type and device."""

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(matrix: Tensor, columns: Tensor) -> Tensor:
    """matrix (n, k) @ columns (k, p), both contiguous."""
    if _ONEDNN and matrix.dtype == torch.float32 and matrix.is_cpu and columns.shape[1] >= 128:
        # On many processors twice as fast as the library behind torch.mm.
        found: Tensor = torch.ops.mkldnn._linear_pointwise(matrix, columns.T, None, "none", [], "")
        return found
    return matrix @ columns


class ShellValueWeight:
    """A network's value × weight decoder, prepared for the evaluation of many pairs.

    Parameters
    ----------
    network
        With a value × weight decoder.
    tolerance
        Bound on the error of the radial functions, relative to the largest of their values.
    batched
        Multiply the matrices of many atoms and shells at once, in pieces of equal width, as a GPU
        likes it; otherwise one after the other, each as wide as it is. None: on GPUs.

    Raises
    ------
    ToleranceError
        No number of shells meets the bound.
    """

    core_radius = 0.0
    """Harmonics are those of unit vectors."""

    def __init__(
        self, network: EACNet, tolerance: float = TOLERANCE, batched: bool | None = None
    ) -> None:
        decoder = network.value_weight
        assert decoder is not None
        self.batched = network.device.type != "cpu" if batched is None else batched
        self.decoder, self.l_max = decoder, network.config.l_max
        attributes = network.types.table.detach().double().cpu()
        updates = [
            _UpdateAlgebra(typing.cast(EdgeUpdate, update), decoder.basis, attributes)
            for update in decoder.coupling.updates
        ]
        appended = _appended(decoder)
        self.shells = fit_shells(
            [*(update.radial for update in updates), *([] if appended is None else [appended])],
            network.config.point_cutoff,
            None,
            tolerance,
        )

        def cast(values: Tensor) -> Tensor:
            return values.to(network.device, network.dtype).contiguous()

        self.first = _FirstUpdate(updates[0], self.l_max, self.shells, cast)
        self.later = [
            _LaterUpdate(update, before.feature_scales, self.shells, cast)
            for before, update in pairwise(updates)
        ]
        bottleneck = _layers(decoder.bottleneck)
        bottleneck[0] = (bottleneck[0][0] * updates[-1].feature_scales[0], bottleneck[0][1])
        self.bottleneck = [(cast(matrix), cast(bias[:, None])) for matrix, bias in bottleneck]
        self.size = len(bottleneck[-1][0])

        def head(layers: list[tuple[Tensor, Tensor]]) -> _Head:
            return _Head(layers, self.size, decoder, attributes, self.shells, appended, cast)

        self._kept = threading.local()
        self.value = head(_layers(decoder.value))
        self.gathered: _Head | None = None
        if decoder.kind not in ("I", "S"):
            (matrix, bias), *rest = _layers(decoder.weight)
            around, own = matrix.chunk(2, dim=1)
            self.gathered = head([(around, torch.zeros_like(bias))])
            self.score = head([(own, bias), *rest])

    def contributions(
        self, descriptors: Tensor, elements: Tensor, pairs: ShellPairs, n_points: int
    ) -> Tensor:
        """Contributions of all pairs, (spins, p), e/Å³.

        Parameters
        ----------
        descriptors
            (spins, n, (l_max+1)², channels).
        elements
            (n,) int64, index of every atom's element.
        n_points
            Number of points in the tile.
        """
        tables = self._tables_of(descriptors, elements)
        tables.expect(pairs.atoms)
        of_spin = self._of_spin_batched if self.batched else self._of_spin
        return torch.cat(
            [of_spin(spin, tables, pairs, n_points) for spin in range(len(descriptors))]
        )

    def _of_spin(self, spin: int, tables: _AtomTables, pairs: ShellPairs, n_points: int) -> Tensor:
        index = tables.elements
        # In float64: softmaxes see the ratios of cutoff functions where all of them vanish.
        envelope = self.decoder.basis.envelope(pairs.distance).to(pairs.vectors.dtype)
        values = envelope.new_empty(self.value.outputs, len(envelope))
        if self.gathered is None:
            for piece, features in self._features(spin, tables, pairs):
                found = self.value(features, index[piece.atom], piece)
                values[:, piece.pairs] = found[:, : piece.count]
            weighted = values * envelope if self.decoder.kind == "S" else values
            return self._with_offset(weighted, pairs, n_points)
        # Softmaxes see all atoms at a point: features are kept, summed, and looked at again.
        kept = values.new_empty(self.size, len(envelope))
        gathered = values.new_zeros(n_points, self.gathered.outputs)
        for piece, features in self._features(spin, tables, pairs):
            element, n = index[piece.atom], piece.count
            kept[:, piece.pairs] = features[:, :n]
            values[:, piece.pairs] = self.value(features, element, piece)[:, :n]
            hidden = self.gathered(features, element, piece)[:, :n] * envelope[piece.pairs]
            gathered.index_add_(0, pairs.point[piece.pairs], hidden.T)
        scores = torch.empty_like(envelope)
        for piece in pairs.pieces():
            features = kept.new_zeros(self.size, piece.width)
            features[:, : piece.count] = kept[:, piece.pairs]
            around = kept.new_zeros(self.gathered.outputs, piece.width)
            around[:, : piece.count] = gathered[pairs.point[piece.pairs]].T
            found = self.score(features, index[piece.atom], piece, around)
            scores[piece.pairs] = found[0, : piece.count]
        weights = normalized_weights(self.decoder.kind, scores, envelope, pairs.point, n_points)
        return self._with_offset(values * weights, pairs, n_points)

    def _of_spin_batched(
        self, spin: int, tables: _AtomTables, pairs: ShellPairs, n_points: int
    ) -> Tensor:
        envelope = self.decoder.basis.envelope(pairs.distance).to(pairs.vectors.dtype)
        values = envelope.new_empty(self.value.outputs, len(envelope))
        softmax = self.gathered is not None
        kept = values.new_empty(self.size if softmax else 0, len(envelope))
        gathered = values.new_zeros(n_points, self.gathered.outputs if self.gathered else 0)
        size = self._pairs_at_once(pairs.distance.device)
        for batch in pairs.batches(size):
            elements = tables.index[batch.atom]
            matrices = torch.stack([tables[spin, atom] for atom in batch.atoms])
            columns = self.first.batch(matrices[batch.place, batch.shell], batch)
            for update in self.later:
                columns = update.batch(columns, elements, batch)
            features = columns.transpose(0, 1)
            for matrix, bias in self.bottleneck:
                features = nn.functional.silu((matrix @ features).add_(bias), inplace=True)
            found = self.value.batch(features, elements, batch)
            values[:, batch.pairs] = found.transpose(0, 1)
            if self.gathered is not None:
                kept[:, batch.pairs] = features.transpose(0, 1)
                hidden = self.gathered.batch(features, elements, batch).transpose(1, 2)
                hidden = hidden * (envelope[batch.pairs] * batch.mask).unsqueeze(-1)
                gathered.index_add_(0, pairs.point[batch.pairs].flatten(), hidden.flatten(0, 1))
        if self.gathered is None:
            weighted = values * envelope if self.decoder.kind == "S" else values
            return self._with_offset(weighted, pairs, n_points)
        scores = torch.empty_like(envelope)
        for batch in pairs.batches(size):
            elements = tables.index[batch.atom]
            around = gathered[pairs.point[batch.pairs]].transpose(1, 2)
            features = kept[:, batch.pairs].transpose(0, 1)
            found = self.score.batch(features, elements, batch, around)
            scores[batch.pairs] = found[:, 0]
        weights = normalized_weights(self.decoder.kind, scores, envelope, pairs.point, n_points)
        return self._with_offset(values * weights, pairs, n_points)

    def _pairs_at_once(self, device: torch.device) -> int:
        if device.type != "cuda":
            return BATCH
        # Inputs, outputs, and what lies between them, of every layer that is alive at once.
        components, terms_outputs = (self.l_max + 1) ** 2, self.first.species[0].shape[-1]
        rows = 2 * components * TERMS + 3 * terms_outputs
        rows += sum(3 * update.radial.shape[1] for update in self.later) + 8 * self.size
        matrices = components * TERMS * terms_outputs // BATCH_WIDTH
        return int(max(BATCH, min(2**20, free_memory(device) // (16 * (rows + matrices)))))

    def _with_offset(self, weighted: Tensor, pairs: ShellPairs, n_points: int) -> Tensor:
        if not self.decoder.offset:
            return weighted
        return weighted + self.decoder.shares(pairs.point, n_points, weighted.dtype)

    def _features(
        self, spin: int, tables: _AtomTables, pairs: ShellPairs
    ) -> Iterator[tuple[Piece, Tensor]]:
        """G of every piece, (size of G, width)."""
        for piece in pairs.pieces(harmonics=True):
            columns = self.first(tables[spin, piece.atom][piece.shell], piece)
            for update in self.later:
                columns = update(columns, tables.elements[piece.atom], piece)
            for matrix, bias in self.bottleneck:
                columns = nn.functional.silu(product(matrix, columns).add_(bias), inplace=True)
            yield piece, columns

    def _tables_of(self, descriptors: Tensor, elements: Tensor) -> _AtomTables:
        """The tables of a structure, kept from tile to tile by each thread for itself."""
        known: _AtomTables | None = getattr(self._kept, "tables", None)
        # The old tables hold on to their descriptors: no other tensor lies where these do.
        if known is None or known.descriptors.data_ptr() != descriptors.data_ptr():
            known = self._kept.tables = _AtomTables(self.first, descriptors, elements)
        return known


class _UpdateAlgebra:
    """An edge update taken apart, in float64.

    Outputs are listed by l; those of l = 0 in an order of their own, gates before scalars.
    """

    def __init__(self, update: EdgeUpdate, basis: CutoffBasis, attributes: Tensor) -> None:
        self.last, self.channels = update.last, update.channels
        linear = {
            instruction.i_in: (instruction.i_out, view.detach().double() * instruction.path_weight)
            for instruction, view in linear_paths(update.linear)
        }
        self.sources: list[int] = []
        self.targets: list[int] = []
        self.matrices: list[Tensor] = []
        scales = []
        for instruction in update.product.instructions:
            l1, l2 = instruction.i_in1, instruction.i_in2
            l3, matrix = linear[instruction.i_out]
            scales.append(instruction.path_weight * polar_3j(l1, l2, l3) * (2 * l2 + 1) ** 0.5)
            self.sources.append(l1)
            self.targets.append(l3)
            self.matrices.append(self._reorder(matrix, l3))
        self.species = []
        for instruction, view in zip(
            update.species.instructions, update.species.weight_views(), strict=True
        ):
            l = instruction.i_in1
            scale = instruction.path_weight * polar_3j(l, 0, l)
            matrix = torch.einsum("et,utw->euw", attributes, view.detach().double().cpu())
            self.species.append(self._reorder(matrix * scale, l))
        scalars = update.linear.irreps_out[0].mul
        bias = update.linear.bias.detach().double().cpu()
        bias = bias if update.linear.bias_numel else bias.new_zeros(scalars)
        self.bias = self._reorder(bias, 0)
        network = copy.deepcopy(update.radial).double().cpu()
        exact = copy.deepcopy(basis).double().cpu()
        factors = torch.tensor(scales, dtype=torch.float64)[:, None]

        def radial(distance: Tensor) -> Tensor:
            with torch.no_grad():
                return network(exact(distance)).unflatten(-1, (-1, self.channels)) * factors

        self.radial: Radial = radial
        if self.last:
            self.feature_scales = [float(update.gate.acts[0].cst)]
        else:
            gates = update.gate.act_gates.acts[:1]
            self.feature_scales = [float(update.gate.act_scalars.acts[0].cst)]
            self.feature_scales += [float(gate.cst) for gate in gates] * (len(self.species) - 1)

    def _reorder(self, matrix: Tensor, l: int) -> Tensor:
        if self.last or l > 0:
            return matrix
        return torch.cat([matrix[..., self.channels :], matrix[..., : self.channels]], dim=-1)

    def gate(self, outputs: Tensor) -> Tensor:
        """Features of all l, one below the other; their constants belong to what reads them."""
        if self.last:
            return nn.functional.silu(outputs, inplace=True)
        higher = (len(self.species) - 1) * self.channels
        nn.functional.silu(outputs[: higher + self.channels], inplace=True)
        outputs[higher + self.channels :] *= outputs[:higher]
        return outputs[higher:]


class _FirstUpdate:
    """The edge update that meets the descriptors."""

    def __init__(self, algebra: _UpdateAlgebra, l_max: int, shells: Shells, cast: Cast) -> None:
        self.gate = algebra.gate
        self.count = shells.count
        radial = shells.coefficients(algebra.radial).unflatten(-1, (-1, algebra.channels))
        widths = [matrix.shape[-1] for matrix in algebra.species]
        outputs = torch.arange(sum(widths)).split(widths)
        self.radial, self.species = [], []
        for l in range(l_max + 1):
            # Projections are Y·D/√(2l+1).
            norm = (2 * l + 1) ** -0.5
            table = radial.new_zeros(shells.count, TERMS, algebra.channels, sum(widths))
            for path, (source, target) in enumerate(
                zip(algebra.sources, algebra.targets, strict=True)
            ):
                if source == l:
                    weight = algebra.matrices[path] * norm
                    table[..., outputs[target]] += radial[:, :, path, :, None] * weight
            # (channels, shells · terms · outputs)
            self.radial.append(cast(table.permute(2, 0, 1, 3).flatten(1)))
            elements = len(algebra.species[0])
            species = radial.new_zeros(elements, algebra.channels, sum(widths))
            if l < len(widths):
                species[..., outputs[l]] = algebra.species[l] * norm
            self.species.append(cast(species))
        self.scalars = slice(0, widths[0])
        self.bias = cast(algebra.bias)

    def tables(self, descriptors: Tensor, elements: Tensor) -> Tensor:
        """H of atoms, (n, shells, (l_max+1)² · TERMS, outputs)."""
        outputs = self.species[0].shape[-1]
        shape = (len(descriptors), self.count, descriptors.shape[1], TERMS, outputs)
        result = descriptors.new_empty(shape)
        for l, (radial, species) in enumerate(zip(self.radial, self.species, strict=True)):
            rows = slice(l * l, (l + 1) ** 2)
            part = (descriptors[:, rows] @ radial).unflatten(-1, (self.count, TERMS, outputs))
            # T_0 = 1 carries what does not depend on r.
            part[:, :, :, 0] += torch.bmm(descriptors[:, rows], species[elements]).unsqueeze(2)
            if l == 0:
                part[..., 0, self.scalars] += self.bias
            result[:, :, rows] = part.transpose(1, 2)
        return result.flatten(2, 3)

    def __call__(self, table: Tensor, piece: Piece) -> Tensor:
        columns = piece.harmonics.unsqueeze(1) * piece.polynomials
        return self.gate(product(table.T, columns.flatten(0, 1)))

    def batch(self, tables: Tensor, batch: ShellBatch) -> Tensor:
        """Features (n, pieces, width) of pieces with tables (pieces, (l_max+1)² · TERMS, n')."""
        columns = batch.harmonics.unsqueeze(1) * batch.polynomials
        inputs = columns.flatten(0, 1).transpose(0, 1)
        return self.gate(torch.bmm(tables.transpose(1, 2), inputs).transpose(0, 1))


class _LaterUpdate:
    """An edge update that meets m = 0 components."""

    def __init__(
        self, algebra: _UpdateAlgebra, scales: list[float], shells: Shells, cast: Cast
    ) -> None:
        self.gate, self.channels = algebra.gate, algebra.channels
        radial = shells.coefficients(algebra.radial).unflatten(-1, (-1, algebra.channels))
        # The species term is one more path, whose radial function is T_0 = 1.
        constant = torch.zeros_like(radial[:, :, :1])
        constant[:, 0] = 1
        self.matrices: list[list[Tensor]] = []
        self.parts: list[slice] = []
        sources: list[int] = []
        functions: list[Tensor] = []
        for l, species in enumerate(algebra.species):
            chosen = [path for path, target in enumerate(algebra.targets) if target == l]
            degrees = [*(algebra.sources[path] for path in chosen), l]
            matrices = [
                torch.cat([*(algebra.matrices[path] for path in chosen), of_element]).T
                for of_element in species
            ]
            self.matrices.append([cast(matrix) for matrix in matrices])
            begin = len(sources) * algebra.channels
            for degree, function in zip(
                degrees, [*radial[:, :, chosen].unbind(2), constant[:, :, 0]], strict=True
            ):
                functions.append(function * scales[degree])
            sources += degrees
            self.parts.append(slice(begin, len(sources) * algebra.channels))
        self.sources = torch.tensor(sources, device=cast(radial[:0]).device)
        self.radial = cast(torch.cat(functions, dim=-1).transpose(1, 2))
        self.bias = cast(algebra.bias[:, None])

    def __call__(self, columns: Tensor, element: int, piece: Piece) -> Tensor:
        features = columns.unflatten(0, (-1, self.channels)).index_select(0, self.sources)
        mid = features.flatten(0, 1).mul_(product(self.radial[piece.shell], piece.polynomials))
        outputs = [
            product(matrices[element], mid[part])
            for matrices, part in zip(self.matrices, self.parts, strict=True)
        ]
        outputs[0] += self.bias
        return self.gate(outputs[0] if len(outputs) == 1 else torch.cat(outputs))

    def batch(self, columns: Tensor, elements: Tensor, batch: ShellBatch) -> Tensor:
        """Features (n, pieces, width) from those of the update before."""
        features = columns.unflatten(0, (-1, self.channels)).index_select(0, self.sources)
        radial = torch.bmm(self.radial[batch.shell], batch.polynomials.transpose(0, 1))
        mid = features.flatten(0, 1).transpose(0, 1) * radial
        outputs = [
            torch.bmm(torch.stack(matrices)[elements], mid[:, part])
            for matrices, part in zip(self.matrices, self.parts, strict=True)
        ]
        outputs[0] += self.bias
        return self.gate(torch.cat(outputs, dim=1).transpose(0, 1))


class _Head:
    """A dense network that reads G and, appended to it, functions of r and of the element."""

    def __init__(
        self,
        layers: list[tuple[Tensor, Tensor]],
        size: int,
        decoder: ValueWeightDecoder,
        attributes: Tensor,
        shells: Shells,
        appended: Radial | None,
        cast: Cast,
    ) -> None:
        matrix, bias = layers[0]
        self.outputs = len(layers[-1][0])
        begin, of_distance = size, []
        constant = bias.expand(len(attributes), -1)
        for name in decoder.concatenate:
            width = {"distance": 1, "basis": decoder.basis.size, "type": attributes.shape[1]}[name]
            columns = matrix[:, begin : begin + width]
            if name == "type":
                constant = constant + attributes @ columns.T
            else:
                of_distance.append(columns)
            begin += width
        # (shells, terms, outputs), the same for all elements; T_0 = 1 carries the constants.
        radial = matrix.new_zeros(shells.count, TERMS, len(matrix))
        if appended is not None:
            radial = shells.coefficients(appended) @ torch.cat(of_distance, dim=1).T
        own = matrix[:, :size].expand(shells.count, -1, -1)
        self.any_element = cast(torch.cat([own, radial.transpose(1, 2)], dim=2))
        self.constant = cast(constant)
        self.first: dict[int, Tensor] = {}
        self.rest = [(cast(weight), cast(offset[:, None])) for weight, offset in layers[1:]]

    def __call__(
        self, features: Tensor, element: int, piece: Piece, addition: Tensor | None = None
    ) -> Tensor:
        """Outputs (n, width); ``addition`` joins what enters the first activation."""
        inputs = torch.cat([features, piece.polynomials])
        columns = product(self._first_layer(element)[piece.shell], inputs)
        if addition is not None:
            columns += addition
        for matrix, bias in self.rest:
            nn.functional.silu(columns, inplace=True)
            columns = product(matrix, columns).add_(bias)
        return columns

    def batch(
        self,
        features: Tensor,
        elements: Tensor,
        batch: ShellBatch,
        addition: Tensor | None = None,
    ) -> Tensor:
        """Outputs (pieces, n, width)."""
        inputs = torch.cat([features, batch.polynomials.transpose(0, 1)], dim=1)
        matrices = self.any_element[batch.shell]
        matrices[:, :, -TERMS] += self.constant[elements]
        columns = torch.bmm(matrices, inputs)
        if addition is not None:
            columns += addition
        for matrix, bias in self.rest:
            columns = (matrix @ nn.functional.silu(columns, inplace=True)).add_(bias)
        return columns

    def _first_layer(self, element: int) -> Tensor:
        """Matrices of all shells; made when an element is met, for a model may know a hundred."""
        if element not in self.first:
            whole = self.any_element.clone()
            whole[:, :, -TERMS] += self.constant[element]
            self.first[element] = whole
        return self.first[element]


class _AtomTables(OrderedDict[tuple[int, int], Tensor]):
    """Matrices H by spin and atom: those last used, no more than :data:`TABLE_BYTES`."""

    def __init__(self, first: _FirstUpdate, descriptors: Tensor, elements: Tensor) -> None:
        super().__init__()
        self.first, self.descriptors = first, descriptors
        self.index = elements
        self.elements: list[int] = elements.tolist()
        self.expected: list[int] = []

    def expect(self, atoms: list[int]) -> None:
        """Atoms to come, in their order: some tables are made at once."""
        self.expected = atoms

    def __missing__(self, key: tuple[int, int]) -> Tensor:
        spin, atom = key
        begin = self.expected.index(atom)
        group = self.expected[begin : begin + ATOMS_AT_ONCE]
        group = [a for a in group if (spin, a) not in self]
        elements = torch.tensor([self.elements[a] for a in group], device=self.descriptors.device)
        tables = self.first.tables(self.descriptors[spin, group], elements)
        room = max(TABLE_BYTES // tables[0].nbytes, 2 * ATOMS_AT_ONCE)
        for name, table in zip(group, tables, strict=True):
            while len(self) >= room:
                self.popitem(last=False)
            self[spin, name] = table
        return self[key]


def _layers(network: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Matrices and biases, float64."""
    return [
        (layer.weight.detach().double().cpu(), layer.bias.detach().double().cpu())
        for layer in network.modules()
        if isinstance(layer, nn.Linear)
    ]


def _appended(decoder: ValueWeightDecoder) -> Radial | None:
    """The functions of r that are appended to G, in their order."""
    names = [name for name in decoder.concatenate if name != "type"]
    basis = copy.deepcopy(decoder.basis).double().cpu()

    def functions(distance: Tensor) -> Tensor:
        with torch.no_grad():
            found = {"distance": distance[:, None], "basis": basis(distance)}
        return torch.cat([found[name] for name in names], dim=1)

    return functions if names else None
