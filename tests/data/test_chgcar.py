from __future__ import annotations

import gzip
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.vasp import VaspChargeDensity
from hypothesis import given, settings
from hypothesis import strategies as st

from eac_model.data import DensitySample, Provenance, read_chgcar, read_sampled_h5, write_chgcar
from eac_model.errors import DensityFileError, GridError

CELL = [[4.0, 0.1, 0.0], [0.0, 5.0, -0.3], [0.7, 0.0, 3.5]]


def make_sample(
    *, spin=True, onsite=True, shape=(3, 4, 5), symbols="NaClNa", seed=0, sizes=(15, 33)
):
    rng = np.random.default_rng(seed)
    n = len(Atoms(symbols))
    atoms = Atoms(symbols, scaled_positions=rng.random((n, 3)), cell=CELL, pbc=True)
    if spin and onsite:
        atoms.set_initial_magnetic_moments(rng.normal(size=n))
    sizes = [sizes[i % 2] for i in range(n)]
    return DensitySample(
        atoms=atoms,
        density=rng.random(shape) * 10.0 ** rng.integers(-8, 3, size=shape),
        spin_density=rng.normal(size=shape) if spin else None,
        onsite=tuple(rng.normal(size=k) for k in sizes) if onsite else None,
        onsite_spin=tuple(rng.normal(size=k) for k in sizes) if onsite and spin else None,
    )


def assert_same(a: DensitySample, b: DensitySample, rtol=1e-10):
    assert a.atoms.get_chemical_symbols() == b.atoms.get_chemical_symbols()
    np.testing.assert_allclose(a.atoms.positions, b.atoms.positions, atol=1e-12)
    np.testing.assert_allclose(a.atoms.cell, b.atoms.cell, atol=1e-12)
    np.testing.assert_allclose(a.density, b.density, rtol=rtol)
    assert (a.spin_density is None) == (b.spin_density is None)
    if a.spin_density is not None:
        np.testing.assert_allclose(a.spin_density, b.spin_density, rtol=rtol)
        np.testing.assert_allclose(
            a.atoms.get_initial_magnetic_moments(),
            b.atoms.get_initial_magnetic_moments(),
            rtol=1e-11,
        )
    for one, other in ((a.onsite, b.onsite), (a.onsite_spin, b.onsite_spin)):
        assert (one is None) == (other is None)
        for x, y in zip(one or (), other or (), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-6)


def edited(path, line, text):
    """The file with one line (counted from 1) replaced."""
    lines = path.read_text().split("\n")
    lines[line - 1 : line] = [] if text is None else [text]
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("spin", [False, True])
@pytest.mark.parametrize("onsite", [False, True])
@pytest.mark.parametrize("name", ["CHGCAR", "CHGCAR.gz"])
def test_what_is_written_is_read_back(tmp_path, spin, onsite, name):
    sample = make_sample(spin=spin, onsite=onsite)
    write_chgcar(tmp_path / name, sample)
    assert_same(read_chgcar(tmp_path / name), sample)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("provenance", "comment"),
    [
        (Provenance("GPAW 26.7", "PBE", "pseudo"), "ClNa2: pseudo density, GPAW 26.7, PBE"),
        (Provenance("VASP", "SCAN", "valence"), "ClNa2: valence density, VASP, SCAN"),
        (Provenance("VASP", density_kind="valence"), "ClNa2"),
    ],
)
def test_files_know_the_origin_of_their_density(tmp_path, provenance, comment):
    path = tmp_path / "CHGCAR"
    write_chgcar(path, replace(make_sample(), provenance=provenance))
    assert path.read_text().splitlines()[0] == comment
    assert read_chgcar(path).provenance == replace(provenance, source="CHGCAR")


@pytest.mark.parametrize("comment", ["", "ClNa2: some density, GPAW, PBE", "pseudo density"])
def test_files_of_other_first_lines_are_taken_for_those_of_vasp(tmp_path, comment):
    path = tmp_path / "CHGCAR"
    write_chgcar(path, make_sample(), comment=comment)
    assert read_chgcar(path).provenance == Provenance("VASP", "unknown", "valence", source="CHGCAR")


def test_the_valence_electrons_are_the_mean_value_of_the_file(tmp_path):
    sample = make_sample(spin=False, onsite=False)
    write_chgcar(tmp_path / "CHGCAR", sample)
    lines = (tmp_path / "CHGCAR").read_text().splitlines()
    values = np.array(" ".join(lines[lines.index("    3    4    5") + 1 :]).split(), dtype=float)
    read = read_chgcar(tmp_path / "CHGCAR")
    assert values.mean() == pytest.approx(read.density.mean() * read.atoms.get_volume(), rel=1e-10)
    assert read.provenance.code == "VASP"
    assert read.provenance.density_kind == "valence"
    assert read.provenance.source == "CHGCAR"


