"""Any density file into a sample, and many of them into a store."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import h5py

from eac_model.data.chgcar import read_chgcar
from eac_model.data.cube import read_cube
from eac_model.data.gpw import read_gpw
from eac_model.data.sample import DensitySample
from eac_model.data.sample_file import FORMAT, read_sample
from eac_model.data.sampled_h5 import GROUP, read_sampled_h5
from eac_model.data.store import DensityStore
from eac_model.data.textfile import read_bytes
from eac_model.data.vaspwave import CHARGE, read_vaspwave
from eac_model.errors import DensityFileError, EACError

_KNOWN = (
    "CHGCAR and CHG, vaspwave.h5, cube, .gpw, and .h5 of this program or of the EAC-Net reference "
    "code"
)


_OF_VASP = re.compile(
    r"(chgcar|aeccar|parchg|chg([._\-\d]|$))(?!.*\.(cif|xyz|extxyz|traj|json|pdb)$)"
)
"""Names, in lower case, that VASP gives to densities, with anything behind."""

_GRID = re.compile(
    rb"\A(.*\n){8,}?[ \t]*\r?\n[ \t]*[1-9]\d*[ \t]+[1-9]\d*[ \t]+[1-9]\d*[ \t]*\r?\n"
)
"""An empty line and the numbers of points, behind a structure of VASP."""


@dataclass(frozen=True)
class ConversionFailure:
    """A file that could not be converted."""

    path: Path
    """The file."""
    message: str
    """Why."""


@dataclass(frozen=True)
class ConversionReport:
    """What became of the files of a conversion."""

    converted: tuple[Path, ...]
    """Files now in the store."""
    skipped: tuple[Path, ...]
    """Files that were in the store already, unchanged."""
    failures: tuple[ConversionFailure, ...]
    """Files that could not be read."""


def read_density(path: str | Path) -> DensitySample:
    """Read a density file of any known format, recognised by content and name.

    Parameters
    ----------
    path
        CHGCAR, CHG, AECCAR, PARCHG or vaspwave.h5 (VASP), cube, .gpw (GPAW), or an .h5 file of
        this program or of the EAC-Net reference code; text files may be gzipped.

    Raises
    ------
    DensityFileError
        If the file is of none of these formats or damaged; names line or key and cause.
    """
    path = Path(path)
    name = path.name.lower().removesuffix(".gz")
    if path.is_dir():
        raise DensityFileError(f"{path}: a folder, not a density file.")
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise DensityFileError(f"{path}: cannot be read ({error.strerror or error}).") from error
    if not start:
        raise DensityFileError(f"{path}: the file is empty.")
    if start.startswith(b"\x89HDF"):
        return _read_h5(path)
    if start.startswith(b"- of Ulm") or name.endswith(".gpw"):
        return read_gpw(path)
    if name.endswith((".cube", ".cub")):
        return read_cube(path)
    if name.endswith((".vasp", ".chgcar")) or _OF_VASP.match(name):
        return read_chgcar(path)
    return _read_by_content(path)


def holds_density(path: Path) -> bool:
    """Whether a file holds a density, whole or damaged, and not only a structure.

    Names say so, but for ``*.vasp``, which is what structures are called as well.
    """
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(".vasp") and path.is_file():
        return _GRID.search(read_bytes(path)) is not None
    endings = (".cube", ".cub", ".h5", ".chgcar", ".gpw")
    return name.endswith(endings) or _OF_VASP.match(name) is not None


def convert(
    paths: Iterable[str | Path],
    store_path: str | Path,
    *,
    progress: Callable[[Path], None] | None = None,
) -> ConversionReport:
    """Read density files into a store, which is created if there is none.

    A file that cannot be read is reported and the rest goes on. Files that are in the store
    already, unchanged in size and time, are skipped, so that an interrupted conversion is resumed
    by running it again; files that changed replace what was read from them before.

    Parameters
    ----------
    paths
        Density files of any known format.
    store_path
        Folder of the store.
    progress
        Called with each path when it is done with, for better or worse.
    """
    store_path = Path(store_path)
    exists = store_path.is_dir() and any(store_path.iterdir())
    store = DensityStore.open(store_path) if exists else DensityStore.create(store_path)
    present = {entry.key: entry.stamp for entry in store.entries}
    converted: list[Path] = []
    skipped: list[Path] = []
    failures: list[ConversionFailure] = []
    for path in map(Path, paths):
        try:
            key, stamp = _identity(path)
            if present.get(key) == stamp:
                skipped.append(path)
            else:
                store.append(_named_by_folder(read_density(path), path), key=key, stamp=stamp)
                present[key] = stamp
                converted.append(path)
        except (EACError, OSError) as error:
            failures.append(ConversionFailure(path, str(error)))
        if progress is not None:
            progress(path)
    if not exists and not converted:
        shutil.rmtree(store_path)  # an empty store helps nobody
    return ConversionReport(tuple(converted), tuple(skipped), tuple(failures))


def _named_by_folder(sample: DensitySample, path: Path) -> DensitySample:
    """With ``run3/CHGCAR`` for a source instead of ``CHGCAR``, as all files of VASP are called."""
    if sample.provenance.source != path.name:
        return sample
    source = f"{path.absolute().parent.name}/{path.name}"
    return replace(sample, provenance=replace(sample.provenance, source=source))


def _identity(path: Path) -> tuple[str, str]:
    """Key and stamp of a file; the key does not give the folder away."""
    try:
        status = path.stat()
    except OSError as error:
        raise DensityFileError(f"{path}: cannot be read ({error.strerror or error}).") from error
    key = hashlib.blake2b(str(path.resolve()).encode(), digest_size=12).hexdigest()
    return key, f"{status.st_size}-{status.st_mtime_ns}"


def _read_h5(path: Path) -> DensitySample:
    try:
        with h5py.File(path, "r", locking=False) as file:
            kind = file.attrs.get("format")
            sampled = GROUP in file
            vasp = CHARGE in file
            results = "results" in file and "version" in file
    except (OSError, RuntimeError, KeyError) as error:
        raise DensityFileError(
            f"{path}: a damaged HDF5 file, or one that is open elsewhere, in this program say "
            f"({error})."
        ) from error
    if kind == FORMAT:
        return read_sample(path)
    if sampled:
        return read_sampled_h5(path)
    if vasp:
        return read_vaspwave(path)
    if results:
        raise DensityFileError(
            f"{path}: VASP's HDF5 output without a density, which is in vaspwave.h5 if INCAR has "
            "LH5 or LCHARGH5 = .TRUE."
        )
    raise DensityFileError(
        f"{path}: an HDF5 file without a density: neither the attribute format={FORMAT!r} nor the "
        f"group {GROUP!r} nor the data set {CHARGE!r} is there."
    )


def _read_by_content(path: Path) -> DensitySample:
    """Tell text formats apart by their first lines."""
    start = read_bytes(path)[:4000]
    lines = start.decode("latin-1").splitlines()[:6]
    widths = [len(line.split()) if _all_numbers(line) else 0 for line in lines]
    if len(widths) > 5 and widths[1] in (1, 3) and widths[2:5] == [3, 3, 3]:
        return read_chgcar(path)
    if len(widths) > 5 and widths[2] in (4, 5) and widths[3:6] == [4, 4, 4]:
        return read_cube(path)
    raise DensityFileError(f"{path}: not a known density file. Known are {_KNOWN}.")


def _all_numbers(line: str) -> bool:
    try:
        return bool([float(token) for token in line.split()])
    except ValueError:
        return False
