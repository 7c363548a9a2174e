"""The charge density in ``vaspwave.h5``, which VASP 6 writes instead of CHGCAR (``LH5``).

=================================  ===============  ==============================
data set                           shape            content
=================================  ===============  ==============================
charge/grid                        (3,)             n1 n2 n3
charge/charge                      (g, n3, n2, n1)  density × cell volume, g grids
charge/aug_occupancies_s01 …       (a, largest)     occupancies of grid 1 …
charge/aug_occupancies_ions_s01 …  (a,)             how many each atom has
structure/positions                group            the structure:
scale                              scalar           scale of the cell
lattice_vectors                    (3, 3)           cell, one vector a row
ion_types                          (t,)             names of the species
number_ion_types                   (t,)             atoms of each
position_ions                      (a, 3)           positions
direct_coordinates                 scalar           1: fractional
=================================  ===============  ==============================

There are g = 1 (spin-paired), 2 (ρ, ρ↑ − ρ↓) or 4 (ρ, m_x, m_y, m_z) grids, as in CHGCAR.

Sources: the definition of the files in py4vasp (``py4vasp/_raw/definition.py``, by the makers of
VASP) for the density; pymatgen's reader (``pymatgen.io.vasp.outputs.Vaspwave``, pymatgen-core
2026.10), which is tested on files of VASP, for occupancies and structure. The same group of the
structure is in the vaspout.h5 of VASP 6.4.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from numpy.typing import NDArray

from eac_model.data.chgcar import Occupancies, OnsiteSection, assemble, element_of
from eac_model.data.sample import DensitySample, Provenance
from eac_model.errors import DensityFileError

CHARGE = "charge/charge"
"""Data set that marks such a file."""

_STRUCTURES = ("structure/positions", "results/positions", "input/poscar", "locpot/position")


def read_vaspwave(path: str | Path) -> DensitySample:
    """Read the density of a ``vaspwave.h5`` file.

    Parameters
    ----------
    path
        HDF5 file of VASP 6 with the density (``LH5`` or ``LCHARGH5``).

    Returns
    -------
    DensitySample
        What :func:`~eac_model.data.chgcar.read_chgcar` returns for the CHGCAR of the same
        calculation, without initial magnetic moments.

    Raises
    ------
    DensityFileError
        Names file, data set and cause.
    """
    path = Path(path)
    try:
        with h5py.File(path, "r", locking=False) as file:
            return _read(file, path)
    except DensityFileError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise DensityFileError(f"{path}: damaged, or not an HDF5 file ({error}).") from error


def _read(file: Any, path: Path) -> DensitySample:
    atoms = _structure(file, path)
    charge = _data(file, CHARGE, path, 4)
    shape = tuple(_data(file, "charge/grid", path, 1).astype(int).tolist())
    if charge.shape[1:] != shape[::-1] or len(charge) not in (1, 2, 4) or 0 in shape:
        raise DensityFileError(
            f"{path}: {CHARGE} has shape {charge.shape}; expected 1, 2 or 4 grids of "
            f"charge/grid = {shape}, the last axis first."
        )
    charge /= atoms.get_volume()
    grids = [np.ascontiguousarray(grid.T) for grid in charge]
    sections = [OnsiteSection(_occupancies(file, i, path, len(atoms))) for i in range(len(grids))]
    sizes = [[len(one) for one in section.occupancies or ()] for section in sections]
    if any(one != sizes[0] for one in sizes):
        raise DensityFileError(f"{path}: the grids in {CHARGE} differ in their occupancies.")
    provenance = Provenance(code=_code(file), density_kind="valence", source=path.name)
    return assemble(atoms, grids, sections, provenance)


def _structure(file: Any, path: Path) -> Atoms:
    group = next((name for name in _STRUCTURES if f"{name}/lattice_vectors" in file), None)
    if group is None:
        raise DensityFileError(f"{path}: no structure; there is no group {_STRUCTURES[0]}.")
    scale = float(np.ravel(file[f"{group}/scale"][()])[0]) if f"{group}/scale" in file else 1.0
    cell = _data(file, f"{group}/lattice_vectors", path, 2) * scale
    positions = _data(file, f"{group}/position_ions", path, 2)
    counts = _data(file, f"{group}/number_ion_types", path, 1).astype(int)
    names = [
        name.decode("ascii", "replace") if isinstance(name, bytes) else str(name)
        for name in np.ravel(file[f"{group}/ion_types"][()])
    ]
    elements = [element_of(name.strip()) for name in names]
    unknown = [name for name, one in zip(names, elements, strict=True) if one is None]
    if unknown:
        raise DensityFileError(f"{path}: {group}/ion_types holds {unknown[0]!r}, no element.")
    if (
        cell.shape != (3, 3)
        or not 1e-6 < abs(np.linalg.det(cell)) < 1e12
        or len(counts) != len(names)
        or counts.min(initial=0) < 0
        or positions.shape != (counts.sum(), 3)
        or len(positions) == 0
    ):
        raise DensityFileError(
            f"{path}: {group} holds no sensible structure: cell {cell.tolist()}, {names} × "
            f"{counts.tolist()} and positions of shape {positions.shape}."
        )
    numbers = np.repeat([atomic_numbers[str(one)] for one in elements], counts)
    direct = f"{group}/direct_coordinates"
    if direct in file and not np.ravel(file[direct][()])[0]:
        return Atoms(numbers=numbers, positions=positions * scale, cell=cell, pbc=True)
    return Atoms(numbers=numbers, scaled_positions=positions, cell=cell, pbc=True)


def _occupancies(file: Any, index: int, path: Path, n_atoms: int) -> Occupancies | None:
    names = [f"charge/aug_occupancies{part}_s{index + 1:02d}" for part in ("", "_ions")]
    present = [name in file for name in names]
    if not any(present):
        return None
    if not all(present):
        missing = names[present.index(False)]
        raise DensityFileError(f"{path}: the data set {missing} is missing.")
    values = _data(file, names[0], path, 2)
    sizes = _data(file, names[1], path, 1).astype(int)
    if len(values) != n_atoms or sizes.shape != (n_atoms,):
        raise DensityFileError(f"{path}: {names[0]} is not that of {n_atoms} atoms.")
    if sizes.min() < 0 or sizes.max() > values.shape[1]:
        raise DensityFileError(f"{path}: {names[1]} exceeds the size of {names[0]}.")
    if not sizes.any():
        return None
    return tuple(row[:size].copy() for row, size in zip(values, sizes, strict=True))


def _data(file: Any, name: str, path: Path, ndim: int) -> NDArray[np.float64]:
    if name not in file:
        raise DensityFileError(f"{path}: the data set {name} is missing.")
    dataset = file[name]
    if getattr(dataset, "ndim", None) != ndim or dataset.dtype.kind not in "fiu":
        raise DensityFileError(f"{path}: {name} is no array of numbers with {ndim} axes.")
    if dataset.size * dataset.dtype.itemsize > 2**20 + 2000 * path.stat().st_size:
        raise DensityFileError(
            f"{path}: {name} claims {dataset.size} numbers, which this file cannot hold."
        )
    values = np.asarray(dataset, dtype=np.float64)
    if not np.isfinite(values).all():
        raise DensityFileError(f"{path}: {name} holds NaN or infinite values.")
    return values


def _code(file: Any) -> str:
    keys = [f"version/{part}" for part in ("major", "minor", "patch")]
    if not all(key in file for key in keys):
        return "VASP"
    return "VASP " + ".".join(str(int(np.ravel(file[key][()])[0])) for key in keys)