@pytest.mark.parametrize("spin", [False, True])
@pytest.mark.parametrize("onsite", [False, True])
def test_pymatgen_reads_what_we_write(tmp_path, spin, onsite):
    outputs = pytest.importorskip("pymatgen.io.vasp.outputs")
    sample = make_sample(spin=spin, onsite=onsite)
    write_chgcar(tmp_path / "CHGCAR", sample)
    theirs = outputs.Chgcar.from_file(str(tmp_path / "CHGCAR"))
    volume = sample.atoms.get_volume()
    np.testing.assert_allclose(theirs.data["total"], sample.density * volume, rtol=1e-10)
    assert [site.specie.symbol for site in theirs.structure] == ["Na", "Cl", "Na"]
    if spin:
        np.testing.assert_allclose(theirs.data["diff"], sample.spin_density * volume, rtol=1e-10)
    if onsite:
        assert theirs.data_aug["total"][0].split() == ["augmentation", "occupancies", "1", "15"]


@pytest.mark.parametrize("spin", [False, True])
@pytest.mark.parametrize("onsite", [False, True])
def test_we_read_what_pymatgen_writes(tmp_path, spin, onsite):
    outputs = pytest.importorskip("pymatgen.io.vasp.outputs")
    sample = make_sample(spin=spin, onsite=onsite)
    write_chgcar(tmp_path / "ours", sample)
    outputs.Chgcar.from_file(str(tmp_path / "ours")).write_file(str(tmp_path / "CHGCAR"))
    read = read_chgcar(tmp_path / "CHGCAR")
    scale = sample.atoms.get_volume() / read.atoms.get_volume()  # six digits of the cell
    np.testing.assert_allclose(read.density, sample.density * scale, rtol=1e-9)
    assert read.atoms.get_chemical_symbols() == ["Na", "Cl", "Na"]
    assert (read.onsite is not None) == onsite
    assert (read.spin_density is not None) == spin


@pytest.mark.parametrize("spin", [False, True])
@pytest.mark.parametrize("onsite", [False, True])
def test_ase_reads_what_we_write_and_we_read_what_ase_writes(tmp_path, spin, onsite):
    sample = make_sample(spin=spin, onsite=onsite)
    write_chgcar(tmp_path / "ours", sample)
    theirs = VaspChargeDensity(str(tmp_path / "ours"))
    np.testing.assert_allclose(theirs.chg[0], sample.density, rtol=1e-9)
    assert len(theirs.chg) == 1
    assert theirs.is_spin_polarized() == spin
    if spin:
        np.testing.assert_allclose(theirs.chgdiff[0], sample.spin_density, rtol=1e-9)
    theirs.write(str(tmp_path / "chgcar_of_ase"))
    assert_same(read_chgcar(tmp_path / "chgcar_of_ase"), sample, rtol=1e-9)


def test_a_chg_file_with_ten_values_a_line_is_read(tmp_path):
    sample = make_sample(spin=False, onsite=False)
    write_chgcar(tmp_path / "ours", sample)
    VaspChargeDensity(str(tmp_path / "ours")).write(str(tmp_path / "CHG"), format="chg")
    np.testing.assert_allclose(read_chgcar(tmp_path / "CHG").density, sample.density, rtol=1e-4)


def test_occupancies_of_a_real_calculation_survive_with_imaginary_parts_read_over(
    tmp_path, water_frames
):
    h5py = pytest.importorskip("h5py")
    frame = read_sampled_h5(water_frames[0])
    grid = np.random.default_rng(0).random((4, 4, 4))
    whole = DensitySample(atoms=frame.atoms, density=grid, spin_density=grid - 0.5)
    write_chgcar(tmp_path / "plain", whole)
    with h5py.File(water_frames[0]) as file:
        texts = [file["chgcar_random"].attrs[key] for key in ("aug", "augdiff")]
    first, dimensions, second = (tmp_path / "plain").read_text().partition("    4    4    4\n")
    total, _, spin = second.partition(dimensions)
    (tmp_path / "CHGCAR").write_text(
        first + dimensions + total + texts[0] + dimensions + spin + texts[1]
    )
    read = read_chgcar(tmp_path / "CHGCAR")
    assert [len(one) for one in read.onsite] == [33] * 16 + [15] * 32
    assert read.onsite[0][0] == 0.7878055
    assert read.onsite_spin[1][0] == 0.1015828e-04
    assert read.atoms.get_initial_magnetic_moments().tolist() == [1.0] * 48
    for a, b in zip(read.onsite, frame.onsite, strict=True):
        np.testing.assert_array_equal(a, b)
    write_chgcar(tmp_path / "again", read)
    assert_same(read_chgcar(tmp_path / "again"), read)


