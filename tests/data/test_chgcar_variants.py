"""What VASP's versions and run types write, by a second writer: number by number, in Python."""

from __future__ import annotations

import gzip
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from hypothesis import given, settings
from hypothesis import strategies as st

from eac_model.data import (
    DensitySample,
    Magnetization,
    Provenance,
    read_all_electron,
    read_chgcar,
    read_density,
    read_sample,
    write_chgcar,
    write_sample,
)
from eac_model.errors import DensityFileError, GridError

SHAPE = (3, 2, 4)
N_VALUES = 24
CELL = np.array([[4.0, 0.1, 0.0], [0.0, 5.0, -0.3], [0.7, 0.0, 3.5]])
POSITIONS = np.array([[0.1, 0.2, 0.3], [0.4, 0.9, 0.6], [0.7, 0.5, 0.05]])
SIZES = (7, 4, 4)


@pytest.fixture(autouse=True, params=[1, 1000], ids=["in columns", "blank-separated"])
def way_of_reading(monkeypatch, request):
    """Numbers of which there are few are not looked for in columns."""
    monkeypatch.setattr("eac_model.data.textfile._MANY", request.param)


def fortran(value, digits, width):
    """Fortran's Ew.d: mantissa 0.ddd, its zero left out where there is no room for the sign."""
    mantissa, _, exponent = f"{abs(value):.{digits - 1}E}".partition("E")
    power = int(exponent) + (value != 0)
    text = f"0.{mantissa.replace('.', '')}E{power:+03d}"
    if value < 0:
        text = "-" + (text if width > digits + 6 else text[1:])
    return text.rjust(width)


def general(value):
    """Fortran's G11.5, as old and new CHG files use it."""
    if value == 0 or 0.1 <= abs(value) < 1e5:
        before = 1 if value == 0 or abs(value) < 1 else len(str(int(abs(value))))
        decimals = 5 if abs(value) < 1 else 5 - before
        return f"{value:.{decimals}f}"[: 7 + (value < 0)].rjust(7) + "    "
    return fortran(value, 5, 11)


def header(*, version=5, comment="unknown system", selective=False, cartesian=False, cell=CELL):
    lines = [comment, "   1.00000000000000     "]
    lines += ["".join(f"{x:12.6f}" for x in vector) for vector in cell]
    if version >= 5:
        lines.append({5: "   O    H ", 6: "  O/f474ac0d  H/79d9987ad87"}[version])
    lines.append("     1     2")
    if selective:
        lines.append("Selective dynamics")
    lines.append("Cartesian" if cartesian else "Direct")
    rows = POSITIONS @ cell if cartesian else POSITIONS
    flags = "   T   T   F" if selective else ""
    lines += ["".join(f"{x:10.6f}" for x in row) + flags for row in rows]
    return "\n".join([*lines, " ", ""])


def grid_text(values, per_line=5, one=lambda value: fortran(value, 11, 17)):
    tokens = [one(value) for value in values]
    rows = [tokens[i : i + per_line] for i in range(0, len(tokens), per_line)]
    lines = ["".join(" " + token for token in row) for row in rows]
    if len(tokens) % per_line:
        lines[-1] += "  "
    return "".join(f"{n:5d}" for n in SHAPE) + "\n" + "\n".join(lines) + "\n"


def blocks_text(blocks, title="augmentation occupancies"):
    text = ""
    for i, block in enumerate(blocks):
        text += f"{title}{i + 1:4d}{len(block):4d}\n"
        for start in range(0, len(block), 5):
            text += "".join(fortran(x, 7, 15) for x in block[start : start + 5]) + "\n"
    return text


def moments_text(values):
    rows = [values[i : i + 5] for i in range(0, len(values), 5)]
    return "".join("".join(fortran(x, 12, 20) for x in row) + "\n" for row in rows)


