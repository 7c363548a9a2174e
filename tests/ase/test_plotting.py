"""Pictures of planes."""

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from matplotlib.colors import LogNorm

from eac_ase import DensityGrid, Plane, plot_plane, save_plane
from eac_model.errors import GridError


@pytest.fixture
def grid(water: Atoms) -> DensityGrid:
    """Gaussians on the atoms of a molecule that the faces of the cell cut."""
    water.set_cell([5, 5, 5])
    water.pbc = True
    points = DensityGrid(np.zeros((24, 24, 24)), water, water.cell).points()
    offsets = points[:, None] - water.positions
    offsets -= 5 * np.round(offsets / 5)
    values = np.exp(-4 * (offsets**2).sum(axis=-1)) @ np.array([6, 1, 1])
    values = values.reshape(24, 24, 24)
    return DensityGrid(values, water, np.array(water.cell), spin=values - values.mean())


def labels(figure) -> list[str]:
    return sorted(text.get_text() for text in figure.axes[0].texts)


def test_atoms_in_the_plane_are_labelled(grid):
    cut = grid.plane(Plane.through_molecule(grid.atoms, margin=1.0))
    assert labels(plot_plane(cut, grid.atoms)) == ["H", "H", "O"]


def test_periodic_images_in_the_plane_are_labelled_too(grid):
    plane = Plane(np.zeros(3), np.array([0.0, 1, 0]), np.array([0.0, 0, 1]), 12.0, 2.0)
    assert labels(plot_plane(grid.plane(plane), grid.atoms)).count("O") == 3


def test_the_picture_shows_the_values_with_u_to_the_right(grid):
    cut = grid.plane(Plane.through_molecule(grid.atoms), spacing=0.1)
    (mesh, *_) = plot_plane(cut, scale="linear").axes[0].collections
    assert np.allclose(mesh.get_array(), cut.values.T)


def test_a_logarithmic_picture_spans_four_decades_at_most(grid):
    cut = grid.plane(Plane.through_molecule(grid.atoms))
    (mesh, *_) = plot_plane(cut).axes[0].collections
    assert isinstance(mesh.norm, LogNorm)
    assert mesh.norm.vmax == cut.values.max()
    assert mesh.norm.vmin >= cut.values.max() / 10001


def test_spin_pictures_are_symmetric_about_zero(grid):
    cut = grid.plane(Plane.through_molecule(grid.atoms))
    (mesh, *_) = plot_plane(cut, spin=True).axes[0].collections
    assert mesh.norm.vmin == -mesh.norm.vmax


def test_a_density_without_spin_has_no_spin_picture(grid):
    paired = DensityGrid(grid.values, grid.atoms, grid.cell)
    with pytest.raises(GridError, match="no spin"):
        plot_plane(paired.plane(Plane.through_molecule(grid.atoms)), spin=True)


def test_planes_that_leave_the_box_are_drawn_as_far_as_it_goes(grid):
    box = DensityGrid(grid.values, grid.atoms, grid.cell, pbc=(False, False, False))
    figure = plot_plane(box.plane(Plane.through_molecule(grid.atoms)), grid.atoms)
    shown = figure.axes[0].collections[0].get_array()
    assert shown.mask.any()
    assert not shown.mask.all()


@pytest.mark.parametrize("name", ["a.png", "a.pdf", "a.svg"])
def test_pictures_are_written_in_the_format_of_their_name(grid, tmp_path: Path, name: str):
    save_plane(grid, tmp_path / name)
    start = (tmp_path / name).read_bytes()[:5]
    assert start in (b"\x89PNG\r", b"%PDF-", b"<?xml")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_unknown_picture_formats_are_refused(grid, tmp_path: Path):
    with pytest.raises(GridError, match="png"):
        save_plane(grid, tmp_path / "a.doc")
    assert not list(tmp_path.iterdir())