def test_occupancies_are_written_byte_for_byte_as_vasp_does(tmp_path, water_frames):
    h5py = pytest.importorskip("h5py")
    frame = read_sampled_h5(water_frames[0])
    sample = DensitySample(atoms=frame.atoms, density=np.ones((2, 2, 2)), onsite=frame.onsite)
    write_chgcar(tmp_path / "CHGCAR", sample)
    with h5py.File(water_frames[0]) as file:
        text = file["chgcar_random"].attrs["aug"]
    real_part = text[: text.index("augmentation occupancies (imaginary")]
    assert (tmp_path / "CHGCAR").read_text().endswith(real_part)


def test_numbers_are_formatted_as_vasp_does(tmp_path):
    values = np.array([1.0, -1.0, 0.0, 12.345678901234, -9.9999999999999e-4, 1e-300, 123456.0])
    atoms = Atoms("H", cell=[1, 1, 1], pbc=True)
    write_chgcar(tmp_path / "CHGCAR", DensitySample(atoms, values.reshape(7, 1, 1)))
    assert (tmp_path / "CHGCAR").read_text().splitlines()[-2:] == [
        " 0.10000000000E+01 -.10000000000E+01 0.00000000000E+00 0.12345678901E+02"
        " -.10000000000E-02",
        " 0.00000000000E+00 0.12345600000E+06  ",
    ]


@given(st.lists(st.floats(-1e90, 1e90), min_size=1, max_size=40))
def test_every_number_keeps_eleven_digits(tmp_path, numbers):
    values = np.array(numbers)
    atoms = Atoms("H", cell=[1, 1, 1], pbc=True)
    write_chgcar(tmp_path / "CHGCAR", DensitySample(atoms, values.reshape(-1, 1, 1)))
    read = read_chgcar(tmp_path / "CHGCAR").density.reshape(-1)
    np.testing.assert_allclose(read, values, rtol=6e-11, atol=1e-97)


def test_atoms_that_are_not_grouped_keep_their_order(tmp_path):
    sample = make_sample(symbols="HOHHO", onsite=False, spin=False)
    write_chgcar(tmp_path / "CHGCAR", sample)
    assert (tmp_path / "CHGCAR").read_text().splitlines()[5].split() == ["H", "O", "H", "O"]
    assert read_chgcar(tmp_path / "CHGCAR").atoms.get_chemical_formula("reduce") == "HOH2O"


def test_progress_counts_every_grid_value(tmp_path):
    done = []
    sample = make_sample(shape=(70, 70, 70), onsite=False)
    write_chgcar(tmp_path / "CHGCAR", sample, progress=done.append)
    assert sum(done) == 2 * 70**3
    assert len(done) > 2


def test_carriage_returns_are_accepted(tmp_path):
    sample = make_sample()
    write_chgcar(tmp_path / "CHGCAR", sample)
    unix = (tmp_path / "CHGCAR").read_bytes()
    (tmp_path / "CHGCAR").write_bytes(unix.replace(b"\n", b"\r\n"))
    assert_same(read_chgcar(tmp_path / "CHGCAR"), sample)


def test_selective_dynamics_cartesian_scale_and_hashed_symbols_are_understood(tmp_path):
    sample = make_sample(spin=False, onsite=False)
    path = tmp_path / "CHGCAR"
    write_chgcar(path, sample)
    lines = path.read_text().splitlines()
    lines[1] = "2.0"
    lines[2:5] = ["  ".join(str(x / 2) for x in vector) for vector in CELL]
    lines[5] = "Na_pv/0a1b2c  Cl_3f9e Na"
    lines[7] = "Cartesian"
    lines[8:11] = ["  ".join(str(x / 2) for x in p) + " T T F" for p in sample.atoms.positions]
    lines.insert(7, "Selective dynamics")
    path.write_text("\n".join(lines) + "\n")
    assert_same(read_chgcar(path), sample)


def test_a_negative_scale_is_the_volume(tmp_path):
    sample = make_sample(spin=False, onsite=False)
    write_chgcar(tmp_path / "CHGCAR", sample)
    volume = sample.atoms.get_volume()
    read = read_chgcar(edited(tmp_path / "CHGCAR", 2, f"{-volume * 8}"))
    np.testing.assert_allclose(read.atoms.cell, 2 * sample.atoms.cell.array, rtol=1e-10)


