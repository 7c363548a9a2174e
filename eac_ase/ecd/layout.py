"""Folders of the ECD data set: lists of materials, splits, charge densities.

As in the repository that accompanies the paper (github.com/pincher-chen/ECDBench), ``pbe``, ``hse``
and ``gnome`` each hold::

    filelist.txt        a material a line: icsd-237213-Li2H4N2.chgcar
    split.json          {"train": [5, 0, …], "validation": […], "test": […]}, lines counted from 0
    probe_counts.csv    a material a line: name, number of grid points, n1, n2, n3
    icsd-237213-Li2H4N2.chgcar, …

``gnome`` has no split: all of it is for testing. The densities are offered for download as one
``NAME.tar.gz`` a material, which is read without unpacking it; so are ``NAME.gz``, and a folder
``NAME`` with a CHGCAR in it.

Two things are this project's: ``exp/band_gaps.csv`` (header ``name,gap_ev,source``), since the
publication lists no measured gaps; and beside the CHGCARs of calculations with GPAW the store
``states.store``, whose keys are the names. It has what a CHGCAR lacks: matrices D, eigenvalues and
settings.
"""

from __future__ import annotations

import csv
import io
import json
import tarfile
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

from eac_model.data import DensitySample, DensityStore, read_density, write_chgcar
from eac_model.errors import ConfigurationError, DensityFileError
from eac_model.files import write_bytes

SetName = Literal["pbe", "hse", "gnome"]
"""PBE densities, HSE06 densities of some of the same materials, and other chemistry."""

Split = Literal["train", "validation", "test"]

STATES = "states.store"
GAPS = Path("exp") / "band_gaps.csv"


@dataclass(frozen=True)
class MeasuredGap:
    """A band gap from experiment."""

    name: str
    """Name of the material in the lists of densities."""
    gap: float
    """eV."""
    source: str
    """Where the figure comes from."""


@dataclass(frozen=True)
class EcdSet:
    """One folder of densities."""

    folder: Path
    names: tuple[str, ...]
    """Lines of ``filelist.txt``."""
    splits: Mapping[Split, tuple[str, ...]]
    """Names in the order of ``split.json``."""
    states: DensityStore | None = field(default=None, compare=False)
    """GPAW's states of some or all materials, or None."""

    @classmethod
    def open(cls, root: str | Path, name: SetName) -> EcdSet:
        """Read lists and splits; no density yet.

        Raises
        ------
        ConfigurationError
            The folder or its list is missing.
        DensityFileError
            A list is damaged: a name twice, a split that is no JSON, an index out of range, or one
            in two splits.
        """
        folder = Path(root) / name
        listing = folder / "filelist.txt"
        if not listing.is_file():
            raise ConfigurationError(
                f"{listing}: there is no such file. --data names the folder that holds pbe, hse "
                "and gnome, each with its filelist.txt (see the documentation, page ECD)."
            )
        names = tuple(line for line in listing.read_text(encoding="utf-8").split("\n") if line)
        seen: set[str] = set()
        for number, line in enumerate(names, start=1):
            if line in seen:
                raise DensityFileError(f"{listing}, line {number}: {line!r} is there twice.")
            seen.add(line)
        states = folder / STATES
        return cls(
            folder=folder,
            names=names,
            splits=_read_splits(folder / "split.json", names),
            states=DensityStore.open(states) if states.is_dir() else None,
        )

    @cached_property
    def _states_by_name(self) -> dict[str, int]:
        entries = () if self.states is None else self.states.entries
        return {entry.key: index for index, entry in enumerate(entries)}

    def of_split(self, split: Split) -> tuple[str, ...]:
        """Names of a split.

        Raises
        ------
        ConfigurationError
            It is empty.
        """
        found = self.splits.get(split, ())
        if not found:
            raise ConfigurationError(
                f"{self.folder / 'split.json'}: nothing is listed for {split}."
            )
        return found

    def has_state(self, name: str) -> bool:
        """Whether GPAW's state of a material is there."""
        return name in self._states_by_name

    def read(self, name: str) -> DensitySample:
        """Density of a material: GPAW's state if there is one, else its CHGCAR.

        Raises
        ------
        DensityFileError
            There is no file of this name, or it is damaged.
        """
        if self.states is not None and self.has_state(name):
            return self.states.read(self._states_by_name[name])
        plain = self.folder / name
        for path in (plain, plain.with_name(f"{name}.gz"), plain / "CHGCAR", plain / "CHGCAR.gz"):
            if path.is_file():
                return _named(read_density(path), name)
        packed = plain.with_name(f"{name}.tar.gz")
        if packed.is_file():
            return _named(_read_packed(packed), name)
        raise DensityFileError(
            f"{plain}: there is no such file, neither with .gz or .tar.gz behind it nor as a "
            f"folder with a CHGCAR; {self.folder / 'filelist.txt'} lists it."
        )


