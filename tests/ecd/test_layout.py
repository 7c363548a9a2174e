"""ECD's folders: lists, splits, CHGCARs, states."""

import gzip
import io
import json
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

from eac_ase.ecd.export import Sizes, draw_splits, export_stores, material_name
from eac_ase.ecd.layout import GAPS, EcdSet, missing, read_gaps, write_set
from eac_model.data import DensitySample, DensityStore, Provenance
from eac_model.errors import ConfigurationError, DensityFileError

NAMES = ["a.chgcar", "b.chgcar", "c.chgcar"]


def sample(seed: int = 0, functional: str = "PBE") -> DensitySample:
    rng = np.random.default_rng(seed)
    atoms = Atoms("LiF", [(0, 0, 0), (1.5, 1.5, 1.5)], cell=[3, 3, 3.5], pbc=True)
    return DensitySample(
        atoms,
        rng.random((3, 4, 5)) + 0.5,
        provenance=Provenance(code="GPAW 26.7", functional=functional, density_kind="pseudo"),
    )


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A folder of three densities without states."""
    splits = {"train": ["c.chgcar"], "validation": ["a.chgcar"], "test": ["b.chgcar"]}
    samples = {name: sample(i) for i, name in enumerate(NAMES)}
    write_set(tmp_path / "pbe", samples, NAMES, splits, states=False)
    return tmp_path


def test_lists_and_splits_are_those_of_the_publication(written):
    folder = written / "pbe"
    assert (folder / "filelist.txt").read_text() == "a.chgcar\nb.chgcar\nc.chgcar\n"
    assert json.loads((folder / "split.json").read_text()) == {
        "train": [2],
        "validation": [0],
        "test": [1],
    }
    assert (folder / "probe_counts.csv").read_text().splitlines()[0] == "a.chgcar,60,3,4,5"


def test_a_written_set_is_read_back(written):
    found = EcdSet.open(written, "pbe")
    assert found.names == tuple(NAMES)
    assert found.of_split("train") == ("c.chgcar",)
    again = found.read("b.chgcar")
    assert np.allclose(again.density, sample(1).density, rtol=1e-9)
    assert again.provenance.source == "b.chgcar"
    assert not found.has_state("b.chgcar")


def test_the_order_of_a_split_is_that_of_its_file(written):
    (written / "pbe" / "split.json").write_text('{"train": [2, 0, 1]}')
    assert EcdSet.open(written, "pbe").of_split("train") == ("c.chgcar", "a.chgcar", "b.chgcar")


def test_a_folder_without_splits_is_for_testing(written):
    (written / "pbe" / "split.json").unlink()
    assert EcdSet.open(written, "pbe").of_split("test") == tuple(NAMES)
    with pytest.raises(ConfigurationError, match="nothing is listed for train"):
        EcdSet.open(written, "pbe").of_split("train")


@pytest.mark.parametrize("form", ["gz", "folder", "tar.gz"])
def test_densities_may_be_packed(written, form):
    plain = written / "pbe" / "a.chgcar"
    content = plain.read_bytes()
    plain.unlink()
    if form == "gz":
        plain.with_name("a.chgcar.gz").write_bytes(gzip.compress(content))
    elif form == "folder":
        plain.mkdir()
        (plain / "CHGCAR").write_bytes(content)
    else:
        inside = written / "a.chgcar"
        inside.write_bytes(content)
        with tarfile.open(plain.with_name("a.chgcar.tar.gz"), "w:gz") as archive:
            archive.add(inside, "somewhere/a.chgcar")
    found = EcdSet.open(written, "pbe").read("a.chgcar")
    assert np.allclose(found.density, sample(0).density, rtol=1e-9)


def test_a_damaged_archive_is_named(written):
    plain = written / "pbe" / "a.chgcar"
    plain.rename(plain.with_name("a.chgcar.tar.gz"))
    with pytest.raises(DensityFileError, match=r"a.chgcar.tar.gz: cannot be unpacked"):
        EcdSet.open(written, "pbe").read("a.chgcar")


def test_a_damaged_density_in_an_archive_is_named_with_its_archive(written):
    cut = (written / "pbe" / "a.chgcar").read_bytes()[:900]
    (written / "pbe" / "a.chgcar").unlink()
    with tarfile.open(written / "pbe" / "a.chgcar.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("a/CHGCAR")
        member.size = len(cut)
        archive.addfile(member, io.BytesIO(cut))
    with pytest.raises(DensityFileError, match=r"a\.chgcar\.tar\.gz, a/CHGCAR") as caught:
        EcdSet.open(written, "pbe").read("a.chgcar")
    assert tempfile.gettempdir() not in str(caught.value).replace(str(written), "")


def test_of_several_files_in_an_archive_the_chgcar_is_read(written):
    whole = written / "pbe" / "a.chgcar"
    expected = EcdSet.open(written, "pbe").read("a.chgcar")
    with tarfile.open(written / "pbe" / "a.chgcar.tar.gz", "w:gz") as archive:
        for name in ("a/CHGCAR", "a/CHG", "a/._CHGCAR", "a/POSCAR"):
            archive.add(whole, name)
    whole.unlink()
    found = EcdSet.open(written, "pbe").read("a.chgcar")
    np.testing.assert_array_equal(found.density, expected.density)


def test_lists_with_marks_of_editors_are_read(written):
    listing = written / "pbe" / "filelist.txt"
    names = EcdSet.open(written, "pbe").names
    listing.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(names).encode() + b"  \r\n\n")
    assert EcdSet.open(written, "pbe").names == names


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a.chgcar\n\nb.chgcar\n", "line 2: the name of a file"),
        (b"../../secret\n", "line 1: the name of a file"),
        (b"a\xff\xfe.chgcar\n", "no text"),
        (b"", "line 1: the name of a file"),
    ],
)
def test_damaged_lists_are_refused(written, content, message):
    (written / "pbe" / "filelist.txt").write_bytes(content)
    with pytest.raises(DensityFileError, match=message):
        EcdSet.open(written, "pbe")


def test_a_listed_file_that_is_missing_is_named(written):
    (written / "pbe" / "a.chgcar").unlink()
    with pytest.raises(DensityFileError, match=r"a.chgcar: there is no such file"):
        EcdSet.open(written, "pbe").read("a.chgcar")


def test_a_folder_that_is_no_data_set_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"hse/filelist.txt: there is no such file"):
        EcdSet.open(tmp_path, "hse")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"train": [3]}', "train names line 3"),
        ('{"train": [-1]}', "train names line -1"),
        ('{"train": [1], "test": [1]}', "is in train and in test"),
        ('{"train": 1}', "lists of line numbers"),
        ("[", "lists of line numbers"),
        ('{"train": [1.7]}', "lists of line numbers"),
        ('{"train": [Infinity]}', "lists of line numbers"),
        ('{"train": "12"}', "lists of line numbers"),
        ('{"val": [1]}', "'val' is none of them"),
    ],
)
def test_damaged_splits_are_refused(written, content, message):
    (written / "pbe" / "split.json").write_text(content)
    with pytest.raises(DensityFileError, match=message):
        EcdSet.open(written, "pbe")


def test_a_name_that_is_listed_twice_is_refused(written):
    (written / "pbe" / "filelist.txt").write_text("a.chgcar\nb.chgcar\na.chgcar\n")
    with pytest.raises(DensityFileError, match=r"line 3: 'a\.chgcar' is there twice"):
        EcdSet.open(written, "pbe")


def test_states_keep_what_a_chgcar_cannot(tmp_path):
    whole = replace(sample(), onsite=(np.eye(3), np.eye(2)))
    write_set(tmp_path / "hse", {"a.chgcar": whole}, ["a.chgcar"], {}, states=True)
    found = EcdSet.open(tmp_path, "hse")
    assert found.has_state("a.chgcar")
    read = found.read("a.chgcar")
    assert read.onsite is not None
    assert read.provenance.density_kind == "pseudo"
    assert "pseudo density, GPAW 26.7, PBE" in (tmp_path / "hse" / "a.chgcar").read_text()


def test_what_is_written_is_not_missing_and_the_rest_is(tmp_path):
    write_set(tmp_path / "pbe", {"a.chgcar": sample()}, ["a.chgcar"], {}, states=True)
    assert missing(tmp_path / "pbe", NAMES, states=True) == ["b.chgcar", "c.chgcar"]
    (tmp_path / "pbe" / "a.chgcar").unlink()
    assert missing(tmp_path / "pbe", NAMES, states=True) == NAMES


def test_splits_of_unknown_names_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="splits name 'x', which is no file"):
        write_set(tmp_path / "pbe", {}, [], {"train": ["x"]}, states=False)


def test_measured_gaps_are_read_and_damage_is_named(tmp_path):
    path = tmp_path / GAPS
    with pytest.raises(ConfigurationError, match="EXP-id compares"):
        read_gaps(tmp_path)
    path.parent.mkdir()
    path.write_text('name,gap_ev,source\nSi.chgcar,1.17,"a, b"\n')
    assert [(gap.name, gap.gap, gap.source) for gap in read_gaps(tmp_path)] == [
        ("Si.chgcar", 1.17, "a, b")
    ]
    for wrong in ("wide", "nan", "-3"):
        path.write_text(f"name,gap_ev,source\nSi.chgcar,{wrong},x\n")
        with pytest.raises(DensityFileError, match="line 2"):
            read_gaps(tmp_path)
    path.write_text("name,gap_ev,source\nSi.chgcar,1,x\nSi.chgcar,2,x\n")
    with pytest.raises(DensityFileError, match=r"line 3.*there twice"):
        read_gaps(tmp_path)


# -- from stores -------------------------------------------------------------------------------


def test_materials_have_the_same_name_in_both_functionals():
    first = material_name("pbe-of-hse-rocksalt/MgO-rocksalt/0000 0123456789ab")
    assert first == material_name("hse-rocksalt/MgO-rocksalt/0000 ba9876543210")
    assert first == "MgO-rocksalt-0.chgcar"
    with pytest.raises(ConfigurationError, match="is no key"):
        material_name("somewhere/CHGCAR")


def test_what_hse_leaves_out_pbe_leaves_out():
    pbe = [f"{i}.chgcar" for i in range(40)]
    hse = pbe[::4]
    splits = draw_splits(pbe, hse, Sizes(5, 8, 2, 3), seed=1)
    assert {k: len(v) for k, v in splits["pbe"].items()} == {
        "train": 27,
        "validation": 5,
        "test": 8,
    }
    assert {k: len(v) for k, v in splits["hse"].items()} == {"train": 5, "validation": 2, "test": 3}
    for split in ("validation", "test"):
        assert set(splits["hse"][split]) <= set(splits["pbe"][split])
    for part, names in (("pbe", pbe), ("hse", hse)):
        assert sorted(name for names in splits[part].values() for name in names) == sorted(names)
    assert draw_splits(pbe[::-1], hse[::-1], Sizes(5, 8, 2, 3), seed=1) == splits
    with pytest.raises(ConfigurationError, match="too few"):
        draw_splits(pbe, hse[:5], Sizes(5, 8, 2, 3), seed=1)


def test_stores_become_a_data_set_and_new_samples_are_added(tmp_path):
    store = DensityStore.create(tmp_path / "mini.store")
    tests = DensityStore.create(tmp_path / "mini-test.store")

    def add(where: DensityStore, entry: str, member: str, functional: str) -> None:
        where.append(sample(len(where), functional), key=f"{entry}/{member}/0000 0123")

    for i in range(8):
        add(store, "pbe", f"X{i}-fcc", "PBE")
    for i in range(4):
        add(store, "hse", f"X{i}-fcc", "HSE06")
    add(tests, "ood", "Y-l12", "PBE")
    sizes = Sizes(1, 2, 1, 1)
    root = tmp_path / "ecd"
    counts = export_stores([tmp_path / "mini.store"], root, sizes=sizes, progress=False)
    assert counts == {
        "pbe": {"train": 5, "validation": 1, "test": 2},
        "hse": {"train": 2, "validation": 1, "test": 1},
        "gnome": {"test": 1},
    }
    before = (root / "pbe" / "X0-fcc-0.chgcar").stat().st_mtime_ns
    add(store, "pbe", "X8-fcc", "PBE")
    counts = export_stores([tmp_path / "mini.store"], root, sizes=sizes, progress=False)
    assert counts["pbe"]["train"] == 6
    assert (root / "pbe" / "X0-fcc-0.chgcar").stat().st_mtime_ns == before
    assert len(EcdSet.open(root, "pbe").names) == 9
    assert EcdSet.open(root, "hse").read("X0-fcc-0.chgcar").provenance.functional == "HSE06"


def test_stores_of_other_functionals_and_doubles_are_refused(tmp_path):
    store = DensityStore.create(tmp_path / "mini.store")
    store.append(sample(0, "LDA"), key="a/X-fcc/0000 0123")
    with pytest.raises(ConfigurationError, match="calculated in LDA"):
        export_stores([store.path], tmp_path / "ecd", progress=False)
    other = DensityStore.create(tmp_path / "twice.store")
    other.append(sample(0), key="a/X-fcc/0000 0123")
    other.append(sample(0), key="b/X-fcc/0000 0123")
    with pytest.raises(ConfigurationError, match="two samples have the name X-fcc-0"):
        export_stores([other.path], tmp_path / "ecd", progress=False)


def test_matrices_of_spin_polarised_states_stay_out_of_the_chgcar(tmp_path):
    matrices = (np.eye(3), np.eye(2))
    spin = 0.1 * sample().density
    magnetic = replace(sample(), spin_density=spin, onsite=matrices, onsite_spin=matrices)
    write_set(tmp_path / "pbe", {"a.chgcar": magnetic}, ["a.chgcar"], {}, states=True)
    assert EcdSet.open(tmp_path, "pbe").read("a.chgcar").onsite_spin is not None