def test_symbols_of_a_vasp_4_header_come_from_the_comment_or_are_asked_for(tmp_path):
    path = tmp_path / "CHGCAR"
    write_chgcar(path, make_sample(spin=False, onsite=False), comment="Na Cl Na")
    read = read_chgcar(edited(path, 6, None))
    assert read.atoms.get_chemical_symbols() == ["Na", "Cl", "Na"]
    with pytest.raises(DensityFileError, match=r"line 6: this header of VASP 4 names no elements"):
        read_chgcar(edited(path, 1, "rock salt"))


def test_symbols_may_go_on_in_the_next_line(tmp_path):
    path = tmp_path / "CHGCAR"
    write_chgcar(path, make_sample(spin=False, onsite=False))
    edited(path, 7, "1 1\n1")
    assert read_chgcar(edited(path, 6, "Na Cl\nNa")).atoms.get_chemical_formula() == "ClNa2"


def test_three_digit_exponents_without_their_letter_are_read(tmp_path):
    path = tmp_path / "CHGCAR"
    sample = make_sample(spin=False, onsite=False)
    write_chgcar(path, sample)
    first = path.read_text().splitlines()[13]
    edited(path, 14, " 0.12345678901-101" + first[18:])
    read = read_chgcar(path)
    assert read.density[0, 0, 0] == pytest.approx(0.12345678901e-101 / sample.atoms.get_volume())
    np.testing.assert_allclose(read.density.ravel()[1:], sample.density.ravel()[1:], rtol=1e-10)


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (2, "abc", "line 2: 'abc' is not a number"),
        (3, "0 0 0", "line 3: the three lattice vectors span no sensible volume"),
        (4, "1.0 2.0", "line 4: expected 3 numbers"),
        (6, "Na Qq Na", "line 6: 'Qq' is not an element"),
        (7, "1 1", "line 7: numbers of atoms"),
        (8, "Elsewhere", "line 8: expected Direct or Cartesian"),
        (9, "0.1 0.2", "line 9: expected 3 numbers \\(position of atom 1\\), found 2"),
        (10, "0.1 nan 0.3", "line 10: 'nan' is not a finite number"),
        (13, "3 4", "line 13: expected the three grid dimensions"),
        (13, "3 4 500000", "cannot fit"),
        (13, "3 4 -5", "line 13: expected the three grid dimensions"),
        (15, "****** 1.0 1.0 1.0 1.0", "line 15: .* did not fit its columns"),
        (15, "1.0 1.0 xyz 1.0 1.0", "line 15: 'xyz' is not a number \\(7 of 60 grid values"),
        (15, "1.0 1.0 NaN 1.0 1.0", "line 15: 'NaN' is not a finite number"),
        (15, "1.0 1.0 1.0 1.0", "line 26: 'augmentation' is not a number \\(59 of 60"),
        (15, "1.0 1.0 1.0 1.0 1.0 1.0", "line 25: more than the 60 grid values"),
        (26, "augmentation occupancies   2  15", "line 26: expected the augmentation occupancies"),
        (26, "augmentation occupancies   1  16", "line 30: 'augmentation' is not a number"),
        (40, "hello", "line 40: 'hello' is not a number"),
        (43, "3 4 6", "line 43: expected 3 4 5 and the spin density"),
    ],
)
def test_a_fault_is_reported_with_file_line_and_cause(tmp_path, line, text, message):
    path = tmp_path / "CHGCAR"
    write_chgcar(path, make_sample())
    with pytest.raises(DensityFileError, match=message) as caught:
        read_chgcar(edited(path, line, text))
    assert str(path) in str(caught.value)


def test_missing_empty_and_foreign_files_are_refused(tmp_path):
    (tmp_path / "empty").write_text("")
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "LOCPOT").write_text("x\n")
    whole = gzip.compress(b"1.0\n" * 1000)
    (tmp_path / "cut.gz").write_bytes(whole[:-9])
    for name in ("empty", "binary", "LOCPOT", "cut.gz", "missing", "."):
        with pytest.raises(DensityFileError, match=name.replace(".", r"\.")):
            read_chgcar(tmp_path / name)


def test_files_of_several_structures_are_refused(tmp_path):
    path = tmp_path / "CHGCAR"
    for onsite in (False, True):
        write_chgcar(path, make_sample(onsite=onsite))
        text = path.read_text()
        path.write_text(text + "\n" + text)
        with pytest.raises(DensityFileError, match="several structures"):
            read_chgcar(path)


