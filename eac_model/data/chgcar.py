"""VASP's CHGCAR, CHG, AECCAR and PARCHG files.

Layout (`VASP wiki, CHGCAR <https://www.vasp.at/wiki/CHGCAR>`_, checked on files of VASP 5 and 6):
a POSCAR header; a blank line; the grid dimensions; density × cell volume, the first index running
fastest; blocks of augmentation occupancies (on-site PAW data) in the order of the atoms, and of
non-collinear and some other runs their imaginary parts. Spin-polarised files go on with a number
per atom (MAGMOM), the dimensions again, ρ↑ − ρ↓ in the same way, and its occupancies.
Non-collinear files have three such sections instead, the magnetisation along x, y and z. CHG files
hold the grids alone.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from numpy.typing import NDArray

from eac_model.data.fortran import format_rows
from eac_model.data.sample import DensityKind, DensitySample, Magnetization, Provenance
from eac_model.data.textfile import NumberedText
from eac_model.errors import DensityFileError, GridError
from eac_model.files import replacing
from eac_model.lattice import Shape

Occupancies = tuple[NDArray[np.floating], ...]
"""Augmentation occupancies of every atom, in the order VASP writes them."""

_AUGMENTATION = "augmentation occupancies"
_IMAGINARY = "(imaginary part)"
_SYMBOL = re.compile(r"([A-Z][a-z]?)(?![a-z])")
_DECIMAL = re.compile(r"\s*[-+]?\d*\.\d")
_PARTIAL = re.compile(r"(^|[^a-z])(aeccar|parchg)", re.IGNORECASE)
_NOT_DENSITIES = re.compile(r"(^|[^a-z])(locpot|elfcar|taucar)", re.IGNORECASE)
_ORIGIN = re.compile(r"\S+: (valence|pseudo|all-electron|unknown) density, ([^,]+), (.+)")
_BLOCK = 5 * 2**16


@dataclass(frozen=True)
class OnsiteSection:
    """What stands behind a grid."""

    occupancies: Occupancies | None = None
    """Augmentation occupancies, or their real parts; None if there are none."""
    imaginary: Occupancies | None = None
    """Their imaginary parts, if there are any."""
    moments: NDArray[np.float64] | None = None
    """The numbers per atom between this grid and the next: shape (a,) or (3 a,)."""


def read_chgcar(path: str | Path) -> DensitySample:
    """Read a CHGCAR, CHG, AECCAR or PARCHG file, plain or gzipped.

    Parameters
    ----------
    path
        File of one structure: spin-paired, collinear or non-collinear, of VASP 4, 5 or 6.

    Returns
    -------
    DensitySample
        Density in e/Å³ (the file's values over the volume of its cell). The second of two grids
        becomes ``spin_density``, the second to fourth of four ``magnetization``; the augmentation
        occupancies become ``onsite``, ``onsite_spin`` or ``magnetization.onsite``, and their
        imaginary parts, if there are any, ``onsite_imaginary``. MAGMOM of collinear files becomes
        the initial magnetic moments; the numbers per atom in non-collinear files are not vectors,
        and are kept only where there are three an atom.
        The kind of the density is ``valence``, and ``unknown`` for AECCAR and PARCHG by name; see
        :func:`read_all_electron`. Where :func:`write_chgcar` has named kind, code and functional in
        the first line, they are those.

    Raises
    ------
    DensityFileError
        Names file, line and cause.

    Notes
    -----
    What follows the first grid is optional in this format. A file cut off exactly behind the first
    grid, or behind its occupancies or their real parts, is therefore a valid shorter file: without
    on-site data, spin or imaginary parts. Every other cut is an error: further grids must have
    the occupancies the first one has.
    """
    path = Path(path)
    if _NOT_DENSITIES.search(path.name):
        raise DensityFileError(f"{path}: LOCPOT, ELFCAR and TAUCAR files hold no electron density.")
    text = NumberedText(path)
    atoms, line = _read_header(text)
    shape, line = _read_dimensions(text, line)
    grids: list[NDArray[np.float64]] = []
    sections: list[OnsiteSection] = []
    while True:
        grid, line = _read_grid(text, line, shape, atoms)
        section, line = read_onsite(text, line, len(atoms))
        grids.append(grid)
        sections.append(section)
        _check_section(text, min(line, len(text)) - 1, sections)
        if len(grids) == 4 or not _is_dimensions(text, line, shape):
            break
        line += 1
    _check_end(text, line, shape, sections)
    return assemble(atoms, grids, sections, _provenance(text.line(0), path.name))


def _provenance(comment: str, name: str) -> Provenance:
    """Origin of a file of this first line and name."""
    if found := _ORIGIN.fullmatch(comment.strip()):
        kind, code, functional = found.groups()
        return Provenance(code, functional, cast(DensityKind, kind), source=name)
    partial = _PARTIAL.search(name) is not None
    return Provenance("VASP", density_kind="unknown" if partial else "valence", source=name)


def _comment(sample: DensitySample) -> str:
    """First line: the formula, and what VASP's users would not expect or could not know."""
    origin, formula = sample.provenance, sample.atoms.get_chemical_formula()
    comment = f"{formula}: {origin.density_kind} density, {origin.code}, {origin.functional}"
    if origin.functional != "unknown":
        return comment
    # What nobody has said anything of is what the format stands for.
    nothing = origin.code == origin.density_kind == "unknown"
    expected = origin.code.startswith("VASP") and origin.density_kind == "valence"
    return formula if expected or nothing else comment


def assemble(
    atoms: Atoms,
    grids: Sequence[NDArray[np.floating]],
    sections: Sequence[OnsiteSection],
    provenance: Provenance,
) -> DensitySample:
    """Sample of one, two or four grids in e/Å³ and what stands behind each of them."""
    occupancies = [section.occupancies for section in sections]
    present = [one for one in occupancies if one is not None]
    imaginary = tuple(s.imaginary for s in sections if s.imaginary is not None)
    moments = sections[0].moments
    if moments is not None and len(grids) == 2 and len(moments) == len(atoms):
        atoms.set_initial_magnetic_moments(moments)
    if moments is not None and len(moments) == 3 * len(atoms) > 0:
        atoms.set_initial_magnetic_moments(moments.reshape(-1, 3))
    magnetization = None
    if len(grids) == 4:
        magnetization = Magnetization(
            density=np.stack(grids[1:]), onsite=tuple(present[1:]) or None
        )
    return DensitySample(
        atoms=atoms,
        density=grids[0],
        spin_density=grids[1] if len(grids) == 2 else None,
        onsite=occupancies[0],
        onsite_spin=occupancies[1] if len(grids) == 2 else None,
        provenance=provenance,
        magnetization=magnetization,
        onsite_imaginary=imaginary or None,
    )


def read_all_electron(
    core: str | Path = "AECCAR0", valence: str | Path = "AECCAR2"
) -> DensitySample:
    """All-electron density of a calculation with ``LAECHG``: AECCAR0 + AECCAR2.

    Parameters
    ----------
    core
        AECCAR0, the core electrons.
    valence
        AECCAR2, the valence electrons with their nodes at the nuclei.

    Returns
    -------
    DensitySample
        Of the kind ``all-electron``. Close to the nuclei the grid is too coarse for the core, so
        that its integral is the number of electrons only on fine grids.

    Raises
    ------
    DensityFileError
        If a file is damaged, or if they differ in grid or structure.
    """
    first, second = read_chgcar(core), read_chgcar(valence)
    if first.density.shape != second.density.shape:
        raise DensityFileError(
            f"{core} and {valence} have different grids: {first.density.shape}, "
            f"{second.density.shape}."
        )
    same = np.array_equal(first.atoms.numbers, second.atoms.numbers)
    if not (
        same
        and np.allclose(first.atoms.cell, second.atoms.cell, atol=1e-4)
        and np.allclose(first.atoms.positions, second.atoms.positions, atol=1e-4)
    ):
        raise DensityFileError(f"{core} and {valence} belong to different structures.")
    provenance = replace(
        second.provenance,
        density_kind="all-electron",
        source=f"{first.provenance.source} + {second.provenance.source}",
    )
    return replace(second, density=first.density + second.density, provenance=provenance)


def in_vasp_layout(sample: DensitySample) -> DensitySample:
    """The sample without on-site matrices of other codes, which mean nothing to VASP."""
    if sample.onsite is not None and any(np.ndim(values) != 1 for values in sample.onsite):
        return replace(sample, onsite=None, onsite_spin=None)
    return sample


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
        First line; if empty, the chemical formula, and behind it kind of density, code and
        functional where they are known and not VASP's alone: ``NaCl: pseudo density, GPAW, PBE``.
    progress
        Called with the number of grid values in each block written.

    Raises
    ------
    GridError
        If there is no full grid or no cell, if values are not finite, if the on-site data are not
        one flat array an atom, or if the sample is non-collinear.
    """
    atoms = sample.atoms
    if not sample.is_grid:
        raise GridError("A CHGCAR file needs the density on a full grid, not at scattered points.")
    volume = abs(float(np.linalg.det(atoms.cell.array)))
    if volume < 1e-6 or len(atoms) == 0:
        raise GridError("A CHGCAR file needs atoms and a cell of three independent vectors.")
    if sample.magnetization is not None or atoms.get_initial_magnetic_moments().ndim != 1:
        raise GridError(
            "Densities or moments of non-collinear calculations are read, but not written. For the "
            "total density alone, replace magnetization by None and remove the moments."
        )
    onsite = onsite_sections(sample)
    path = Path(path)
    with (
        replacing(path) as temporary,
        gzip.open(temporary, "wb", 5) if path.suffix == ".gz" else temporary.open("wb") as stream,
    ):
        out = cast(BinaryIO, stream)
        out.write(_header(atoms, comment or _comment(sample)).encode("ascii", "replace"))
        _write_grid(out, sample.density, volume, progress)
        out.write(format_onsite(onsite[0]))
        if sample.spin_density is not None:
            _write_grid(out, sample.spin_density, volume, progress)
            out.write(format_onsite(onsite[1]))


def onsite_sections(sample: DensitySample) -> list[OnsiteSection]:
    """What VASP's text formats hold behind each of the one, two or four grids of a sample.

    Raises
    ------
    GridError
        If the on-site data are not one flat array an atom, or those of one grid are missing.
    """
    atoms = sample.atoms
    parts = [sample.onsite]
    if sample.spin_density is not None:
        parts.append(sample.onsite_spin)
    if sample.magnetization is not None:
        parts += sample.magnetization.onsite or (None, None, None)
    imaginary = sample.onsite_imaginary or ()
    for occupancies in (*parts, *imaginary):
        if occupancies is not None and (
            len(occupancies) != len(atoms) or any(np.ndim(one) != 1 for one in occupancies)
        ):
            raise GridError(
                "On-site data for a CHGCAR are one flat array an atom in VASP's order; "
                "those of other codes do not fit."
            )
    if any((one is None) != (sample.onsite is None) for one in parts):
        raise GridError(
            "A spin-polarised CHGCAR file has on-site data for all grids or for none of them."
        )
    if imaginary and (sample.onsite is None or len(imaginary) != len(parts)):
        raise GridError("The imaginary parts do not fit the on-site data.")
    sections = [
        OnsiteSection(occupancies, imaginary[i] if imaginary else None)
        for i, occupancies in enumerate(parts)
    ]
    # without occupancies other readers take the moments for the next structure
    if len(parts) == 2 and sample.onsite is not None:
        moments = atoms.get_initial_magnetic_moments()
        sections[0] = replace(sections[0], moments=moments)
    return sections


def format_onsite(section: OnsiteSection) -> bytes:
    """Text of augmentation occupancies, imaginary parts and moments, as VASP writes them."""
    parts = _format_blocks(_AUGMENTATION, section.occupancies or ())
    parts += _format_blocks(f"{_AUGMENTATION} {_IMAGINARY}", section.imaginary or ())
    if section.moments is not None:
        parts.append(format_rows(section.moments, per_line=5, digits=12, width=20))
    return b"".join(parts)


def _format_blocks(title: str, blocks: Occupancies) -> list[bytes]:
    sizes = [len(values) for values in blocks]
    rows: list[bytes] = [b""] * len(blocks)
    for size in set(sizes) - {0}:
        alike = [i for i, other in enumerate(sizes) if other == size]
        text = format_rows(np.stack([blocks[i] for i in alike]), per_line=5, digits=7, width=15)
        length = len(text) // len(alike)
        for place, i in enumerate(alike):
            rows[i] = text[place * length : (place + 1) * length]
    return [f"{title}{i + 1:4d}{sizes[i]:4d}\n".encode() + row for i, row in enumerate(rows)]


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


def element_of(species: str) -> str | None:
    """Element of a species name such as ``Fe``, ``Fe_pv`` or ``Fe/0a1b2c3d``; None if none."""
    match = _SYMBOL.match(species)
    return match.group(1) if match is not None and match.group(1) in atomic_numbers else None


def _symbol(text: NumberedText, line: int, token: str) -> str:
    found = element_of(token)
    if found is None:
        text.fail(line, f"{token[:40]!r} is not an element.")
    return found


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


def _read_dimensions(text: NumberedText, line: int) -> tuple[Shape, int]:
    line = _skip_blank(text, line)
    found = _integers(text.line(line))
    if len(found) != 3 or min(found) < 1:
        text.fail(line, f"expected the three grid dimensions, found {text.line(line)[:40]!r}.")
    return (found[0], found[1], found[2]), line + 1


def _is_dimensions(text: NumberedText, line: int, shape: Shape) -> bool:
    return line < len(text) and _integers(text.line(line)) == list(shape)


def _read_grid(
    text: NumberedText, line: int, shape: Shape, atoms: Atoms
) -> tuple[NDArray[np.float64], int]:
    count = shape[0] * shape[1] * shape[2]
    values, line = text.numbers(line, count, "grid values")
    values /= atoms.get_volume()
    return np.ascontiguousarray(values.reshape(shape, order="F")), line


def read_onsite(text: NumberedText, line: int, n_atoms: int) -> tuple[OnsiteSection, int]:
    """Read the augmentation occupancies and the numbers per atom behind a grid, if there are any.

    Parameters
    ----------
    line
        Index of the line where they may begin.
    n_atoms
        Each atom must have its block.

    Returns
    -------
    section
        What there is.
    next
        Index of the line after it, blank lines skipped.
    """
    blocks, line = _read_blocks(text, line, n_atoms, _AUGMENTATION)
    imaginary, line = _read_blocks(text, line, n_atoms, f"{_AUGMENTATION} {_IMAGINARY}")
    moments = None
    if line < len(text) and _DECIMAL.match(text.line(line)):
        if not blocks:
            text.fail(line, "more numbers than the grid has points.")
        count, after = 0, line
        while after < len(text) and count <= 3 * n_atoms and _DECIMAL.match(text.line(after)):
            count += len(text.line(after).split())
            after += 1
        if count not in (n_atoms, 3 * n_atoms):
            text.fail(line, f"{count} magnetic moments, or more, for {n_atoms} atoms.")
        moments, after = text.numbers(line, count, "magnetic moments")
        line = _skip_blank(text, after)
    return OnsiteSection(blocks or None, imaginary or None, moments), line


def _read_blocks(
    text: NumberedText, line: int, n_atoms: int, title: str
) -> tuple[Occupancies, int]:
    """Blocks of all atoms under a title, or none; and the next line that is not blank."""
    blocks: list[NDArray[np.floating]] = []
    line = _skip_blank(text, line)
    while line < len(text) and text.line(line).lstrip().startswith(title):
        rest = text.line(line).lstrip()[len(title) :]
        if rest.lstrip().startswith(_IMAGINARY):
            break
        # Fortran's four columns overflow from atom 10000 on
        announced = _integers(rest.replace("****", f" {len(blocks) + 1} ", 1))
        if len(announced) != 2 or announced[0] != len(blocks) + 1 or announced[1] < 0:
            text.fail(line, f"expected the {title} of atom {len(blocks) + 1} and their count.")
        if len(blocks) == n_atoms:
            text.fail(line, f"{title} of more than the {n_atoms} atoms.")
        values, line = text.numbers(line + 1, announced[1], title)
        blocks.append(values)
        line = _skip_blank(text, line)
    if len(blocks) not in (0, n_atoms):
        text.fail(
            min(line, len(text) - 1),
            f"{title} end after atom {len(blocks)} of {n_atoms}. Is the file truncated?",
        )
    return tuple(blocks), line


def _check_section(text: NumberedText, line: int, sections: Sequence[OnsiteSection]) -> None:
    """Every grid must be followed by what follows the first one."""
    first, last = sections[0], sections[-1]
    for kind, expected, found in (
        ("augmentation occupancies", first.occupancies, last.occupancies),
        ("imaginary parts of the occupancies", first.imaginary, last.imaginary),
    ):
        if [len(one) for one in expected or ()] != [len(one) for one in found or ()]:
            text.fail(
                line,
                f"the {kind} of grid {len(sections)} are missing or of other sizes than those of "
                "the first grid. Is the file truncated?",
            )
    if first.imaginary and [len(one) for one in first.imaginary] != [
        len(one) for one in first.occupancies or ()
    ]:
        text.fail(line, "real and imaginary parts of the occupancies differ in size.")


def _check_end(
    text: NumberedText, line: int, shape: Shape, sections: Sequence[OnsiteSection]
) -> None:
    dimensions = " ".join(map(str, shape))
    if sections[-1].moments is not None:
        text.fail(
            min(line, len(text) - 1),
            f"expected {dimensions} and the spin density after the magnetic moments. Is the file "
            "truncated?",
        )
    if line < len(text):
        text.fail(
            line,
            f"unexpected {text.line(line)[:40]!r} after grid {len(sections)}. Files of several "
            "structures are not read: split them.",
        )
    if len(sections) == 3:
        text.fail(
            line - 1,
            "the file ends after three grids; spin-paired, collinear and non-collinear files have "
            "1, 2 and 4. Is it truncated?",
        )


def _header(atoms: Atoms, comment: str) -> str:
    runs = [(symbol, len(list(run))) for symbol, run in groupby(atoms.get_chemical_symbols())]
    lines = [" ".join(comment.split()), "   1.00000000000000"]
    lines += ["".join(f"{x:22.16f}" for x in vector) for vector in atoms.cell.array]
    lines.append("".join(f"{symbol:>5}" for symbol, _ in runs))
    lines.append("".join(f"{count:6d}" for _, count in runs))
    lines.append("Direct")
    scaled = atoms.get_scaled_positions(wrap=False)
    lines += ["".join(f" {x:19.16f}" for x in position) for position in scaled]
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
        text = format_rows(block, per_line=5, digits=11, width=18)
        # VASP leaves two blanks at the end of an incomplete line
        out.write(text if len(block) % 5 == 0 else text[:-1] + b"  \n")
        if progress is not None:
            progress(len(block))
