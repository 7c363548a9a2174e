"""What a prepared VASP run asks for: its POSCAR, INCAR and POTCAR together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.calculator import InputError
from ase.data import atomic_numbers
from ase.io.vasp import read_vasp
from numpy.typing import NDArray

from eac_ase.adapters.incar import Incar
from eac_ase.adapters.potcar import PotcarDataset, read_potcar
from eac_ase.adapters.vasp_grid import FFTGrids, default_encut, fft_grids
from eac_model.data.textfile import read_bytes

_GGA = {
    "PE": "PBE",
    "PS": "PBEsol",
    "RP": "RPBE",
    "RE": "revPBE",
    "AM": "AM05",
    "91": "PW91",
    "CA": "LDA",
    "PZ": "LDA",
    "B3": "B3LYP",
    "BF": "BEEF",
    "OR": "optPBE",
    "BO": "optB88",
    "MK": "optB86b",
    "ML": "rPW86",
    "CX": "vdW-DF-cx",
}
_METAGGA = {"SCAN": "SCAN", "R2SCAN": "r2SCAN", "RSCAN": "rSCAN", "RTPSS": "revTPSS"}
_UNSET = ("", "--", "NONE", "-")


@dataclass(frozen=True)
class VaspRun:
    """A prepared run: what its POSCAR, INCAR and POTCAR say."""

    directory: Path
    atoms: Atoms
    """Structure in the order of POSCAR."""
    species: tuple[tuple[str, int], ...]
    """Symbol and number of atoms of every entry of POSCAR; an element may have several."""
    incar: Incar
    datasets: tuple[PotcarDataset, ...]
    """One for each of ``species``."""

    @classmethod
    def read(cls, directory: str | Path) -> VaspRun:
        """Read the input files of a directory; ``.gz`` files, too.

        Raises
        ------
        ase.calculators.calculator.InputError
            A file is missing or damaged, or POSCAR and POTCAR name different elements.
        """
        directory = Path(directory)
        if not directory.is_dir():
            raise InputError(
                f"There is no folder {directory}. Expected one with POSCAR, INCAR and POTCAR."
            )
        datasets = read_potcar(_find(directory, "POTCAR"))
        atoms, species = _read_poscar(_find(directory, "POSCAR"), datasets)
        wanted = [symbol for symbol, _ in species]
        given = [dataset.symbol for dataset in datasets]
        if wanted != given:
            raise InputError(
                f"{directory}: POSCAR lists {' '.join(wanted)}, POTCAR {' '.join(given)}. VASP "
                "takes them in the same order, one data set an entry of POSCAR."
            )
        return cls(directory, atoms, species, Incar.read(_find(directory, "INCAR")), datasets)

    @property
    def spin(self) -> bool:
        """ISPIN = 2."""
        return (self.incar.integer("ISPIN") or 1) == 2

    @property
    def neutral_electrons(self) -> float:
        """Sum of ZVAL over the atoms."""
        return sum(dataset.valence for dataset in self.dataset_of_atoms)

    @property
    def electrons(self) -> float:
        """NELECT of INCAR, or the electrons of the neutral atoms."""
        number = self.incar.number("NELECT")
        if number is not None and not 0 < number < float("inf"):
            raise InputError(f"{self.incar.name}: NELECT = {number:g} is no number of electrons.")
        return self.neutral_electrons if number is None else number

    @property
    def functional(self) -> str:
        """Exchange–correlation functional of INCAR, or else of the POTCAR."""
        return _functional(self.incar, self.datasets)

    @property
    def is_metagga(self) -> bool:
        """Whether the functional needs the kinetic-energy density, too."""
        words = [*self.incar.words("XC"), self.incar.word("METAGGA")]
        return any(word.upper() not in (*_UNSET, *_GGA) for word in words)

    @property
    def dataset_of_atoms(self) -> list[PotcarDataset]:
        """The data set of every atom."""
        pairs = zip(self.species, self.datasets, strict=True)
        return [dataset for (_, count), dataset in pairs for _ in range(count)]

    @property
    def default_moment(self) -> float:
        """MAGMOM of every atom where INCAR has none, μ_B: NUPDOWN shared out, else 1."""
        total = self.incar.number("NUPDOWN")
        return 1.0 if total is None or total < 0 else total / len(self.atoms)

    def moments(self) -> NDArray[np.float64]:
        """MAGMOM of every atom, μ_B, shape (n_atoms,).

        Raises
        ------
        ase.calculators.calculator.InputError
            INCAR gives another number of them.
        """
        values = self.incar.numbers("MAGMOM")
        if values and len(values) != len(self.atoms):
            raise InputError(
                f"{self.incar.name}: MAGMOM has {len(values)} moments, POSCAR {len(self.atoms)} "
                "atoms. Repetitions are written 3*0.6."
            )
        return np.array(values or [self.default_moment] * len(self.atoms))

    def grids(self, vasp_version: int = 6) -> FFTGrids:
        """The grids VASP will take (:mod:`eac_ase.adapters.vasp_grid`)."""
        prec = self.incar.word("PREC", "Normal")
        encut = self.incar.number("ENCUT")
        if encut is None:
            enmax = [dataset.enmax for dataset in self.datasets]
            encut = default_encut(prec, enmax, [dataset.enmin for dataset in self.datasets])
        known = [dataset.eaug for dataset in self.datasets if dataset.eaug is not None]
        enaug = self.incar.number("ENAUG") or max(known, default=None)
        x, y, z, xf, yf, zf = (
            self.incar.integer(f"NG{axis}{kind}") for kind in ("", "F") for axis in "XYZ"
        )
        return fft_grids(
            self.atoms.cell.array,
            encut,
            prec,
            enaug=enaug,
            coarse=(x, y, z),
            fine=(xf, yf, zf),
            vasp_version=vasp_version,
        )


def _find(directory: Path, name: str) -> Path:
    packed = directory / f"{name}.gz"
    return packed if packed.is_file() and not (directory / name).is_file() else directory / name


def _read_poscar(
    path: Path, datasets: Sequence[PotcarDataset]
) -> tuple[Atoms, tuple[tuple[str, int], ...]]:
    """Structure and species; headers of VASP 4 take their symbols from the POTCAR."""
    if not path.is_file():
        raise InputError(f"There is no file {path}.")
    lines = read_bytes(path).decode("utf-8-sig", errors="replace").splitlines()
    names = lines[5].split() if len(lines) > 7 else []
    if names and all(re.fullmatch(r"\d+", name) for name in names):
        lines.insert(5, "  ".join(dataset.symbol for dataset in datasets))
        names = lines[5].split()
    symbols = [_symbol(path, name) for name in names]
    counts = lines[6].split() if len(lines) > 7 else []
    if not symbols or len(counts) != len(symbols) or not all(n.isdigit() for n in counts):
        raise InputError(
            f"{path}: expected the elements in line 6 and as many numbers of atoms in line 7, "
            f"found {' '.join(names)!r} and {' '.join(counts)!r}."
        )
    lines[5] = "  ".join(symbols)
    try:
        atoms = read_vasp(StringIO("\n".join(lines) + "\n"))
    except Exception as error:
        # ASE's reader fails in every way there is.
        raise InputError(f"{path} cannot be read ({type(error).__name__}: {error}).") from error
    if np.linalg.det(atoms.cell.array) < 0:
        raise InputError(
            f"{path}: the cell vectors are left-handed, where VASP stops. Exchange two of them, "
            "and the same two numbers of every scaled position."
        )
    species = tuple(zip(symbols, map(int, counts), strict=True))
    atoms.constraints = []
    return atoms, species


def _symbol(path: Path, name: str) -> str:
    match = re.match(r"[A-Z][a-z]?(?![a-z])", name)
    if match is None or match[0] not in atomic_numbers:
        raise InputError(f"{path}, line 6: {name!r} is no element.")
    return match[0]


def _functional(incar: Incar, datasets: Sequence[PotcarDataset]) -> str:
    """The name of the functional, as model cards have it."""
    combined = [word.upper() for word in incar.words("XC")]
    meta, gga = incar.word("METAGGA").upper(), incar.word("GGA").upper()
    if combined:
        name = "+".join(_METAGGA.get(word, _GGA.get(word, word)) for word in combined)
    elif meta not in _UNSET:
        name = _METAGGA.get(meta, meta)
    elif gga not in _UNSET:
        name = _GGA.get(gga[:2], gga)
    else:
        of_potcar = sorted({dataset.functional for dataset in datasets})
        if len(of_potcar) > 1:
            raise InputError(
                f"The data sets of the POTCAR are for different functionals "
                f"(LEXCH = {', '.join(of_potcar)})."
            )
        name = _GGA.get(of_potcar[0], of_potcar[0])
    if incar.boolean("LHFCALC"):
        name = _hybrid(name, incar)
    if incar.boolean("LUSE_VDW"):
        name += "+rVV10" if "SCAN" in name else "-vdW"
    if incar.boolean("LDAU"):
        name += "+U"
    return name


def _hybrid(name: str, incar: Incar) -> str:
    exchange = 0.25 if (given := incar.number("AEXX")) is None else given
    screening = incar.number("HFSCREEN") or 0.0
    known = {("PBE", 0.0): "PBE0", ("PBE", 0.2): "HSE06", ("PBE", 0.3): "HSE03"}
    if exchange == 0.25 and (name, screening) in known:
        return known[name, screening]
    if name == "B3LYP":
        return name
    return f"{name} hybrid (AEXX = {exchange:g}, HFSCREEN = {screening:g})"