def test_samples_that_do_not_fit_are_not_written(tmp_path):
    sample = make_sample()
    path = tmp_path / "CHGCAR"
    broken = sample.density.copy()
    broken[1, 2, 3] = np.nan
    matrices = tuple(np.zeros((2, 5, 5)) for _ in sample.atoms)
    without_cell = sample.atoms.copy()
    without_cell.cell = None
    path.write_text("old")
    for bad, message in (
        (sample.select(np.arange(5)), "full grid"),
        (replace(sample, density=broken), "NaN"),
        (replace(sample, onsite=matrices), "flat array"),
        (replace(sample, onsite=sample.onsite[:2]), "flat array"),
        (replace(sample, onsite_spin=None), "all grids"),
        (replace(sample, atoms=without_cell), "cell"),
    ):
        with pytest.raises(GridError, match=message):
            write_chgcar(path, bad)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_the_old_file_alone(tmp_path):
    def interrupt(_):
        raise KeyboardInterrupt

    path = tmp_path / "CHGCAR"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write_chgcar(path, make_sample(), progress=interrupt)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


SPIN = make_sample(shape=(2, 3, 2), sizes=(3, 6))


@pytest.fixture(params=[1, 1000], ids=["in columns", "blank-separated"])
def way_of_reading(monkeypatch, request):
    """Numbers of which there are few are not looked for in columns."""
    monkeypatch.setattr("eac_model.data.textfile._MANY", request.param)


@pytest.mark.parametrize(("line_end", "step"), [(b"\n", 2), (b"\r\n", 7)])
def test_a_file_cut_at_any_byte_is_refused_or_right(tmp_path, way_of_reading, line_end, step):
    path = tmp_path / "CHGCAR"
    write_chgcar(path, SPIN)
    content = path.read_bytes().replace(b"\n", line_end)
    accepted = []
    for cut in range(0, len(content), step):
        path.write_bytes(content[:cut])
        try:
            read = read_chgcar(path)
        except DensityFileError:
            continue
        accepted.append(cut)
        np.testing.assert_allclose(read.density, SPIN.density, rtol=1e-10)
        assert read.onsite is None or len(read.onsite) == 3
        if read.onsite is not None:
            np.testing.assert_allclose(read.onsite[-1], SPIN.onsite[-1], rtol=1e-6)
        if read.spin_density is not None:
            np.testing.assert_allclose(read.spin_density, SPIN.spin_density, rtol=1e-10)
            np.testing.assert_allclose(read.onsite_spin[-1], SPIN.onsite_spin[-1], rtol=1e-6)
    # after the first grid, after its occupancies, after everything: with and without line end,
    # and VASP's two blanks where the last line of a grid is not full
    assert len(accepted) <= 3 * (len(line_end) + 1) + 2
    assert accepted[0] > content.index(b"    2    3    2")


@settings(max_examples=150)
@given(st.data())
def test_damaged_bytes_give_a_density_or_a_clear_error(tmp_path, way_of_reading, data):
    path = tmp_path / "CHGCAR"
    write_chgcar(path, SPIN)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(
            st.sampled_from(b"\n\r \t*-+.E0123456789aNi\x00\xff") | st.integers(0, 255)
        )
    path.write_bytes(content)
    with suppress(DensityFileError):
        assert np.isfinite(read_chgcar(path).density).all()


@settings(max_examples=100)
@given(st.data())
def test_lost_and_doubled_lines_give_a_density_or_a_clear_error(tmp_path, way_of_reading, data):
    path = tmp_path / "CHGCAR"
    write_chgcar(path, SPIN)
    lines = path.read_text().splitlines(keepends=True)
    place = data.draw(st.integers(0, len(lines) - 1))
    lines[place : place + 1] = lines[place : place + 1] * data.draw(st.sampled_from([0, 2, 3]))
    path.write_text("".join(lines))
    with suppress(DensityFileError):
        read_chgcar(path)


def test_atoms_far_outside_the_cell_are_written_so_that_they_are_read(tmp_path):
    atoms = Atoms("H2", positions=[(-41.0, 2, 2), (2.0, -50, -100)], cell=[4, 4, 4], pbc=True)
    write_chgcar(tmp_path / "CHGCAR", DensitySample(atoms, np.ones((2, 2, 2))))
    found = read_chgcar(tmp_path / "CHGCAR").atoms
    np.testing.assert_allclose(found.positions, atoms.positions, atol=1e-12)
