"""A relaxation in which GPAW begins with predictions, and what that saves.

    python examples/relax_with_gpaw.py [MODEL]

The first geometry begins with the prediction; the others with the density that was converged last
and the change that the model predicts. Needs GPAW: pip install '.[gpaw]'.
"""

import sys

from ase.build import bulk
from ase.optimize import BFGS
from gpaw import GPAW

from eac_ase import EACDensity
from eac_ase.adapters.gpaw import start_from_density

settings = {
    "mode": {"name": "pw", "ecut": 400},
    "xc": "PBE",
    "kpts": {"size": (3, 3, 3), "gamma": True},
    "occupations": {"name": "fermi-dirac", "width": 0.1},
    "convergence": {"density": 1e-5},
    "txt": None,
}
silicon = bulk("Si")
silicon.rattle(0.05, seed=1)
model = EACDensity(sys.argv[1] if len(sys.argv) > 1 else "si-pbe")

for name in "GPAW alone", "predicted":
    atoms, iterations = silicon.copy(), []
    atoms.calc = GPAW(**settings)
    if name == "predicted":
        atoms.calc = start_from_density(atoms.calc, model)
    for _ in BFGS(atoms, logfile=None).irun(fmax=0.05, steps=10):
        iterations.append(atoms.calc.get_number_of_iterations())
    print(f"{atoms.get_potential_energy():.5f} eV")
    print(name, iterations)
passes = [start.passes for start in atoms.calc.predicted_start.starts]
print("after passes", passes)
