"""VASP's CHGCAR and CHG files.

Layout: a POSCAR header; a blank line; the grid dimensions; density × cell volume, the first
index running fastest; blocks of augmentation occupancies (on-site PAW data) in the order of the
atoms. Spin-polarised files go on with the atoms' initial moments (MAGMOM), the dimensions again,
ρ↑ − ρ↓ in the same way, and its occupancies.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from numpy.typing import NDArray

from eac_model.data.fortran import format_rows
from eac_model.data.sample import DensityKind, DensitySample, Provenance
from eac_model.data.textfile import NumberedText
from eac_model.errors import DensityFileError, GridError
from eac_model.files import replacing

Occupancies = tuple[NDArray[np.float64], ...]

_AUGMENTATION = "augmentation occupancies"
_IMAGINARY = "(imaginary part)"
_SYMBOL = re.compile(r"([A-Z][a-z]?)(?![a-z])")
_PARTIAL = ("AECCAR", "PARCHG")
_NOT_DENSITIES = ("LOCPOT", "ELFCAR")
_BLOCK = 5 * 2**16


def read_chgcar(path: str | Path) -> DensitySample:
    """Read a CHGCAR or CHG file, plain or gzipped.

    Parameters
    ----------
    path
        File of one structure, spin-paired or collinear.

    Returns
    -------
    DensitySample
        Valence density in e/Å³ (the file's values over the volume of its cell). A second grid
        becomes ``spin_density``, the augmentation occupancies ``onsite`` and ``onsite_spin``,
        MAGMOM the initial magnetic moments. The imaginary parts of the occupancies that newer
        versions of VASP append are read over.

    Raises
    ------
    DensityFileError
        Names file, line and cause.

    Notes
    -----
    A file cut off exactly between two of its sections is a valid shorter file: without on-site
    data, or without spin.
    """
    path = Path(path)
    if path.name.upper().startswith(_NOT_DENSITIES):
        raise DensityFileError(f"{path}: LOCPOT and ELFCAR files hold no density.")
    text = NumberedText(path)
    atoms, line = _read_header(text)
    shape, line = _read_dimensions(text, line)
    total, line = _read_grid(text, line, shape, atoms)
    onsite, line = read_occupancies(text, line, len(atoms))
    magmoms, line = _read_moments(text, line, shape, len(atoms))

    spin = onsite_spin = None
    if _is_dimensions(text, line, shape):
        spin, line = _read_grid(text, line + 1, shape, atoms)
        onsite_spin, line = read_occupancies(text, line, len(atoms))
        if onsite and not onsite_spin:
            text.fail(
                len(text) - 1, "the spin density has no augmentation occupancies. Is it truncated?"
            )
    elif magmoms is not None:
        text.fail(
            min(line, len(text) - 1),
            f"expected {shape[0]} {shape[1]} {shape[2]} and the spin density after the magnetic "
            "moments. Is the file truncated?",
        )
    if magmoms is not None:
        atoms.set_initial_magnetic_moments(magmoms)
    line = _skip_blank(text, line)
    if _is_dimensions(text, line, shape):
        text.fail(line, "a third grid: densities of non-collinear calculations are not supported.")
    if line < len(text):
        text.fail(
            line, f"unexpected {text.line(line)[:40]!r}. Files of several structures are not read."
        )
    kind: DensityKind = "unknown" if path.name.upper().startswith(_PARTIAL) else "valence"
    return DensitySample(
        atoms=atoms,
        density=total,
        spin_density=spin,
        onsite=onsite,
        onsite_spin=onsite_spin,
        provenance=Provenance(code="VASP", density_kind=kind, source=path.name),
    )


def write_chgcar(
    path: str | Path,
    sample: DensitySample,
    *,
    comment: str = "",
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write a CHGCAR file as VASP does, gzipped if the name ends in ``.gz``.

    Atoms keep their order: a run of equal elements is an entry of the header, so an element may
    have several. With ``onsite`` in VASP's layout the augmentation occupancies are written, with
    ``spin_density`` the second grid. Values carry 11 digits, occupancies 7.

    Parameters
    ----------
    path
        Replaced in one step when the file is complete.
    sample
        A sample on a full grid.
    comment
        First line; the chemical formula if empty.
    progress
        Called with the number of grid values in each block written.

    Raises
    ------
    GridError
        If there is no full grid or no cell, if values are not finite, or if the on-site data are
        not one flat array an atom.
    """
    atoms = sample.atoms
    if not sample.is_grid:
        raise GridError("A CHGCAR file needs the density on a full grid, not at scattered points.")
    volume = abs(float(np.linalg.det(atoms.cell.array)))
    if volume < 1e-6 or len(atoms) == 0:
        raise GridError("A CHGCAR file needs atoms and a cell of three independent vectors.")
    for occupancies in (sample.onsite, sample.onsite_spin):
        if occupancies is not None and (
            len(occupancies) != len(atoms) or any(np.ndim(one) != 1 for one in occupancies)
        ):
            raise GridError(
                "On-site data for a CHGCAR are one flat array an atom in VASP's order; "
                "those of other codes do not fit."
            )
    if sample.spin_density is not None and (sample.onsite is None) != (sample.onsite_spin is None):
        raise GridError(
            "A spin-polarised CHGCAR file has on-site data for both grids or for none of them."
        )
    if atoms.get_initial_magnetic_moments().ndim != 1:
        raise GridError("Non-collinear magnetic moments do not fit a collinear CHGCAR file.")
    path = Path(path)
    with (
        replacing(path) as temporary,
        gzip.open(temporary, "wb", 5) if path.suffix == ".gz" else temporary.open("wb") as stream,
    ):
        out = cast(BinaryIO, stream)
        out.write(_header(atoms, comment).encode("ascii", "replace"))
        _write_grid(out, sample.density, volume, progress)
        _write_occupancies(out, sample.onsite)
        if sample.spin_density is not None:
            # without occupancies other readers take the moments for the next structure
            if sample.onsite is not None:
                moments = atoms.get_initial_magnetic_moments()
                out.write(format_rows(moments, per_line=5, digits=12, width=20))
            _write_grid(out, sample.spin_density, volume, progress)
            _write_occupancies(out, sample.onsite_spin)


def _read_header(text: NumberedText) -> tuple[Atoms, int]:
    """Structure, and the index of the line after the positions."""
    scales = [text.floats(1, 1, "scale of the cell")[0]]
    if len(text.line(1).split()) >= 3:
        scales = text.floats(1, 3, "scales of the cell")
    cell = np.array([text.floats(i, 3, "lattice vector") for i in (2, 3, 4)])
    volume = abs(np.linalg.det(cell))
    if len(scales) == 1 and scales[0] < 0 and volume > 0:
        scales = [(-scales[0] / volume) ** (1 / 3)]
    if min(scales) <= 0:
        text.fail(1, "the scale of the cell must not be zero.")
    cell *= np.array(scales)
    if not 1e-6 < abs(np.linalg.det(cell)) < 1e12:
        text.fail(2, "the three lattice vectors span no sensible volume.")

    line = 5
    names: list[str] = []
    while not _integers(text.line(line)):
        found = text.line(line).split()
        if not found or len(names) > 2000:
            text.fail(line, "expected element symbols or the numbers of atoms.")
        names += [_symbol(text, line, token) for token in found]
        line += 1
    counts: list[int] = []
    first_counts = line
    while line < len(text) and (found_counts := _integers(text.line(line))):
        counts += found_counts
        line += 1
    if not names:
        names = _symbols_of_comment(text, len(counts))
    if len(names) != len(counts) or min(counts) < 0 or not 0 < sum(counts) <= 10**6:
        text.fail(
            first_counts, f"numbers of atoms {counts} do not fit the elements {', '.join(names)}."
        )

    if text.line(line).strip()[:1] in ("S", "s"):
        line += 1
    mode = text.line(line).strip()[:1].lower()
    if mode not in ("d", "c", "k") or not mode:
        text.fail(line, f"expected Direct or Cartesian, found {text.line(line)[:40]!r}.")
    line += 1
    n_atoms = sum(counts)
    rows = [text.floats(line + i, 3, f"position of atom {i + 1}") for i in range(n_atoms)]
    positions = np.array(rows)
    symbols = [name for name, count in zip(names, counts, strict=True) for _ in range(count)]
    if mode == "d":
        atoms = Atoms(symbols, scaled_positions=positions, cell=cell, pbc=True)
    else:
        atoms = Atoms(symbols, positions=positions * np.array(scales), cell=cell, pbc=True)
    return atoms, line + n_atoms


def _integers(line: str) -> list[int]:
    """The line's tokens if all are integers, else nothing."""
    tokens = line.split()
    if all(re.fullmatch(r"[-+]?\d{1,9}", token) for token in tokens):
        return [int(token) for token in tokens]
    return []


def _symbol(text: NumberedText, line: int, token: str) -> str:
    """Element of a species name such as ``Fe``, ``Fe_pv`` or ``Fe/0a1b2c3d``."""
    match = _SYMBOL.match(token)
    if match is None or match.group(1) not in atomic_numbers:
        text.fail(line, f"{token[:40]!r} is not an element.")
    return match.group(1)


def _symbols_of_comment(text: NumberedText, count: int) -> list[str]:
    tokens = text.line(0).split()
    if len(tokens) == count and all(token in atomic_numbers for token in tokens):
        return tokens
    text.fail(
        5,
        "this header of VASP 4 names no elements. Insert a line with the element symbols before "
        "the numbers of atoms.",
    )


def _skip_blank(text: NumberedText, line: int) -> int:
    while line < len(text) and not text.line(line).strip():
        line += 1
    return line


def _read_dimensions(text: NumberedText, line: int) -> tuple[tuple[int, int, int], int]:
    line = _skip_blank(text, line)
    found = _integers(text.line(line))
    if len(found) != 3 or min(found) < 1:
        text.fail(line, f"expected the three grid dimensions, found {text.line(line)[:40]!r}.")
    return (found[0], found[1], found[2]), line + 1


def _is_dimensions(text: NumberedText, line: int, shape: tuple[int, int, int]) -> bool:
    return line < len(text) and _integers(text.line(line)) == list(shape)


def _read_grid(
    text: NumberedText, line: int, shape: tuple[int, int, int], atoms: Atoms
) -> tuple[NDArray[np.float64], int]:
    count = shape[0] * shape[1] * shape[2]
    values, line = text.numbers(line, count, "grid values")
    grid = np.ascontiguousarray(values.reshape(shape, order="F"))
    grid /= atoms.get_volume()
    return grid, line


def read_occupancies(text: NumberedText, line: int, n_atoms: int) -> tuple[Occupancies | None, int]:
    """Read blocks of augmentation occupancies, if there are any at this line.

    Parameters
    ----------
    line
        Index of the line where they may begin.
    n_atoms
        Each atom must have its block.

    Returns
    -------
    occupancies
        Real parts, one array an atom; None if there are none.
    next
        Index of the line after them, blank lines skipped.
    """
    line = _skip_blank(text, line)
    blocks: list[NDArray[np.float64]] = []
    imaginary = 0
    while line < len(text) and text.line(line).startswith(_AUGMENTATION):
        rest = text.line(line)[len(_AUGMENTATION) :].strip()
        is_imaginary = rest.startswith(_IMAGINARY)
        expected = imaginary if is_imaginary else len(blocks)
        announced = _integers(rest.removeprefix(_IMAGINARY))
        if len(announced) != 2 or announced[0] != expected + 1 or announced[1] < 0:
            text.fail(line, f"expected the {_AUGMENTATION} of atom {expected + 1} and their count.")
        values, line = text.numbers(line + 1, announced[1], _AUGMENTATION)
        if is_imaginary:
            imaginary += 1
        else:
            blocks.append(values)
        line = _skip_blank(text, line)
    if len(blocks) not in (0, n_atoms) or imaginary not in (0, n_atoms):
        text.fail(
            min(line, len(text) - 1),
            f"{_AUGMENTATION} end after atom {imaginary or len(blocks)} of {n_atoms}. "
            "Is the file truncated?",
        )
    return (tuple(blocks) or None), line


def _read_moments(
    text: NumberedText, line: int, shape: tuple[int, int, int], n_atoms: int
) -> tuple[NDArray[np.float64] | None, int]:
    """MAGMOM of every atom, which VASP puts before the spin density."""
    if line >= len(text) or _is_dimensions(text, line, shape):
        return None, line
    first = text.line(line).split()[0]
    if not re.match(r"[-+]?\d*\.\d", first):
        return None, line
    values, after = text.numbers(line, n_atoms, "magnetic moments")
    if after < len(text) and re.match(r"\s*[-+]?\d*\.\d", text.line(after)):
        text.fail(
            after,
            f"more than {n_atoms} magnetic moments: densities of non-collinear calculations "
            "are not supported.",
        )
    return values, _skip_blank(text, after)


def _header(atoms: Atoms, comment: str) -> str:
    runs = [(symbol, len(list(run))) for symbol, run in groupby(atoms.get_chemical_symbols())]
    lines = [" ".join(comment.split()) or atoms.get_chemical_formula(), "   1.00000000000000"]
    lines += ["".join(f"{x:22.16f}" for x in vector) for vector in atoms.cell.array]
    lines.append("".join(f"{symbol:>5}" for symbol, _ in runs))
    lines.append("".join(f"{count:6d}" for _, count in runs))
    lines.append("Direct")
    scaled = atoms.get_scaled_positions(wrap=False)
    lines += ["".join(f"{x:20.16f}" for x in position) for position in scaled]
    return "\n".join(lines) + "\n\n"


def _write_grid(
    out: BinaryIO,
    grid: NDArray[np.floating],
    volume: float,
    progress: Callable[[int], None] | None,
) -> None:
    out.write(("".join(f"{n:5d}" for n in grid.shape) + "\n").encode())
    flat = np.ravel(grid, order="F")
    for start in range(0, len(flat), _BLOCK):
        block = flat[start : start + _BLOCK].astype(np.float64) * volume
        out.write(format_rows(block, per_line=5, digits=11, width=18))
        if progress is not None:
            progress(len(block))


def _write_occupancies(out: BinaryIO, occupancies: Sequence[NDArray] | None) -> None:
    for index, values in enumerate(occupancies or ()):
        out.write(f"{_AUGMENTATION}{index + 1:4d}{len(values):4d}\n".encode())
        out.write(format_rows(values, per_line=5, digits=7, width=15))
