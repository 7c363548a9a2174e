from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml
from ase.build import bulk
from typer.testing import CliRunner

from eac_model.data import (
    Calculation,
    DensitySample,
    DensityStore,
    FreeAtoms,
    PawDataset,
    read_sample,
    write_sample,
)
from eac_model.errors import GridError

SHAPE = (9, 8, 10)


def sample(*, spin=True):
    rng = np.random.default_rng(3)

    def grid():
        return rng.normal(size=SHAPE).astype(np.float32)

    def matrices():
        return tuple(rng.normal(size=(i, i)) for i in (5, 13))

    return DensitySample(
        atoms=bulk("NaCl", "rocksalt", a=5.6),
        density=grid(),
        spin_density=grid() if spin else None,
        onsite=matrices(),
        onsite_spin=matrices() if spin else None,
        free_atoms=FreeAtoms(
            grid(), grid() if spin else None, matrices(), matrices() if spin else None
        ),
        calculation=Calculation(
            energy=-7.25,
            free_energy=-7.5,
            forces=rng.normal(size=(2, 3)),
            kpoints=np.zeros((1, 3)),
            weights=np.ones(1),
            eigenvalues=rng.normal(size=(2, 1, 6)),
            occupations=rng.random(size=(2, 1, 6)),
            fermi_level=1.5,
            iterations=11,
            seconds=2.5,
            moment=1.0,
            moments=np.array([0.75, 0.25]) if spin else None,
            settings={"xc": "PBE", "kpts": {"size": [1, 1, 1]}},
            datasets={"Na": PawDataset("Na.PBE", "abc", (0, 0, 1), 7.0)},
        ),
    )


def assert_same(ours, theirs):
    """Dataclasses of arrays, tuples of arrays and plain values."""
    assert type(ours) is type(theirs)
    for name, value in vars(theirs).items():
        mine = getattr(ours, name)
        if isinstance(value, tuple) and value and isinstance(value[0], np.ndarray):
            for a, b in zip(mine, value, strict=True):
                np.testing.assert_array_equal(a, b)
        elif isinstance(value, np.ndarray):
            np.testing.assert_array_equal(mine, value)
        else:
            assert mine == value, name


@pytest.mark.parametrize("spin", [True, False])
def test_free_atoms_and_calculation_come_back_from_a_file(tmp_path, spin):
    written = sample(spin=spin)
    write_sample(tmp_path / "x.h5", written)
    read = read_sample(tmp_path / "x.h5")
    assert_same(read.free_atoms, written.free_atoms)
    assert_same(read.calculation, written.calculation)


def test_points_of_a_store_bring_the_free_atoms_at_the_same_points(tmp_path):
    written = sample()
    store = DensityStore.create(tmp_path / "store")
    store.append(written)
    places = np.array([700, 3, 3, 51])
    read, selected = store.read_points(0, places), written.select(places)
    assert_same(read.free_atoms, selected.free_atoms)
    np.testing.assert_array_equal(
        read.free_atoms.density, written.free_atoms.density.reshape(-1)[places]
    )


def test_samples_without_them_have_none(tmp_path):
    plain = replace(sample(), free_atoms=None, calculation=None)
    write_sample(tmp_path / "x.h5", plain)
    read = read_sample(tmp_path / "x.h5")
    assert read.free_atoms is None
    assert read.calculation is None


def test_free_atoms_on_another_grid_or_with_nan_are_refused(tmp_path):
    with pytest.raises(GridError, match=r"Free atoms \(9, 8\)"):
        replace(sample(), free_atoms=FreeAtoms(np.zeros(SHAPE[:2])))
    spoilt = np.full(SHAPE, np.nan)
    with pytest.raises(GridError, match="NaN"):
        write_sample(tmp_path / "x.h5", replace(sample(), free_atoms=FreeAtoms(spoilt)))


def test_data_info_prints_what_a_configuration_needs_of_matrices(tmp_path):
    from eac_ase.cli import app

    DensityStore.create(tmp_path / "store").append(sample())
    result = CliRunner().invoke(app, ["data", "info", str(tmp_path / "store")])
    found = yaml.safe_load(result.stdout[result.stdout.index("network:") :])
    assert found["network"]["onsite"] == {
        "code": "GPAW",
        "channels": {"Na": [0, 0, 1]},
        "datasets": {"Na": "Na.PBE abc"},
    }
    as_json = CliRunner().invoke(app, ["data", "info", str(tmp_path / "store"), "--json"])
    assert json.loads(as_json.stdout)["configuration"] == found
