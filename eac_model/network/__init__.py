"""Networks: descriptors of atoms, densities at points."""

from eac_model.graph import AtomGraph, PointPairs
from eac_model.network.architectures import build, with_onsite
from eac_model.network.charge3net import ChargE3Net
from eac_model.network.config import (
    AnyNetworkConfig,
    ChargE3NetConfig,
    DeepChargeConfig,
    NetworkConfig,
    RadialBasis,
    network_config,
)
from eac_model.network.deepcharge import DeepCharge
from eac_model.network.density_network import DensityNetwork
from eac_model.network.eacnet import EACNet

__all__ = [
    "AnyNetworkConfig",
    "AtomGraph",
    "ChargE3Net",
    "ChargE3NetConfig",
    "DeepCharge",
    "DeepChargeConfig",
    "DensityNetwork",
    "EACNet",
    "NetworkConfig",
    "PointPairs",
    "RadialBasis",
    "build",
    "network_config",
    "with_onsite",
]
