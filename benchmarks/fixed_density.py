"""Energies, eigenvalues and forces of GPAW without self-consistency, against self-consistent ones.

    export OMP_NUM_THREADS=1
    python benchmarks/fixed_density.py --model si-pbe --stores data/si-pbe-test.store

Structures come from stores of `eac data gpaw`, which hold the self-consistent results. Eigenvalues
are those up to 3 eV above the Fermi level, each set relative to its own mean of the occupied ones;
forces are those of the formula for self-consistent densities. Results go to OUT.json, one by one,
and a table to OUT.md.
"""

import argparse
import warnings
from pathlib import Path
from statistics import mean
from time import process_time

import numpy as np
from ase.units import Ha
from gpaw import GPAW
from runs import RESULTS, KeyedResults
from tqdm import tqdm

from eac_ase import EACDensity
from eac_ase.adapters.gpaw import fixed_density
from eac_model.data import DensityStore
from eac_model.data.sample import DensitySample
from eac_model.files import digest, write_bytes
from eac_model.registry import find_model

ABOVE = 3.0  # eV


def compare(sample: DensitySample, model: EACDensity) -> dict[str, float]:
    """Errors of one structure."""
    exact = sample.calculation
    began = process_time()
    atoms = sample.atoms.copy()
    atoms.calc = fixed_density(GPAW(**exact.settings, txt=None), model)
    energy = atoms.get_potential_energy()
    seconds = process_time() - began
    found, _ = (np.array(values) for values in atoms.calc.dft.ibzwfs.get_all_eigs_and_occs())
    found, known = found.reshape(exact.eigenvalues.shape) * Ha, exact.eigenvalues
    occupied = exact.occupations > 0.5 * exact.occupations.max()
    shift = (found - known)[occupied].mean()
    near = known < exact.fermi_level + ABOVE
    deviation = (found - known - shift)[near]
    forces = atoms.get_forces()
    return {
        "meV an atom": 1000 * (energy - exact.energy) / len(atoms),
        "meV of eigenvalues": 1000 * float(np.sqrt((deviation**2).mean())),
        "meV/Å": 1000 * float(np.abs(forces - exact.forces).mean()),
        "CPU time": seconds / exact.seconds,
    }


def main() -> None:
    """Compare every structure of the stores."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a bundled model or a model file")
    parser.add_argument("--stores", nargs="+", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="stem of the files")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    model = EACDensity(arguments.model)
    out = arguments.out or RESULTS / f"fixed_density_{Path(arguments.model).stem}"
    settings = {"model": digest(find_model(arguments.model))}
    results = KeyedResults(out.with_suffix(".json"), settings)
    for path in arguments.stores:
        store = DensityStore.open(path)
        for index, entry in enumerate(tqdm(store.entries, desc=path.name)):
            if results.missing(name := entry.source.split()[0]):
                errors = compare(store.read(index), model)
                results.add(name, {"formula": entry.formula, **errors})
    families: dict[str, list[dict]] = {}
    for name, found in results.values.items():
        families.setdefault(name.split("/")[0], []).append(found)
    lines = [
        "Mean absolute errors against self-consistent calculations; CPU time as a ratio to theirs.",
        "",
        "| structures | number | energy, meV/atom | eigenvalues, meV | forces, meV/Å | CPU time |",
        "|---|---|---|---|---|---|",
    ]
    for family, rows in families.items():
        means = [
            mean(abs(row[key]) for row in rows)
            for key in ("meV an atom", "meV of eigenvalues", "meV/Å", "CPU time")
        ]
        figures = " | ".join(
            f"{value:.{digits}f}" for value, digits in zip(means, (3, 1, 1, 2), strict=True)
        )
        lines.append(f"| {family} | {len(rows)} | {figures} |")
    write_bytes(out.with_suffix(".md"), ("\n".join(lines) + "\n").encode())
    print("\n".join(lines))


if __name__ == "__main__":
    main()
