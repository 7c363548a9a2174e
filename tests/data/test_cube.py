from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io.cube import read_cube as ase_read_cube
from ase.io.cube import write_cube as ase_write_cube
from ase.units import Bohr
from hypothesis import given
from hypothesis import strategies as st

from eac_model.data import read_cube, write_cube
from eac_model.errors import DensityFileError, GridError


@pytest.fixture
def water() -> Atoms:
    atoms = molecule("H2O", vacuum=1.5)
    atoms.cell[0, 1], atoms.cell[2, 0] = 0.3, 0.2
    return atoms


def grid(shape=(4, 5, 7)):
    return np.random.default_rng(3).normal(size=shape) ** 3


def test_what_is_written_is_read_back_in_the_same_units(tmp_path, water):
    write_cube(tmp_path / "x.cube", water, grid(), comment="two\nlines")
    read = read_cube(tmp_path / "x.cube")
    np.testing.assert_allclose(read.density, grid(), rtol=6e-5)
    np.testing.assert_allclose(read.atoms.positions, water.positions, atol=1e-6)
    np.testing.assert_allclose(read.atoms.cell, water.cell, atol=1e-5)
    assert read.atoms.get_chemical_symbols() == ["O", "H", "H"]
    assert read.atoms.pbc.all()
    assert not read_cube(tmp_path / "x.cube", pbc=False).atoms.pbc.any()
    assert [path.name for path in tmp_path.iterdir()] == ["x.cube"]


def test_the_file_counts_electrons_in_bohr(tmp_path, water):
    write_cube(tmp_path / "x.cube", water, np.full((4, 4, 4), 10 / water.get_volume()))
    with (tmp_path / "x.cube").open() as file:
        raw = ase_read_cube(file)
    in_bohr = raw["data"].sum() * abs(np.linalg.det(raw["spacing"] / Bohr))
    assert in_bohr == pytest.approx(10, rel=1e-4)


@pytest.mark.parametrize("kind", ["valence", "pseudo", "all-electron", "unknown"])
def test_the_kind_of_the_density_comes_back(tmp_path, water, kind):
    values = np.ones((3, 4, 5))
    write_cube(tmp_path / "x.cube", water, values, comment=f"Electron density ({kind})")
    assert read_cube(tmp_path / "x.cube").provenance.density_kind == kind
    write_cube(tmp_path / "x.cube", water, values, comment=f"Electron density ({kind}), by hand")
    assert read_cube(tmp_path / "x.cube").provenance.density_kind == "unknown"


def test_ase_reads_what_we_write(tmp_path, water):
    write_cube(tmp_path / "x.cube", water, grid(), origin=(0.1, 0.2, 0.3))
    with (tmp_path / "x.cube").open() as file:
        theirs = ase_read_cube(file)
    np.testing.assert_allclose(theirs["data"] / Bohr**3, grid(), rtol=6e-5)
    np.testing.assert_allclose(theirs["origin"], [0.1, 0.2, 0.3], atol=1e-6)
    np.testing.assert_allclose(theirs["atoms"].positions, water.positions, atol=1e-6)


def test_we_read_what_ase_writes_and_shift_its_origin_away(tmp_path, water):
    with (tmp_path / "x.cube").open("w") as file:
        ase_write_cube(file, water, grid() * Bohr**3, origin=(0.1, 0.2, 0.3))
    read = read_cube(tmp_path / "x.cube")
    np.testing.assert_allclose(read.density, grid(), rtol=1e-6)
    shifted = water.positions - [0.1, 0.2, 0.3]
    np.testing.assert_allclose(read.atoms.positions, shifted, atol=1e-6)


def test_progress_counts_every_value(tmp_path, water):
    done = []
    write_cube(tmp_path / "x.cube", water, np.ones((70, 70, 71)), progress=done.append)
    assert sum(done) == 70 * 70 * 71
    assert len(done) > 1


