"""Pictures of densities."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.data.colors import jmol_colors
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from numpy.typing import NDArray

from eac_ase.grid import DensityGrid, Plane, PlaneCut
from eac_model.errors import GridError
from eac_model.files import replacing

Scale = Literal["log", "linear"]

DECADES = 4
"""Orders of magnitude a logarithmic colour map spans at most."""


def plot_plane(
    cut: PlaneCut,
    atoms: Atoms | None = None,
    *,
    scale: Scale = "log",
    spin: bool = False,
    title: str = "",
    axes: Axes | None = None,
) -> Figure:
    """Draw a density on a plane.

    Parameters
    ----------
    cut
        From :meth:`DensityGrid.plane`.
    atoms
        Structure whose atoms are marked: circles with symbols in the plane, fainter ones within
        half an Å of it. Periodic images are found.
    scale
        Colours by the logarithm of the density (four decades below its maximum) or linearly.
    spin
        Draw ρ↑ − ρ↓ instead of ρ; always linear, red for ↑, blue for ↓.
    axes
        Where to draw; None makes a new figure.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    GridError
        There is no spin density, or the plane lies outside of the density.
    """
    values = cut.spin if spin else cut.values
    if values is None:
        raise GridError("This density has no spin part to draw.")
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise GridError("The plane lies outside the box of the density.")
    if axes is None:
        ratio = cut.plane.height / cut.plane.width
        axes = Figure(figsize=(6.4, 0.8 + 5.0 * ratio), layout="constrained").subplots()
    figure = axes.get_figure(root=True)
    assert figure is not None
    norm: Normalize
    if spin:
        size = float(np.abs(finite).max()) or 1.0
        norm, colors, label = Normalize(-size, size), "RdBu_r", "ρ↑ − ρ↓ (μ_B/Å³)"
    elif scale == "log" and finite.max() > 0:
        top = float(finite.max())
        low = max(top * 10.0**-DECADES, float(finite[finite > 0].min()))
        low = min(low, top / 10)
        norm, colors, label = LogNorm(low, top), "magma", "ρ (e/Å³)"
        values = np.maximum(values, low)
    else:
        norm, colors, label = Normalize(), "magma", "ρ (e/Å³)"
    image = axes.pcolormesh(
        cut.x, cut.y, values.T, norm=norm, cmap=colors, shading="nearest", rasterized=True
    )
    figure.colorbar(image, ax=axes, label=label)
    if atoms is not None:
        _mark_atoms(axes, cut.plane, atoms)
    axes.set_aspect("equal")
    axes.set_xlim(cut.x[0], cut.x[-1])
    axes.set_ylim(cut.y[0], cut.y[-1])
    axes.set_xlabel("Å")
    axes.set_ylabel("Å")
    axes.set_title(title)
    return figure


def save_plane(
    grid: DensityGrid, path: str | Path, *, scale: Scale = "log", spin: bool = False
) -> Plane:
    """Write a picture of a grid's density on a plane through one of its molecules.

    Parameters
    ----------
    path
        Any name matplotlib knows to write (``.png``, ``.pdf``, ``.svg``). It appears whole or not
        at all.

    Returns
    -------
    Plane
        What was drawn: the heaviest atom's plane, see :meth:`Plane.through_molecule`.
    """
    check_picture(path)
    plane = Plane.through_molecule(grid.atoms)
    formula = grid.atoms.get_chemical_formula()
    figure = plot_plane(grid.plane(plane), grid.atoms, scale=scale, spin=spin, title=formula)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=200)
    return plane


def check_picture(path: str | Path) -> None:
    """Refuse names of pictures that matplotlib cannot write, before any work.

    Raises
    ------
    GridError
        The ending stands for no format; the message lists those that do.
    """
    known = Figure().canvas.get_supported_filetypes()
    if Path(path).suffix.lower().lstrip(".") not in known:
        raise GridError(
            f"{Path(path).name!r} names no picture format. Known are: {', '.join(sorted(known))}."
        )


def _mark_atoms(axes: Axes, plane: Plane, atoms: Atoms) -> None:
    """Circles and symbols for the atoms, images included, near a plane."""
    numbers, positions = _images(plane, atoms)
    for number, position in zip(numbers, positions, strict=True):
        offset = position - plane.center
        x, y, height = offset @ plane.u, offset @ plane.v, offset @ plane.normal
        if abs(x) > plane.width / 2 or abs(y) > plane.height / 2 or abs(height) > 0.5:
            continue
        near = 1.0 if abs(height) < 0.1 else 0.35
        color = jmol_colors[number]
        axes.add_patch(
            Circle((x, y), 0.4 * covalent_radii[number], fill=False, ec=color, lw=1.5, alpha=near)
        )
        symbol = Atoms(numbers=[number]).get_chemical_formula()
        axes.annotate(
            symbol, (x, y), color="white", alpha=near, ha="center", va="center", fontsize=9
        ).set_path_effects(_outline())


def _outline() -> list:
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=2, foreground="black")]


def _images(plane: Plane, atoms: Atoms) -> tuple[NDArray[np.integer], NDArray[np.floating]]:
    """Atoms and as many periodic images as may lie in the rectangle."""
    if not atoms.pbc.any():
        return atoms.numbers, atoms.positions
    cell = np.array(atoms.cell.complete())
    inverse = np.linalg.inv(cell)
    reach = (np.hypot(plane.width, plane.height) / 2 + 0.5) * np.linalg.norm(inverse, axis=0)
    middle = plane.center @ inverse
    fractions = atoms.positions @ inverse
    ranges = [
        np.arange(np.floor(m - r - f.max()), np.ceil(m + r - f.min()) + 1) if p else np.zeros(1)
        for m, r, f, p in zip(middle, reach, fractions.T, atoms.pbc, strict=True)
    ]
    shifts = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, 3)
    images = (fractions[None] + shifts[:, None]).reshape(-1, 3) @ cell
    return np.tile(atoms.numbers, len(shifts)), images
