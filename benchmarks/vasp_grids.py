"""Do VASP's grids follow the rules of eac_ase.adapters.vasp_grid? Ask OUTCAR files.

    python benchmarks/vasp_grids.py FOLDER...

Compares NGX and NGXF of every OUTCAR (also gzipped) under the folders with the rules, given the
cell, PREC, ENCUT and ENAUG that the OUTCAR prints. Test files of public packages are a good source:
pymatgen, custodian, aiida-vasp, sisl. Runs whose INCAR sets NGX or NGXF differ, rightly.
"""

from __future__ import annotations

import gzip
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from eac_ase.adapters.vasp_grid import fft_grids

GRID = r"dimension x,y,z {0}X{1}\s*=\s*(\d+)\s*{0}Y{1}\s*=\s*(\d+)\s*{0}Z{1}\s*=\s*(\d+)"
VERSION = re.compile(r"vasp\.(\d)")
PREC = re.compile(r"PREC\s*=\s*(\w+)")
ENCUT = re.compile(r"ENCUT\s*=\s*([\d.]+) eV")
ENAUG = re.compile(r"ENAUG\s*=\s*([\d.]+)")
LENGTHS = re.compile(r"length of vectors\s*\n\s*(\S+)\s+(\S+)\s+(\S+)")


def compare(path: Path) -> tuple[str, bool] | None:
    """PREC and whether the grids agree; None for files that lack something."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("latin-1")
    coarse, fine = (re.search(GRID.format("NG", kind), text) for kind in ("", "F"))
    version, prec, encut, enaug = (p.search(text) for p in (VERSION, PREC, ENCUT, ENAUG))
    # Before the grids, the cell may be that of the symmetry analysis.
    lengths = LENGTHS.search(text, coarse.end()) if coarse else None
    if not (coarse and fine and version and prec and encut and enaug and lengths):
        return None
    found = fft_grids(
        np.diag([float(x) for x in lengths.groups()]),
        float(encut[1]),
        prec[1],
        enaug=float(enaug[1]),
        vasp_version=int(version[1]),
    )
    printed = tuple(tuple(int(n) for n in match.groups()) for match in (coarse, fine))
    agrees = printed == (found.coarse, found.fine)
    if not agrees:
        print(f"{path}: VASP {printed[0]} {printed[1]}, rules {found.coarse} {found.fine}")
    return prec[1][:1].upper(), agrees


def main() -> None:
    files = sorted({path for folder in sys.argv[1:] for path in Path(folder).rglob("*OUTCAR*")})
    results = []
    for path in files:
        try:
            results.append(compare(path))
        except (OSError, EOFError) as error:
            print(f"{path}: {error}")
    counts = Counter(result for result in results if result is not None)
    for prec in sorted({prec for prec, _ in counts}):
        print(f"PREC {prec}: {counts[prec, True]} agree, {counts[prec, False]} differ")


if __name__ == "__main__":
    main()
