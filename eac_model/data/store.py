"""A folder of density samples: thousands of grids, random points without reading them whole.

A store is a folder with one HDF5 file a sample (:mod:`eac_model.data.sample_file`) and an index::

    store.json               format and version
    index.jsonl              a line of metadata for each sample; can be rebuilt from the files
    samples/00000000.h5 …    one a sample, in the order they were appended

HDF5 has no journal: a process killed while it extends a file can leave that file unreadable, with
everything in it. So no file of a store is ever extended. Each sample is written under a temporary
name and renamed when complete; whatever a kill leaves behind is a temporary file that nobody
reads and the next writer removes. Opening a store lists the folder and reads the index, not the
samples.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
from ase import Atoms
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from eac_model.data.sample import Calculation, DensitySample
from eac_model.data.sample_file import open_sample, write_sample
from eac_model.data.sampling import SamplingMap, SamplingMixture, draw_points
from eac_model.errors import ConfigurationError, DensityFileError
from eac_model.files import append_line, replacing

_FORMAT = "eac-density-store"
_VERSION = 1
_LOCK_SECONDS = 60


@dataclass(frozen=True)
class StoreEntry:
    """What the index tells about a sample."""

    file: str
    """Name of the sample's file."""
    formula: str
    """Chemical formula."""
    n_atoms: int
    """Number of atoms."""
    shape: tuple[int, ...]
    """Shape of the density: (n1, n2, n3) of a grid, (p,) of scattered points."""
    spin: bool
    """Whether there is a spin density."""
    onsite: bool
    """Whether there are on-site data."""
    electrons: float | None
    """Integral of the density over the cell; None for scattered points."""
    density_kind: str
    """What the density counts, see :data:`~eac_model.data.sample.DensityKind`."""
    source: str
    """Name of the file the sample came from."""
    key: str
    """Identity of the source, given by the writer; empty if none."""
    stamp: str
    """State of the source when it was read, given by the writer."""


