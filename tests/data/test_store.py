from __future__ import annotations

import multiprocessing
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace

import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from eac_model.data import (
    DensitySample,
    DensityStore,
    Provenance,
    SamplingMixture,
    draw_points,
    read_density,
    read_sample,
    read_sampled_h5,
    write_sample,
)
from eac_model.errors import ConfigurationError, DensityFileError, GridError


def make_sample(seed=0, shape=(9, 17, 12), **changes):
    rng = np.random.default_rng(seed)
    cell = np.diag([3.0, 4.0, 5.0]) + rng.random((3, 3))
    atoms = Atoms("OHO", scaled_positions=rng.random((3, 3)), cell=cell, pbc=(True, True, False))
    atoms.set_initial_magnetic_moments([1.0, -0.5, 0.0])
    sample = DensitySample(
        atoms=atoms,
        density=rng.random(shape).astype(np.float32),
        spin_density=rng.normal(size=shape).astype(np.float32),
        onsite=tuple(rng.normal(size=(2, n, n)) for n in (4, 2, 4)),
        provenance=Provenance("GPAW 1", "PBE", "pseudo", ("H.PBE", "O.PBE"), f"{seed}.gpw"),
    )
    return replace(sample, **changes)


def assert_same(a, b):
    assert a.atoms == b.atoms
    moments = [x.atoms.get_initial_magnetic_moments() for x in (a, b)]
    np.testing.assert_array_equal(*moments)
    assert a.provenance == b.provenance
    for name in ("density", "spin_density", "points"):
        one, other = getattr(a, name), getattr(b, name)
        assert (one is None) == (other is None), name
        if one is not None:
            np.testing.assert_array_equal(one, other)
    for name in ("onsite", "onsite_spin"):
        one, other = getattr(a, name), getattr(b, name)
        assert (one is None) == (other is None), name
        for x, y in zip(one or (), other or (), strict=True):
            np.testing.assert_array_equal(x, y)


