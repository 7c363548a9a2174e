"""Neighbours of atoms and of points, for any cell and any periodic directions.

Atom–atom lists come from vesin, atom–point lists from compiled loops or SciPy's k-d tree over the
periodic images of the atoms that reach into the cell; none assumes a cell larger than the cutoff.
"""

from __future__ import annotations

import functools
from types import ModuleType

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from vesin import NeighborList

from eac_model.compiled import compiled_module
from eac_model.errors import StructureError, UnknownElementError
from eac_model.graph import AtomGraph, PointPairs
from eac_model.lattice import periodic_images, wrap_points

CLOSEST_ATOMS = 0.1
"""Atoms nearer to each other than this (Å) are taken for a mistake in the structure."""

LARGEST_EXTENT = 1e4
"""Longer structures (Å) are taken for a mistake: an atom that flew away, or wrong units."""


@functools.cache
def compiled_search() -> ModuleType | None:
    """The compiled loops; None without numba, or if EAC_COMPILED=0 forbids them."""
    return compiled_module("eac_model.neighbor_loops")


def check_structure(
    atoms: Atoms, elements: tuple[int, ...] | None = None, *, spin: bool = False
) -> None:
    """Refuse structures that cannot be meant.

    Parameters
    ----------
    atoms
        Structure.
    elements
        Atomic numbers a model knows; None knows all.
    spin
        Whether initial moments decide what is predicted: they have to be numbers then, no vectors.

    Raises
    ------
    StructureError
        No atoms; sites that several elements, or none, may occupy; NaN or infinite positions,
        cell vectors or moments; moments of three components where they count; a periodic direction
        without a cell vector; a flat cell; two atoms closer than :data:`CLOSEST_ATOMS`; or a
        structure longer than :data:`LARGEST_EXTENT`.
    UnknownElementError
        An element that is not among ``elements``.
    """
    if len(atoms) == 0:
        raise StructureError("The structure has no atoms.")
    bad = np.flatnonzero(~np.isfinite(atoms.positions).all(axis=1))
    if len(bad):
        raise StructureError(
            f"Atom {bad[0]} has a position that is not a number: "
            f"{atoms.positions[bad[0]]}. Repair the structure first."
        )
    if not np.isfinite(np.asarray(atoms.cell)).all():
        raise StructureError("The cell holds values that are not numbers.")
    if not np.isfinite(atoms.get_initial_magnetic_moments()).all():
        raise StructureError("An initial magnetic moment is not a number.")
    occupancy = atoms.info.get("occupancy")  # what ASE keeps of a CIF
    for site in occupancy.values() if isinstance(occupancy, dict) else ():
        if isinstance(site, dict) and (len(site) > 1 or abs(sum(site.values()) - 1) > 1e-3):
            mixed = ", ".join(f"{symbol} {share:g}" for symbol, share in site.items())
            raise StructureError(
                f"The structure is disordered: a site is occupied by {mixed}. Choose an ordered "
                'cell of it, and delete atoms.info["occupancy"].'
            )
    if spin and atoms.get_initial_magnetic_moments().ndim != 1:
        raise StructureError(
            "The initial magnetic moments have three components. Spin models know collinear ones, "
            "a number for each atom: set these, or none."
        )
    lengths = atoms.cell.lengths()
    for axis, periodic in enumerate(atoms.pbc):
        if periodic and lengths[axis] < 1e-6:
            raise StructureError(
                f"Direction {axis} is periodic but has no cell vector. "
                "Give the structure a cell, or set pbc to False along it."
            )
    cell = atoms.cell.complete()
    if abs(cell.volume) < 1e-6 * np.prod(cell.lengths()):
        raise StructureError("The cell vectors lie in one plane (volume zero).")
    _check_extent(atoms)
    if elements is not None:
        unknown = sorted(
            {s for s, z in zip(atoms.symbols, atoms.numbers, strict=True) if z not in elements}
        )
        if unknown:
            known = ", ".join(Atoms(numbers=elements).symbols)
            raise UnknownElementError(
                f"The model does not know {', '.join(unknown)}; it was built for {known}. "
                "Choose another model (`eac models`) or train one on this element."
            )
    images, positions = periodic_images(atoms, CLOSEST_ATOMS)
    close = cKDTree(positions).query_pairs(CLOSEST_ATOMS, output_type="ndarray")
    if len(close):
        first, second = sorted(images[close[0]].tolist())
        raise StructureError(
            f"Atoms {first} and {second} are closer than {CLOSEST_ATOMS} Å "
            "(possibly through a periodic image). Remove the duplicate or enlarge the cell."
        )


