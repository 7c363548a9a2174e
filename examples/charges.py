"""Charges of a molecule by several schemes, its dipole moment and its electrostatic potential.

    python examples/charges.py [MODEL]

The bundled model has learned liquid water; a lone molecule is outside of what it has seen.
"""

import sys

from ase.build import molecule

from eac_ase import EACDensity
from eac_ase.analysis import dipole_moment, electrostatic_potential

atoms = molecule("H2O")
atoms.calc = EACDensity(sys.argv[1] if len(sys.argv) > 1 else "water-scan")

for scheme in "eac", "hirshfeld", "iterative-hirshfeld", "voronoi":
    found = atoms.calc.partition(scheme, spacing=0.12)
    print(f"{scheme:20s}", " O {:+.3f}  H {:+.3f}  H {:+.3f}".format(*found.charges))
found.write("charges.json")
found.write("charges.xyz")  # ase gui charges.xyz: View, Show Labels, Initial Charges

grid = atoms.calc.get_density_grid(spacing=0.15)
valence = {"O": 6, "H": 1}
dipole = dipole_moment(grid, valence_electrons=valence)
print("dipole moment, e Å:", dipole.vector.round(3))

potential = electrostatic_potential(grid, valence_electrons=valence)
average = potential.planar_average(axis=2)
for k in range(0, len(average.values), len(average.values) // 8):
    print(f"z = {average.distance[k]:6.2f} Å  {average.values[k]:8.3f} eV")
