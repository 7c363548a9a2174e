"""The architectures there are, by the name their configuration bears."""

from __future__ import annotations

from typing import Any

import torch

from eac_model.network.charge3net import ChargE3Net
from eac_model.network.config import AnyNetworkConfig, network_config
from eac_model.network.deepcharge import DeepCharge
from eac_model.network.density_network import DensityNetwork
from eac_model.network.eacnet import EACNet
from eac_model.onsite import OnsiteLayout

ARCHITECTURES: dict[str, Any] = {
    "eac-net": EACNet,
    "deep-charge": DeepCharge,
    "charge3net": ChargE3Net,
}
"""Network classes; each takes its configuration."""


def build(config: AnyNetworkConfig, dtype: torch.dtype) -> DensityNetwork:
    """A network made in a floating-point type, with constants exact in it.

    ``EACNet(config).double()`` has constants that were rounded to float32 before: equivariance
    then holds to 1e-8 only.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        network: DensityNetwork = ARCHITECTURES[config.architecture](config)
        return network
    finally:
        torch.set_default_dtype(before)


def with_onsite(network: DensityNetwork, layout: OnsiteLayout | None) -> DensityNetwork:
    """The same network with another layout of on-site data; the head is untrained if it differs."""
    if layout == network.config.onsite:
        return network
    onsite = None if layout is None else layout.model_dump()
    config = network_config({**network.config.model_dump(), "onsite": onsite})
    changed = build(config, network.dtype).to(network.device)
    kept = {k: v for k, v in network.state_dict().items() if not k.startswith("onsite.")}
    changed.load_state_dict(kept, strict=False)
    return changed
