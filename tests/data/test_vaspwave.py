from __future__ import annotations

import shutil

import h5py
import numpy as np
import pytest

from eac_model.data import read_density, read_vaspwave, write_chgcar
from eac_model.errors import DensityFileError

CELL = np.array([[2.0, 0.1, 0.0], [0.0, 2.5, 0.0], [0.3, 0.0, 1.5]])
SHAPE = (3, 4, 5)
SIZES = (33, 15, 15)


def write_vaspwave(path, *, grids=1, occupancies=True, scale=2.0, direct=1, location="structure"):
    """In the layout of VASP 6, see eac_model/data/vaspwave.py for its sources."""
    rng = np.random.default_rng(grids)
    names = {"structure": "structure/positions", "locpot": "locpot/position"}
    with h5py.File(path, "w") as file:
        for part, number in zip(("major", "minor", "patch"), (6, 5, 1), strict=True):
            file[f"version/{part}"] = number
        group = file.create_group(names.get(location, location))
        group["scale"] = scale
        group["lattice_vectors"] = CELL
        group["ion_types"] = np.array([b"O", b"H_AE/79d9987ad87 "])
        group["number_ion_types"] = np.array([1, 2], dtype="i4")
        fractions = rng.random((3, 3))
        group["position_ions"] = fractions if direct else fractions @ CELL
        group["direct_coordinates"] = direct
        file["charge/grid"] = np.array(SHAPE, dtype="i4")
        file["charge/charge"] = rng.random((grids, *SHAPE[::-1]))
        for i in range(1, grids + 1 if occupancies else 1):
            file[f"charge/aug_occupancies_ions_s{i:02d}"] = np.array(SIZES, dtype="i4")
            file[f"charge/aug_occupancies_s{i:02d}"] = rng.random((3, max(SIZES)))
    return path, fractions


@pytest.mark.parametrize("grids", [1, 2, 4])
@pytest.mark.parametrize("direct", [1, 0])
def test_density_spin_occupancies_and_structure_are_read(tmp_path, grids, direct):
    path, fractions = write_vaspwave(tmp_path / "vaspwave.h5", grids=grids, direct=direct)
    sample = read_density(path)
    volume = abs(np.linalg.det(2 * CELL))
    assert sample.atoms.get_volume() == pytest.approx(volume)
    assert sample.atoms.get_chemical_symbols() == ["O", "H", "H"]
    np.testing.assert_allclose(sample.atoms.positions, fractions @ CELL * 2, atol=1e-12)
    parts = [sample.density, sample.spin_density]
    onsite = [sample.onsite, sample.onsite_spin]
    if grids == 4:
        parts = [sample.density, *sample.magnetization.density]
        onsite = [sample.onsite, *sample.magnetization.onsite]
    with h5py.File(path) as file:
        for i in range(grids):
            expected = file["charge/charge"][i].transpose(2, 1, 0) / volume
            np.testing.assert_allclose(parts[i], expected, rtol=1e-14)
            for atom, size in enumerate(SIZES):
                values = file[f"charge/aug_occupancies_s{i + 1:02d}"][atom, :size]
                np.testing.assert_array_equal(onsite[i][atom], values)
    assert (sample.spin_density is None) == (grids != 2)
    assert sample.provenance.code == "VASP 6.5.1"
    assert sample.provenance.density_kind == "valence"


def test_the_chgcar_of_the_same_density_is_written(tmp_path):
    path, _ = write_vaspwave(tmp_path / "vaspwave.h5", grids=2)
    sample = read_vaspwave(path)
    write_chgcar(tmp_path / "CHGCAR", sample)
    again = read_density(tmp_path / "CHGCAR")
    np.testing.assert_allclose(again.spin_density, sample.spin_density, rtol=1e-10)
    np.testing.assert_allclose(again.onsite_spin[2], sample.onsite_spin[2], rtol=1e-6)


