"""VASP's FFT grids, against real runs and pymatgen."""

import gzip
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ase.calculators.calculator import InputError
from hypothesis import given
from hypothesis import strategies as st

from eac_ase.adapters.vasp_grid import default_encut, fft_grids, grid_of, next_size

# PREC, ENCUT, ENAUG, lengths of the cell vectors, NGX…, NGXF… from OUTCAR files of the test data
# of custodian, pymatgen-core, aiida-vasp, sisl and VaspBandUnfolding; VASP 4.4 to 6.4.
REAL_RUNS = [
    ("normal", 400.0, 627.1, (6.0, 7.0, 8.0), (30, 36, 40), (60, 72, 80)),
    ("normal", 400.0, 605.4, (9.471199, 11.488943, 9.911349), (48, 56, 48), (96, 112, 96)),
    ("normal", 800.0, 605.4, (11.68654, 11.690369, 21.501121), (84, 84, 150), (168, 168, 300)),
    ("normal", 400.0, 439.2, (2.441046, 2.441046, 10.0), (12, 12, 50), (24, 24, 100)),
    ("accura", 520.0, 537.2, (12.104597, 8.074912, 14.061848), (90, 60, 108), (180, 120, 216)),
    ("accura", 1200.0, 1685.2, (10.169024, 9.200445, 8.438424), (120, 108, 96), (240, 216, 192)),
    ("accura", 400.0, 276.2, (3.573789, 3.573789, 51.349408), (24, 24, 336), (48, 48, 672)),
    ("accura", 520.0, 578.3, (2.446589, 2.446589, 1.73), (18, 18, 14), (36, 36, 28)),
    ("Accurate", 600.0, 412.4, (2.0, 3.0, 4.0), (16, 24, 32), (32, 48, 64)),
    ("high", 500.0, 605.4, (4.856298, 2.872161, 5.13394), (36, 24, 40), (54, 30, 54)),
    ("high", 323.4, 446.8, (3.185, 3.185, 35.0), (20, 20, 210), (30, 30, 324)),
    ("high", 335.0, 477.8, (2.490299, 2.490265, 8.133283), (16, 16, 50), (24, 24, 80)),
    ("low", 300.0, 605.4, (10.601341, 10.178782, 10.601315), (48, 48, 48), (64, 64, 64)),
]


@pytest.mark.parametrize(("prec", "encut", "enaug", "lengths", "coarse", "fine"), REAL_RUNS)
def test_real_runs_have_the_grids_of_the_rules(prec, encut, enaug, lengths, coarse, fine):
    grids = fft_grids(np.diag(lengths), encut, prec, enaug=enaug)
    assert grids.coarse == coarse
    assert grids.fine == fine


def test_an_ngx_of_the_user_decides_the_fine_grid_too():
    # custodian's tests/files/potim: VASP 5.3.5 with NGX = NGY = 42 in INCAR
    lengths = np.diag([5.430155, 5.430155, 32.58093])
    assert fft_grids(lengths, 520, "Accurate").fine == (80, 80, 500)
    grids = fft_grids(lengths, 520, "Accurate", coarse=(42, 42, None))
    assert grids.coarse == (42, 42, 250)
    assert grids.fine == (84, 84, 500)


def test_the_water_data_were_computed_with_prec_accurate():
    """140 points along 7.946534 Å at 680 eV."""
    cell = 7.946534 * np.eye(3)
    fine = {p: fft_grids(cell, 680, p, enaug=644.9).fine[0] for p in ("Normal", "Accurate")}
    assert fine == {"Normal": 108, "Accurate": 140}


def test_single_precision_has_no_double_grid_and_depends_on_the_version():
    cell = 7.946534 * np.eye(3)
    assert fft_grids(cell, 680, "Single").fine == (70, 70, 70)
    assert fft_grids(cell, 680, "Single", vasp_version=5).fine == (54, 54, 54)
    assert fft_grids(cell, 680, "SingleN").fine == (54, 54, 54)


@given(
    lengths=st.tuples(*[st.floats(1.5, 40)] * 3),
    angles=st.tuples(*[st.floats(60, 120)] * 3),
    encut=st.floats(100, 1500),
    prec=st.sampled_from(["Normal", "Accurate", "Single"]),
)
def test_pymatgen_finds_the_same_grids(lengths, angles, encut, prec):
    lattice = pytest.importorskip("pymatgen.core").Lattice
    sets = pytest.importorskip("pymatgen.io.vasp.sets")
    try:
        lattice = lattice.from_parameters(*lengths, *angles)
    except ValueError:
        return  # no such cell
    inputs = SimpleNamespace(poscar=SimpleNamespace(structure=SimpleNamespace(lattice=lattice)))
    expected = sets.VaspInputSet.calculate_ng(inputs, custom_encut=encut, custom_prec=prec)
    grids = fft_grids(lattice.matrix, encut, prec)
    assert list(grids.coarse) == list(expected[0])
    assert list(grids.fine) == list(expected[1])


def test_sizes_are_even_and_have_small_factors():
    allowed = {2**a * 3**b * 5**c * 7**d for a in range(1, 9) for b in range(6) for c in range(4)
               for d in range(3)}  # fmt: skip
    for n in range(1, 300):
        assert next_size(n) == min(size for size in allowed if size >= n)


@pytest.mark.parametrize(("prec", "encut"), [("Normal", 400), ("Low", 300), ("High", 500)])
def test_encut_comes_from_the_potcar_where_incar_has_none(prec, encut):
    assert default_encut(prec, [250.0, 400.0], [200.0, 300.0]) == encut


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prec": "Excellent"}, "Accurate"),
        ({"prec": "High"}, "ENAUG"),
        ({"encut": -1.0}, "ENCUT"),
        ({"fine": (61, None, None)}, "the next is 64"),
        ({"coarse": (None, 34, None)}, "the next is 36"),
    ],
)
def test_grids_that_vasp_would_not_take_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        fft_grids(**{"cell": 5 * np.eye(3), "encut": 400.0, **arguments})


CHGCAR = "x\n1.0\n3 0 0\n0 3 0\n0 0 3\nH\n1\nDirect\n0 0 0\n\n   12   14  108\n 0.1E+1 0.2E+1\n"
OUTCAR = """
   dimension x,y,z NGX =    16 NGY =   24 NGZ =   32
   dimension x,y,z NGXF=    12 NGYF=   14 NGZF=  108
"""
VASPRUN = """<separator name="grids" >
    <i type="int" name="NGXF">    12</i>
    <i type="int" name="NGYF">    14</i>
    <i type="int" name="NGZF">   108</i>
"""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("CHGCAR", CHGCAR),
        ("CHGCAR_windows", CHGCAR.replace("\n", "\r\n")),
        ("OUTCAR", OUTCAR),
        ("vasprun.xml", VASPRUN),
    ],
)
def test_the_grid_of_an_earlier_run_is_read(tmp_path: Path, name, text):
    path = tmp_path / name
    path.write_bytes(text.encode())
    assert grid_of(path) == (12, 14, 108)
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    assert grid_of(packed) == (12, 14, 108)


def test_a_file_without_a_grid_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="no file"):
        grid_of(tmp_path / "CHGCAR")
    (tmp_path / "OUTCAR").write_text("vasp.6\n")
    with pytest.raises(InputError, match="no fine FFT grid"):
        grid_of(tmp_path / "OUTCAR")
    (tmp_path / "CHGCAR.gz").write_bytes(gzip.compress(CHGCAR.encode())[:-9])
    with pytest.raises(InputError, match="cannot be read"):
        grid_of(tmp_path / "CHGCAR.gz")
