"""GPAW's .gpw files, read without GPAW."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from ase.io import ulm
from ase.io.trajectory import read_atoms
from numpy.typing import NDArray

from eac_model.data.sample import DensitySample, Provenance
from eac_model.errors import DensityFileError

_WITH_SMALL_OR_LARGE_CORE = {"Na": (13, 5), "Mg": (13, 5), "Te": (13, 18)}
_TAGS = ("gpaw", "GPAW")
"""Of files of new and of classic GPAW."""
_PLAIN_FUNCTIONALS = ("LDA", "PBE", "RPBE", "revPBE")


def read_gpw(path: str | Path, *, onsite: bool = True) -> DensitySample:
    """Read structure, pseudo density and atomic density matrices from a .gpw file.

    Parameters
    ----------
    path
        File written by GPAW, classic (format 3) or new (formats 4 to 7).
    onsite
        Whether to read the atomic density matrices.

    Returns
    -------
    DensitySample
        ``density`` is ñ in e/Å³ on the coarse grid; in modes FD and LCAO its first layer along
        directions without periodicity is zero, as in ``get_pseudo_density(pad=True)``. ``onsite``
        holds D_a of shape (i, i), both spins together, ``onsite_spin`` up minus down.

    Raises
    ------
    DensityFileError
        If the file is damaged, not GPAW's, or of a non-collinear calculation; or if the numbers
        of projectors, which the file does not hold, are not those of GPAW's own PAW data sets, or
        more than one choice of these fits (then ``onsite=False`` still reads the density).
    """
    path = Path(path)
    # damaged files break in as many ways as there are layers in the container format
    try:
        with ulm.open(path) as reader:
            if reader.get_tag() not in _TAGS:
                raise DensityFileError(f"{path}: not a GPAW file but {reader.get_tag()!r}.")
            return _read(reader, path, onsite)
    except DensityFileError:
        raise
    except FileNotFoundError:
        raise DensityFileError(f"{path}: no such file.") from None
    except (
        OSError,
        ValueError,
        KeyError,
        AttributeError,
        TypeError,
        IndexError,
        MemoryError,
        OverflowError,
    ) as error:
        raise DensityFileError(
            f"{path}: not a .gpw file, or a damaged one ({type(error).__name__}: {error})."
        ) from error


def _read(reader: Any, path: Path, onsite: bool) -> DensitySample:
    atoms = read_atoms(reader.atoms)
    atoms.calc = None
    atoms.constraints = []
    grids = np.asarray(reader.density.density, dtype=np.float64)
    if grids.ndim != 4 or len(grids) not in (1, 2) or not np.isfinite(grids).all():
        raise DensityFileError(
            f"{path}: key density.density has shape {grids.shape} or holds NaN; expected one or "
            "two finite grids. Non-collinear densities are not supported."
        )
    mode = reader.parameters.get("mode", "fd")
    if (mode.get("name") if isinstance(mode, dict) else mode) != "pw":
        # GPAW leaves out the boundary layer where the density vanishes; plane waves have none.
        grids = np.pad(grids, [(0, 0), *((int(not periodic), 0) for periodic in atoms.pbc)])
    xc = reader.parameters.get("xc", "LDA")
    functional = xc.get("name", "unknown") if isinstance(xc, dict) else str(xc)
    spin_polarised = len(grids) == 2
    matrices = _read_matrices(reader, atoms, path) if onsite else ()
    return DensitySample(
        atoms=atoms,
        density=grids.sum(axis=0),
        spin_density=grids[0] - grids[1] if spin_polarised else None,
        onsite=tuple(d.sum(axis=0) for d in matrices) or None,
        onsite_spin=tuple(d[0] - d[1] for d in matrices if spin_polarised) or None,
        provenance=Provenance(
            code=f"GPAW {reader.get('gpaw_version', '')}".strip(),
            functional=functional,
            density_kind="pseudo",
            paw_datasets=_datasets(atoms, reader.parameters.get("setups", {}), functional),
            source=path.name,
        ),
    )


def _read_matrices(reader: Any, atoms: Atoms, path: Path) -> tuple[NDArray[np.float64], ...]:
    packed = np.asarray(reader.density.atomic_density_matrices)
    if packed.ndim != 2 or np.iscomplexobj(packed):
        raise DensityFileError(
            f"{path}: key density.atomic_density_matrices has shape {packed.shape} and type "
            f"{packed.dtype}; expected (spins, numbers), real."
        )
    choices = _projectors(atoms, packed.shape[1])
    usual = [_choices(symbol)[0] for symbol in atoms.get_chemical_symbols()]
    if usual in choices and "setups" not in reader.parameters:
        choices = [usual]
    if len(choices) != 1:
        fit = "do not fit" if not choices else "fit more than one choice for"
        raise DensityFileError(
            f"{path}: {packed.shape[1]} numbers a spin in density.atomic_density_matrices {fit} "
            f"{atoms.get_chemical_formula()} with GPAW's own PAW data sets. Read the density "
            "without them (onsite=False)."
        )
    [sizes] = choices
    legacy = reader.version < 4
    matrices = []
    start = 0
    for n in sizes:
        stop = start + n * (n + 1) // 2
        matrices.append(_unpack(packed[:, start:stop].astype(np.float64), n, legacy=legacy))
        start = stop
    return tuple(matrices)


def _unpack(packed: NDArray[np.float64], n: int, *, legacy: bool) -> NDArray[np.float64]:
    """Symmetric matrices (s, n, n) from their triangles.

    Up to format 3 the upper triangle is stored with doubled off-diagonals, since then the lower
    triangle as it is.
    """
    rows, columns = np.triu_indices(n) if legacy else np.tril_indices(n)
    values = packed * np.where(rows == columns, 1.0, 0.5) if legacy else packed
    matrices = np.empty((len(packed), n, n))
    matrices[:, rows, columns] = values
    matrices[:, columns, rows] = values
    return matrices


def _datasets(atoms: Atoms, setups: Any, functional: str) -> tuple[str, ...]:
    """Names of the PAW data sets, by symbol; empty where they are not known."""
    if functional not in _PLAIN_FUNCTIONALS:
        return ()
    if isinstance(setups, str):
        setups = {"default": setups}
    names: dict[str, set[str]] = {}
    for a, symbol in enumerate(atoms.get_chemical_symbols()):
        given = [setups.get(key) for key in (a, str(a), symbol, "default")]
        # What follows a colon is a correction +U, and leaves the data set as it is.
        kind = str(next((one for one in given if one is not None), "paw")).split(":")[0]
        name = (
            f"{symbol}.{kind}.{functional}" if kind not in ("", "paw") else f"{symbol}.{functional}"
        )
        names.setdefault(symbol, set()).add(name)
    return tuple(name for symbol in sorted(names) for name in sorted(names[symbol]))


def _projectors(atoms: Atoms, total: int) -> list[list[int]]:
    """Numbers of projectors of every atom whose triangles add up to `total`, all that there are."""
    symbols = atoms.get_chemical_symbols()
    elements = sorted(set(symbols))
    found = []
    for choice in product(*(_choices(element) for element in elements)):
        size = dict(zip(elements, choice, strict=True))
        sizes = [size[symbol] for symbol in symbols]
        if sum(n * (n + 1) // 2 for n in sizes) == total:
            found.append(sizes)
    return found


def _choices(element: str) -> tuple[int, ...]:
    """Projectors of the element in GPAW's PAW data sets (0.9 and 1.x), first those it takes."""
    number = atomic_numbers[element]
    if number <= 4:  # s, s, p
        return (5,)
    if 57 <= number <= 71:  # La to Lu: s, s, p, p, d, d, f, f
        return (32,)
    # Sc to Zn, Y to Sb, Ba, Hf to Bi: s, s, p, p, d, d
    if 21 <= number <= 30 or 39 <= number <= 51 or number == 56 or 72 <= number <= 83:
        return (18,)
    # s, s, p, p, d
    return _WITH_SMALL_OR_LARGE_CORE.get(element, (13,))