def numbers(seed, count, digits):
    """Random numbers with so many digits, over many orders of magnitude."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=count) * 10.0 ** rng.integers(-12, 4, size=count)
    return np.array([float(f"{value:.{digits - 1}E}") for value in values])


def blocks(seed):
    return tuple(numbers(seed + i, size, 7) for i, size in enumerate(SIZES))


def as_density(values, cell=CELL):
    return values.reshape(SHAPE, order="F") / abs(np.linalg.det(cell))


GRIDS = [numbers(i, N_VALUES, 11) for i in range(4)]
REAL = [blocks(10 * i) for i in range(1, 5)]
IMAGINARY = [blocks(100 * i) for i in range(1, 5)]
IMAGINARY_TITLE = "augmentation occupancies (imaginary part)"


def non_collinear_text(*, imaginary=True, moments=3, grids=4):
    text = header()
    for i in range(grids):
        text += grid_text(GRIDS[i]) + blocks_text(REAL[i])
        if imaginary:
            text += blocks_text(IMAGINARY[i], IMAGINARY_TITLE)
        if moments and i < grids - 1:
            text += moments_text(np.arange(moments, dtype=float))
    return text


def collinear_text(*, imaginary=False):
    text = ""
    for i in range(2):
        text += grid_text(GRIDS[i]) + blocks_text(REAL[i])
        if imaginary:
            text += blocks_text(IMAGINARY[i], IMAGINARY_TITLE)
        text += moments_text(np.array([1.0, -0.5, 0.25])) if i == 0 else ""
    return header() + text


def read_text(tmp_path, text, name="CHGCAR"):
    (tmp_path / name).write_text(text)
    return read_chgcar(tmp_path / name)


def assert_blocks(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("imaginary", [False, True])
def test_a_collinear_file_is_read_and_written_byte_by_byte(tmp_path, imaginary):
    text = collinear_text(imaginary=imaginary)
    sample = read_text(tmp_path, text)
    np.testing.assert_array_equal(sample.density, as_density(GRIDS[0]))
    np.testing.assert_array_equal(sample.spin_density, as_density(GRIDS[1]))
    assert_blocks(sample.onsite, REAL[0])
    assert_blocks(sample.onsite_spin, REAL[1])
    assert sample.atoms.get_initial_magnetic_moments().tolist() == [1.0, -0.5, 0.25]
    if imaginary:
        assert_blocks(sample.onsite_imaginary[1], IMAGINARY[1])
    else:
        assert sample.onsite_imaginary is None
    write_chgcar(tmp_path / "again", sample)
    dimensions = "    3    2    4\n"
    written = (tmp_path / "again").read_text()
    assert written.partition(dimensions)[1:] == text.partition(dimensions)[1:]


@pytest.mark.parametrize("imaginary", [False, True])
def test_a_non_collinear_file_gives_total_and_magnetisation(tmp_path, imaginary):
    sample = read_text(tmp_path, non_collinear_text(imaginary=imaginary))
    assert sample.spin_density is None
    assert sample.onsite_spin is None
    np.testing.assert_array_equal(sample.density, as_density(GRIDS[0]))
    for i in range(3):
        found = sample.magnetization.density[i]
        np.testing.assert_array_equal(found, as_density(GRIDS[i + 1]))
        assert_blocks(sample.magnetization.onsite[i], REAL[i + 1])
    if imaginary:
        for found, expected in zip(sample.onsite_imaginary, IMAGINARY, strict=True):
            assert_blocks(found, expected)
    assert not sample.atoms.has("initial_magmoms")


def test_non_collinear_chg_files_and_their_points_keep_the_magnetisation(tmp_path):
    text = header() + "".join(grid_text(values) for values in GRIDS)
    sample = read_text(tmp_path, text, "CHG")
    assert sample.magnetization.onsite is None
    points = sample.select(np.array([5, 0]))
    np.testing.assert_array_equal(
        points.magnetization.density, sample.magnetization.density.reshape(3, -1)[:, [5, 0]]
    )


def test_three_numbers_per_atom_are_moments_of_vectors(tmp_path):
    sample = read_text(tmp_path, non_collinear_text(moments=9))
    expected = np.arange(9.0).reshape(3, 3)
    np.testing.assert_array_equal(sample.atoms.get_initial_magnetic_moments(), expected)
    for wrong in (2, 4, 8, 10):
        with pytest.raises(DensityFileError, match=f"{wrong} magnetic moments"):
            read_text(tmp_path, non_collinear_text(moments=wrong))


def test_non_collinear_samples_are_stored_without_their_vectors_and_not_written(tmp_path):
    sample = read_text(tmp_path, non_collinear_text())
    with pytest.raises(GridError, match="non-collinear"):
        write_chgcar(tmp_path / "again", sample)
    write_sample(tmp_path / "sample.h5", sample)
    stored = read_sample(tmp_path / "sample.h5")
    assert stored.magnetization is None
    np.testing.assert_allclose(stored.density, sample.density, rtol=1e-6)
    with pytest.raises(GridError, match="Magnetisation"):
        replace(sample, magnetization=Magnetization(np.zeros((2, *SHAPE))))
    with pytest.raises(GridError, match="not both"):
        replace(sample, spin_density=sample.density)


def test_three_grids_are_a_truncated_file_and_five_are_too_many(tmp_path):
    with pytest.raises(DensityFileError, match="ends after three grids"):
        read_text(tmp_path, non_collinear_text(grids=3))
    more = moments_text(np.zeros(3)) + grid_text(GRIDS[0]) + blocks_text(REAL[0])
    more += blocks_text(IMAGINARY[0], IMAGINARY_TITLE)
    with pytest.raises(DensityFileError, match="after the magnetic moments"):
        read_text(tmp_path, non_collinear_text() + more)
    plain = header() + "".join(grid_text(GRIDS[0]) for _ in range(5))
    with pytest.raises(DensityFileError, match="unexpected '    3    2    4' after grid 4"):
        read_text(tmp_path, plain)


@pytest.mark.parametrize("what", ["real", "imaginary", "size"])
def test_occupancies_that_only_some_grids_have_show_a_damaged_file(tmp_path, what):
    first = blocks_text(REAL[0]) + blocks_text(IMAGINARY[0], IMAGINARY_TITLE)
    other = [blocks_text(REAL[1]), blocks_text(IMAGINARY[1], IMAGINARY_TITLE)]
    if what == "real":
        other = []
    if what == "imaginary":
        del other[1]
    if what == "size":
        other[0] = blocks_text([*REAL[1][:2], REAL[1][2][:-1]])
    text = header() + grid_text(GRIDS[0]) + first + moments_text(np.zeros(3))
    with pytest.raises(DensityFileError, match="of grid 2 are missing or of other sizes"):
        read_text(tmp_path, text + grid_text(GRIDS[1]) + "".join(other))


def test_real_and_imaginary_parts_must_have_the_same_sizes(tmp_path):
    other = [*IMAGINARY[0][:2], IMAGINARY[0][2][:-1]]
    text = header() + grid_text(GRIDS[0]) + blocks_text(REAL[0])
    with pytest.raises(DensityFileError, match="real and imaginary parts"):
        read_text(tmp_path, text + blocks_text(other, IMAGINARY_TITLE))


@pytest.mark.parametrize(
    "options",
    [
        {"version": 4, "comment": "O H"},
        {"version": 5},
        {"version": 6},
        {"selective": True},
        {"cartesian": True},
        {"selective": True, "cartesian": True, "version": 6},
    ],
    ids=str,
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("compressed", [False, True])
def test_headers_of_every_version_are_read(tmp_path, options, line_end, compressed):
    text = (header(**options) + grid_text(GRIDS[0]) + blocks_text(REAL[0])).replace("\n", line_end)
    path = tmp_path / ("CHGCAR.gz" if compressed else "CHGCAR")
    content = text.encode()
    path.write_bytes(gzip.compress(content) if compressed else content)
    sample = read_chgcar(path)
    assert sample.atoms.get_chemical_symbols() == ["O", "H", "H"]
    np.testing.assert_allclose(sample.atoms.get_scaled_positions(), POSITIONS, atol=2e-6)
    np.testing.assert_array_equal(sample.density, as_density(GRIDS[0]))
    assert_blocks(sample.onsite, REAL[0])


LAYOUTS = {
    "Fortran, 5 a line": (5, lambda value: fortran(value, 11, 17)),
    "Fortran, 6 a line": (6, lambda value: fortran(value, 11, 20)),
    "general, 10 a line": (10, general),
    "C, before the point": (5, lambda value: f"{value:18.11E}"),
    "D instead of E": (5, lambda value: fortran(value, 11, 18).replace("E", "D")),
    "small e": (3, lambda value: f"{value:.6e}"),
    "free": (4, lambda value: repr(float(value))),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_every_format_of_the_numbers_is_read_exactly(tmp_path, layout, line_end):
    per_line, one = LAYOUTS[layout]
    expected = np.array([float(one(value).replace("D", "E")) for value in GRIDS[0]])
    text = header() + grid_text(GRIDS[0], per_line, one)
    (tmp_path / "CHG").write_bytes(text.replace("\n", line_end).encode())
    np.testing.assert_array_equal(read_chgcar(tmp_path / "CHG").density, as_density(expected))


@settings(max_examples=100)
@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=24, max_size=24),
    st.sampled_from(["E", "lost", "general"]),
    st.integers(2, 14),
)
def test_any_number_is_rounded_as_python_does(tmp_path, values, form, digits):
    def one(value):
        text = fortran(value, digits, digits + 9)
        return text.replace("E", "") if form == "lost" and len(text.partition("E")[2]) > 3 else text

    if form == "general":
        values = [value if abs(value) < 1e99 else 0.0 for value in values]
    chosen = general if form == "general" else one
    texts = [chosen(value) for value in values]
    expected = np.array(
        [
            float(text) if "E" in text or form == "general" else float(text[:-4] + "E" + text[-4:])
            for text in texts
        ]
    )
    if not np.isfinite(expected).all():
        return
    text = header(cell=np.eye(3)) + grid_text(values, one=chosen)
    found = read_text(tmp_path, text).density.reshape(-1, order="F")
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "cell",
    [
        CELL[[1, 0, 2]],
        np.diag([3.0, 4.0, -5.0]),
        np.array([[4.0, 0, 0], [3.9, 0.5, 0], [-3.8, 0.3, 6.0]]),
    ],
    ids=["left-handed", "negative axis", "skewed"],
)
def test_left_handed_and_skewed_cells_give_the_right_numbers(tmp_path, cell):
    sample = read_text(tmp_path, header(cell=cell) + grid_text(GRIDS[0]))
    volume = abs(np.linalg.det(cell))
    np.testing.assert_allclose(sample.density * volume, GRIDS[0].reshape(SHAPE, order="F"))
    np.testing.assert_allclose(sample.atoms.positions, POSITIONS @ cell, atol=1e-12)
    write_chgcar(tmp_path / "again", sample)
    again = read_chgcar(tmp_path / "again")
    np.testing.assert_allclose(again.atoms.cell, cell, atol=1e-12)
    np.testing.assert_allclose(again.density, sample.density, rtol=1e-10)


def test_more_than_9999_atoms_overflow_the_columns_of_the_index(tmp_path):
    n = 10_003
    atoms = Atoms("H" * n, scaled_positions=np.random.default_rng(0).random((n, 3)), cell=CELL * 9)
    onsite = tuple(np.full(2, i + 1.0) for i in range(n))
    write_chgcar(tmp_path / "CHGCAR", DensitySample(atoms, np.ones(SHAPE), onsite=onsite))
    text = (tmp_path / "CHGCAR").read_text()
    assert "\naugmentation occupancies10002   2\n" in text
    read = read_text(tmp_path, text.replace("occupancies10001   2", "occupancies****   2"))
    assert read.onsite[10_000].tolist() == [10_001, 10_001]
    assert len(read.onsite) == n


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("CHGCAR", "valence"),
        ("CHG", "valence"),
        ("AECCAR0", "unknown"),
        ("AECCAR2.gz", "unknown"),
        ("PARCHG.0012.ALLK", "unknown"),
        ("parchg", "unknown"),
        ("run1_AECCAR0", "unknown"),
        ("MgO.PARCHG", "unknown"),
    ],
)
def test_the_name_tells_what_the_density_counts(tmp_path, name, kind):
    text = (header() + grid_text(GRIDS[0])).encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    read = read_density(tmp_path / name)
    assert read.provenance.density_kind == kind
    np.testing.assert_array_equal(read.density, as_density(GRIDS[0]))


@pytest.mark.parametrize(
    "provenance",
    [
        Provenance("VASP", density_kind="all-electron"),
        Provenance("VASP", density_kind="unknown"),
        Provenance("unknown", density_kind="pseudo"),
        Provenance("GPAW 26.7.0", "0.5 LDA, 0.5 PBE", "pseudo"),
    ],
)
def test_what_is_no_valence_density_of_vasp_says_so(tmp_path, provenance):
    atoms = Atoms("Li", cell=CELL, pbc=True)
    write_chgcar(tmp_path / "CHGCAR", DensitySample(atoms, np.ones(SHAPE), provenance=provenance))
    read = read_chgcar(tmp_path / "CHGCAR").provenance
    assert replace(read, source=provenance.source) == provenance


def test_core_and_valence_add_up_to_all_electrons(tmp_path):
    (tmp_path / "AECCAR0").write_text(header() + grid_text(GRIDS[0]))
    (tmp_path / "AECCAR2").write_text(header() + grid_text(GRIDS[1]))
    total = read_all_electron(tmp_path / "AECCAR0", tmp_path / "AECCAR2")
    np.testing.assert_array_equal(total.density, as_density(GRIDS[0]) + as_density(GRIDS[1]))
    assert total.provenance.density_kind == "all-electron"
    assert total.provenance.source == "AECCAR0 + AECCAR2"
    other = header(cell=1.1 * CELL) + grid_text(GRIDS[1])
    (tmp_path / "AECCAR2").write_text(other)
    with pytest.raises(DensityFileError, match="different structures"):
        read_all_electron(tmp_path / "AECCAR0", tmp_path / "AECCAR2")
    (tmp_path / "AECCAR2").write_text(other.replace("    3    2    4", "    3    4    2"))
    with pytest.raises(DensityFileError, match="different grids"):
        read_all_electron(tmp_path / "AECCAR0", tmp_path / "AECCAR2")


@pytest.mark.parametrize("name", ["LOCPOT", "ELFCAR.gz", "TAUCAR", "run1_LOCPOT", "Si-ELFCAR.vasp"])
def test_other_quantities_in_the_same_format_are_refused_by_name(tmp_path, name):
    (tmp_path / name).write_text(header() + grid_text(GRIDS[0]))
    with pytest.raises(DensityFileError, match="no electron density"):
        read_chgcar(tmp_path / name)


OUTCAR = (
    " vasp.6.4.2 20Jul23 (build Nov  1 2023) complex\n\n executed on LinuxIFC date 2024.01.01\n"
    " running on    4 total cores\n distrk:  each k-point on    4 cores,    1 groups\n"
) * 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (header(), "ends here, too early"),
        (header().rstrip() + "\n", "ends here, too early"),
        (OUTCAR, "line 2: expected 1 numbers|is not a number"),
        (header() + "  0.1 0.2 0.3\n" * 3, "expected the three grid dimensions"),
        (header() + "    0    2    4\n" + "1.0 " * 8, "expected the three grid dimensions"),
        (header() + "   -3    2   -4\n" + "1.0 " * 24, "expected the three grid dimensions"),
        (header() + " 3 2 4 5\n" + "1.0 " * 24, "expected the three grid dimensions"),
        (header() + "99999 99999 99999\n1.0\n", "cannot fit into a file"),
        (header() + "999999999 999999999 999999999\n1.0\n", "cannot fit into a file"),
        (header() + "    3    2    4\n", "ends here, too early"),
        (header() + grid_text(GRIDS[0][:-1]), "ends after 23 of 24 grid values"),
        (header() + grid_text([*GRIDS[0], 1.0]), "more numbers than|more than the 24"),
        (header() + grid_text([*GRIDS[0], *GRIDS[0][:6]]), "more numbers than|more than the 24"),
        (header() + grid_text(GRIDS[0]) + moments_text(np.zeros(3)), "more numbers than the grid"),
        (header() + grid_text(GRIDS[0]) + grid_text(GRIDS[1])[:-60], "truncated"),
        (header() + grid_text(GRIDS[0]) + blocks_text(REAL[0] * 2), "expected the aug|more than"),
        (header() + grid_text(GRIDS[0]) + blocks_text(REAL[0][:2]), "end after atom 2 of 3"),
        (header() + grid_text(GRIDS[0]) + " 9999999999 numbers\n", "unexpected"),
        (header().replace("     1     2", "     1    -2"), "numbers of atoms"),
        (header().replace("     1     2", "1 9999999"), "numbers of atoms"),
        (header().replace("4.000000", "********"), "did not fit its columns"),
        (header(version=4, comment="water"), "names no elements"),
    ],
)
def test_what_is_no_complete_density_file_says_so(tmp_path, text, message):
    with pytest.raises(DensityFileError, match=message):
        read_text(tmp_path, text)


@pytest.mark.parametrize("bad", ["*****************", " NaN             ", "0.12E+0x         "])
def test_an_unusual_number_among_millions_is_found(tmp_path, bad):
    n = 60
    text = header() + f"{n:5d}{n:5d}{n:5d}\n"
    lines = [" " + " ".join([fortran(1.25, 11, 17)] * 5)] * (n**3 // 5)
    place = len(text.splitlines()) + 30_001
    lines[30_000] = lines[30_000][:19] + bad[:17] + lines[30_000][36:]
    with pytest.raises(DensityFileError, match=f"line {place}: .*150001 of 216000"):
        read_text(tmp_path, text + "\n".join(lines) + "\n")
    lines[30_000] = lines[30_000][:19] + "0.12345678901-101" + lines[30_000][36:]
    read = read_text(tmp_path, text + "\n".join(lines) + "\n")
    flat = read.density.reshape(-1, order="F") * read.atoms.get_volume()
    assert flat[150_001] == pytest.approx(0.12345678901e-101)
    np.testing.assert_allclose(np.delete(flat, 150_001), 1.25, rtol=1e-15)
