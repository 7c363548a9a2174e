"""Several MPI processes, where GPAW was compiled for them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_gpaw = pytest.importorskip("_gpaw")

MPIEXEC = shutil.which("mpiexec")

SCRIPT = """
import json
from ase.build import bulk, molecule
from gpaw import GPAW
from gpaw.mpi import world
from eac_ase import EACDensity
from eac_ase.adapters.gpaw import start_from_density

settings = {
    "mode": {"name": "pw", "ecut": 150}, "xc": "PBE", "kpts": {"size": (2, 1, 1), "gamma": True},
    "occupations": {"name": "fermi-dirac", "width": 0.1}, "symmetry": "off", "txt": None,
    "convergence": {"density": 1e-4, "eigenstates": 1e-7},
}
model = EACDensity("si-pbe", device="cpu")
atoms = bulk("Si")
atoms.rattle(0.05, seed=1)
atoms.calc = start_from_density(GPAW(**settings), model, moves="predict")
energies = [atoms.get_potential_energy()]
atoms.positions[0, 0] += 0.02
energies.append(atoms.get_potential_energy())
try:
    other = molecule("CO", vacuum=2.0)
    other.calc = start_from_density(GPAW(mode=settings["mode"], xc="PBE", txt=None), model)
    other.get_potential_energy()
except Exception as error:
    refused = type(error).__name__
refusals = world.sum_scalar(int(refused == "UnknownElementError"))
if world.rank == 0:
    print("RESULT", json.dumps([world.size, energies, refusals]))
"""


def run(script: Path, *launcher: str) -> tuple[int, list[float], int]:
    repository = Path(__file__).parents[3]
    paths = [str(repository), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [*launcher, sys.executable, script],
        capture_output=True, text=True, timeout=600, check=False,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            "OMP_NUM_THREADS": "1",
            **({"GPAW_MPI_BACKEND": "cgpaw"} if launcher else {}),
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    size, energies, refusals = json.loads(line.removeprefix("RESULT "))
    return size, energies, refusals


@pytest.mark.skipif(
    MPIEXEC is None or not hasattr(_gpaw, "Communicator"),
    reason="GPAW was compiled without MPI, or there is no mpiexec",
)
def test_two_processes_share_k_points_predictions_and_errors(tmp_path):
    script = tmp_path / "parallel.py"
    script.write_text(SCRIPT)
    _, serial, _ = run(script)
    size, energies, refusals = run(script, str(MPIEXEC), "-n", "2")
    assert size == refusals == 2
    assert energies == pytest.approx(serial, abs=1e-6)