class DensityStore:
    """Density samples on disk.

    No file stays open between calls, so a store may be copied to other processes, forked or
    spawned, and there is nothing to close. Samples are numbered from 0 in the order they were
    appended. A store sees the samples that were there when it was opened, and its own.

    Examples
    --------
    >>> store = DensityStore.create("water.store")
    >>> store.append(read_density("CHGCAR"))
    0
    >>> rng = np.random.default_rng(1)
    >>> points, weights = store.draw(0, 5000, SamplingMixture(uniform=1, core=1), rng)
    """

    def __init__(self, path: Path, entries: list[StoreEntry]) -> None:
        self.path = path
        self._entries = entries

    @classmethod
    def create(cls, path: str | Path) -> Self:
        """Create an empty store in a new or empty folder.

        Raises
        ------
        ConfigurationError
            If there is something already.
        """
        path = Path(path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ConfigurationError(f"{path} exists already; a new store needs a new folder.")
        (path / "samples").mkdir(parents=True)
        _write_head(path)
        return cls(path, [])

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open an existing store.

        Raises
        ------
        DensityFileError
            If there is none, it is damaged, or a newer version wrote it.
        """
        path = Path(path)
        if _creation_was_cut_short(path):
            _write_head(path)
        try:
            head = json.loads((path / "store.json").read_text())
            known = head["format"] == _FORMAT
            version = int(head["version"])
        except (OSError, ValueError, KeyError, TypeError):
            known, version = False, 0
        if not known:
            raise DensityFileError(f"{path}: not a density store (no valid store.json in it).")
        if version > _VERSION:
            raise DensityFileError(
                f"{path}: written by a newer version of this program (store format {version}, "
                f"known up to {_VERSION}). Update it."
            )
        return cls(path, _load_entries(path))

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def entries(self) -> tuple[StoreEntry, ...]:
        """Metadata of all samples, without opening them."""
        return tuple(self._entries)

    def append(self, sample: DensitySample, *, key: str = "", stamp: str = "") -> int:
        """Add a sample; it is there completely or not at all, whatever happens meanwhile.

        Several processes may append to one store: they take turns.

        Parameters
        ----------
        sample
            Any sample; densities are stored as float32.
        key
            Identity of the source. A sample with the same non-empty key is replaced: it
            disappears, and the new one comes last.
        stamp
            State of the source, such as its size and time.

        Returns
        -------
        int
            Its number.

        Raises
        ------
        ConfigurationError
            If another process keeps the store busy for more than a minute.
        """
        try:
            with FileLock(self.path / ".lock", timeout=_LOCK_SECONDS):
                return self._append(sample, key, stamp)
        except Timeout:
            raise ConfigurationError(
                f"{self.path}: another process is writing to this store. Try again later."
            ) from None

    def _append(self, sample: DensitySample, key: str, stamp: str) -> int:
        folder = self.path / "samples"
        for leftover in folder.glob(".*.tmp.*"):  # of killed writers: ours has the lock
            leftover.unlink(missing_ok=True)
        names, before = _sample_names(self.path), self._entries
        if names != [entry.file for entry in before]:  # others have written, too
            before = _load_entries(self.path)
        last = max((int(name.removesuffix(".h5")) for name in names), default=-1)
        path = folder / f"{last + 1:08d}.h5"
        write_sample(path, sample, attributes={"key": key, "stamp": stamp})
        entry = _entry_from_file(path)
        replaced = [old for old in before if key and old.key == key]
        for old in replaced:
            (folder / old.file).unlink(missing_ok=True)
        append_line(self.path / "index.jsonl", json.dumps(asdict(entry)))
        self._entries = [old for old in before if old not in replaced] + [entry]
        return len(self._entries) - 1

    def read(self, index: int) -> DensitySample:
        """Sample of this number, whole."""
        with open_sample(self._file(index)) as file:
            return file.sample()

    def calculation(self, index: int) -> Calculation | None:
        """Energy, forces, eigenvalues and settings of a sample, without its density."""
        with open_sample(self._file(index)) as file:
            return file.calculation()

    def structure(self, index: int) -> Atoms:
        """Structure of a sample, with initial magnetic moments."""
        with open_sample(self._file(index)) as file:
            return file.structure()

    def read_points(self, index: int, flat_indices: NDArray[np.integer]) -> DensitySample:
        """Read values of a sample at some points, without the rest of the grid.

        Parameters
        ----------
        index
            Number of the sample.
        flat_indices : shape (p,)
            C-order indices of grid points (or of the points of a point sample), in any order.

        Returns
        -------
        DensitySample
            Point sample in the order of the indices.
        """
        with open_sample(self._file(index)) as file:
            return file.points(flat_indices)

    def sampling_map(self, index: int) -> SamplingMap | None:
        """Map for :func:`~eac_model.data.sampling.draw_points`; None for a point sample."""
        with open_sample(self._file(index)) as file:
            return file.sampling_map()

    def draw(
        self, index: int, count: int, mixture: SamplingMixture, rng: np.random.Generator
    ) -> tuple[DensitySample, NDArray[np.float64]]:
        """Draw points of a sample; :func:`~eac_model.data.sampling.draw_points` and a read.

        Returns
        -------
        sample
            Point sample of `count` points.
        weights : shape (count,)
            Importance weights.
        """
        with open_sample(self._file(index)) as file:
            source = file.sampling_map()
            indices, weights = draw_points(source or file.sample(), count, mixture, rng)
            return file.points(indices), weights

    def _file(self, index: int) -> Path:
        return self.path / "samples" / self._entries[index].file


def _write_head(path: Path) -> None:
    with replacing(path / "store.json") as temporary:
        temporary.write_text(json.dumps({"format": _FORMAT, "version": _VERSION}) + "\n")


def _creation_was_cut_short(path: Path) -> bool:
    """Whether there is an empty folder ``samples``, and nothing else but hidden files."""
    try:
        names = [name for name in os.listdir(path) if not name.startswith(".")]
        return names == ["samples"] and not os.listdir(path / "samples")
    except OSError:
        return False


def _sample_names(path: Path) -> list[str]:
    with os.scandir(path / "samples") as found:
        names = [entry.name for entry in found]
    return sorted(name for name in names if name.endswith(".h5") and name[:-3].isdigit())


def _load_entries(path: Path) -> list[StoreEntry]:
    """Entries of all sample files, from the index where it knows them."""
    indexed: dict[str, StoreEntry] = {}
    index = path / "index.jsonl"
    for line in index.read_text("utf-8", "replace").splitlines() if index.exists() else []:
        try:
            fields = json.loads(line)
            entry = StoreEntry(**{**fields, "shape": tuple(fields["shape"])})
        except (ValueError, TypeError, KeyError):
            continue  # a line some kill cut short; its sample speaks for itself
        indexed[entry.file] = entry
    try:
        names = _sample_names(path)
    except FileNotFoundError:
        raise DensityFileError(f"{path}: the folder samples is missing.") from None
    entries = [indexed.get(name) or _entry_from_file(path / "samples" / name) for name in names]
    # of two samples with one key the older is left from a replacement that was cut short
    newest = {entry.key: entry.file for entry in entries if entry.key}
    return [entry for entry in entries if newest.get(entry.key, entry.file) == entry.file]


def _entry_from_file(path: Path) -> StoreEntry:
    with open_sample(path) as file:
        attributes = file.attributes
        atoms = file.structure()
        provenance = file.provenance()
        electrons = attributes.get("electrons")
        return StoreEntry(
            file=path.name,
            formula=atoms.get_chemical_formula(),
            n_atoms=len(atoms),
            shape=file.shape,
            spin=file.has_spin,
            onsite=file.has_onsite,
            electrons=None if electrons is None else float(electrons),
            density_kind=provenance.density_kind,
            source=provenance.source,
            key=str(attributes.get("key", "")),
            stamp=str(attributes.get("stamp", "")),
        )
