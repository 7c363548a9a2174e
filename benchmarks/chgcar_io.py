"""Seconds to read and to write one CHGCAR: this package, pymatgen and ASE on the same file.

    python benchmarks/chgcar_io.py                      # 200³, 100³; about five minutes
    python benchmarks/chgcar_io.py --sizes 60 --repeats 5

All programs take turns, and the best of the repeats counts; one thread. Ratios are those of the
processor's time, which other work on the machine disturbs least. The file holds 64 atoms
with augmentation occupancies and a spin-paired density over six orders of magnitude. What every
program reads is compared with what was written. The floors are the bytes of the file and NumPy's
own conversion of its numbers, without looking whether they are numbers.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
from ase.build import bulk
from ase.calculators.vasp import VaspChargeDensity

from eac_ase.adapters.ase import to_vasp_charge_density
from eac_model.data import DensitySample, read_chgcar, write_chgcar
from eac_model.files import write_bytes

RESULTS = Path(__file__).resolve().parent / "results" / "chgcar_io.json"


def main() -> None:
    options = _options()
    rows = [row for size in options.sizes for row in measure(size, options)]
    packages = {name: _version(name) for name in ("numpy", "ase", "pymatgen", "pymatgen-core")}
    settings = {"python": platform.python_version(), "repeats": options.repeats, **packages}
    text = json.dumps({"settings": settings, "rows": rows}, indent=1)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(options.output, text.encode())
    write_bytes(options.output.with_suffix(".md"), table(rows).encode())
    print(table(rows))


def measure(size: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Times of all programs for a grid of size³."""
    sample = make_sample(size)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "CHGCAR"
        write_chgcar(path, sample)
        expected = read_chgcar(path)
        rows: list[dict[str, Any]] = []
        for task, programs in (
            ("read", readers(path)),
            ("write", writers(Path(folder), sample, path, options.slow)),
        ):
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
            for repeat in range(options.repeats):
                for name, run in programs.items():
                    slow = name in ("pymatgen", "ASE")
                    if slow and repeat >= options.slow:
                        continue
                    start = process_time(), perf_counter()
                    result = run()
                    times[name].append((process_time() - start[0], perf_counter() - start[1]))
                    if repeat == 0 and isinstance(result, np.ndarray) and result.ndim == 3:
                        np.testing.assert_allclose(result, expected.density, rtol=2e-9)
                    del result
            ours = min(times["this package"])[0]
            rows += [
                {
                    "grid": size,
                    "megabytes": path.stat().st_size / 1e6,
                    "task": task,
                    "program": name,
                    "seconds": min(wall for _, wall in found),
                    "cpu_seconds": min(found)[0],
                    "relative": min(found)[0] / ours,
                    "repeats": len(found),
                }
                for name, found in times.items()
                if found
            ]
    return rows


def make_sample(size: int) -> DensitySample:
    """Rock salt, 64 atoms, with occupancies of the sizes of Na_pv and Cl."""
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True) * (2, 2, 2)
    atoms = atoms[np.argsort(-atoms.numbers, kind="stable")]
    rng = np.random.default_rng(0)
    density = rng.random((size,) * 3) * 10.0 ** rng.integers(-4, 2, size=(size,) * 3)
    onsite = tuple(rng.normal(size=33) for _ in atoms)
    return DensitySample(atoms=atoms, density=density, onsite=onsite)


def readers(path: Path) -> dict[str, Callable[[], Any]]:
    """Program → function that reads the file."""

    def pymatgen() -> np.ndarray:
        from pymatgen.io.vasp.outputs import Chgcar

        chgcar = Chgcar.from_file(str(path))
        return chgcar.data["total"] / chgcar.structure.volume

    def numbers() -> np.ndarray:
        content = path.read_bytes()
        start = content.index(b"\n", content.index(b"\n\n") + 2)
        end = content.index(b"augmentation")
        return np.fromstring(content[start:end], sep=" ")

    return {
        "this package": lambda: read_chgcar(path).density,
        "ASE": lambda: VaspChargeDensity(str(path)).chg[0],
        **({"pymatgen": pymatgen} if _version("pymatgen-core") or _version("pymatgen") else {}),
        "floor: bytes": path.read_bytes,
        "floor: numpy.fromstring": numbers,
    }


def writers(
    folder: Path, sample: DensitySample, path: Path, slow: int
) -> dict[str, Callable[[], Any]]:
    """Program → function that writes the density to a file of its own."""
    content = path.read_bytes()
    programs: dict[str, Callable[[], Any]] = {
        "this package": lambda: write_chgcar(folder / "ours", sample),
        "this package, gzip": lambda: write_chgcar(folder / "ours.gz", sample),
        "floor: bytes": lambda: (folder / "bytes").write_bytes(content),
    }
    if slow:
        charge = to_vasp_charge_density(sample)
        programs["ASE"] = lambda: charge.write(str(folder / "ase"), format="chgcar")
    if slow and (_version("pymatgen-core") or _version("pymatgen")):
        from eac_ase.adapters.pymatgen import to_pymatgen

        chgcar = to_pymatgen(sample)
        programs["pymatgen"] = lambda: chgcar.write_file(str(folder / "pymatgen"))
    return programs


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown table of the results."""
    lines = [
        "| grid | file | task | program | seconds | CPU seconds | relative | MB/s |",
        "| ---: | ---: | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        lines.append(
            f"| {row['grid']}³ | {row['megabytes']:.0f} MB | {row['task']} | {row['program']} | "
            f"{row['seconds']:.2f} | {row['cpu_seconds']:.2f} | {row['relative']:.2f} | "
            f"{row['megabytes'] / max(row['seconds'], 1e-9):.0f} |"
        )
    return "\n".join(lines) + "\n"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--sizes", type=int, nargs="+", default=[100, 200], help="points an axis")
    options.add_argument("--repeats", type=int, default=5, help="turns of this package and floors")
    options.add_argument("--slow", type=int, default=2, help="turns of ASE and pymatgen")
    options.add_argument("--folder", type=Path, default=None, help="for the files (temporary)")
    options.add_argument("--output", type=Path, default=RESULTS, help="results; .md beside it")
    return options.parse_args()


if __name__ == "__main__":
    main()
