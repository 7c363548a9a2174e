"""DensityGrid: numbers, other grids, cuts, arithmetic, files."""

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.vasp import VaspChargeDensity
from ase.io.cube import read_cube
from ase.io.xsf import read_xsf
from ase.units import Bohr

from eac_ase import DensityGrid, Plane
from eac_model.data.sample import DensitySample
from eac_model.errors import DensityFileError, GridError

CELL = np.array([[4.0, 0.0, 0.0], [0.7, 3.5, 0.0], [-0.4, 0.6, 5.0]])
WAVES = [(0, 0, 0), (1, 0, 0), (0, 2, -1), (1, 1, 1), (2, -2, 0)]


def waves(points: np.ndarray, origin: np.ndarray | float = 0.0) -> np.ndarray:
    """A real density of a few plane waves of the cell, at Cartesian points."""
    fractions = (points - origin) @ np.linalg.inv(CELL)
    return sum(
        (k + 1) / 4 * np.cos(2 * np.pi * fractions @ np.array(wave) + k)
        for k, wave in enumerate(WAVES)
    )


def wave_grid(shape: tuple[int, int, int], *, spin: bool = False, **changes) -> DensityGrid:
    atoms = Atoms("OH2", [(0.1, 0.2, 0.3), (0.9, 0.5, 0.3), (2.1, 1.5, 4.0)], cell=CELL, pbc=True)
    zeros = np.zeros(shape)
    grid = DensityGrid(zeros, atoms, CELL, **changes)
    values = waves(grid.points(), grid.origin).reshape(shape)
    return DensityGrid(values, atoms, CELL, spin=values / 3 if spin else None, **changes)


def noise_grid(shape: tuple[int, int, int], **changes) -> DensityGrid:
    values = np.random.default_rng(1).random(shape)
    return DensityGrid(values, wave_grid((4, 4, 4)).atoms, CELL, **changes)


def test_the_integral_of_a_constant_is_the_constant_times_the_volume():
    grid = DensityGrid(np.full((3, 4, 5), 0.25), Atoms(), CELL, spin=np.full((3, 4, 5), -0.1))
    volume = abs(np.linalg.det(CELL))
    assert grid.integrate() == pytest.approx(0.25 * volume)
    assert grid.integrate_spin() == pytest.approx(-0.1 * volume)


def test_a_spin_paired_density_has_no_moment():
    assert noise_grid((4, 4, 4)).integrate_spin() == 0.0


def test_single_precision_values_are_summed_in_double_precision():
    values = np.full((128, 128, 64), 0.1, dtype=np.float32)
    grid = DensityGrid(values, Atoms(), np.eye(3))
    assert grid.integrate() == pytest.approx(float(np.float32(0.1)), rel=1e-12)


@pytest.mark.parametrize("shape", [(12, 13, 16), (5, 9, 20), (6, 10, 7)])
def test_resampling_a_band_limited_density_is_exact(shape):
    fine = wave_grid((9, 10, 11), spin=True).resample(shape)
    assert np.allclose(fine.values, wave_grid(shape).values, atol=1e-12)
    assert np.allclose(fine.spin, wave_grid(shape).values / 3, atol=1e-12)


@pytest.mark.parametrize("shape", [(6, 5, 8), (7, 4, 2), (1, 3, 6)])
@pytest.mark.parametrize("more", [1, 2, 3, 6])
def test_to_a_finer_grid_and_back_is_the_identity_even_for_noise(shape, more):
    grid = noise_grid(shape)
    finer = grid.resample(tuple(n + more for n in shape))
    assert finer.values.dtype == float
    assert np.allclose(finer.resample(shape).values, grid.values, atol=1e-12)


@pytest.mark.parametrize("shape", [10, (10, 10), (0, 4, 4), (4.5, 4, 4), "fine"])
def test_shapes_that_are_none_are_refused(shape):
    with pytest.raises(GridError, match="three positive whole numbers"):
        noise_grid((4, 4, 4)).resample(shape)


