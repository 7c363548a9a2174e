"""The FFT grids VASP chooses, so that a density lies on the points VASP expects.

VASP reads a CHGCAR only if its grid is exactly NGXF × NGYF × NGZF ("dimensions on CHGCAR file are
different" otherwise). The rules, with G_cut and G_aug the plane-wave numbers of ENCUT and ENAUG
along a cell vector (length of the vector times √E in atomic units over 2π):

=============================  ================  ==================
PREC                           NGX               NGXF
=============================  ================  ==================
Normal (default)               3 G_cut           2 NGX
Accurate                       4 G_cut           2 NGX
Single, VASP 6                 4 G_cut           NGX
Single, VASP 5; SingleN        3 G_cut           NGX
Low                            3 G_cut           3 G_aug
Medium                         3 G_cut           4 G_aug
High                           4 G_cut           16/3 G_aug
=============================  ================  ==================

Each number is raised to the next even product of 2, 3, 5 and 7. An NGX in INCAR replaces the rule,
also where NGXF follows from it; an NGXF in INCAR goes before everything.

Sources: https://vasp.at/wiki/PREC, /NGX, /NGXF, /ENCUT, /ENAUG (the wiki counts G from −G_cut to
G_cut and writes 3/2 and 2 G_cut for 3 and 4 here). Rounding, allowed factors and constants are
those of ``pymatgen.io.vasp.sets.VaspInputSet.calculate_ng`` for VASP 6, confirmed, with the rules
of all versions, by the NGX and NGXF in the OUTCAR files of public repositories
(``benchmarks/vasp_grids.py``).
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import pi, sqrt
from pathlib import Path
from typing import Literal

import numpy as np
from ase.calculators.calculator import InputError
from numpy.typing import ArrayLike

from eac_model.lattice import Shape

Precision = Literal["normal", "accurate", "single", "singlen", "low", "medium", "high"]

# VASP's own constants: a boundary case has to fall on the same side.
_RYDBERG = 13.605826
_BOHR = 0.529177249

_HIGH_ENCUT = 1.25
"""ENCUT over the largest ENMAX for PREC = High. The wiki says 1.3; OUTCAR files of VASP 5.2 and
5.4.4 without ENCUT in INCAR have 1.25."""


@dataclass(frozen=True)
class FFTGrids:
    """Numbers of points along the three cell vectors."""

    coarse: Shape
    """NGX, NGY, NGZ: orbitals."""
    fine: Shape
    """NGXF, NGYF, NGZF: density, potential; what CHGCAR holds."""


def fft_grids(
    cell: ArrayLike,
    encut: float,
    prec: str = "Normal",
    *,
    enaug: float | None = None,
    coarse: tuple[int | None, int | None, int | None] = (None, None, None),
    fine: tuple[int | None, int | None, int | None] = (None, None, None),
    vasp_version: int = 6,
) -> FFTGrids:
    """The grids VASP takes for a cell.

    Parameters
    ----------
    cell
        Cell vectors, one a row, Å, shape (3, 3).
    encut
        ENCUT, eV; see :func:`default_encut`.
    prec
        PREC; the first letter counts, as in VASP (and ``SingleN``).
    enaug
        ENAUG, eV; needed by ``Low``, ``Medium`` and ``High`` only. By default VASP takes the
        largest EAUG of the POTCAR.
    coarse, fine
        NGX, NGY, NGZ and NGXF, NGYF, NGZF where INCAR sets them, None where it does not.
    vasp_version
        Major version. It matters for ``Single`` only.

    Raises
    ------
    ase.calculators.calculator.InputError
        Unknown PREC, no ENAUG where it is needed, a number in INCAR that no FFT takes.

    Examples
    --------
    Liquid water, 680 eV, the cell of the training data of ``water-scan`` (cubic, 7.946534 Å):

    >>> import numpy as np
    >>> fft_grids(7.946534 * np.eye(3), 680, "Accurate").fine
    (140, 140, 140)
    """
    mode = precision(prec)
    lengths = np.linalg.norm(np.asarray(cell, dtype=float).reshape(3, 3), axis=1)
    if not (np.isfinite(encut) and encut > 0):
        raise InputError(f"ENCUT has to be positive, not {encut} eV.")
    wide = mode in ("accurate", "high") or (mode == "single" and vasp_version >= 6)
    coarse_shape = _shape(
        given or next_size(int((4 if wide else 3) * _reach(length, encut) + 0.5))
        for length, given in zip(lengths, _checked("NGX, NGY, NGZ", coarse), strict=True)
    )
    if mode in ("normal", "accurate"):
        rule = [2 * n for n in coarse_shape]
    elif mode in ("single", "singlen"):
        rule = list(coarse_shape)
    else:
        if enaug is None or not enaug > 0:
            raise InputError(
                f"PREC = {prec}: the fine grid follows from ENAUG. Set it in INCAR, or take a "
                "POTCAR that has EAUG."
            )
        factor = {"low": 3.0, "medium": 4.0, "high": 16 / 3}[mode]
        rule = [int(factor * _reach(length, enaug)) for length in lengths]
    fine_shape = _shape(
        given or next_size(n)
        for n, given in zip(rule, _checked("NGXF, NGYF, NGZF", fine), strict=True)
    )
    return FFTGrids(coarse_shape, fine_shape)


def default_encut(prec: str, enmax: list[float], enmin: list[float]) -> float:
    """ENCUT (eV) where INCAR has none, from ENMAX and ENMIN of all data sets of the POTCAR.

    The largest ENMAX; for PREC = Low the largest ENMIN, for High 1.25 times the largest ENMAX.
    """
    match precision(prec):
        case "low":
            return max(enmin)
        case "high":
            return _HIGH_ENCUT * max(enmax)
    return max(enmax)


def precision(prec: str) -> Precision:
    """What a value of PREC stands for.

    Raises
    ------
    ase.calculators.calculator.InputError
        VASP knows no such value.
    """
    if prec.strip().lower() == "singlen":
        return "singlen"
    modes: tuple[Precision, ...] = ("normal", "accurate", "single", "low", "medium", "high")
    for mode in modes:
        if prec.strip().lower()[:1] == mode[0]:
            return mode
    known = ", ".join([*(mode.capitalize() for mode in modes), "SingleN"])
    raise InputError(f"PREC = {prec!r} is none of VASP's settings: {known}.")


def next_size(n: int) -> int:
    """The smallest number of points ≥ n that VASP's FFT takes: even, factors 2, 3, 5 and 7."""
    n = max(2, n + n % 2)
    while not _allowed(n):
        n += 2
    return n


