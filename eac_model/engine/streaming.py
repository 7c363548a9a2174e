"""Densities on grids larger than memory, written piece by piece and continued after a break."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from eac_model.data.chgcar import write_chgcar
from eac_model.data.cube import write_cube
from eac_model.data.sample import DensitySample, Provenance
from eac_model.data.sample_file import write_arrays, write_identity
from eac_model.engine.devices import Devices
from eac_model.engine.inference import EncodedAtoms, Progress, evaluate_grid
from eac_model.engine.kernels import digest
from eac_model.engine.onsite import Rows, evaluate_onsite, total_and_spin
from eac_model.errors import GridError
from eac_model.files import alone, replacing
from eac_model.lattice import checked_shape
from eac_model.network import DensityNetwork

Onsite = tuple[Rows | None, Rows | None]
"""On-site data of all electrons and of the spin, where there are any."""

MEMORY = 2**28
"""Bytes of the slab of values that is held at once, if nothing else is asked for. Evaluation takes
about half a GB beside it."""


@dataclass(frozen=True)
class Streamed:
    """What a written grid holds."""

    electrons: float
    """∫ρ dr over the cell."""
    magnetic_moment: float | None
    """∫(ρ↑ − ρ↓) dr, μ_B, of spin models."""


def stream_grid(
    network: DensityNetwork,
    encoded: EncodedAtoms,
    shape: tuple[int, int, int],
    path: str | Path | Sequence[str | Path],
    *,
    memory: int = MEMORY,
    provenance: Provenance | None = None,
    factor: float = 1.0,
    electrons: float | None = None,
    devices: Devices = (),
    progress: Progress | None = None,
) -> Streamed:
    """Evaluate the density on a grid of the structure's cell and write it slab by slab.

    What is done stands in ``PATH.partial.h5`` beside the last ``*.h5`` target, or the first of any
    kind: the same call goes on from there after a break, calls with another network, structure or
    shape begin afresh.

    Parameters
    ----------
    shape
        Points along the three cell vectors.
    path
        ``*.h5`` (a sample file, with spin density), ``*.cube`` (total density, e/Bohr³), anything
        else for a CHGCAR file, gzipped if the name ends in ``.gz``. Text files are written from
        the finished partial file; a scratch file as large as the values lies beside the target
        meanwhile. Several targets are written from one evaluation.
    memory
        Bytes of values held at once.
    factor
        Density and on-site data are multiplied by it.
    electrons
        Scale them so that the file holds this number of electrons, whatever the factor. A second
        file as large as the values lies beside the target meanwhile.
    devices
        As in :func:`~eac_model.engine.inference.evaluate_grid`.
    progress
        Called with the number of points in each slab, those found done included.

    Returns
    -------
    Streamed
        What was written.

    Raises
    ------
    GridError
        The structure has no cell of three vectors, the shape is none, the disk has not enough
        room, or there are no electrons to scale.
    ConfigurationError
        Another run is writing the same targets.
    """
    targets = [Path(path)] if isinstance(path, (str, Path)) else [Path(one) for one in path]
    if encoded.atoms.cell.rank < 3:
        raise GridError("Streaming evaluates the grid of a cell: give the structure three vectors.")
    shape = checked_shape(shape)
    layout = network.config.onsite
    onsite: Onsite = (None, None)
    if layout is not None and layout.covers(encoded.atoms.symbols):
        onsite = total_and_spin(evaluate_onsite(network, encoded))
    provenance = provenance or Provenance()
    files = [target for target in targets if target.suffix.lower() == ".h5"]
    # Beside the file it may become: others can be on other disks.
    beside = files[-1] if files else targets[0]
    partial = beside.with_name(beside.name + ".partial.h5")
    lock = partial.with_name(partial.name + ".lock")
    with alone(lock, f"{partial}: another run is writing this density."):
        _begin(partial, network, encoded, shape, provenance, onsite)
        _fill(partial, network, encoded, shape, memory, devices, progress)
        with _opened(partial, "r") as file:
            found = _integral(file["density"], encoded, memory)
            if electrons is not None:
                if not found > 0:
                    raise GridError(
                        f"The predicted density holds {found:.3g} electrons and cannot be "
                        f"normalised to {electrons:g}: the model does not fit this structure."
                    )
                factor = electrons / found
            moment = None
            if network.n_spin == 2:
                moment = _integral(file["spin_density"], encoded, memory) * factor
            onsite = _scaled(onsite[0], factor), _scaled(onsite[1], factor)
            for target in targets:
                if target not in files:
                    of_vasp = layout is not None and layout.code == "VASP"
                    rows = onsite if of_vasp else (None, None)
                    _write_text(file, encoded, provenance, target, memory, rows, factor)
            # The partial file itself may become the last one, unless its values have to be scaled:
            # those scaled in part could not be told from others after a break.
            for target in files if factor != 1.0 else files[:-1]:
                with (
                    replacing(target) as copy,
                    _created(copy, network, encoded, shape, provenance, onsite) as new,
                ):
                    for name in ("density", "spin_density")[: network.n_spin]:
                        for slab in _slabs(shape, memory):
                            new[name][slab] = file[name][slab] * np.float32(factor)
        if files and factor == 1.0:
            partial.replace(files[-1])
        else:
            partial.unlink()
    return Streamed(found * factor, moment)


def _begin(
    path: Path,
    network: DensityNetwork,
    encoded: EncodedAtoms,
    shape: tuple[int, int, int],
    provenance: Provenance,
    onsite: Onsite,
) -> None:
    """Begin the partial file of this task, unless it is there."""
    identity = hashlib.sha256(
        json.dumps(
            [
                digest(network),
                encoded.atoms.todict(),
                encoded.atoms.get_initial_magnetic_moments().tolist(),
                list(shape),
            ],
            default=lambda array: np.asarray(array).tolist(),
        ).encode()
    ).hexdigest()
    if path.exists():
        try:
            with _opened(path, "r") as file:
                if file.attrs.get("identity") == identity:
                    return
        except PermissionError:
            raise
        except OSError:
            pass  # cut off while it was begun
        path.unlink()
    needed = np.prod(shape, dtype=float) * network.n_spin * np.dtype(np.float32).itemsize
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise GridError(
            f"The values of {' × '.join(map(str, shape))} points take {needed / 1e9:,.1f} GB, and "
            f"{path.parent.absolute()} has {free / 1e9:,.1f} GB left. Take a larger spacing."
        )
    with _created(path, network, encoded, shape, provenance, onsite) as file:
        file.attrs["done"] = 0
        file.attrs["identity"] = identity


def _opened(path: Path, mode: Literal["r", "r+", "w"]) -> h5py.File:
    """Without HDF5's own lock, which would keep readers of what is there from looking."""
    return h5py.File(path, mode, locking=False)