def read_gaps(root: str | Path) -> tuple[MeasuredGap, ...]:
    """Measured band gaps, ``exp/band_gaps.csv``.

    Raises
    ------
    ConfigurationError
        There is no such file.
    DensityFileError
        A line is damaged.
    """
    path = Path(root) / GAPS
    if not path.is_file():
        raise ConfigurationError(
            f"{path}: there is no such file; EXP-id compares with the gaps in it (name, gap_ev, "
            "source)."
        )
    found = []
    lines = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
    for line in lines:
        try:
            found.append(MeasuredGap(line["name"], float(line["gap_ev"]), line["source"] or ""))
        except (KeyError, TypeError, ValueError) as error:
            raise DensityFileError(
                f"{path}, line {lines.line_num}: name, gap_ev and source are expected ({error})."
            ) from error
    return tuple(found)


def write_set(
    folder: Path,
    samples: Mapping[str, DensitySample] | Iterable[tuple[str, DensitySample]],
    names: Sequence[str],
    splits: Mapping[Split, Sequence[str]],
    *,
    states: bool,
) -> None:
    """Write densities, lists and splits of one folder; what is there stays.

    Parameters
    ----------
    folder
        ``ROOT/pbe``, ``ROOT/hse`` or ``ROOT/gnome``.
    samples
        Names and densities on full grids; they may be read one after the other, while they are
        written. Those that are there already are not asked for again by :func:`missing`.
    names
        Lines of ``filelist.txt``; every one of `samples` and of the files that are there.
    splits
        Names by split; empty for a folder without splits.
    states
        Keep the whole samples, too, in ``states.store``.

    Raises
    ------
    ConfigurationError
        A split names what is not in `names`.
    """
    strange = {name for split in splits.values() for name in split} - set(names)
    if strange:
        raise ConfigurationError(f"{folder}: splits name {sorted(strange)[0]!r}, which is no file.")
    folder.mkdir(parents=True, exist_ok=True)
    store = None
    if states:
        path = folder / STATES
        store = DensityStore.open(path) if path.is_dir() else DensityStore.create(path)
    for name, sample in samples.items() if isinstance(samples, Mapping) else samples:
        if store is not None:
            store.append(_named(sample, name), key=name)
        write_chgcar(folder / name, replace(sample, onsite=None, onsite_spin=None))
    counts = []
    for name in names:
        shape = _grid_of(folder / name)
        counts.append(f"{name},{shape[0] * shape[1] * shape[2]},{','.join(map(str, shape))}\n")
    write_bytes(folder / "probe_counts.csv", "".join(counts).encode())
    if splits:
        lines = {name: line for line, name in enumerate(names)}
        content = {split: [lines[name] for name in chosen] for split, chosen in splits.items()}
        write_bytes(folder / "split.json", json.dumps(content).encode())
    # Last, since it makes the folder one that can be read.
    write_bytes(folder / "filelist.txt", "".join(f"{name}\n" for name in names).encode())


def missing(folder: Path, names: Sequence[str], *, states: bool) -> list[str]:
    """Names that :func:`write_set` has not written yet."""
    known = set(names)
    if states:
        path = folder / STATES
        entries = DensityStore.open(path).entries if path.is_dir() else ()
        known = {entry.key for entry in entries}
    return [name for name in names if name not in known or not (folder / name).is_file()]


def _named(sample: DensitySample, name: str) -> DensitySample:
    return replace(sample, provenance=replace(sample.provenance, source=name))


def _grid_of(path: Path) -> tuple[int, int, int]:
    """Shape of the grid in a CHGCAR: the line after the empty one that ends the structure."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if not line.strip():
                n1, n2, n3 = map(int, next(file).split())
                return n1, n2, n3
    raise DensityFileError(f"{path}: there is no grid in this file.")


def _read_splits(path: Path, names: Sequence[str]) -> dict[Split, tuple[str, ...]]:
    if not path.is_file():
        return {"test": tuple(names)}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        indices = {split: [int(i) for i in content.get(split, ())] for split in get_args(Split)}
    except (ValueError, AttributeError, TypeError) as error:
        raise DensityFileError(
            f"{path}: lists of line numbers are expected for train, validation and test ({error})."
        ) from error
    owner: dict[int, str] = {}
    for split, lines in indices.items():
        for line in lines:
            if not 0 <= line < len(names):
                raise DensityFileError(
                    f"{path}: {split} names line {line}, filelist.txt has {len(names)} lines."
                )
            if line in owner:
                raise DensityFileError(
                    f"{path}: line {line} ({names[line]}) is in {owner[line]} and in {split}."
                )
            owner[line] = split
    return {split: tuple(names[line] for line in lines) for split, lines in indices.items()}


def _read_packed(path: Path) -> DensitySample:
    """The one density in a .tar.gz file."""
    try:
        with tarfile.open(path, "r:gz") as archive:
            members = [m for m in archive.getmembers() if m.isfile()]
            found = [m for m in members if "chg" in Path(m.name).name.lower()]
            if len(found) != 1:
                raise DensityFileError(
                    f"{path}: one CHGCAR is expected, there are {len(found)} among "
                    f"{len(members)} files."
                )
            stream = archive.extractfile(found[0])
            assert stream is not None
            with tempfile.TemporaryDirectory() as folder:
                suffix = ".gz" if found[0].name.endswith(".gz") else ""
                unpacked = Path(folder) / f"CHGCAR{suffix}"
                unpacked.write_bytes(stream.read())
                return read_density(unpacked)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DensityFileError(f"{path}: cannot be unpacked ({error}).") from error