def test_a_grid_says_what_it_is_in_a_line():
    grid = wave_grid((4, 5, 6), spin=True, kind="valence")
    electrons = f"{grid.integrate():.4f}"
    assert (
        repr(grid)
        == f"DensityGrid(H2O, 4 × 5 × 6 points, valence, with spin, {electrons} electrons)"
    )


@pytest.mark.parametrize("shape", [(9, 12, 8), (3, 4, 5), (10, 2, 6)])
def test_resampling_conserves_the_integral(shape):
    grid = noise_grid((6, 6, 7))
    assert grid.resample(shape).integrate() == pytest.approx(grid.integrate(), rel=1e-12)


def test_a_line_cut_follows_the_density_through_periodic_images():
    line = wave_grid((40, 40, 50)).line((-1.0, 0.5, 0.2), (6.0, 4.0, -3.0), n=61)
    assert line.distance[-1] == pytest.approx(np.linalg.norm([7.0, 3.5, -3.2]))
    assert np.allclose(line.values, waves(line.points), atol=2e-3)


def test_cuts_start_from_the_origin_of_the_grid():
    origin = np.array([1.0, -2.0, 0.5])
    grid = wave_grid((40, 40, 50), origin=origin)
    line = grid.line(origin, origin + CELL[2], n=11)
    assert np.allclose(line.values, waves(line.points, origin), atol=2e-3)


def test_cuts_leave_a_box_in_open_directions_as_nan():
    grid = wave_grid((20, 20, 20), pbc=(True, True, False))
    assert np.isfinite(grid.interpolate([CELL[0] * 1.5, CELL[2] * 0.99])).all()
    assert np.isnan(grid.interpolate([CELL[2] * 1.01, CELL[2] * -0.01])).all()


def test_a_plane_cut_matches_the_density():
    grid = wave_grid((40, 40, 50), spin=True)
    cut = grid.plane(Plane.through_atoms(grid.atoms, (0, 1, 2)), spacing=0.2)
    points = cut.plane.points(cut.x, cut.y)
    assert cut.values.shape == (len(cut.x), len(cut.y))
    assert np.allclose(cut.values, waves(points), atol=2e-3)
    assert np.allclose(cut.spin, waves(points) / 3, atol=1e-3)


def test_a_plane_contains_its_three_atoms_with_room_around_them(water):
    plane = Plane.through_atoms(water, (0, 1, 2), margin=1.5)
    offsets = water.positions - plane.center
    assert np.allclose(offsets @ plane.normal, 0)
    assert np.abs(offsets @ plane.u).max() == pytest.approx(plane.width / 2 - 1.5)
    assert np.abs(offsets @ plane.v).max() == pytest.approx(plane.height / 2 - 1.5)


def test_a_plane_through_a_molecule_that_a_cell_face_cuts_uses_nearest_images(water):
    whole = Plane.through_molecule(water)
    water.set_cell([6, 6, 6])
    water.pbc = True
    water.wrap()
    cut = Plane.through_molecule(water)
    assert cut.width == pytest.approx(whole.width)
    assert cut.height == pytest.approx(whole.height)


@pytest.mark.parametrize("atoms", [Atoms("O"), Atoms("O2", [(0, 0, 0), (0, 0, 1.2)])])
def test_atoms_and_dimers_have_a_plane_too(atoms):
    plane = Plane.through_molecule(atoms)
    assert np.isclose(plane.u @ plane.v, 0)
    assert np.allclose((atoms.positions - plane.center) @ plane.normal, 0)


def test_three_points_on_a_line_are_no_plane():
    with pytest.raises(GridError, match="one line"):
        Plane.through_points((0, 0, 0), (1, 1, 1), (2, 2, 2))


def test_arithmetic_acts_on_density_and_spin():
    grid = wave_grid((6, 6, 6), spin=True)
    twice = grid + grid
    assert np.allclose(twice.values, 2 * grid.values)
    assert np.allclose((3 * twice / 2 - grid * 3).values, 0)
    assert np.allclose((3 * twice / 2 - grid * 3).spin, 0)
    assert np.allclose((-grid).spin, -grid.spin)


