"""Checkpoints of the EAC-Net authors' code (https://github.com/qin2xue3jian4/EAC-Net).

Their network is ours with other conventions: another scale of the Bessel functions, no activation
behind the bottleneck, residual connections in the value network, tensor-product paths that sum
over channels at once. All of that is linear, or becomes so by x = silu(x) − silu(−x), and is
folded into the weights; what cannot be folded are switches of
:class:`~eac_model.network.NetworkConfig` (``biases``, ``residual``, ``embedding="learned"``,
``spin_from="outputs"``, ``offset``, ``signed-gaussian``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from e3nn import o3
from torch import Tensor, nn

from eac_model.errors import ModelFileError
from eac_model.imports.torch_file import told_as, unwrapped
from eac_model.network import EACNet, NetworkConfig, RadialBasis, build
from eac_model.network.coupling import EdgeUpdate
from eac_model.network.interaction import Interaction, linear_paths

ATOMS = "atom_env_model"
POINTS = "probe_fit_model"

MESSAGE_NORM = 20.0
"""Their messages are divided by √20, whatever the number of neighbours."""

WEIGHTS = {
    "one": "I",
    "smooth": "S",
    "exp+smooth": "MLP+S",
    "exp*smooth": "MLPxS",
    "softmax-smooth": "SoftmaxxS",
}
"""Names of the weight networks: theirs, and those of the paper."""

_CONCATENATED = {"length": "distance", "basis": "basis", "node_attrs": "type"}


@dataclass(frozen=True)
class DenseLayer:
    """One layer y = step · act(W x + b), plus x repeated where there is a residual connection."""

    weight: Tensor
    """(out, in) float64."""
    bias: Tensor
    """(out,) float64."""
    step: Tensor
    """(out,) float64 | factor behind the activation; ones where there is none."""
    residual: bool

    def skip(self) -> Tensor:
        """The matrix of the residual connection, (out, in)."""
        n_out, n_in = self.weight.shape
        if not self.residual:
            return torch.zeros(n_out, n_in, dtype=torch.float64)
        return torch.eye(n_in, dtype=torch.float64).repeat(n_out // n_in, 1)


class Weights:
    """Tensors of a checkpoint by name, in float64."""

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        self.tensors = tensors

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __getitem__(self, name: str) -> Tensor:
        value = self.tensors.get(name)
        if not isinstance(value, Tensor):
            raise ModelFileError(
                f"The checkpoint has no tensor {name!r}: it is not of the EAC-Net version this "
                "import was written for."
            )
        return value.double()

    def dense(self, name: str) -> list[DenseLayer]:
        """A dense network of theirs."""
        layers: list[DenseLayer] = []
        while (prefix := self._layer(f"{name}.mlplayers.{len(layers)}")) is not None:
            weight = self[f"{prefix}.0.weight"]
            bias = f"{prefix}.0.bias"
            step = next((key for key in (f"{prefix}.{i}.idt" for i in (1, 2)) if key in self), None)
            ones = torch.ones(len(weight), dtype=torch.float64)
            layers.append(
                DenseLayer(
                    weight,
                    self[bias] if bias in self else 0 * ones,
                    ones if step is None else self[step],
                    residual=".model." in prefix,
                )
            )
        if not layers:
            raise ModelFileError(f"The checkpoint has no network {name!r}.")
        return layers

    def plain(self, name: str) -> list[DenseLayer]:
        """A dense network of theirs that ours has as it is."""
        layers = self.dense(name)
        if any(layer.residual or bool((layer.step != 1).any()) for layer in layers):
            raise ModelFileError(
                f"This checkpoint cannot be imported: {name} has residual connections or steps, "
                "which have no counterpart here."
            )
        return layers

    def equivariant(
        self, name: str, inputs: Sequence[int], outputs: Sequence[int]
    ) -> tuple[list[Tensor], Tensor]:
        """An equivariant linear layer of theirs.

        Parameters
        ----------
        inputs, outputs
            Channels of l = 0, 1, …; outputs may end earlier.

        Returns
        -------
        matrices
            One (in, out) for every l of the outputs, residual connection included.
        bias
            (outputs[0],) constants of the scalars.
        """
        prefix = self._layer(name)
        if prefix is None:
            raise ModelFileError(f"The checkpoint has no layer {name!r}.")
        weight, bias = self[f"{prefix}.0.weight"], self[f"{prefix}.0.bias"]
        if weight.ndim == 2:  # scalars only: an ordinary layer
            matrices = [weight.T]
        else:
            sizes = [n_in * n_out for n_in, n_out in zip(inputs, outputs, strict=False)]
            matrices = [
                part.reshape(n_in, n_out) / n_in**0.5
                for part, n_in, n_out in zip(weight.split(sizes), inputs, outputs, strict=False)
            ]
        if ".model." in prefix:
            if weight.ndim == 1 and list(inputs) != list(outputs):
                raise ModelFileError(
                    f"Layer {name!r} repeats its input in a way that is not equivariant."
                )
            matrices = [
                matrix + torch.eye(len(matrix), dtype=matrix.dtype).repeat(1, shape // len(matrix))
                for matrix, shape in zip(matrices, outputs, strict=True)
            ]
        return matrices, bias

    def _layer(self, name: str) -> str | None:
        for prefix in (f"{name}.module_list", f"{name}.model.module_list"):
            if f"{prefix}.0.weight" in self:
                return prefix
        return None


def plain_network(
    layers: Sequence[DenseLayer], entrance: Tensor
) -> tuple[list[tuple[Tensor, Tensor]], tuple[int, ...]]:
    """A dense network with residual connections as one without, by x = silu(x) − silu(−x).

    Parameters
    ----------
    layers
        Theirs; SiLU everywhere but behind the last.
    entrance
        (inputs, features) | their inputs as linear functions of our features.

    Returns
    -------
    layers
        Matrix (out, in) and bias (out,) of every layer of ours.
    hidden
        Their widths, without the last.

    Raises
    ------
    ModelFileError
        The last layer has a residual connection or a step.
    """
    if layers[-1].residual or bool((layers[-1].step != 1).any()):
        raise ModelFileError(
            "This checkpoint cannot be imported: the last layer of its decoder has a residual "
            "connection or a step, which have no counterpart here."
        )
    # Backwards: which linear functions of every layer's output do the layers behind it need?
    needed = layers[-1].weight
    passed: list[Tensor] = []
    for layer in reversed(layers[:-1]):
        source = needed @ layer.skip()
        if not source.any():
            source = source[:0]
        elif len(source) >= source.shape[1]:
            source = torch.eye(source.shape[1], dtype=torch.float64)
        passed.insert(0, source)
        needed = torch.cat([layer.weight, source])
    # Forwards: reader maps our activations to the layer's input in their network.
    reader, plain = entrance, []
    for layer, source in zip(layers[:-1], passed, strict=True):
        zeros = torch.zeros(len(source), dtype=torch.float64)
        matrix = torch.cat([layer.weight @ reader, source @ reader, -source @ reader])
        plain.append((matrix, torch.cat([layer.bias, zeros, zeros])))
        # Their output is step · act, plus what went past.
        skip = layer.skip()
        restored = skip @ torch.linalg.pinv(source) if len(source) else skip[:, :0]
        reader = torch.cat([torch.diag(layer.step), restored, -restored], dim=1)
    plain.append((layers[-1].weight @ reader, layers[-1].bias))
    return plain, tuple(len(bias) for _, bias in plain[:-1])


def import_eac_net(content: Mapping[str, Any], elements: Sequence[int] | None = None) -> EACNet:
    """Our network from a checkpoint of theirs.

    Parameters
    ----------
    content
        What the file holds; see :func:`eac_model.imports.torch_file.read_torch_file`. Averaged
        weights are taken where the file has them.
    elements
        Atomic numbers of the model; all that its embedding knows if None.

    Returns
    -------
    EACNet
        In float32; equal to theirs to rounding wherever their neighbour lists are complete.

    Raises
    ------
    ModelFileError
        The file is of another version, or uses an option that has no counterpart here.
    """
    with told_as("The checkpoint does not hold what EAC-Net writes (settings, model_state)"):
        settings = content["settings"]["model"]
        atom, probe = settings["atom"], settings["probe"]
        state = unwrapped(content["model_state"]) | unwrapped(content.get("ema", {}))
        return _import(Weights(state), atom, probe, _scaling(state, probe), elements)


@dataclass(frozen=True)
class _Scaling:
    """What leaves their value network, made ρ or (ρ↑, ρ↓)."""

    mix: Tensor
    """(outputs, outputs) float64."""
    offset: Tensor
    """(outputs,) float64 | e/Å³."""


def _scaling(state: Mapping[str, Any], probe: Mapping[str, Any]) -> _Scaling:
    def info(name: str, default: float) -> float:
        return float(state.get(f"infos.{name}", default))

    scale, mean = info("chg_std", 1.0), info("chg_mean", 0.0)
    if not probe.get("spin", False):
        return _Scaling(torch.full((1, 1), scale).double(), torch.tensor([mean]).double())
    spin_scale, spin_mean = info("chgdiff_std", 1.0), info("chgdiff_mean", 0.0)
    # Theirs: the outputs' sum is the density, the second minus the first the spin density.
    total = torch.tensor([scale, scale]).double()
    spin = torch.tensor([-spin_scale, spin_scale]).double()
    return _Scaling(
        torch.stack([total + spin, total - spin]) / 2,
        torch.tensor([mean + spin_mean, mean - spin_mean]).double() / 2,
    )


def _import(
    weights: Weights,
    atom: Mapping[str, Any],
    probe: Mapping[str, Any],
    scaling: _Scaling,
    elements: Sequence[int] | None,
) -> EACNet:
    _check(atom, probe)
    for prefix, settings in (
        (f"{ATOMS}.message_passing.atom_layer_", atom),
        (f"{POINTS}.message_passing.probe_layer_", probe),
    ):
        found = {
            name[len(prefix) :].split(".")[0] for name in weights.tensors if name.startswith(prefix)
        }
        asked = settings["message_passing"]["num_layers"]
        if len(found) != asked:
            raise ModelFileError(
                f"The checkpoint has weights of {len(found)} layers {prefix}…, its settings say "
                f"{asked}."
            )
    table, numbers = _attributes(weights, elements)
    channels = atom["message_passing"]["feature_length"]
    l_max = atom["message_passing"]["lmax"]
    atom_basis = _radial_basis(atom["edge_encoding"], weights, ATOMS)
    point_basis = _radial_basis(probe["edge_encoding"], weights, POINTS)
    bottleneck = weights.plain(f"{POINTS}.feature_simple.edge_feature_simple_net")
    concatenate = tuple(_CONCATENATED[key] for key in probe["feature_simple"]["cat_keys"])
    basis_scale = _basis_scale(probe["edge_encoding"])
    sizes = {"distance": 1, "basis": point_basis.size, "type": table.shape[1]}
    entrance = _entrance(
        len(bottleneck[-1].bias),
        [(sizes[name], basis_scale if name == "basis" else 1.0) for name in concatenate],
    )
    value = weights.dense(f"{POINTS}.charge_head.charge_net")
    kind = WEIGHTS[probe["probe_edge_weight"]["method"]]
    offset = scaling.offset
    if kind in ("MLP+S", "MLPxS"):
        # These weights sum to 1 at every point: a constant density is a constant value.
        value[-1] = replace(
            value[-1],
            weight=scaling.mix @ value[-1].weight,
            bias=scaling.mix @ value[-1].bias + offset,
        )
        offset = torch.zeros_like(offset)
    else:
        value[-1] = replace(
            value[-1], weight=scaling.mix @ value[-1].weight, bias=scaling.mix @ value[-1].bias
        )
    plain_value, value_hidden = plain_network(value, entrance)
    weight_layers = (
        weights.dense(f"{POINTS}.edge_weight_net.edge_weight_net") if kind not in ("I", "S") else []
    )
    spin = len(offset) == 2
    config = NetworkConfig.model_validate(
        {
            "elements": numbers,
            "embedding": "learned",
            "embedding_size": table.shape[1],
            "l_max": l_max,
            "channels": channels,
            "interactions": atom["message_passing"]["num_layers"],
            "atom_cutoff": float(atom["edge_encoding"]["basis"]["rcut"]),
            "atom_basis": atom_basis,
            "atom_radial_hidden": atom["message_passing"]["invariant_neurons"],
            "average_neighbors": MESSAGE_NORM,
            "biases": True,
            "residual": False,
            "decoder": "value-weight",
            "point_cutoff": float(probe["edge_encoding"]["basis"]["rcut"]),
            "point_basis": point_basis,
            "point_radial_hidden": probe["message_passing"]["invariant_neurons"],
            "coupling_updates": probe["message_passing"]["num_layers"],
            "coupling_scalars": 10 * channels,
            "bottleneck": (
                *(len(layer.bias) for layer in bottleneck[:-1]),
                2 * len(bottleneck[-1].bias),
            ),
            "concatenate": concatenate,
            "value_hidden": value_hidden,
            "weight": kind,
            "weight_hidden": tuple(len(layer.bias) for layer in weight_layers[:-1]) or (1,),
            "offset": tuple(offset.tolist()) if offset.any() else (),
            "spin": spin,
            "spin_from": "outputs" if spin else "moments",
        }
    )
    network = build(config, torch.float32)
    assert isinstance(network, EACNet)
    with torch.no_grad():
        _fill_atoms(network, weights, table, _basis_scale(atom["edge_encoding"]))
        _fill_coupling(network, weights, basis_scale)
        decoder = network.value_weight
        assert decoder is not None
        last = bottleneck[-1]
        _fill_dense(
            decoder.bottleneck,
            [
                *((layer.weight, layer.bias) for layer in bottleneck[:-1]),
                (torch.cat([last.weight, -last.weight]), torch.cat([last.bias, -last.bias])),
            ],
        )
        _fill_dense(decoder.value, plain_value)
        if weight_layers:
            both = torch.block_diag(entrance, entrance)
            _fill_dense(decoder.weight, plain_network(weight_layers, both)[0])
    return network.eval()


def _check(atom: Mapping[str, Any], probe: Mapping[str, Any]) -> None:
    """Refuse what has no counterpart here."""
    messages = (atom["message_passing"], probe["message_passing"])
    channels = {m["feature_length"] for m in messages} | {atom["atom_encoding"]["feature_length"]}
    degrees = {m["lmax"] for m in messages} | {
        e["edge_encoding"]["spherical"]["lmax"] for e in (atom, probe)
    }
    demands = {
        "one feature_length everywhere": len(channels) == 1,
        "one lmax everywhere": len(degrees) == 1,
        "feature_smooth: false": not any(m.get("feature_smooth", False) for m in messages),
        "resnet: true in message_passing": all(m.get("resnet", True) for m in messages),
        "last_update: false in the probe's message_passing": not messages[1].get(
            "last_update", False
        ),
        "spherical: normalize true, normalization component": all(
            e["edge_encoding"]["spherical"].get("normalize", True)
            and e["edge_encoding"]["spherical"].get("normalization", "component") == "component"
            for e in (atom, probe)
        ),
        "one rcut for basis and smooth": all(
            e["edge_encoding"]["basis"]["rcut"] == e["edge_encoding"]["smooth"]["rcut"]
            for e in (atom, probe)
        ),
        "probe_edge_weight.smooth: null": probe["probe_edge_weight"].get("smooth") is None,
        "a probe_edge_weight.method of " + ", ".join(WEIGHTS): probe["probe_edge_weight"]["method"]
        in WEIGHTS,
        "silu as activation": all(
            name == "silu"
            for name in (
                *(m.get("invariant_active", "silu") for m in messages),
                probe["probe_edge_weight"].get("active", "silu"),
                probe["charge_head"].get("active", "silu"),
            )
        ),
    }
    for demand, met in demands.items():
        if not met:
            raise ModelFileError(
                f"This checkpoint cannot be imported: only networks with {demand} have a "
                "counterpart here."
            )


def _attributes(weights: Weights, elements: Sequence[int] | None) -> tuple[Tensor, tuple[int, ...]]:
    """What elements are to the network, (elements, t) float64, and their atomic numbers."""
    parts = [weights[f"{ATOMS}.atom_encoding.physics_encode"]]
    if parts[0].shape[1] == 0:
        parts.clear()
    learned = f"{ATOMS}.atom_encoding.onehot_net.weight"
    if learned in weights:
        parts.append(weights[learned])
    known = min(len(part) for part in parts)
    numbers = tuple(range(1, known)) if elements is None else tuple(sorted(set(elements)))
    if numbers[-1] >= known:
        raise ModelFileError(
            f"The checkpoint knows elements up to atomic number {known - 1}, not {numbers[-1]}."
        )
    return torch.cat([part[list(numbers)] for part in parts], dim=1), numbers


def _radial_basis(encoding: Mapping[str, Any], weights: Weights, part: str) -> RadialBasis:
    bessel = f"{part}.edge_encoding.basis.centers" not in weights
    return RadialBasis(
        kind="bessel" if bessel else "signed-gaussian",
        size=encoding["basis"]["num_basis"],
        cutoff_power=encoding["smooth"]["p"],
    )


def _basis_scale(encoding: Mapping[str, Any]) -> float:
    """Their radial functions over ours: sin(kr)/(2r) is √(2/3) r_c sin(kr)/r here."""
    if encoding["basis"].get("method", "bessel") != "bessel":
        return 1.0
    return 1 / (2 * math.sqrt(2 / 3) * float(encoding["basis"]["rcut"]))


def _entrance(bottleneck: int, others: Sequence[tuple[int, float]]) -> Tensor:
    """Their pair features as linear functions of ours; ours hold silu(G) and silu(−G)."""
    identity = torch.eye(bottleneck, dtype=torch.float64)
    blocks = [torch.cat([identity, -identity], dim=1)]
    blocks += [scale * torch.eye(size, dtype=torch.float64) for size, scale in others]
    return torch.block_diag(*blocks)


def _fill_atoms(network: EACNet, weights: Weights, table: Tensor, basis_scale: float) -> None:
    encoding = f"{ATOMS}.atom_encoding"
    network.types.table.copy_(table)
    network.embed.weight.copy_(weights[f"{encoding}.linear.weight"])
    network.embed.bias.copy_(weights[f"{encoding}.linear.bias"])
    _fill_basis(network.atom_basis.basis, weights, ATOMS)
    channels, l_max = network.config.channels, network.config.l_max
    for step, module in enumerate(network.interactions):
        interaction: Interaction = module  # type: ignore[assignment]
        name = f"{ATOMS}.message_passing.atom_layer_{step}"
        inputs = [channels] * (1 if step == 0 else l_max + 1)
        _fill_update(interaction.linear_out, interaction, name, weights, inputs, l_max, 1.0)
        _fill_radial(interaction.radial, weights.plain(f"{name}.edge_weight"), basis_scale)
        if weights._layer(f"{name}.last_feature_linear") is not None:
            matrices, bias = weights.equivariant(f"{name}.last_feature_linear", inputs, inputs)
        else:
            matrices = [torch.eye(n, dtype=torch.float64) for n in inputs]
            bias = torch.zeros(channels, dtype=torch.float64)
        _set_linear(interaction.linear_in, matrices)
        interaction.linear_in.bias.copy_(bias)


def _fill_coupling(network: EACNet, weights: Weights, basis_scale: float) -> None:
    decoder = network.value_weight
    assert decoder is not None
    _fill_basis(decoder.basis.basis, weights, POINTS)
    l_max, channels = network.config.l_max, network.config.channels
    for step, module in enumerate(decoder.coupling.updates):
        update: EdgeUpdate = module  # type: ignore[assignment]
        name = f"{POINTS}.message_passing.probe_layer_{step}"
        inputs = [channels] * (l_max + 1)
        l_out = 0 if update.last else l_max
        # Here nothing is summed over neighbours, and our coupling divides by nothing.
        norm = MESSAGE_NORM**-0.5
        _fill_update(update.linear, update, name, weights, inputs, l_out, norm)
        _fill_radial(update.radial, weights.plain(f"{name}.edge_weight"), basis_scale)


def _fill_basis(basis: Any, weights: Weights, part: str) -> None:
    name = f"{part}.edge_encoding.basis"
    if f"{name}.centers" in weights:
        basis.centers.copy_(weights[f"{name}.centers"])
        basis.exponents.copy_(weights[f"{name}.widths"])


def _fill_update(
    linear: o3.Linear,
    update: Interaction | EdgeUpdate,
    name: str,
    weights: Weights,
    inputs: Sequence[int],
    l_out: int,
    norm: float,
) -> None:
    """The linear layer behind a tensor product, and the species term.

    Their paths that lead to an l which is neither that of the features nor that of the harmonics
    are summed over channels at once; ours keep the channels, so that their one row of the linear
    layer is repeated.
    """
    product = update.product
    slots: dict[int, list[tuple[int, int, float]]] = {l: [] for l in range(l_out + 1)}
    for instruction in product.instructions:
        l1, l2 = instruction.i_in1, instruction.i_in2
        l3 = product.irreps_out[instruction.i_out].ir.l
        summed = l3 not in (l1, l2)
        theirs = math.sqrt((2 * l3 + 1) / (inputs[l1] if summed else 1))
        width = 1 if summed else inputs[l1]
        slots[l3].append((instruction.i_out, width, theirs / instruction.path_weight))
    gates = linear.irreps_out
    rows = {i: (l, k) for l, paths in slots.items() for k, (i, _, _) in enumerate(paths)}
    matrices, bias = weights.equivariant(
        f"{name}.dst_feature_linear",
        [sum(width for _, width, _ in slots[l]) for l in range(l_out + 1)],
        [mul for mul, _ in gates],
    )
    pieces = [
        matrix.split([width for _, width, _ in slots[l]]) for l, matrix in enumerate(matrices)
    ]
    for instruction, view in linear_paths(linear):
        l, k = rows[instruction.i_in]
        factor = norm * slots[l][k][2] / instruction.path_weight
        view.copy_((pieces[l][k] * factor).expand(view.shape))
    linear.bias.copy_(bias)
    update.species.weight.copy_(weights[f"{name}.node_update.weight"])


def _set_linear(linear: o3.Linear, matrices: Sequence[Tensor]) -> None:
    for instruction, view in linear_paths(linear):
        view.copy_(matrices[instruction.i_in] / instruction.path_weight)


def _fill_radial(network: nn.Module, layers: Sequence[DenseLayer], basis_scale: float) -> None:
    first, *rest = [(layer.weight, layer.bias) for layer in layers]
    _fill_dense(network, [(first[0] * basis_scale, first[1]), *rest])


def _fill_dense(network: nn.Module, layers: Sequence[tuple[Tensor, Tensor]]) -> None:
    found = [module for module in network.modules() if isinstance(module, nn.Linear)]
    for module, (weight, bias) in zip(found, layers, strict=True):
        module.weight.copy_(weight)
        module.bias.copy_(bias)
