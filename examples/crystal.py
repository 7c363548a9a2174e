"""An ice crystal: density on VASP's grid, charges, a line along a hydrogen bond.

    python examples/crystal.py [MODEL]

Cubic ice, the smallest cell that obeys the ice rules: two molecules, protons ordered. The bundled
model knows H and O only and was trained on liquid water; ice is close to that, but not the same.
"""

import sys

import numpy as np
from ase import Atoms
from ase.build import bulk

from eac_ase import EACDensity

ice = bulk("O", "diamond", a=6.36)  # O-O distance 2.75 Å
bonds = np.array([(1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)]) / np.sqrt(3)
for oxygen, directions in ((0, bonds[:2]), (1, -bonds[2:])):
    ice += Atoms("H2", ice.positions[oxygen] + 0.985 * directions)
ice.pbc = True

ice.calc = EACDensity(sys.argv[1] if len(sys.argv) > 1 else "water-scan")
print("net charges:", ice.get_charges().round(3))
print(f"{ice.calc.get_number_of_electrons():.3f} electrons in the cell")

grid = ice.calc.get_density_grid(shape=(48, 48, 48))  # NGXF NGYF NGZF of your calculation
grid.write("CHGCAR_ice")

line = grid.line(ice.positions[0], ice.positions[1], n=12)
for distance, density in zip(line.distance, line.values, strict=True):
    print(f"{distance:6.3f} Å  {density:8.4f} e/Å³")