def test_pymatgen_reads_the_same(tmp_path):
    outputs = pytest.importorskip("pymatgen.io.vasp.outputs")
    if not hasattr(outputs, "Vaspwave"):
        pytest.skip("this pymatgen does not read vaspwave.h5 (pymatgen-core 2026 does)")
    path, _ = write_vaspwave(tmp_path / "vaspwave.h5", grids=2)
    with h5py.File(path, "r+") as file:
        del file["structure/positions/ion_types"]
        file["structure/positions/ion_types"] = np.array([b"O", b"H"])
    ours, theirs = read_vaspwave(path), outputs.Vaspwave(str(path)).get_chgcar()
    volume = ours.atoms.get_volume()
    np.testing.assert_allclose(ours.density * volume, theirs.data["total"], rtol=1e-12)
    np.testing.assert_allclose(ours.spin_density * volume, theirs.data["diff"], rtol=1e-12)
    for atom in range(3):
        np.testing.assert_array_equal(ours.onsite[atom], theirs.data_aug["total"][atom + 1])


@pytest.mark.parametrize("location", ["results/positions", "input/poscar", "locpot"])
def test_the_structure_may_stand_elsewhere(tmp_path, location):
    path, fractions = write_vaspwave(tmp_path / "x.h5", location=location, occupancies=False)
    sample = read_density(path)
    np.testing.assert_allclose(sample.atoms.get_scaled_positions(), fractions, atol=1e-12)
    assert sample.onsite is None


def delete(name):
    return lambda file: file.__delitem__(name)


def put(name, value):
    def change(file):
        del file[name]
        file[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (delete("charge/grid"), "the data set charge/grid is missing"),
        (delete("structure"), "no structure"),
        (delete("structure/positions/position_ions"), "position_ions is missing"),
        (delete("charge/aug_occupancies_ions_s02"), "aug_occupancies_ions_s02 is missing"),
        (put("charge/grid", [5, 4, 3]), "expected 1, 2 or 4 grids"),
        (put("charge/charge", np.ones((3, 5, 4, 3))), "expected 1, 2 or 4 grids"),
        (put("charge/charge", np.ones((5, 4, 3))), "no array of numbers with 4 axes"),
        (put("charge/charge", np.full((2, 5, 4, 3), np.nan)), "charge/charge holds NaN"),
        (put("structure/positions/number_ion_types", [1, 3]), "no sensible structure"),
        (put("structure/positions/lattice_vectors", np.zeros((3, 3))), "no sensible structure"),
        (put("structure/positions/ion_types", [b"O", b"Qq"]), "'Qq', no element"),
        (put("charge/aug_occupancies_s01", np.ones((2, 33))), "not that of 3 atoms"),
        (put("charge/aug_occupancies_ions_s01", [33, 15, 99]), "exceeds the size"),
        (put("charge/aug_occupancies_ions_s02", [33, 14, 15]), "differ in their occupancies"),
    ],
)
def test_a_fault_is_reported_with_its_data_set(tmp_path, change, message):
    path, _ = write_vaspwave(tmp_path / "vaspwave.h5", grids=2)
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(DensityFileError, match=message) as caught:
        read_density(path)
    assert "vaspwave.h5" in str(caught.value)


def test_vasp_files_without_a_density_say_where_it_is(tmp_path):
    path, _ = write_vaspwave(tmp_path / "vaspout.h5", location="results/positions")
    with h5py.File(path, "r+") as file:
        del file["charge"]
    with pytest.raises(DensityFileError, match=r"LH5 or LCHARGH5"):
        read_density(path)


def test_absurd_sizes_are_refused_without_allocating(tmp_path):
    path, _ = write_vaspwave(tmp_path / "vaspwave.h5")
    with h5py.File(path, "r+") as file:
        del file["charge/charge"]
        shape, chunks = (1, 9000, 9000, 9000), (1, 8, 8, 8)
        file.create_dataset("charge/charge", shape=shape, chunks=chunks, dtype="f8")
    with pytest.raises(DensityFileError, match="claims 729000000000 numbers"):
        read_density(path)


def test_a_cut_file_is_refused(tmp_path):
    path, _ = write_vaspwave(tmp_path / "vaspwave.h5", grids=2)
    content = shutil.copy(path, tmp_path / "whole").read_bytes()
    for size in range(0, len(content) - 1, 997):
        path.write_bytes(content[:size])
        with pytest.raises(DensityFileError):
            read_vaspwave(path)
