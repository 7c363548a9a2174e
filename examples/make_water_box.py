"""Make the liquid water cell of ``eac demo``: 16 H2O at 1 g/cm³, seeded, nothing downloaded.

Rigid TIP3P molecular dynamics at 300 K (RATTLE) arranges the molecules; then every molecule gets
O–H lengths and an H–O–H angle drawn about the values of flexible liquid water, because that is
what the bundled model was trained on. The result is committed as
``eac_ase/structures/water48.xyz``; running this again gives the same structure on the same machine
(molecular dynamics amplifies rounding, so another machine may end at another snapshot).

    python examples/make_water_box.py eac_ase/structures/water48.xyz
"""

import sys

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.tip3p import TIP3P, angleHOH, rOH
from ase.constraints import FixBondLengths
from ase.io import write
from ase.md.langevin import Langevin
from rich.progress import track

MOLECULES = 16
STEPS = 3000
TIME_STEP = 1.0 * units.fs
BOND, BOND_SPREAD = 0.985, 0.025  # Å, thermal O–H bonds of liquid water
ANGLE, ANGLE_SPREAD = 105.5, 4.0  # degrees


def lattice_of_molecules(rng: np.random.Generator) -> Atoms:
    """TIP3P molecules, randomly turned, on a cubic lattice at 1 g/cm³."""
    one = molecule("H2O")
    one.set_angle(1, 0, 2, angleHOH)
    one.set_distance(0, 1, rOH, fix=0)
    one.set_distance(0, 2, rOH, fix=0)
    one.positions -= one.positions[0]
    edge = (MOLECULES * one.get_masses().sum() / units.mol * 1e24) ** (1 / 3)
    sites = [np.array(site) / 3 for site in np.ndindex(3, 3, 3)]
    water = Atoms(cell=[edge] * 3, pbc=True)
    for site in rng.choice(sites, MOLECULES, replace=False):
        copy = one.copy()
        copy.euler_rotate(*rng.uniform(0, 360, 3))
        copy.positions += site * edge
        water += copy
    return water


def bend_and_stretch(water: Atoms, rng: np.random.Generator) -> None:
    """Give every rigid molecule the bonds and the angle of a flexible one."""
    for o in range(0, len(water), 3):
        a, b = (water.positions[o + k] - water.positions[o] for k in (1, 2))
        middle, across = a / np.linalg.norm(a) + b / np.linalg.norm(b), b - a
        middle, across = middle / np.linalg.norm(middle), across / np.linalg.norm(across)
        half = np.radians(rng.normal(ANGLE, ANGLE_SPREAD)) / 2
        for k, side in ((1, -1), (2, 1)):
            direction = np.cos(half) * middle + side * np.sin(half) * across
            water.positions[o + k] = water.positions[o] + rng.normal(BOND, BOND_SPREAD) * direction


def main(path: str) -> None:
    rng = np.random.default_rng(16)
    water = lattice_of_molecules(rng)
    first = 3 * np.arange(MOLECULES)
    pairs = np.concatenate([[(o, o + 1), (o, o + 2), (o + 1, o + 2)] for o in first])
    water.set_constraint(FixBondLengths(pairs, tolerance=1e-6))
    water.calc = TIP3P(rc=0.49 * water.cell.lengths().min(), width=0.8)
    md = Langevin(
        water, TIME_STEP, temperature_K=300, friction=0.05 / units.fs, rng=rng, fixcm=False
    )
    for _ in track(range(STEPS), "molecular dynamics"):
        md.run(1)
    water.set_constraint()
    water.calc = None
    bend_and_stretch(water, rng)
    water = Atoms(water.symbols, water.positions, cell=water.cell, pbc=True)
    water.wrap()
    write(path, water, format="extxyz")


if __name__ == "__main__":
    main(sys.argv[1])
