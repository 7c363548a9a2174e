"""One density sample in one HDF5 file.

Layout, format version 1:

=================== =================================================== =====
name                content                                             unit
=================== =================================================== =====
structure           group: ``numbers`` (a,), ``positions`` (a, 3),      Å
                    ``cell`` (3, 3), ``pbc`` (3,), and ``magmoms``      μ_B
                    (a,), the initial magnetic moments, if any
density             (n1, n2, n3) or (p,), float32                       e/Å³
spin_density        as density, if any                                  e/Å³
points              (p, 3), of point samples                            Å
onsite, onsite_spin groups: ``values``, all numbers one after the
                    other; ``shapes`` (a, ndim), if any
sampling            group: the :class:`SamplingMap` of a grid
free_atoms          group: ``density``, ``spin_density``, ``onsite``    e/Å³
                    and ``onsite_spin`` of the code's superposition of
                    free atoms, if any
calculation         group: the arrays of :class:`Calculation`, its
                    numbers, settings and data sets as the JSON
                    attribute ``facts``, if any
=================== =================================================== =====

The provenance (JSON) and the number of electrons are attributes of the root. Grids are stored in
chunks of 8³ points with checksums behind shuffle and lzf, so that a few thousand random points of
a large grid touch a small part of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from eac_model.data.sample import (
    Calculation,
    DensitySample,
    FreeAtoms,
    PawDataset,
    Provenance,
)
from eac_model.data.sampling import SamplingMap
from eac_model.errors import DensityFileError, EACError, GridError
from eac_model.files import write_bytes

FORMAT = "eac-density-sample"
_VERSION = 1
_CHUNK = 8
_COMPRESSED = {"compression": "lzf", "shuffle": True, "fletcher32": True}


def write_sample(
    path: str | Path, sample: DensitySample, *, attributes: Mapping[str, str] | None = None
) -> None:
    """Write a sample to a file of its own.

    Densities are rounded to float32. Of the atoms, numbers, positions, cell, pbc and initial
    magnetic moments are kept; of on-site data, real numbers.
    Of non-collinear samples the total density is kept, not the magnetisation; of VASP's on-site
    data, not the imaginary parts.

    Parameters
    ----------
    path
        Replaced in one step when the file is complete.
    sample
        Any sample with finite values.
    attributes
        A few further attributes of the root.

    Raises
    ------
    GridError
        If values are not finite.
    """
    free = sample.free_atoms
    in_free = () if free is None else (free.density, free.spin_density)
    for values in (sample.density, sample.spin_density, sample.points, *in_free):
        if values is not None and not np.isfinite(values).all():
            raise GridError("The density holds NaN or infinite values and is not written.")
    # From version 1.10 of the format on, the indices of many chunks are small and quick. The root
    # keeps to eight members and eight attributes: more go into a heap, which is slower and whose
    # damage may send the HDF5 library round for ever.
    # In memory first: of a full disk the library dies, in Python it is an error.
    image = {"driver": "core", "backing_store": False}
    with h5py.File(str(path), "w", libver=("v110", "v110"), **image) as file:
        atoms = sample.atoms
        write_identity(file, atoms, sample.provenance)
        for name, value in (attributes or {}).items():
            file.attrs[name] = value
        _write_values(file, "density", sample.density)
        if sample.spin_density is not None:
            _write_values(file, "spin_density", sample.spin_density)
        write_arrays(file, "onsite", sample.onsite)
        write_arrays(file, "onsite_spin", sample.onsite_spin)
        if free is not None:
            group = file.create_group("free_atoms")
            _write_values(group, "density", free.density)
            if free.spin_density is not None:
                _write_values(group, "spin_density", free.spin_density)
            write_arrays(group, "onsite", free.onsite)
            write_arrays(group, "onsite_spin", free.onsite_spin)
        if sample.calculation is not None:
            _write_calculation(file.create_group("calculation"), sample.calculation)
        if sample.points is not None:
            file.create_dataset("points", data=np.asarray(sample.points), **_COMPRESSED)
        else:
            volume = abs(float(np.linalg.det(atoms.cell.array)))
            file.attrs["electrons"] = float(np.mean(sample.density, dtype=np.float64)) * volume
            group = file.create_group("sampling")
            for name, value in vars(SamplingMap.from_grid(atoms, sample.density)).items():
                many = {} if np.ndim(value) < 3 else _COMPRESSED
                group.create_dataset(name, data=value, **many)
        file.flush()
        content = file.id.get_file_image()
    write_bytes(path, content)


class SampleFile:
    """A sample file opened for reading, which reads only what it is asked for.

    Use :func:`open_sample`.
    """

    def __init__(self, file: Any) -> None:
        self._file = file

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes of the root."""
        return dict(self._file.attrs)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the density."""
        return tuple(int(n) for n in self._file["density"].shape)

    @property
    def has_spin(self) -> bool:
        """Whether there is a spin density."""
        return "spin_density" in self._file

    @property
    def has_onsite(self) -> bool:
        """Whether there are on-site data."""
        return "onsite" in self._file

    def structure(self) -> Atoms:
        """Atoms with their initial magnetic moments."""
        group = self._file["structure"]
        atoms = Atoms(
            numbers=group["numbers"][...],
            positions=group["positions"][...],
            cell=group["cell"][...],
            pbc=group["pbc"][...],
        )
        if "magmoms" in group:
            atoms.set_initial_magnetic_moments(group["magmoms"][...])
        return atoms

    def sample(self) -> DensitySample:
        """Everything."""
        file = self._file
        return DensitySample(
            points=file["points"][...] if "points" in file else None,
            density=file["density"][...],
            spin_density=file["spin_density"][...] if self.has_spin else None,
            free_atoms=self._free_atoms(None),
            calculation=self.calculation(),
            **self._common(self.structure()),
        )

    def calculation(self) -> Calculation | None:
        """Energy, forces, eigenvalues and settings, if any."""
        if "calculation" not in self._file:
            return None
        group = self._file["calculation"]
        facts = json.loads(group.attrs["facts"])
        datasets = {
            symbol: PawDataset(**{**known, "channels": tuple(known["channels"])})
            for symbol, known in facts.pop("datasets").items()
        }
        arrays = {name: values[...] for name, values in group.items()}
        return Calculation(**facts, **arrays, datasets=datasets)

    def points(self, indices: NDArray[np.integer]) -> DensitySample:
        """Point sample at flat C-order indices, in their order; repeats are allowed."""
        file = self._file
        shape = self.shape
        n_values = int(np.prod(shape))
        flat = np.asarray(indices, dtype=np.int64)
        if flat.ndim != 1 or (len(flat) and (flat.min() < 0 or flat.max() >= n_values)):
            raise GridError(f"Indices of points must be flat and within 0 … {n_values - 1}.")
        atoms = self.structure()
        if "points" in file:
            points = file["points"][...][flat]
        else:
            places = np.stack(np.unravel_index(flat, shape), axis=-1)
            points = (places / np.array(shape)) @ atoms.cell.array
        return DensitySample(
            points=points,
            density=_pick(file["density"], flat),
            spin_density=_pick(file["spin_density"], flat) if self.has_spin else None,
            free_atoms=self._free_atoms(flat),
            **self._common(atoms),
        )

    def sampling_map(self) -> SamplingMap | None:
        """Map for drawing points; None for point samples."""
        if "sampling" not in self._file:
            return None
        group = self._file["sampling"]
        return SamplingMap(
            shape=tuple(group["shape"][...].tolist()),
            box=tuple(group["box"][...].tolist()),
            reach=float(group["reach"][()]),
            density=group["density"][...],
            gradient=group["gradient"][...],
            distance=group["distance"][...],
        )

    def provenance(self) -> Provenance:
        """Where the sample comes from."""
        known = json.loads(self._file.attrs["provenance"])
        return Provenance(**{**known, "paw_datasets": tuple(known["paw_datasets"])})

    def _common(self, atoms: Atoms) -> dict[str, Any]:
        return {
            "atoms": atoms,
            "onsite": self._arrays("onsite"),
            "onsite_spin": self._arrays("onsite_spin"),
            "provenance": self.provenance(),
        }

    def _free_atoms(self, flat: NDArray[np.int64] | None) -> FreeAtoms | None:
        """At flat indices, or (None) whole."""
        if "free_atoms" not in self._file:
            return None
        group = self._file["free_atoms"]

        def values(name: str) -> NDArray[np.float32]:
            return group[name][...] if flat is None else _pick(group[name], flat)

        return FreeAtoms(
            density=values("density"),
            spin_density=values("spin_density") if "spin_density" in group else None,
            onsite=self._arrays("free_atoms/onsite"),
            onsite_spin=self._arrays("free_atoms/onsite_spin"),
        )

    def _arrays(self, name: str) -> tuple[NDArray[np.float64], ...] | None:
        if name not in self._file:
            return None
        values = self._file[name]["values"][...]
        shapes = self._file[name]["shapes"][...]
        stops = np.cumsum(np.prod(shapes, axis=1))[:-1]
        pieces = np.split(values, stops)
        return tuple(piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True))


@contextmanager
def open_sample(path: str | Path) -> Iterator[SampleFile]:
    """Open a sample file for reading.

    Raises
    ------
    DensityFileError
        If the file is missing, damaged, of another format or of a newer version; also while it
        is read.
    """
    path = Path(path)
    try:
        # such a file is complete before it gets its name, and never changed after that
        with h5py.File(path, "r", locking=False) as file:
            if file.attrs.get("format") != FORMAT:
                raise DensityFileError(f"{path}: an HDF5 file, but not a density sample.")
            if int(file.attrs["version"]) > _VERSION:
                raise DensityFileError(
                    f"{path}: written by a newer version of this program "
                    f"(format {file.attrs['version']}, known up to {_VERSION}). Update it."
                )
            if (done := file.attrs.get("done")) is not None and done < len(file["density"]):
                raise DensityFileError(
                    f"{path}: unfinished, {int(done)} of {len(file['density'])} planes are there. "
                    "The command that began it goes on with it."
                )
            yield SampleFile(file)
    except FileNotFoundError:
        raise DensityFileError(f"{path}: no such file.") from None
    except EACError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise DensityFileError(f"{path}: damaged, or not an HDF5 file ({error}).") from error


def read_sample(path: str | Path) -> DensitySample:
    """Read a sample file whole; see :func:`open_sample`."""
    with open_sample(path) as file:
        return file.sample()


def _write_values(file: Any, name: str, values: NDArray[np.floating]) -> None:
    chunks = tuple(min(n, _CHUNK) for n in values.shape) if values.ndim == 3 else None
    data = np.asarray(values, dtype=np.float32)
    file.create_dataset(name, data=data, chunks=chunks, **_COMPRESSED)


def write_identity(file: Any, atoms: Atoms, provenance: Provenance) -> None:
    """Write what makes an HDF5 file a sample file: format, version, provenance and structure."""
    file.attrs["format"] = FORMAT
    file.attrs["version"] = _VERSION
    file.attrs["provenance"] = json.dumps(asdict(provenance))
    structure = file.create_group("structure")
    structure["numbers"] = atoms.numbers
    structure["positions"] = atoms.positions
    structure["cell"] = atoms.cell.array
    structure["pbc"] = np.asarray(atoms.pbc)
    if atoms.has("initial_magmoms"):
        structure["magmoms"] = atoms.get_initial_magnetic_moments()


def write_arrays(file: Any, name: str, arrays: Sequence[NDArray] | None) -> None:
    """Write one array an atom, of any shapes, as group ``name``; nothing for None."""
    if arrays is None or len(arrays) == 0:
        return
    file[f"{name}/values"] = np.concatenate([np.ravel(a).astype(np.float64) for a in arrays])
    file[f"{name}/shapes"] = np.array([np.shape(a) for a in arrays], dtype=np.int64)


def _write_calculation(group: Any, calculation: Calculation) -> None:
    facts: dict[str, Any] = {}
    for field in fields(calculation):
        value = getattr(calculation, field.name)
        if isinstance(value, np.ndarray):
            group[field.name] = value
        elif field.name == "datasets":
            facts["datasets"] = {symbol: asdict(known) for symbol, known in value.items()}
        elif value is not None:
            facts[field.name] = value
    group.attrs["facts"] = json.dumps(facts)


def _pick(dataset: Any, indices: NDArray[np.int64]) -> NDArray[np.float32]:
    """Values at flat indices, unpacking only the chunks they lie in."""
    values = np.empty(len(indices), dtype=np.float32)
    if dataset.ndim == 1 or len(indices) == 0:
        return dataset[...][indices] if len(indices) else values
    # HDF5 walks the chunks in the order of the points, so they have to come sorted
    order = np.argsort(indices, kind="stable")
    places = np.stack(np.unravel_index(indices[order], dataset.shape), axis=-1)
    space = dataset.id.get_space()
    space.select_elements(places.astype(np.uint64))
    found = np.empty(len(indices), dtype=np.float32)
    dataset.id.read(h5py.h5s.create_simple((len(indices),)), space, found)
    values[order] = found
    return values