def test_castep_repeats_its_first_layer(tmp_path, water):
    wrapped = np.pad(grid(), [(0, 1)] * 3, mode="wrap")
    larger = water.copy()
    larger.cell[:] *= np.array(wrapped.shape)[:, None] / np.array(grid().shape)[:, None]
    write_cube(tmp_path / "x.cube", larger, wrapped)
    text = (tmp_path / "x.cube").read_text().splitlines()
    text[1] = "made by castep2cube"
    (tmp_path / "x.cube").write_text("\n".join(text) + "\n")
    read = read_cube(tmp_path / "x.cube")
    np.testing.assert_allclose(read.density, grid(), rtol=6e-5)
    np.testing.assert_allclose(read.atoms.cell, water.cell, atol=1e-4)


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (2, "OUTER LOOP: Z, MIDDLE LOOP: Y, INNER LOOP: X", "order Z, Y, X"),
        (3, "3 0 0", "line 3: expected 4 numbers"),
        (3, "3 0 0 0 2", "line 3: 2 values a grid point"),
        (3, "3.5 0 0 0", "line 3: 3.5 is not a whole number"),
        (4, "0 1 0 0", "no points or no volume"),
        (7, "0 0 0 0 0", "line 7: 0 is not an atomic number"),
        (10, "1.0 2.0 ***** 3.0 4.0 5.0", "line 10: .* did not fit"),
        (10, "1.0 2.0", "the file ends after 136 of 140 grid values"),
        (10, "1 2 3 4 5 6 7", "line 49: more than the 140 grid values"),
    ],
)
def test_a_fault_is_reported_with_line_and_cause(tmp_path, water, line, text, message):
    path = tmp_path / "x.cube"
    write_cube(path, water, grid())
    lines = path.read_text().splitlines()
    lines[line - 1] = text
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DensityFileError, match=message):
        read_cube(path)


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_file_cut_at_any_byte_is_refused_or_right(tmp_path, water, end):
    values = grid((2, 2, 3))
    path = tmp_path / "x.cube"
    with path.open("w") as file:
        ase_write_cube(file, water, values * Bohr**3)
    content = path.read_text() + end
    for cut in range(len(content)):
        path.write_text(content[:cut])
        if cut >= len(content) - len(end):
            np.testing.assert_allclose(read_cube(path).density, values, rtol=1e-6)
        else:
            with pytest.raises(DensityFileError):
                read_cube(path)


@given(st.data())
def test_damaged_bytes_give_a_density_or_a_clear_error(tmp_path, water, data):
    path = tmp_path / "x.cube"
    write_cube(path, water, grid((2, 2, 3)))
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] = data.draw(st.sampled_from(b"\n \t*-+.E0123456789\xff"))
    path.write_bytes(content)
    with suppress(DensityFileError):
        assert np.isfinite(read_cube(path).density).all()


def test_grids_and_cells_that_do_not_fit_are_not_written(tmp_path, water):
    with pytest.raises(GridError, match="three axes"):
        write_cube(tmp_path / "x.cube", water, np.ones(3))
    with pytest.raises(GridError, match="cell"):
        write_cube(tmp_path / "x.cube", Atoms("H"), grid())
    with pytest.raises(GridError, match="NaN"):
        write_cube(tmp_path / "x.cube", water, np.full((2, 2, 2), np.nan))
    assert list(tmp_path.iterdir()) == []


def test_coordinates_of_any_size_are_read_again(tmp_path):
    atoms = Atoms("H", [(-600.0, 7000.0, -60000.0)], cell=[3, 3, 3])
    origin = np.array([-601.0, 0.0, -1e5])
    write_cube(tmp_path / "far.cube", atoms, np.ones((2, 2, 2)), origin=tuple(origin))
    found = read_cube(tmp_path / "far.cube").atoms.positions[0]
    assert found == pytest.approx(atoms.positions[0] - origin, abs=1e-4)
