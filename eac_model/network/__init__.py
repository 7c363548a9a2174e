"""The network: descriptors of atoms, decoders at points."""

from eac_model.graph import AtomGraph, PointPairs
from eac_model.network.config import NetworkConfig, RadialBasis
from eac_model.network.eacnet import EACNet, build

__all__ = ["AtomGraph", "EACNet", "NetworkConfig", "PointPairs", "RadialBasis", "build"]