@contextmanager
def _created(
    path: Path,
    network: DensityNetwork,
    encoded: EncodedAtoms,
    shape: tuple[int, int, int],
    provenance: Provenance,
    onsite: Onsite,
) -> Iterator[h5py.File]:
    """A new sample file with room for values."""
    with _opened(path, "w") as file:
        write_identity(file, encoded.atoms, provenance)
        for name in ("density", "spin_density")[: network.n_spin]:
            file.create_dataset(name, shape, np.float32)
        write_arrays(file, "onsite", onsite[0])
        write_arrays(file, "onsite_spin", onsite[1])
        yield file


def _fill(
    path: Path,
    network: DensityNetwork,
    encoded: EncodedAtoms,
    shape: tuple[int, int, int],
    memory: int,
    devices: Devices,
    progress: Progress | None,
) -> None:
    cell = np.asarray(encoded.atoms.cell.complete())
    plane = shape[1] * shape[2]
    with _opened(path, "r") as file:
        done = int(file.attrs["done"])
    if progress is not None and done:
        progress(done * plane)
    for start in range(done, shape[0], _thickness(shape, network.n_spin, memory)):
        stop = min(start + _thickness(shape, network.n_spin, memory), shape[0])
        slab = cell.copy()
        slab[0] *= (stop - start) / shape[0]
        values = evaluate_grid(
            network,
            encoded,
            (stop - start, shape[1], shape[2]),
            cell=slab,
            origin=cell[0] * start / shape[0],
            devices=devices,
        )
        # Closed while densities are evaluated, for HDF5 may not open again what was killed open.
        with _opened(path, "r+") as file:
            file["density"][start:stop] = values.sum(axis=0)
            if network.n_spin == 2:
                file["spin_density"][start:stop] = values[0] - values[1]
            # The values reach the file before the count does.
            file.flush()
            file.attrs["done"] = stop
        if progress is not None:
            progress((stop - start) * plane)


def _integral(values: h5py.Dataset, encoded: EncodedAtoms, memory: int) -> float:
    total = sum(values[slab].sum(dtype=float) for slab in _slabs(values.shape, memory))
    return float(total) * abs(float(encoded.atoms.cell.volume)) / int(np.prod(values.shape))


def _scaled(rows: Rows | None, factor: float) -> Rows | None:
    return None if rows is None else [row * factor for row in rows]


def _write_text(
    file: h5py.File,
    encoded: EncodedAtoms,
    provenance: Provenance,
    target: Path,
    memory: int,
    onsite: Onsite,
    factor: float,
) -> None:
    """Through arrays in scratch files that lie in the order in which the text is written."""
    cube = target.suffix.lower() == ".cube"
    with TemporaryDirectory(dir=target.parent) as folder:
        total = _scratch(file["density"], Path(folder) / "density.npy", not cube, memory, factor)
        if cube:
            comment = f"Electron density ({provenance.density_kind})"
            write_cube(target, encoded.atoms, total, comment=comment)
            return
        spin = None
        if "spin_density" in file:
            spin = _scratch(file["spin_density"], Path(folder) / "spin.npy", True, memory, factor)
        write_chgcar(
            target,
            DensitySample(
                encoded.atoms,
                total,
                spin_density=spin,
                onsite=None if onsite[0] is None else tuple(onsite[0]),
                onsite_spin=None if onsite[1] is None else tuple(onsite[1]),
                provenance=provenance,
            ),
        )


def _scratch(
    dataset: h5py.Dataset, path: Path, fortran: bool, memory: int, factor: float
) -> NDArray[np.float32]:
    values = np.lib.format.open_memmap(
        path, "w+", dtype=np.float32, shape=dataset.shape, fortran_order=fortran
    )
    for slab in _slabs(dataset.shape, memory):
        values[slab] = dataset[slab] * np.float32(factor)
    values.flush()
    return values


def _slabs(shape: tuple[int, int, int], memory: int) -> Iterator[slice]:
    step = _thickness(shape, 1, memory)
    return (slice(start, start + step) for start in range(0, shape[0], step))


def _thickness(shape: tuple[int, int, int], n_spin: int, memory: int) -> int:
    """Planes of the first axis that fit into ``memory`` bytes, at least one."""
    return max(1, memory // (4 * n_spin * shape[1] * shape[2]))