def test_spin_survives_arithmetic_with_a_spin_paired_grid():
    paired, polarised = wave_grid((6, 6, 6)), wave_grid((6, 6, 6), spin=True)
    assert np.allclose((paired - polarised).spin, -polarised.spin)
    assert (paired + paired).spin is None


def test_grids_that_do_not_match_are_not_combined():
    grid = wave_grid((6, 6, 6))
    with pytest.raises(GridError, match="resample"):
        grid + wave_grid((6, 6, 5))
    with pytest.raises(GridError, match="origin"):
        grid - wave_grid((6, 6, 6), origin=np.array([0.1, 0, 0]))
    with pytest.raises(TypeError):
        grid + 1.0
    with pytest.raises(TypeError):
        grid * grid


@pytest.mark.parametrize(
    ("values", "cell", "spin"),
    [
        (np.zeros((2, 2)), np.eye(3), None),
        (np.zeros((2, 0, 2)), np.eye(3), None),
        (np.zeros((2, 2, 2)), np.zeros((3, 3)), None),
        (np.zeros((2, 2, 2)), np.eye(3), np.zeros((2, 2, 3))),
    ],
)
def test_grids_without_sense_are_refused(values, cell, spin):
    with pytest.raises(GridError):
        DensityGrid(values, Atoms(), cell, spin=spin)


def test_a_chgcar_holds_both_densities_and_is_read_by_ase(tmp_path: Path):
    grid = wave_grid((6, 7, 8), spin=True, kind="valence")
    grid.write(tmp_path / "CHGCAR")
    by_ase = VaspChargeDensity(str(tmp_path / "CHGCAR"))
    assert np.allclose(by_ase.chg[0], grid.values, atol=1e-9)
    assert np.allclose(by_ase.chgdiff[0], grid.spin, atol=1e-9)
    back = DensityGrid.read(tmp_path / "CHGCAR")
    assert np.allclose(back.values, grid.values, atol=1e-9)
    assert np.allclose(back.spin, grid.spin, atol=1e-9)
    assert back.kind == "valence"
    assert np.allclose(back.atoms.positions, grid.atoms.positions, atol=1e-9)


@pytest.mark.parametrize("name", ["CHGCAR", "CHGCAR_pred.gz", "a.vasp", "a.chgcar", "a.h5"])
def test_formats_without_an_origin_shift_the_atoms(tmp_path: Path, name: str):
    origin = np.array([0.1, -0.2, 0.3])
    grid = wave_grid((6, 7, 8), origin=origin)
    grid.write(tmp_path / name)
    back = DensityGrid.read(tmp_path / name)
    assert np.allclose(back.values, grid.values, atol=1e-6)
    shifted = back.atoms.get_scaled_positions() - grid.atoms.get_scaled_positions()
    shift = np.linalg.solve(CELL.T, -origin)
    assert np.allclose(shifted - shift, np.round(shifted - shift), atol=1e-7)


def test_a_cube_is_in_atomic_units_with_its_origin(tmp_path: Path):
    grid = wave_grid((6, 7, 8), origin=np.array([0.1, -0.2, 0.3]))
    grid.write(tmp_path / "x.cube")
    with open(tmp_path / "x.cube", encoding="ascii") as file:
        content = read_cube(file)
    assert np.allclose(content["data"], grid.values * Bohr**3, rtol=1e-4, atol=1e-5)
    assert np.allclose(content["origin"], grid.origin, atol=1e-5)
    assert np.allclose(content["atoms"].positions, grid.atoms.positions, atol=1e-5)
    assert np.allclose(content["atoms"].cell, CELL, atol=1e-4)