def _check_extent(atoms: Atoms) -> None:
    """Refuse what the search for neighbours would take for ever for, or die of."""
    cell = np.asarray(atoms.cell.complete())
    inverse = np.linalg.inv(cell)
    for axis, periodic in enumerate(atoms.pbc):
        if periodic:
            length = np.linalg.norm(cell[axis])
            if length > LARGEST_EXTENT:
                raise StructureError(
                    f"Cell vector {axis} is {length:g} Å long, more than {LARGEST_EXTENT:g} Å. "
                    "Are the units right?"
                )
            continue
        # Along the normal of the layers that the other two vectors span.
        places = atoms.positions @ inverse[:, axis] / np.linalg.norm(inverse[:, axis])
        if np.ptp(places) > LARGEST_EXTENT:
            far = int(np.argmax(abs(places - np.median(places))))
            raise StructureError(
                f"Atom {far} ({atoms.symbols[far]}) at {atoms.positions[far]} lies more than "
                f"{LARGEST_EXTENT:g} Å from others. Remove it, or are the units right?"
            )


def _atom_pairs(atoms: Atoms, cutoff: float) -> tuple[NDArray, NDArray, NDArray]:
    if cutoff == 0:
        none = np.empty(0, dtype=np.int64)
        return none, none, np.empty((0, 3))
    neighbors = NeighborList(cutoff=cutoff, full_list=True)
    i, j, vectors = neighbors.compute(
        points=np.ascontiguousarray(atoms.positions, dtype=np.float64),
        box=np.ascontiguousarray(atoms.cell.complete(), dtype=np.float64),
        periodic=atoms.pbc,
        quantities="ijD",
    )
    return i.astype(np.int64), j.astype(np.int64), vectors


def atom_graph(
    atoms: Atoms,
    cutoff: float,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> AtomGraph:
    """Atoms and their neighbours within ``cutoff`` (Å), every periodic image included.

    With a cutoff of 0 there are none.
    """
    i, j, vectors = _atom_pairs(atoms, cutoff)
    order = np.lexsort((vectors[:, 2], vectors[:, 1], vectors[:, 0], j, i))
    moments = atoms.get_initial_magnetic_moments().astype(float)
    if moments.ndim != 1:
        # Of a non-collinear calculation; networks without spin, which alone get here, need none.
        moments = np.zeros(len(atoms))
    return AtomGraph(
        numbers=torch.as_tensor(atoms.numbers.astype(np.int64), device=device),
        magmoms=torch.as_tensor(moments, dtype=dtype, device=device),
        receivers=torch.as_tensor(i[order], device=device),
        senders=torch.as_tensor(j[order], device=device),
        vectors=torch.as_tensor(vectors[order], dtype=dtype, device=device),
        magnetic=bool(moments.any()),
    )


def point_pairs(
    atoms: Atoms,
    points: NDArray,
    cutoff: float,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> PointPairs:
    """All atom–point pairs within ``cutoff`` (Å), one row an atom.

    Parameters
    ----------
    points
        Shape (p, 3), Å; anywhere, inside the cell or not.
    """
    wrapped = wrap_points(np.asarray(points, dtype=float).reshape(-1, 3), atoms)
    indices, positions = periodic_images(atoms, cutoff)
    loops = compiled_search()
    counts = np.zeros(len(atoms), dtype=np.int64)
    if loops is not None:
        images = (np.ascontiguousarray(wrapped.T), positions, indices, cutoff)
        loops.count_pairs(*images, counts)
    else:
        image, point = _pairs_by_tree(wrapped, positions, indices, cutoff)
        counts += np.bincount(indices[image], minlength=len(atoms))
    shape = (len(atoms), max(1, int(counts.max())))
    vectors = torch.ones(*shape, 3, dtype=dtype)
    mask = torch.zeros(shape, dtype=torch.bool)
    index = torch.zeros(shape, dtype=torch.int64)
    if loops is not None:
        loops.write_pairs(*images, vectors.numpy(), mask.numpy(), index.numpy())
    else:
        atom = indices[image]
        place = atom, np.arange(len(atom)) - np.repeat(np.cumsum(counts) - counts, counts)
        vectors.numpy()[place] = wrapped[point] - positions[image]
        mask.numpy()[place] = True
        index.numpy()[place] = point
    return PointPairs(
        atom=torch.arange(len(atoms), device=device),
        vectors=vectors.to(device),
        mask=mask.to(device),
        point=index.to(device),
        n_points=len(wrapped),
    )


def _pairs_by_tree(
    points: NDArray[np.float64],
    positions: NDArray[np.float64],
    indices: NDArray[np.int64],
    cutoff: float,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Images and points of all pairs, by atom, image and point."""
    found = cKDTree(positions).sparse_distance_matrix(
        cKDTree(points), cutoff, output_type="ndarray"
    )
    image, point = found["i"], found["j"]
    # One number sorts faster than three.
    order = np.argsort((indices[image] * len(positions) + image) * len(points) + point)
    return image[order], point[order]
