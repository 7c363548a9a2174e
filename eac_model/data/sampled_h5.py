"""The sampled ``.h5`` files of the EAC-Net reference implementation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from eac_model.data.chgcar import Occupancies, read_onsite
from eac_model.data.sample import DensitySample, Provenance
from eac_model.data.textfile import NumberedText
from eac_model.errors import DensityFileError

GROUP = "chgcar_random"
"""Name of the group that marks such a file."""


def read_sampled_h5(path: str | Path) -> DensitySample:
    """Read a CHGCAR that was sampled at random grid points.

    Parameters
    ----------
    path
        HDF5 file with the group ``chgcar_random`` of one structure.

    Returns
    -------
    DensitySample
        Point sample: positions in Å, density and spin density (``chgdiff``) in e/Å³, and from
        the texts ``aug`` and ``augdiff`` the on-site occupancies and MAGMOM.

    Raises
    ------
    DensityFileError
        Names file, key and cause.
    """
    path = Path(path)
    try:
        with h5py.File(path, "r", locking=False) as file:
            if GROUP not in file:
                raise DensityFileError(f"{path}: there is no group {GROUP!r}.")
            return _read(file[GROUP], path)
    except DensityFileError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise DensityFileError(f"{path}: damaged, or not an HDF5 file ({error}).") from error


def _read(group: Any, path: Path) -> DensitySample:
    numbers = _array(group, "atom_type", path, 1).astype(int)
    positions = _array(group, "atom_pos", path, 2)
    cell = _array(group, "cell", path, 2)
    points = _array(group, "probe_pos", path, 2)
    density = _array(group, "chg", path, 1)
    spin = _array(group, "chgdiff", path, 1) if "chgdiff" in group else None
    n_atoms = len(numbers)
    for key, array, shape in (
        ("atom_pos", positions, (n_atoms, 3)),
        ("cell", cell, (3, 3)),
        ("probe_pos", points, (len(density), 3)),
        ("chgdiff", spin, density.shape),
    ):
        if array is not None and array.shape != shape:
            raise DensityFileError(f"{path}: key {key} has shape {array.shape}, expected {shape}.")
    if n_atoms == 0 or numbers.min() < 1 or numbers.max() > 118:
        raise DensityFileError(f"{path}: key atom_type holds no atomic numbers.")

    atoms = Atoms(numbers=numbers, positions=positions, cell=cell, pbc=True)
    onsite, moments = _occupancies(group, "aug", path, n_atoms)
    onsite_spin, _ = _occupancies(group, "augdiff", path, n_atoms)
    if moments is not None:
        atoms.set_initial_magnetic_moments(moments)
    return DensitySample(
        atoms=atoms,
        points=points,
        density=density,
        spin_density=spin,
        onsite=onsite,
        onsite_spin=onsite_spin,
        provenance=Provenance(code="VASP", density_kind="valence", source=path.name),
    )


def _array(group: Any, key: str, path: Path, ndim: int) -> NDArray[np.float64]:
    """Data set of one structure, without the leading axis of structures."""
    if key not in group:
        raise DensityFileError(f"{path}: key {GROUP}/{key} is missing.")
    values = np.asarray(group[key])
    if values.ndim != ndim + 1 or len(values) != 1 or values.dtype.kind not in "fiu":
        raise DensityFileError(
            f"{path}: key {key} has shape {values.shape} and type {values.dtype}; expected the "
            f"numbers of one structure with {ndim + 1} axes."
        )
    if not np.isfinite(values).all():
        raise DensityFileError(f"{path}: key {key} holds NaN or infinite values.")
    return values[0].astype(np.float64)


def _occupancies(
    group: Any, key: str, path: Path, n_atoms: int
) -> tuple[Occupancies | None, NDArray[np.float64] | None]:
    """Occupancies and, if they follow, the moments of the atoms."""
    content = group.attrs.get(key)
    if content is None:
        return None, None
    raw = content if isinstance(content, bytes) else str(content).encode()
    text = NumberedText(f"{path}, attribute {key}", raw)
    section, line = read_onsite(text, 0, n_atoms)
    if line < len(text):
        text.fail(line, f"unexpected {text.line(line)[:40]!r} after the occupancies.")
    return section.occupancies, section.moments