def check_shape(what: str, shape: Sequence[int]) -> Shape:
    """Refuse a grid that VASP's FFT does not take.

    Raises
    ------
    ase.calculators.calculator.InputError
        Names ``what`` and the next size that is taken.
    """
    _checked(what, shape)
    return _shape(shape)


def grid_of(path: str | Path) -> Shape:
    """The fine grid of an earlier run, from its CHGCAR (CHG, LOCPOT …), OUTCAR or vasprun.xml.

    Only the first lines are read; ``.gz`` files too.

    Raises
    ------
    ase.calculators.calculator.InputError
        There is no grid in the file.
    """
    path = Path(path)
    name = path.name.lower()
    if "outcar" in name:
        pattern = r"NGXF=\s*(\d+)\s+NGYF=\s*(\d+)\s+NGZF=\s*(\d+)"
    elif "vasprun" in name:
        pattern = r"(?s)name=\"NGXF\">\s*(\d+)<.*?\"NGYF\">\s*(\d+)<.*?\"NGZF\">\s*(\d+)<"
    else:
        # The dimensions follow the blank line after the positions.
        pattern = r"\n[ \t]*\r?\n[ \t]*(\d+)[ \t]+(\d+)[ \t]+(\d+)[ \t]*\r?\n"
    if not path.is_file():
        raise InputError(f"There is no file {path} to take the grid of.")
    try:
        with gzip.open(path, "rb") if name.endswith(".gz") else path.open("rb") as stream:
            text = stream.read(2**24).decode("latin-1")
    except (OSError, EOFError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    found = re.search(pattern, text)
    if found is None:
        raise InputError(
            f"{path} names no fine FFT grid. Known are CHGCAR and its like, OUTCAR, vasprun.xml."
        )
    return _shape(int(n) for n in found.groups())


def _reach(length: float, energy: float) -> float:
    """Plane waves up to an energy (eV) along a cell vector (Å), counted from Γ in one direction."""
    return sqrt(energy / _RYDBERG) / (2 * pi / (length / _BOHR))


def _allowed(n: int, primes: Sequence[int] = (2, 3, 5, 7)) -> bool:
    for prime in primes:
        while n % prime == 0:
            n //= prime
    return n == 1


def _checked(names: str, values: Sequence[int | None]) -> Sequence[int | None]:
    for n in values:
        # Builds of VASP with FFTW also take factors 11 and 13 if they are asked to.
        if n is not None and (n < 2 or n % 2 or not _allowed(n, (2, 3, 5, 7, 11, 13))):
            raise InputError(
                f"{names}: {n} is no size VASP's FFT takes (even, factors 2, 3, 5 and 7); the next "
                f"is {next_size(n)}."
            )
    return values


def _shape(numbers: Iterable[int]) -> Shape:
    first, second, third = numbers
    return first, second, third