@pytest.mark.parametrize("pbc", [True, False, (True, False, True)])
def test_an_xsf_repeats_the_first_layer_and_is_read_by_ase(tmp_path: Path, pbc):
    grid = wave_grid((5, 6, 7), origin=np.array([0.1, -0.2, 0.3]))
    grid.atoms.pbc = pbc
    grid.write(tmp_path / "x.xsf")
    with open(tmp_path / "x.xsf", encoding="ascii") as file:
        data, origin, vectors, atoms = read_xsf(file, read_data=True)
    assert data.shape == (6, 7, 8)
    assert np.allclose(data[:-1, :-1, :-1], grid.values, atol=1e-8)
    assert np.allclose(data[-1], data[0])
    assert np.allclose(origin, grid.origin)
    assert np.allclose(vectors, CELL)
    assert np.allclose(atoms.positions, grid.atoms.positions)


def test_unknown_names_are_refused_and_leave_nothing_behind(tmp_path: Path):
    with pytest.raises(GridError, match=r"\.cube"):
        wave_grid((4, 4, 4)).write(tmp_path / "density.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["CHGCAR", "x.cube", "x.h5", "x.xsf"])
def test_a_failed_write_leaves_the_old_file_alone(tmp_path: Path, name: str, monkeypatch):
    (tmp_path / name).write_text("old")

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        wave_grid((4, 4, 4)).write(tmp_path / name)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [(name, "old")]


def test_scattered_points_are_no_grid():
    points = np.random.default_rng(0).random((5, 3))
    sample = DensitySample(Atoms("H", cell=CELL, pbc=True), np.ones(5), points=points)
    with pytest.raises(GridError, match="5 scattered points"):
        DensityGrid.from_sample(sample)


def test_a_sample_and_its_grid_are_the_same_density():
    grid = wave_grid((4, 5, 6), spin=True, kind="pseudo")
    sample = grid.to_sample()
    assert sample.provenance.density_kind == "pseudo"
    back = DensityGrid.from_sample(sample)
    assert np.array_equal(back.values, grid.values)
    assert np.array_equal(back.spin, grid.spin)


def test_files_that_are_no_densities_name_themselves(tmp_path: Path):
    (tmp_path / "x.cube").write_text("nothing\n")
    with pytest.raises(DensityFileError, match=r"x\.cube"):
        DensityGrid.read(tmp_path / "x.cube")


def test_on_site_data_of_a_grid_with_spin_minus_one_without_stay_complete(tmp_path):
    onsite = (np.arange(3.0), np.arange(2.0), np.arange(2.0))
    magnetic = wave_grid((4, 4, 4), spin=True, onsite=onsite, onsite_spin=onsite)
    paired = wave_grid((4, 4, 4), onsite=onsite)
    for difference, sign in ((magnetic - paired, 1), (paired - magnetic, -1)):
        assert [rows.tolist() for rows in difference.onsite] == [[0, 0, 0], [0, 0], [0, 0]]
        for found, given in zip(difference.onsite_spin, onsite, strict=True):
            np.testing.assert_array_equal(found, sign * given)
    (magnetic - paired).write(tmp_path / "CHGCAR")


@pytest.mark.parametrize(
    "name",
    ["CHGCAR.bz2", "CHGCAR.xz", "CHGCAR.GZ", "chgcar.png", "CHGCAR.cube.gz", "x.cube.gz"],
)
def test_names_of_other_formats_are_not_written_as_chgcar(tmp_path: Path, name: str):
    with pytest.raises(GridError, match="names no density format"):
        wave_grid((4, 4, 4)).write(tmp_path / name)


def test_open_directions_survive_a_file(tmp_path: Path):
    wave_grid((4, 4, 4), pbc=(True, True, False)).write(tmp_path / "slab.h5")
    assert DensityGrid.read(tmp_path / "slab.h5").pbc == (True, True, False)


def test_nowhere_has_no_density():
    values = wave_grid((8, 8, 8)).interpolate([(np.nan, 0, 0), (0.1, 0.2, 0.3)])
    assert np.isnan(values[0])
    assert np.isfinite(values[1])
