from __future__ import annotations

import gzip
import os
import shutil

import h5py
import numpy as np
import pytest
from ase import Atoms

from eac_model.data import (
    DensitySample,
    DensityStore,
    convert,
    read_density,
    write_chgcar,
    write_cube,
    write_sample,
)
from eac_model.data.readers import holds_density
from eac_model.errors import DensityFileError

ATOMS = Atoms("LiH", positions=[[0.5, 0.5, 0.5], [1.5, 1.5, 1.5]], cell=[3, 4, 5], pbc=True)


def sample(seed=0):
    return DensitySample(ATOMS, np.random.default_rng(seed).random((4, 5, 6)))


@pytest.mark.parametrize(
    "name",
    ["CHGCAR", "CHGCAR_7", "chgcar.gz", "x.CHGCAR", "AECCAR2", "PARCHG.1", "x.vasp", "d.txt"],
)
def test_chgcar_files_are_recognised_by_name_or_content(tmp_path, name):
    write_chgcar(tmp_path / name, sample())
    read = read_density(tmp_path / name)
    np.testing.assert_allclose(read.density, sample().density, rtol=1e-9)
    partial = name.startswith(("AECCAR", "PARCHG"))
    assert read.provenance.density_kind == ("unknown" if partial else "valence")


def test_structures_with_whole_numbers_are_no_densities(tmp_path):
    path = tmp_path / "Si.vasp"
    lines = ["Si", "1.0", "3 0 0", "0 4 0", "0 0 5", "Si", "2", "Direct", "0.5 0.5 0.5", "0 0 0"]
    path.write_text("\n".join(lines) + "\n")
    assert not holds_density(path)
    path.write_text("\n".join([*lines, "", "0 0 0", "1 2 3"]) + "\n")  # velocities
    assert not holds_density(path)
    write_chgcar(path, sample())
    assert holds_density(path)


@pytest.mark.parametrize("name", ["x.cube", "x.cub", "density.dat", "x.cube.gz"])
def test_cube_files_are_recognised_by_name_or_content(tmp_path, name):
    path = tmp_path / name
    write_cube(path, ATOMS, sample().density)
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    np.testing.assert_allclose(read_density(path).density, sample().density, rtol=1e-4)


def test_everything_else_is_refused_with_a_reason(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    for name, content, message in (
        ("empty", b"", "the file is empty"),
        ("notes.txt", b"these are notes\n" * 9, "not a known density file"),
        ("x.gpw", b"nothing", r"not a \.gpw file"),
        ("x.cube", b"nothing\n" * 20, "line 3: 'nothing' is not a number"),
        ("bin.h5", b"\x89HDF\r\n\x1a\n" + bytes(100), "damaged HDF5"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DensityFileError, match=message):
            read_density(tmp_path / name)
    with pytest.raises(DensityFileError, match="without a density"):
        read_density(tmp_path / "other.h5")
    with pytest.raises(DensityFileError, match="a folder"):
        read_density(tmp_path)
    with pytest.raises(DensityFileError, match="cannot be read"):
        read_density(tmp_path / "missing")


@pytest.fixture
def files(tmp_path):
    write_chgcar(tmp_path / "CHGCAR", sample(1))
    (tmp_path / "CHGCAR_bad").write_bytes((tmp_path / "CHGCAR").read_bytes()[:-40])
    write_cube(tmp_path / "x.cube", ATOMS, sample(2).density)
    write_sample(tmp_path / "x.h5", sample(3))
    return [tmp_path / name for name in ("CHGCAR", "CHGCAR_bad", "x.cube", "none", "x.h5")]


def test_a_malformed_file_does_not_stop_the_batch(tmp_path, files):
    done = []
    report = convert(files, tmp_path / "store", progress=done.append)
    assert [path.name for path in report.converted] == ["CHGCAR", "x.cube", "x.h5"]
    assert [failure.path.name for failure in report.failures] == ["CHGCAR_bad", "none"]
    assert "CHGCAR_bad, line " in report.failures[0].message
    assert done == files
    store = DensityStore.open(tmp_path / "store")
    folder = tmp_path.name
    assert [entry.source for entry in store.entries] == [f"{folder}/CHGCAR", f"{folder}/x.cube", ""]
    np.testing.assert_allclose(store.read(0).density, sample(1).density, rtol=1e-6)


def test_a_store_of_nothing_is_not_left_behind(tmp_path, files):
    assert convert([files[1]], tmp_path / "store").failures
    assert not (tmp_path / "store").exists()


def test_running_again_skips_what_is_there_and_takes_what_changed(tmp_path, files):
    good = [files[0], files[2]]
    assert len(convert(files[:1], tmp_path / "store").converted) == 1
    report = convert(good, tmp_path / "store")
    assert report.skipped == (files[0],)
    assert report.converted == (files[2],)
    write_chgcar(files[0], sample(9))
    os.utime(files[0], ns=(1, 1))
    report = convert(good, tmp_path / "store")
    assert report.converted == (files[0],)
    store = DensityStore.open(tmp_path / "store")
    assert len(store) == 2
    np.testing.assert_allclose(store.read(1).density, sample(9).density, rtol=1e-6)


def test_the_store_does_not_tell_where_the_files_were(tmp_path, files):
    shutil.copy(files[0], tmp_path / "CHGCAR_copy")
    convert([files[0], tmp_path / "CHGCAR_copy"], tmp_path / "store")
    assert len(DensityStore.open(tmp_path / "store")) == 2
    for path in (tmp_path / "store").rglob("*"):
        if path.is_file():
            assert str(tmp_path).encode() not in path.read_bytes()


def test_a_folder_that_is_no_store_is_left_alone(tmp_path, files):
    with pytest.raises(DensityFileError, match="not a density store"):
        convert(files, tmp_path)


def test_an_hdf5_file_that_is_open_elsewhere_is_not_only_called_damaged(tmp_path):
    path = tmp_path / "open.h5"
    with h5py.File(path, "w"), pytest.raises(DensityFileError, match="open elsewhere"):
        read_density(path)
