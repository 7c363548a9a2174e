"""Networks prepared for evaluation on shells, kept as long as their parameters stay the same."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from eac_model.engine.fused import FusedLinear, compiled_loop
from eac_model.engine.linear import ShellLinear
from eac_model.engine.shells import ToleranceError
from eac_model.engine.value_weight import ShellValueWeight
from eac_model.network import DensityNetwork, EACNet


@dataclass(frozen=True)
class Kernels:
    """What evaluates a network in place of itself; the density is the sum of theirs."""

    fused: FusedLinear | None = None
    """The linear decoder in a compiled loop."""
    shells: tuple[ShellLinear | ShellValueWeight, ...] = ()
    """Decoders on shells around the atoms."""

    def __bool__(self) -> bool:
        return self.fused is not None or bool(self.shells)


_prepared: WeakKeyDictionary[EACNet, tuple[tuple[int, bool], Kernels]] = WeakKeyDictionary()


def shell_kernels(network: EACNet) -> Kernels:
    """What evaluates the network.

    Empty where the network is to evaluate itself: in float64, which is there for references, and
    if its radial functions cannot be tabulated.
    """
    if network.dtype != torch.float32:
        return Kernels()
    state = (fingerprint(network), compiled_loop() is not None)
    known = _prepared.get(network)
    if known is None or known[0] != state:
        known = (state, _prepare(network))
        _prepared[network] = known
    return known[1]


def _prepare(network: EACNet) -> Kernels:
    fused: FusedLinear | None = None
    shells: list[ShellLinear | ShellValueWeight] = []
    try:
        if network.linear is not None or network.superposition is not None:
            if network.device.type == "cpu" and compiled_loop() is not None:
                fused = FusedLinear(network)
            else:
                shells.append(ShellLinear(network))
        if network.value_weight is not None:
            shells.append(ShellValueWeight(network))
    except ToleranceError:
        return Kernels()
    return Kernels(fused, tuple(shells))


def fingerprint(network: DensityNetwork) -> int:
    """Changes with the parameters, however they were changed; within this process.

    A checksum of their values: torch does not count changes made through ``data``.
    """
    checksum = 0
    for module in network.modules():
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            checksum = zlib.crc32(_bytes(tensor), checksum)
    return checksum


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return memoryview(flat.data)


def digest(network: DensityNetwork) -> str:
    """Hash of configuration and parameters, the same in every process."""
    found = hashlib.sha256(network.config.model_dump_json().encode())
    for name, tensor in network.state_dict().items():
        found.update(name.encode())
        found.update(_bytes(tensor))
    return found.hexdigest()