VARIANTS = {
    "everything": make_sample(),
    "density only": make_sample(1, spin_density=None, onsite=None, provenance=Provenance()),
    "ragged on-site data": make_sample(
        2, onsite=(np.ones(3), np.ones(5), np.ones(0)), onsite_spin=(np.zeros(3),) * 3
    ),
    "points": make_sample(3).select(np.array([5, 900, 7])),
    "one grid point": make_sample(4, shape=(1, 1, 1)),
    "no moments": make_sample(5, atoms=Atoms("H", cell=[1, 2, 3], pbc=True), onsite=None),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_stored_is_read_back(tmp_path, name):
    store = DensityStore.create(tmp_path / "store")
    assert store.append(VARIANTS[name]) == 0
    assert_same(store.read(0), VARIANTS[name])
    assert store.structure(0) == VARIANTS[name].atoms
    again = DensityStore.open(tmp_path / "store")
    assert_same(again.read(0), VARIANTS[name])
    assert again.entries == store.entries


def test_the_index_tells_what_is_there(tmp_path):
    store = DensityStore.create(tmp_path / "store")
    store.append(VARIANTS["everything"], key="k", stamp="s")
    store.append(VARIANTS["points"])
    grid, points = DensityStore.open(tmp_path / "store").entries
    assert grid.formula == "HO2"
    assert (grid.n_atoms, grid.shape, grid.spin, grid.onsite) == (3, (9, 17, 12), True, True)
    sample = VARIANTS["everything"]
    assert grid.electrons == pytest.approx(sample.density.mean() * sample.atoms.get_volume())
    assert (grid.density_kind, grid.source, grid.key, grid.stamp) == ("pseudo", "0.gpw", "k", "s")
    assert points.shape == (3,)
    assert points.electrons is None


@pytest.mark.parametrize("name", ["everything", "points", "density only"])
def test_points_are_read_in_the_order_asked_for(tmp_path, name):
    sample = VARIANTS[name]
    store = DensityStore.create(tmp_path / "store")
    store.append(sample)
    indices = np.random.default_rng(0).integers(0, sample.density.size, 200)
    indices[3] = indices[100]
    assert_same(store.read_points(0, indices), sample.select(indices))
    assert len(store.read_points(0, np.array([], dtype=int)).density) == 0
    for bad in ([-1], [sample.density.size], [[1, 2]]):
        with pytest.raises(GridError, match="Indices of points"):
            store.read_points(0, np.array(bad))


def test_few_points_unpack_few_chunks(tmp_path):
    write_sample(tmp_path / "x.h5", make_sample(shape=(64, 64, 64)))
    with h5py.File(tmp_path / "x.h5") as file:
        assert file["density"].chunks == (8, 8, 8)
        assert file["density"].compression == "lzf"


def test_draws_from_the_store_equal_draws_from_memory(tmp_path):
    sample = make_sample(shape=(45, 50, 81))
    store = DensityStore.create(tmp_path / "store")
    store.append(sample)
    mixture = SamplingMixture(uniform=1, density=1, core=1, gradient=1)
    indices, weights = draw_points(sample, 300, mixture, np.random.default_rng(5))
    drawn, drawn_weights = store.draw(0, 300, mixture, np.random.default_rng(5))
    np.testing.assert_allclose(drawn_weights, weights, rtol=1e-6)
    np.testing.assert_array_equal(drawn.density, sample.density.reshape(-1)[indices])


def test_a_water_frame_goes_through_the_store(tmp_path, water_frames):
    frame = read_sampled_h5(water_frames[0])
    store = DensityStore.create(tmp_path / "store")
    store.append(frame)
    read = store.read(0)
    np.testing.assert_allclose(read.density, frame.density, rtol=1e-7)
    np.testing.assert_array_equal(read.points, frame.points)
    assert [len(one) for one in read.onsite_spin] == [33] * 16 + [15] * 32
    sample, weights = store.draw(0, 700, SamplingMixture(), np.random.default_rng(0))
    assert sample.points.shape == (700, 3)
    assert (weights == 1).all()
    with pytest.raises(ConfigurationError, match="scattered"):
        store.draw(0, 700, SamplingMixture(core=1), np.random.default_rng(0))


def test_a_single_sample_file_is_a_density_file(tmp_path):
    write_sample(tmp_path / "x.h5", make_sample())
    assert_same(read_sample(tmp_path / "x.h5"), make_sample())
    assert_same(read_density(tmp_path / "x.h5"), make_sample())


def test_a_key_that_comes_again_replaces_its_sample(tmp_path):
    store = DensityStore.create(tmp_path / "store")
    for seed, key in ((0, "a"), (1, "b"), (2, ""), (3, "")):
        store.append(make_sample(seed), key=key, stamp="1")
    assert store.append(make_sample(4), key="a", stamp="2") == 3
    for opened in (store, DensityStore.open(tmp_path / "store")):
        assert [entry.source for entry in opened.entries] == ["1.gpw", "2.gpw", "3.gpw", "4.gpw"]
        assert_same(opened.read(3), make_sample(4))
    assert len(list((tmp_path / "store" / "samples").iterdir())) == 4


def test_two_stores_on_one_folder_do_not_overwrite_each_other(tmp_path):
    first = DensityStore.create(tmp_path / "store")
    second = DensityStore.open(tmp_path / "store")
    first.append(make_sample(0))
    second.append(make_sample(1))
    first.append(make_sample(2))
    assert [entry.source for entry in first.entries] == ["0.gpw", "1.gpw", "2.gpw"]


def test_a_store_works_in_other_processes(tmp_path):
    store = DensityStore.create(tmp_path / "store")
    store.append(make_sample())
    store.read(0)
    assert_same(pickle.loads(pickle.dumps(store)).read(0), make_sample())
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for read in pool.map(store.read, [0, 0]):
            assert_same(read, make_sample())


def test_a_lost_or_damaged_index_is_rebuilt_from_the_samples(tmp_path):
    store = DensityStore.create(tmp_path / "store")
    for seed in range(3):
        store.append(make_sample(seed), key=str(seed))
    index = tmp_path / "store" / "index.jsonl"
    content = index.read_text()
    for damaged in ("", content[: len(content) // 2], content[:-30], "nonsense\n{}\n[1]\n"):
        index.write_text(damaged)
        assert DensityStore.open(tmp_path / "store").entries == store.entries
    DensityStore.open(tmp_path / "store").append(make_sample(3))
    assert index.read_text().startswith("nonsense\n")
    index.write_text(content[:-30])
    DensityStore.open(tmp_path / "store").append(make_sample(4))
    assert [e.source for e in DensityStore.open(tmp_path / "store").entries][-2:] == [
        "3.gpw",
        "4.gpw",
    ]


def test_half_written_samples_are_ignored_and_cleared_away(tmp_path):
    store = DensityStore.create(tmp_path / "store")
    store.append(make_sample(0))
    folder = tmp_path / "store" / "samples"
    leftover = folder / ".0123456789ab.tmp.00000001.h5"
    leftover.write_bytes((folder / "00000000.h5").read_bytes()[:1000])
    assert len(DensityStore.open(tmp_path / "store")) == 1
    store.append(make_sample(1))
    assert not leftover.exists()
    assert len(store) == 2


def test_a_failed_append_changes_nothing(tmp_path, monkeypatch):
    store = DensityStore.create(tmp_path / "store")
    store.append(make_sample(0))
    before = sorted(p.name for p in (tmp_path / "store").rglob("*"))
    with pytest.raises(GridError, match="NaN"):
        store.append(make_sample(1, density=np.full((9, 17, 12), np.nan)))

    def disk_full(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", disk_full)
        with pytest.raises(OSError, match="no space"):
            store.append(make_sample(1))
    assert sorted(p.name for p in (tmp_path / "store").rglob("*")) == before
    assert len(store) == 1


APPENDER = """
import sys
import numpy as np
from ase import Atoms
from eac_model.data import DensitySample, DensityStore, Provenance

store = DensityStore.open(sys.argv[1])
while True:
    number = len(store)
    grid = np.random.default_rng(number).random((40, 40, 40))
    atoms = Atoms("H", cell=[4, 4, 4], pbc=True)
    source = Provenance(source=str(number))
    store.append(DensitySample(atoms, grid, spin_density=grid, provenance=source))
    print(number, flush=True)
"""


def test_a_writer_killed_at_any_moment_leaves_a_store_of_whole_samples(tmp_path):
    path = tmp_path / "store"
    DensityStore.create(path)
    for delay in (0.0, 0.007, 0.02, 0.05):
        process = subprocess.Popen(
            [sys.executable, "-c", APPENDER, str(path)], stdout=subprocess.PIPE, text=True
        )
        finished = int(process.stdout.readline())
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        store = DensityStore.open(path)
        assert len(store) > finished
        for number, entry in enumerate(store.entries):
            assert entry.source == str(number)
            expected = np.random.default_rng(number).random((40, 40, 40)).astype(np.float32)
            np.testing.assert_array_equal(store.read(number).density, expected)
    store.append(make_sample(0))
    assert len(DensityStore.open(path)) == len(store)


def test_a_busy_store_says_so(tmp_path, monkeypatch):
    from filelock import FileLock

    monkeypatch.setattr("eac_model.data.store._LOCK_SECONDS", 0.05)
    store = DensityStore.create(tmp_path / "store")
    with (
        FileLock(tmp_path / "store" / ".lock"),
        pytest.raises(ConfigurationError, match="another process is writing"),
    ):
        store.append(make_sample())


def test_folders_that_are_no_stores_are_refused(tmp_path):
    with pytest.raises(DensityFileError, match="not a density store"):
        DensityStore.open(tmp_path)
    (tmp_path / "store.json").write_text('{"format": "eac-density-store", "version": 99}')
    with pytest.raises(DensityFileError, match="newer version"):
        DensityStore.open(tmp_path)
    with pytest.raises(ConfigurationError, match="exists already"):
        DensityStore.create(tmp_path)


def test_damaged_sample_files_are_refused(tmp_path):
    path = tmp_path / "x.h5"
    write_sample(path, make_sample())
    content = path.read_bytes()
    for size in (0, 7, 500, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(DensityFileError, match=r"x\.h5"):
            read_sample(path)
    path.write_bytes(content)
    with h5py.File(path, "a") as file:
        file.attrs["version"] = 99
    with pytest.raises(DensityFileError, match="newer version"):
        read_sample(path)
    with h5py.File(path, "a") as file:
        file.attrs["format"] = "else"
    with pytest.raises(DensityFileError, match="not a density sample"):
        read_sample(path)
    with pytest.raises(DensityFileError, match="no such file"):
        read_sample(tmp_path / "y.h5")


def test_a_flipped_byte_of_a_grid_is_noticed(tmp_path):
    path = tmp_path / "x.h5"
    write_sample(path, make_sample())
    with h5py.File(path) as file:
        place = file["spin_density"].id.get_chunk_info(1).byte_offset + 100
        assert max(len(file), len(file.attrs)) <= 8  # beyond, HDF5 may hang on damaged files
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)
    with pytest.raises(DensityFileError, match="damaged"):
        read_sample(path)


def test_a_store_whose_creation_was_cut_short_can_be_gone_on_with(tmp_path):
    path = tmp_path / "new.store"
    DensityStore.create(path)
    (path / "store.json").rename(path / ".0123.tmp.store.json")
    store = DensityStore.open(path)
    assert len(store) == 0
    assert len(DensityStore.open(path)) == 0
    # Another folder of that name is none.
    (path / "store.json").unlink()
    (path / "samples" / "notes.txt").touch()
    with pytest.raises(DensityFileError, match="not a density store"):
        DensityStore.open(path)


def test_a_full_disk_is_an_error_and_leaves_no_half_written_sample(tmp_path):
    """Not the end of the process, which the HDF5 library would make of it."""
    script = (
        "import resource, numpy as np; from ase.build import bulk;"
        "from eac_model.data import DensitySample, DensityStore;"
        "store = DensityStore.create('s.store');"
        "sample = DensitySample(bulk('Cu'), np.random.default_rng(0).random((40, 40, 40)));"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
        "store.append(sample)"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 1
    assert "OSError" in found.stderr
    assert not list((tmp_path / "s.store" / "samples").iterdir())


def test_an_index_that_is_no_text_is_read_from_the_samples(tmp_path):
    store = DensityStore.create(tmp_path / "s.store")
    store.append(DensitySample(bulk("Cu"), np.ones((4, 4, 4))))
    (tmp_path / "s.store" / "index.jsonl").write_bytes(b"\xff\xfe\x00{")
    assert len(DensityStore.open(tmp_path / "s.store")) == 1
