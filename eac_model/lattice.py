"""Cells and shapes of regular grids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from numpy.typing import NDArray
from scipy.fft import next_fast_len

from eac_model.errors import GridError

Shape = tuple[int, int, int]
"""Numbers of points along three cell vectors."""

MOST_POINTS = 1e6
"""Along one cell vector."""


def box_around(
    atoms: Atoms, margin: float, axes: Sequence[int]
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """A cell for grids: the structure's, stretched around the atoms along some open directions.

    Parameters
    ----------
    margin
        Distance of the box's faces from the outermost atoms, Å.
    axes
        The directions to fit; the others keep their cell vector.

    Returns
    -------
    cell, origin
        Å, shapes (3, 3) and (3,).
    """
    cell = np.array(atoms.cell.complete())
    inverse = np.linalg.inv(cell)
    fractions = atoms.positions @ inverse
    origin = np.zeros(3)
    stretched = cell.copy()
    for axis in axes:
        # 1 / |column of the inverse| is the distance between opposite faces.
        reach = margin * float(np.linalg.norm(inverse[:, axis]))
        low, high = fractions[:, axis].min() - reach, fractions[:, axis].max() + reach
        stretched[axis] = cell[axis] * (high - low)
        origin += low * cell[axis]
    return stretched, origin


def grid_shape(cell: NDArray[np.floating], spacing: float) -> Shape:
    """Numbers of points at most ``spacing`` (Å) apart, products of 2, 3 and 5.

    Raises
    ------
    GridError
        The spacing is not positive, or asks for more than :data:`MOST_POINTS` points in a row.
    """
    if not (np.isfinite(spacing) and spacing > 0):
        raise GridError(f"The spacing of a grid has to be positive, not {spacing} Å.")
    lengths = np.linalg.norm(cell, axis=1)
    if lengths.max() / spacing > MOST_POINTS:
        raise GridError(f"{lengths.max():g} Å in steps of {spacing:g} Å are too many points.")
    # 1e-6: a length that is a multiple of the spacing up to rounding needs no further point.
    n1, n2, n3 = (next_fast_len(max(1, int(np.ceil(n - 1e-6))), True) for n in lengths / spacing)
    return n1, n2, n3


def checked_shape(shape: Shape) -> Shape:
    """Three positive whole numbers of points, as ints.

    Raises
    ------
    GridError
        They are something else.
    """
    try:
        n1, n2, n3 = numbers = [int(n) for n in shape]
        if min(numbers) > 0 and numbers == list(shape):
            return n1, n2, n3
    except (TypeError, ValueError, OverflowError):  # no numbers, NaN, inf
        pass
    raise GridError(f"A grid needs three positive whole numbers of points, not {shape}.")


def periodic_images(atoms: Atoms, cutoff: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Images of the atoms that reach into the home cell.

    Returns
    -------
    indices
        Shape (images,), the atom each image belongs to.
    positions
        Shape (images, 3), Å. Along periodic directions every image within ``cutoff`` of the cell
        0 ≤ fraction < 1 is present; along open directions the atoms stand where they are.
    """
    cell = np.asarray(atoms.cell.complete())
    fractions = wrapped_fractions(atoms.positions, atoms)
    # Distance between opposite faces: 1 / |reciprocal vector|.
    reach = cutoff * np.linalg.norm(np.linalg.inv(cell), axis=0)
    repeats = [
        np.arange(-int(np.ceil(r)), int(np.ceil(r)) + 1) if p else np.zeros(1, int)
        for r, p in zip(reach, atoms.pbc, strict=True)
    ]
    shifts = np.stack(np.meshgrid(*repeats, indexing="ij"), axis=-1).reshape(-1, 3)
    images = fractions[None] + shifts[:, None]
    near = ((images >= -reach - 1e-9) & (images <= 1 + reach + 1e-9)) | ~atoms.pbc
    shift, index = np.nonzero(near.all(axis=-1))
    return index.astype(np.int64), images[shift, index] @ cell


def wrap_points(points: NDArray, atoms: Atoms) -> NDArray[np.float64]:
    """Points moved into the home cell along the periodic directions, Å."""
    return wrapped_fractions(points, atoms) @ np.asarray(atoms.cell.complete())


def wrapped_fractions(positions: NDArray, atoms: Atoms) -> NDArray[np.float64]:
    """Fractions of the cell vectors, 0 ≤ fraction < 1 along the periodic directions."""
    cell = np.asarray(atoms.cell.complete())
    fractions = np.asarray(positions, dtype=float) @ np.linalg.inv(cell)
    return np.where(atoms.pbc, fractions - np.floor(fractions), fractions)
