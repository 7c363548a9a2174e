"""Checkpoints of ChargE3Net (https://github.com/AIforGreatGood/charge3net).

The files hold weights and optimiser state but no settings: the network's shape is read off its
tensors. Cutoff, number of neighbours and kind of basis are those of all published models unless
given.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eac_model.errors import ModelFileError
from eac_model.imports.torch_file import told_as, unwrapped
from eac_model.network import ChargE3Net, ChargE3NetConfig, build
from eac_model.network.charge3net import SPECIES, hidden_irreps

CUTOFF = 4.0
"""Å, in all published models."""

LARGEST = 10_000
"""Sizes of features are looked for up to here."""

_LAYERS = {"own": "sc", "send": "lin1", "gathered": "lin2", "angle": "lin3"}
"""Equivariant linear layers of a convolution: our names and theirs."""


def state_of(content: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The weights in a checkpoint of ChargE3Net, None if it is something else.

    Their trainer writes ``model``; files of older versions are Lightning checkpoints with
    ``state_dict``. A plain state dictionary has the weights themselves.
    """
    for state in (content.get("model"), content.get("state_dict"), content):
        if isinstance(state, Mapping):
            names = unwrapped(state)
            if "probe_model.readout.weight" in names:
                return names
    return None


def import_charge3net(
    state: Mapping[str, Any], elements: Sequence[int] | None = None, cutoff: float = CUTOFF
) -> ChargE3Net:
    """Our network from their weights.

    Parameters
    ----------
    state
        Tensors by name, from :func:`state_of`.
    elements
        Atomic numbers of the model; 1 … 118 if None: which were in the training data is not written
        in the file.
    cutoff
        Å, of atoms and points alike.

    Returns
    -------
    ChargE3Net
        In float32; equal to theirs to rounding.

    Raises
    ------
    ModelFileError
        The weights are of another version or of another network of theirs.
    """
    with told_as("The checkpoint is not of the ChargE3Net network known here"):
        return _import(state, elements, cutoff)


def _import(state: Mapping[str, Any], elements: Sequence[int] | None, cutoff: float) -> ChargE3Net:
    network = build(_config(state, elements, cutoff), torch.float32)
    assert isinstance(network, ChargE3Net)
    _check_basis(state, network)
    with torch.no_grad():
        for part, layers in (
            ("atom_model", network.atom_layers),
            ("probe_model", network.point_layers),
        ):
            for step, layer in enumerate(layers):
                _fill(layer, state, f"{part}.convolutions.{step}")
        _copy(network.readout.weight, state, "probe_model.readout.weight")
    return network.eval()


def _config(
    state: Mapping[str, Any], elements: Sequence[int] | None, cutoff: float
) -> ChargE3NetConfig:
    steps = {name.split(".")[2] for name in state if name.startswith("atom_model.convolutions.")}
    first = "atom_model.convolutions.0"
    radial: list[Tensor] = []
    while f"{first}.fc.layer{len(radial)}.weight" in state:
        radial.append(state[f"{first}.fc.layer{len(radial)}.weight"])
    # From one-hot elements one path leads to every l, and scalars of the gate alone are reached.
    l_max = radial[-1].shape[1] // SPECIES - 1
    channels = _channels(state[f"{first}.sc.weight"].numel() // SPECIES, l_max)
    spin = state["probe_model.readout.output_mask"].numel() == 2
    return ChargE3NetConfig(
        architecture="charge3net",
        elements=tuple(sorted(set(elements or range(1, SPECIES)))),
        l_max=l_max,
        channels=channels,
        interactions=len(steps),
        atom_cutoff=cutoff,
        point_cutoff=cutoff,
        basis_size=radial[0].shape[0],
        radial_hidden=tuple(weight.shape[1] for weight in radial[:-1]),
        average_neighbors=20.0,
        cutoff_power=None,
        core_radius=0.0,
        spin=spin,
        spin_from="outputs" if spin else "moments",
    )


def _channels(scalars: int, l_max: int) -> int:
    """Size of the features whose first gate has so many scalars; of all that do, the roundest."""

    def of_gate(channels: int) -> int:
        return sum(mul for mul, ir in hidden_irreps(channels, l_max) if ir.p == (-1) ** ir.l)

    # The gate grows with the features.
    sizes = range(1, LARGEST)
    first, end = (side(sizes, scalars, key=of_gate) for side in (bisect_left, bisect_right))
    possible = sizes[first:end]
    return max(possible, key=lambda channels: len(str(channels)) - len(str(channels).rstrip("0")))


def _check_basis(state: Mapping[str, Any], network: ChargE3Net) -> None:
    """Refuse radial functions that are not our Gaussians: their statistics are in the file."""
    for name in ("atom_model.basis.mean", "probe_model.basis.mean"):
        theirs = state.get(name)
        ours = network.atom_basis.get_buffer("mean")
        if not isinstance(theirs, Tensor):
            continue
        rounding = max(1e-4, 4 * torch.finfo(theirs.dtype).eps)
        if not torch.allclose(theirs.float(), ours, rtol=rounding, atol=rounding):
            raise ModelFileError(
                "This checkpoint's radial basis is not the Gaussian one of the published models; "
                "no other can be imported."
            )


def _fill(layer: nn.Module, state: Mapping[str, Any], name: str) -> None:
    for ours, theirs in _LAYERS.items():
        _copy(layer.get_submodule(ours).weight, state, f"{name}.{theirs}.weight")
    for step, (_, part) in enumerate(layer.get_submodule("radial").named_children()):
        _copy(part.weight, state, f"{name}.fc.layer{step}.weight")


def _copy(target: Any, state: Mapping[str, Any], name: str) -> None:
    source = state.get(name)
    if not isinstance(source, Tensor) or source.numel() != target.numel():
        raise ModelFileError(
            f"The checkpoint's {name!r} is missing or does not have the {target.numel()} numbers "
            "expected: it is of another version of ChargE3Net."
        )
    target.copy_(source.reshape(target.shape))
