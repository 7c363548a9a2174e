"""What follows from a density: partitions into atoms, dipole moments, potentials."""

from eac_ase.analysis.dipoles import DipoleMoment, dipole_moment
from eac_ase.analysis.partition import Partition, Scheme, absolute_moment, partition
from eac_ase.analysis.potential import PlaneAverage, Potential, electrostatic_potential

__all__ = [
    "DipoleMoment",
    "Partition",
    "PlaneAverage",
    "Potential",
    "Scheme",
    "absolute_moment",
    "dipole_moment",
    "electrostatic_potential",
    "partition",
]
