"""A layer of water with two surfaces: how the density falls off into the vacuum.

    python examples/slab.py [MODEL]

Periodic along x and y, open along z. The bundled model knows H and O only and was trained on bulk
liquid water; it has never seen a surface.
"""

import sys
from importlib.resources import files

from ase.io import read

from eac_ase import EACDensity

water = read(str(files("eac_ase") / "structures" / "water48.xyz"))
for oxygen in range(0, len(water), 3):  # O, H, H: put together what the cell faces cut
    hydrogens = [oxygen + 1, oxygen + 2]
    bonds = water.get_distances(oxygen, hydrogens, mic=True, vector=True)
    water.positions[hydrogens] = water.positions[oxygen] + bonds
water.pbc = (True, True, False)
water.center(vacuum=5.0, axis=2)

water.calc = EACDensity(sys.argv[1] if len(sys.argv) > 1 else "water-scan")
grid = water.calc.get_density_grid(spacing=0.15)
print(f"{grid.integrate():.3f} electrons, grid {grid.shape}")

area = grid.volume / grid.cell[2, 2]
profile = grid.values.mean(axis=(0, 1)) * area  # e/Å
for k in range(0, grid.shape[2], 6):
    z = grid.origin[2] + k * grid.cell[2, 2] / grid.shape[2]
    print(f"z = {z:6.2f} Å  {profile[k]:8.3f} e/Å")
grid.write("slab.xsf")
