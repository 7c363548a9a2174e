"""Writing density grids; the file name decides the format."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from ase import Atoms
from ase.io import write

from eac_ase.progress import progress_bar
from eac_model.data.chgcar import in_vasp_layout, write_chgcar
from eac_model.data.cube import write_cube
from eac_model.data.sample_file import write_sample
from eac_model.errors import GridError
from eac_model.files import replacing

if TYPE_CHECKING:
    from eac_ase.grid import DensityGrid

Format = Literal["chgcar", "cube", "h5", "xsf"]

_CHGCAR = re.compile(r"chgcar(?!.*\.(cube|h5|xsf|bz2|xz|zip|gz|json|png|cif|xyz|traj)$).*")
"""Names, in lower case, with anything behind but the ending of something else."""


def density_format(path: Path) -> Format:
    """The format a name stands for.

    Raises
    ------
    GridError
        For any other name; the message lists the known ones.
    """
    endings: dict[str, Format] = {".cube": "cube", ".h5": "h5", ".xsf": "xsf"}
    if path.suffix.lower() in endings:
        return endings[path.suffix.lower()]
    name = path.name.removesuffix(".gz").lower()
    if name.endswith((".chgcar", ".vasp")) or _CHGCAR.fullmatch(name):
        return "chgcar"
    raise GridError(
        f"{str(path)!r} names no density format. Known are CHGCAR*, *.chgcar and *.vasp (VASP, "
        "also with .gz), *.cube, *.xsf (XCrySDen) and *.h5 (sample file)."
    )


def write_grid(grid: DensityGrid, path: Path, progress: bool | None = None) -> None:
    """Write a grid; see :meth:`eac_ase.DensityGrid.write`."""
    kind = density_format(path)
    count = grid.values.size * (2 if kind == "chgcar" and grid.spin is not None else 1)
    with progress_bar(f"writing {path.name}", count, progress) as advance:
        match kind:
            case "chgcar":
                write_chgcar(path, in_vasp_layout(grid.to_sample()), progress=advance)
            case "cube":
                write_cube(
                    path,
                    _boxed(grid),
                    grid.values,
                    origin=tuple(grid.origin),
                    comment=f"Electron density ({grid.kind})",
                    progress=advance,
                )
            case "h5":
                write_sample(path, grid.to_sample())
            case "xsf":
                with replacing(path) as temporary:
                    _write_xsf(grid, temporary)


def _boxed(grid: DensityGrid) -> Atoms:
    atoms = grid.atoms.copy()
    atoms.set_cell(grid.cell)
    return atoms


def _write_xsf(grid: DensityGrid, path: Path) -> None:
    """XCrySDen: structure by ASE; the data block by hand, as ASE writes six decimals only."""
    atoms = _boxed(grid)
    # XSF knows no open direction among periodic ones in any order: a box serves all of them.
    atoms.pbc = bool(atoms.pbc.any())
    write(path, atoms, format="xsf")
    # General grids repeat the first value at the end of each axis.
    values = np.pad(grid.values, [(0, 1)] * 3, mode="wrap")
    vectors = "\n".join(
        "  {:.10f} {:.10f} {:.10f}".format(*row) for row in (grid.origin, *grid.cell)
    )
    with open(path, "a", encoding="ascii") as file:
        file.write("BEGIN_BLOCK_DATAGRID_3D\n density_e_per_cubic_angstrom\n")
        file.write(" BEGIN_DATAGRID_3D_density\n")
        file.write("  {} {} {}\n{}\n".format(*values.shape, vectors))
        flat = values.ravel(order="F")
        whole = flat.size // 6 * 6
        np.savetxt(file, flat[:whole].reshape(-1, 6), fmt="%.9e")
        np.savetxt(file, flat[None, whole:], fmt="%.9e")
        file.write(" END_DATAGRID_3D\nEND_BLOCK_DATAGRID_3D\n")
