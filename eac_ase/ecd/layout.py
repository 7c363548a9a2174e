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
import math
import re
import tarfile
import tempfile
import zlib
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
            A list is damaged: a name twice, an empty line between names, a split that is no JSON,
            an index out of range, or one in two splits.
        """
        folder = Path(root) / name
        listing = folder / "filelist.txt"
        if not listing.is_file():
            raise ConfigurationError(
                f"{listing}: there is no such file. --data names the folder that holds pbe, hse "
                "and gnome, each with its filelist.txt (see the documentation, page ECD)."
            )
        names = _read_names(listing)
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

    def require(self, names: Iterable[str]) -> None:
        """Make sure that there is something to read of every material, without reading it.

        Raises
        ------
        DensityFileError
            Of some there is not.
        """
        absent = [name for name in names if not self.has_state(name) and self._file(name) is None]
        if absent:
            raise self._without_files(absent)

    def _without_files(self, names: Sequence[str]) -> DensityFileError:
        others = f", and {len(names) - 1} others that are missing" if names[1:] else ""
        return DensityFileError(
            f"{self.folder / names[0]}: there is no such file, neither with .gz or .tar.gz behind "
            f"it nor as a folder with a CHGCAR; {self.folder / 'filelist.txt'} lists it{others}."
        )

    def _file(self, name: str) -> Path | None:
        plain = self.folder / name
        behind = (plain.with_name(f"{name}{suffix}") for suffix in (".gz", ".tar.gz"))
        forms = (plain, *behind, plain / "CHGCAR", plain / "CHGCAR.gz")
        return next((path for path in forms if path.is_file()), None)

    def read(self, name: str) -> DensitySample:
        """Density of a material: GPAW's state if there is one, else its CHGCAR.

        Raises
        ------
        DensityFileError
            There is no file of this name, or it is damaged.
        """
        if self.states is not None and self.has_state(name):
            return self.states.read(self._states_by_name[name])
        path = self._file(name)
        if path is None:
            raise self._without_files([name])
        packed = path.name.endswith(".tar.gz")
        return _named(_read_packed(path) if packed else read_density(path), name)


def _read_names(listing: Path) -> tuple[str, ...]:
    """The lines of a list of materials; splits count them."""
    try:
        # utf-8-sig: editors of Windows put a mark before the first name.
        lines = listing.read_text(encoding="utf-8-sig").rstrip().split("\n")
    except UnicodeDecodeError as error:
        raise DensityFileError(f"{listing}: this is no text ({error}).") from error
    names = [line.strip() for line in lines]
    seen: set[str] = set()
    for number, name in enumerate(names, start=1):
        if name in ("", ".", "..") or "/" in name or "\\" in name:
            raise DensityFileError(
                f"{listing}, line {number}: the name of a file in this folder is expected, not "
                f"{name!r}."
            )
        if name in seen:
            raise DensityFileError(f"{listing}, line {number}: {name!r} is there twice.")
        seen.add(name)
    return tuple(names)


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
    found: dict[str, MeasuredGap] = {}
    lines = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig")))
    for line in lines:
        try:
            name, gap = line["name"], float(line["gap_ev"])
            if not (math.isfinite(gap) and gap >= 0):
                raise ValueError(f"{gap} eV is no band gap")
            if name in found:
                raise ValueError(f"{name!r} is there twice")
            found[name] = MeasuredGap(name, gap, line["source"] or "")
        except (KeyError, TypeError, ValueError) as error:
            raise DensityFileError(
                f"{path}, line {lines.line_num}: name, gap_ev and source are expected ({error})."
            ) from error
    return tuple(found.values())


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
        if strange := set(content) - set(get_args(Split)):
            raise ValueError(f"{min(strange)!r} is none of them")
        indices = {split: content.get(split, []) for split in get_args(Split)}
        for lines in indices.values():
            if not isinstance(lines, list) or any(type(line) is not int for line in lines):
                raise ValueError(f"{str(lines)[:40]} is something else")
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


def _last(member: tarfile.TarInfo) -> str:
    return Path(member.name).name


def _read_packed(path: Path) -> DensitySample:
    """The one density in a .tar.gz file."""
    try:
        with tarfile.open(path, "r:gz") as archive:
            members = [m for m in archive.getmembers() if m.isfile()]
            # Archives of macOS hold a second file "._NAME" for every file.
            found = [m for m in members if re.fullmatch(r"(?!\._).*chg.*", _last(m), re.I)]
            found = [m for m in found if re.match(r"CHGCAR(\.gz)?$", _last(m))] or found
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
                try:
                    return read_density(unpacked)
                except DensityFileError as error:
                    told = str(error).replace(str(unpacked), f"{path}, {found[0].name}")
                    raise DensityFileError(told) from error
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise DensityFileError(f"{path}: cannot be unpacked ({error}).") from error
