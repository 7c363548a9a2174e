"""Densities on grids larger than memory, written piece by piece and continued after a break."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numpy as np
from numpy.typing import NDArray

from eac_model.data.chgcar import write_chgcar
from eac_model.data.cube import write_cube
from eac_model.data.sample import DensitySample, Provenance
from eac_model.data.sample_file import write_arrays, write_identity
from eac_model.engine.inference import EncodedAtoms, Progress, evaluate_grid
from eac_model.engine.kernels import fingerprint
from eac_model.engine.onsite import Rows, evaluate_onsite, total_and_spin
from eac_model.errors import GridError
from eac_model.neighbors import complete_cell
from eac_model.network import EACNet

Onsite = tuple[Rows | None, Rows | None]
"""On-site data of all electrons and of the spin, where there are any."""

MEMORY = 2**28
"""Bytes of the slab of values that is held at once, if nothing else is asked for. Evaluation takes
about half a GB beside it."""


def stream_grid(
    network: EACNet,
    encoded: EncodedAtoms,
    shape: tuple[int, int, int],
    path: str | Path,
    *,
    memory: int = MEMORY,
    provenance: Provenance | None = None,
    progress: Progress | None = None,
) -> None:
    """Evaluate the density on a grid of the structure's cell and write it slab by slab.

    What is done stands in ``PATH.partial.h5`` beside the target: the same call goes on from there
    after a break, calls with another network, structure or shape begin afresh.

    Parameters
    ----------
    shape
        Points along the three cell vectors.
    path
        ``*.h5`` (a sample file, with spin density), ``*.cube`` (total density, e/Bohr³), anything
        else for a CHGCAR file, gzipped if the name ends in ``.gz``. Text files are written from
        the finished partial file; a scratch file as large as the values lies beside the target
        meanwhile.
    memory
        Bytes of values held at once.
    progress
        Called with the number of points in each slab, those found done included.

    Raises
    ------
    GridError
        The structure has no cell of three vectors, or the shape is none.
    """
    target = Path(path)
    if encoded.atoms.cell.rank < 3:
        raise GridError("Streaming evaluates the grid of a cell: give the structure three vectors.")
    if len(shape) != 3 or min(shape) < 1:
        raise GridError(f"A grid has three positive numbers of points, not {shape}.")
    partial = target.with_name(target.name + ".partial.h5")
    layout = network.config.onsite
    onsite: Onsite = (None, None)
    if layout is not None:
        onsite = total_and_spin(evaluate_onsite(network, encoded))
    with _open(partial, network, encoded, shape, provenance or Provenance(), onsite) as file:
        _fill(file, network, encoded, shape, memory, progress)
        if target.suffix != ".h5":
            of_vasp = layout is not None and layout.code == "VASP"
            _write_text(file, encoded, target, memory, onsite if of_vasp else (None, None))
    if target.suffix == ".h5":
        partial.replace(target)
    else:
        partial.unlink()


def _open(
    path: Path,
    network: EACNet,
    encoded: EncodedAtoms,
    shape: tuple[int, int, int],
    provenance: Provenance,
    onsite: Onsite,
) -> h5py.File:
    """The partial file of this task: found, or begun."""
    identity = hashlib.sha256(
        json.dumps(
            [
                fingerprint(network),
                encoded.atoms.todict(),
                encoded.atoms.get_initial_magnetic_moments().tolist(),
                list(shape),
            ],
            default=lambda array: np.asarray(array).tolist(),
        ).encode()
    ).hexdigest()
    if path.exists():
        try:
            file = h5py.File(path, "r+")
            if file.attrs.get("identity") == identity:
                return file
            file.close()
        except OSError:
            pass  # cut off while it was begun
        path.unlink()
    # A file killed in the middle of a write stays readable from version 1.10 of the format on.
    file = h5py.File(path, "w", libver=("v110", "v110"))
    write_identity(file, encoded.atoms, provenance)
    for name in ("density", "spin_density")[: network.n_spin]:
        file.create_dataset(name, shape, np.float32)
    write_arrays(file, "onsite", onsite[0])
    write_arrays(file, "onsite_spin", onsite[1])
    file.attrs["done"] = 0
    file.attrs["identity"] = identity
    file.flush()
    return file


def _fill(
    file: h5py.File,
    network: EACNet,
    encoded: EncodedAtoms,
    shape: tuple[int, int, int],
    memory: int,
    progress: Progress | None,
) -> None:
    cell = np.asarray(complete_cell(encoded.atoms))
    plane = shape[1] * shape[2]
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
        )
        file["density"][start:stop] = values.sum(axis=0)
        if network.n_spin == 2:
            file["spin_density"][start:stop] = values[0] - values[1]
        # The values reach the disk before the count does.
        file.flush()
        file.attrs["done"] = stop
        file.flush()
        if progress is not None:
            progress((stop - start) * plane)


def _write_text(
    file: h5py.File, encoded: EncodedAtoms, target: Path, memory: int, onsite: Onsite
) -> None:
    """Through arrays in scratch files that lie in the order in which the text is written."""
    cube = target.suffix == ".cube"
    with TemporaryDirectory(dir=target.parent) as folder:
        total = _scratch(file["density"], Path(folder) / "density.npy", not cube, memory)
        if cube:
            write_cube(target, encoded.atoms, total)
            return
        spin = None
        if "spin_density" in file:
            spin = _scratch(file["spin_density"], Path(folder) / "spin.npy", True, memory)
        write_chgcar(
            target,
            DensitySample(
                encoded.atoms,
                total,
                spin_density=spin,
                onsite=None if onsite[0] is None else tuple(onsite[0]),
                onsite_spin=None if onsite[1] is None else tuple(onsite[1]),
            ),
        )


def _scratch(dataset: h5py.Dataset, path: Path, fortran: bool, memory: int) -> NDArray[np.float32]:
    values = np.lib.format.open_memmap(
        path, "w+", dtype=np.float32, shape=dataset.shape, fortran_order=fortran
    )
    step = _thickness(dataset.shape, 1, memory)
    for start in range(0, dataset.shape[0], step):
        values[start : start + step] = dataset[start : start + step]
    values.flush()
    return values


def _thickness(shape: tuple[int, int, int], n_spin: int, memory: int) -> int:
    """Planes of the first axis that fit into ``memory`` bytes, at least one."""
    return max(1, memory // (4 * n_spin * shape[1] * shape[2]))
