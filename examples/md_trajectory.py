"""Charges along a trajectory of liquid water.

    python examples/md_trajectory.py [MODEL]

A classical potential (rigid TIP3P) moves the atoms, the model looks at every tenth step. Any
trajectory ASE reads will do instead: loop over ase.io.iread("md.traj"). The bundled model knows H
and O only; liquid water is what it was trained on.
"""

import sys
from importlib.resources import files

import numpy as np
from ase import units
from ase.calculators.tip3p import TIP3P
from ase.constraints import FixBondLengths
from ase.io import read
from ase.md.verlet import VelocityVerlet

from eac_ase import EACDensity

water = read(str(files("eac_ase") / "structures" / "water48.xyz"))
oxygens = np.arange(0, len(water), 3)
bonds = [(o + i, o + j) for o in oxygens for i, j in ((0, 1), (0, 2), (1, 2))]
water.set_constraint(FixBondLengths(bonds))
water.calc = TIP3P(rc=3.8, width=0.8)
molecular_dynamics = VelocityVerlet(water, timestep=1.0 * units.fs)

density = EACDensity(sys.argv[1] if len(sys.argv) > 1 else "water-scan", normalize=True)
for step in range(0, 21, 10):
    charges = density.get_charges(water)  # water keeps TIP3P as its calculator
    print(
        f"{step:4d} fs  O {charges[oxygens].mean():+.3f} ± {charges[oxygens].std():.3f} e  "
        f"sum {charges.sum():+.1e} e"
    )
    molecular_dynamics.run(10)
