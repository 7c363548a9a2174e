"""A water molecule: density, charges, dipole moment.

    python examples/molecule.py [MODEL]

The bundled model knows hydrogen and oxygen only and has learned them in liquid water, so a lone
molecule is outside of what it was trained on: compare with a calculation before you trust it.
"""

import sys

from ase.build import molecule

from eac_ase import EACDensity, Plane, plot_plane

atoms = molecule("H2O")
atoms.calc = EACDensity(sys.argv[1] if len(sys.argv) > 1 else "water-scan", normalize=True)

for symbol, charge in zip(atoms.symbols, atoms.get_charges(), strict=True):
    print(f"net charge of {symbol}: {charge:+.3f} e")
print("dipole moment, e Å:", atoms.get_dipole_moment().round(3))

grid = atoms.calc.get_density_grid()  # a box is made around the molecule
print(f"{grid.integrate():.4f} electrons on a grid of {grid.shape}")
grid.write("molecule.cube")

# Values anywhere, without a grid: halfway along a bond, and on a fine plane.
print("in the middle of O-H, e/Å³:", atoms.calc.evaluate(atoms.positions[:2].mean(axis=0)))
cut = grid.plane(Plane.through_molecule(atoms))
plot_plane(cut, atoms, title="water").savefig("molecule.png", dpi=150)
