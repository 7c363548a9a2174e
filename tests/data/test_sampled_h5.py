from __future__ import annotations

import shutil

import h5py
import numpy as np
import pytest

from eac_model.data import read_density, read_sampled_h5
from eac_model.errors import DensityFileError


@pytest.fixture
def frame(tmp_path, water_frames):
    return shutil.copyfile(water_frames[0], tmp_path / "frame.h5")


def test_a_real_frame_is_read_whole(water_frames):
    for path in water_frames:
        sample = read_sampled_h5(path)
        assert sample.atoms.get_chemical_formula() == "H32O16"
        assert sample.points.shape == (5000, 3)
        assert sample.density.shape == (5000,)
        electrons = sample.density.mean() * sample.atoms.get_volume()
        assert electrons == pytest.approx(16 * 8, rel=0.12)  # 5000 of 140³ points
        assert np.abs(sample.spin_density).max() < 1e-2
        assert {len(one) for one in sample.onsite} == {33, 15}
        assert sample.onsite_spin[47].shape == (15,)
        assert sample.atoms.get_initial_magnetic_moments().tolist() == [1.0] * 48
        assert sample.provenance.density_kind == "valence"


def test_the_points_lie_on_the_grid(water_frames):
    sample = read_density(water_frames[2])
    places = sample.points @ np.linalg.inv(sample.atoms.cell) * 140
    np.testing.assert_allclose(places, places.round(), atol=1e-5)


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("chg", None, "key chgcar_random/chg is missing"),
        ("chg", np.full((1, 5000), np.nan), "key chg holds NaN"),
        ("chg", np.zeros((1, 4999)), "key probe_pos has shape"),
        ("probe_pos", np.zeros((2, 5000, 3)), "key probe_pos has shape"),
        ("atom_type", np.zeros((1, 48), int), "key atom_type holds no atomic numbers"),
        ("cell", np.zeros((1, 3)), "key cell has shape"),
    ],
)
def test_a_fault_is_reported_with_its_key(frame, key, values, message):
    with h5py.File(frame, "a") as file:
        del file["chgcar_random"][key]
        if values is not None:
            file["chgcar_random"][key] = values
    with pytest.raises(DensityFileError, match=message):
        read_sampled_h5(frame)


def test_damaged_occupancies_are_reported_with_attribute_and_line(frame):
    with h5py.File(frame, "a") as file:
        attributes = file["chgcar_random"].attrs
        attributes["aug"] = attributes["aug"].replace("0.2656972E+00", "*************", 1)
    with pytest.raises(DensityFileError, match=r"attribute aug, line 2: .* did not fit"):
        read_sampled_h5(frame)


def test_a_cut_file_is_refused(frame):
    content = frame.read_bytes()
    for size in (0, 5, 100, 5000, 200_000):
        frame.write_bytes(content[:size])
        with pytest.raises(DensityFileError):
            read_sampled_h5(frame)
