"""Networks prepared for evaluation on shells, kept as long as their parameters stay the same."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch

from eac_model.engine.linear import ShellLinear
from eac_model.engine.shells import ToleranceError
from eac_model.engine.value_weight import ShellValueWeight
from eac_model.network import EACNet

Kernels = tuple[ShellLinear | ShellValueWeight, ...]

_prepared: WeakKeyDictionary[EACNet, tuple[tuple[float, ...], Kernels]] = WeakKeyDictionary()


def shell_kernels(network: EACNet) -> Kernels:
    """What evaluates the network on shells: its contributions are the sum of theirs.

    Empty where the network is to evaluate itself: in float64, which is there for references; on
    GPUs, where shells were not measured; and if its radial functions cannot be tabulated.
    """
    if network.dtype != torch.float32 or network.device.type != "cpu":
        return ()
    state = fingerprint(network)
    known = _prepared.get(network)
    if known is None or known[0] != state:
        known = (state, _prepare(network))
        _prepared[network] = known
    return known[1]


def _prepare(network: EACNet) -> Kernels:
    kernels: list[ShellLinear | ShellValueWeight] = []
    try:
        if network.linear is not None or network.superposition is not None:
            kernels.append(ShellLinear(network))
        if network.value_weight is not None:
            kernels.append(ShellValueWeight(network))
    except ToleranceError:
        return ()
    return tuple(kernels)


def fingerprint(network: EACNet) -> tuple[float, ...]:
    """Changes with the parameters, however they were changed."""
    tensors = [*network.parameters(), *network.buffers()]
    return tuple(torch.stack([t.detach().float().norm() for t in tensors if t.numel()]).tolist())
