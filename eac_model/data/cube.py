"""Gaussian cube files: lengths in Bohr, densities in e/Bohr³."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast, get_args

import numpy as np
from ase import Atoms
from ase.units import Bohr
from numpy.typing import NDArray

from eac_model.data.fortran import format_rows
from eac_model.data.sample import DensityKind, DensitySample, Provenance
from eac_model.data.textfile import NumberedText
from eac_model.errors import GridError
from eac_model.files import replacing

_BLOCK = 2**18


def read_cube(path: str | Path, *, pbc: bool = True) -> DensitySample:
    """Read the density of a cube file, plain or gzipped.

    Parameters
    ----------
    path
        File with one value a grid point.
    pbc
        Periodicity of the structure, which cube files do not tell.

    Returns
    -------
    DensitySample
        Density in e/Å³, taken to be in e/Bohr³ in the file, on a cell of the grid's extent. The
        grid of a sample begins at the origin, so a file's origin is subtracted from the
        positions. Axes with negative counts are in Å, as the format has it.

    Raises
    ------
    DensityFileError
        Names file, line and cause.
    """
    text = NumberedText(path)
    n_atoms, has_labels, origin = _read_origin(text)
    shape: list[int] = []
    steps = np.empty((3, 3))
    for axis in range(3):
        line = 3 + axis
        n = _whole(text, line, "grid points of an axis")
        steps[axis] = np.array(text.floats(line, 4, "axis of the grid")[1:])
        steps[axis] *= 1.0 if n < 0 else Bohr
        shape.append(abs(n))
    if min(shape) < 1 or not abs(np.linalg.det(steps)) > 1e-12:
        text.fail(3, "the grid has no points or no volume.")

    numbers, positions = [], []
    for line in range(6, 6 + n_atoms):
        number = _whole(text, line, "atomic number")
        if not 1 <= number <= 118:
            text.fail(line, f"{number} is not an atomic number.")
        numbers.append(number)
        positions.append(text.floats(line, 5, "atom")[2:])
    line = 6 + n_atoms
    if has_labels:
        if _whole(text, line, "number of data sets") != 1:
            text.fail(line, "several data sets in one cube file: split them.")
        line += 1

    count = shape[0] * shape[1] * shape[2]
    values, _ = text.numbers(line, count, "grid values", to_end=True)
    grid = values.reshape(shape) / Bohr**3
    if "castep2cube" in text.line(1):  # repeats the first layer at the end of every axis
        grid = np.ascontiguousarray(grid[:-1, :-1, :-1])
    atoms = Atoms(
        numbers=numbers,
        positions=np.reshape(positions, (-1, 3)) * Bohr - origin * Bohr,
        cell=steps * np.array(grid.shape)[:, None],
        pbc=pbc,
    )
    return DensitySample(
        atoms=atoms, density=grid, provenance=_provenance(text.line(0), Path(path).name)
    )


def _provenance(title: str, source: str) -> Provenance:
    """Kind of the density, if this program wrote the title."""
    found = re.fullmatch(
        rf"Electron density \(({'|'.join(get_args(DensityKind))})\)", title.strip()
    )
    if found is None:
        return Provenance(source=source)
    return Provenance(density_kind=cast(DensityKind, found.group(1)), source=source)


def write_cube(
    path: str | Path,
    atoms: Atoms,
    values: NDArray[np.floating],
    *,
    origin: Sequence[float] = (0.0, 0.0, 0.0),
    comment: str = "",
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write a density to a cube file.

    Parameters
    ----------
    path
        Replaced in one step when the file is complete.
    atoms
        Structure; the grid spans its cell.
    values : shape (n1, n2, n3)
        e/Å³; written in e/Bohr³ with five digits.
    origin
        Position of ``values[0, 0, 0]``, Å.
    comment
        First line.
    progress
        Called with the number of values in each block written.

    Raises
    ------
    GridError
        If there is no three-dimensional grid, no cell, or a value is not finite.
    """
    values = np.asarray(values)
    if values.ndim != 3 or values.size == 0:
        raise GridError(f"A cube file needs a grid of three axes, not shape {values.shape}.")
    if abs(np.linalg.det(atoms.cell.array)) < 1e-6:
        raise GridError("A cube file needs a cell of three independent vectors.")
    lines = [
        " ".join(comment.split())
        or f"Electron density of {atoms.get_chemical_formula()}, e/Bohr^3",
        "OUTER LOOP: X, MIDDLE LOOP: Y, INNER LOOP: Z",
        _row(len(atoms), *(np.asarray(origin, dtype=float) / Bohr)),
    ]
    for n, vector in zip(values.shape, atoms.cell.array, strict=True):
        lines.append(_row(n, *(vector / n / Bohr)))
    for number, position in zip(atoms.numbers, atoms.positions, strict=True):
        lines.append(_row(number, float(number), *(position / Bohr)))

    rows = values.reshape(-1, values.shape[2])
    at_once = max(1, _BLOCK // values.shape[2])
    with replacing(path) as temporary, temporary.open("wb") as out:
        out.write(("\n".join(lines) + "\n").encode("ascii", "replace"))
        for start in range(0, len(rows), at_once):
            block = rows[start : start + at_once].astype(np.float64) * Bohr**3
            out.write(format_rows(block, per_line=6, digits=5, width=13))
            if progress is not None:
                progress(block.size)


def _read_origin(text: NumberedText) -> tuple[int, bool, NDArray[np.float64]]:
    """Number of atoms, whether data sets are labelled, and the origin in Bohr."""
    order = re.findall(r"LOOP:\s*([XYZ])", text.line(1).upper())
    if order not in ([], ["X", "Y", "Z"]):
        text.fail(1, f"loops in the order {', '.join(order)} are not supported, only X, Y, Z.")
    n_atoms = _whole(text, 2, "number of atoms")
    fields = text.floats(2, 4, "number of atoms and origin")
    more = text.line(2).split()[4:]
    if more and more[0] != "1":
        text.fail(2, f"{more[0][:20]} values a grid point: only one is supported.")
    if abs(n_atoms) > 10**6:
        text.fail(2, f"{abs(n_atoms)} atoms are not plausible.")
    return abs(n_atoms), n_atoms < 0, np.array(fields[1:])


def _whole(text: NumberedText, line: int, what: str) -> int:
    """The whole number a line begins with."""
    value = text.floats(line, 1, what)[0]
    if value != int(value):
        text.fail(line, f"{value} is not a whole number ({what}).")
    return int(value)


def _row(count: int, *numbers: float) -> str:
    return f"{count:5d}" + "".join(f" {x:11.6f}" for x in numbers)
