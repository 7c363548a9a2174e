"""POTCAR headers; the data sets are made up."""

import gzip
import warnings

import pytest
from ase.calculators.calculator import InputError

from eac_ase.adapters.potcar import read_potcar
from eac_model.errors import DensityFileError

from ..conftest import run


@pytest.fixture
def potcar(tmp_path):
    def write(text: str, name: str = "POTCAR"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def test_every_data_set_is_read_in_order(potcar, made_up_potcar):
    text = made_up_potcar("Fe", title="PAW_PBE Fe_pv 02Aug2007", valence=14.0, enmax=293.238)
    text += made_up_potcar("O") + made_up_potcar("Fe", functional="CA")
    iron, oxygen, other = read_potcar(potcar(text))
    assert iron.title == "PAW_PBE Fe_pv 02Aug2007"
    assert (iron.symbol, oxygen.symbol, other.symbol) == ("Fe", "O", "Fe")
    assert (iron.functional, other.functional) == ("PE", "CA")
    assert iron.valence == 14
    assert iron.enmax == pytest.approx(293.238)
    assert iron.enmin == pytest.approx(219.9285, abs=1e-3)
    assert iron.eaug == 600
    assert iron.mass == 11
    assert iron.is_paw


def test_channels_are_the_projectors_and_not_the_table_of_the_header(potcar, made_up_potcar):
    """The table also lists the local potential, here l = 3."""
    iron, oxygen = read_potcar(potcar(made_up_potcar("Fe") + made_up_potcar("O")))
    assert iron.channels == (2, 2, 0, 0, 1, 1)
    assert oxygen.channels == (0, 0, 1, 1)


def test_pymatgen_reads_the_same_header(potcar, made_up_potcar):
    inputs = pytest.importorskip("pymatgen.io.vasp.inputs")
    text = made_up_potcar("O", enmax=415.5, valence=6.0)
    (ours,) = read_potcar(potcar(text))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = inputs.PotcarSingle(text)
    assert ours.title == theirs.TITEL
    assert theirs.element == ours.symbol
    assert pytest.approx(theirs.zval) == ours.valence
    assert pytest.approx(theirs.enmax) == ours.enmax
    assert theirs.keywords["EAUG"] == pytest.approx(ours.eaug)
    assert ours.functional == theirs.LEXCH
    assert theirs.potential_type == "PAW"


@pytest.mark.parametrize(
    ("title", "symbol"),
    [
        ("PAW_PBE H1.25 07Sep2000", "H"),
        ("PAW_PBE H.5 08May2000", "H"),
        ("PAW Zr_sv 07Sep2000", "Zr"),
        ("US O", "O"),
        ("Pd: NC=2.0 US=2.7", "Pd"),
    ],
)
def test_the_element_comes_from_the_title(potcar, made_up_potcar, title, symbol):
    (dataset,) = read_potcar(potcar(made_up_potcar("O", title=title)))
    assert dataset.symbol == symbol


def test_the_misspelt_enmin_of_some_data_sets_is_understood(potcar, made_up_potcar):
    (dataset,) = read_potcar(potcar(made_up_potcar("O").replace("ENMIN", "EMMIN")))
    assert dataset.enmin == 300


def test_packed_files_windows_line_ends_and_byte_order_marks_are_read(
    tmp_path, potcar, made_up_potcar
):
    text = made_up_potcar("O")
    plain = read_potcar(potcar(text))
    (tmp_path / "POTCAR.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "windows").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    (tmp_path / "latin").write_bytes(text.replace("made up", "Übung").encode("latin-1"))
    for name in ("POTCAR.gz", "windows", "latin"):
        assert read_potcar(tmp_path / name) == plain


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-100], "data set 2 does not end"),
        (lambda text: text[:300], "data set 1 does not end"),
        (lambda text: "SYSTEM = water\n", "is no POTCAR"),
        (lambda text: "", "is empty"),
        (lambda text: text.replace("ZVAL", "ZVAX"), "data set 1: the header has no ZVAL"),
        (lambda text: text.replace("ENMAX  =  400.000", "ENMAX  = *******"), "is no number"),
        (lambda text: text.replace("END of PSCTR", "END"), "does not end with 'END of PSCTR"),
        (lambda text: text.replace(" Non local Part\n", "\n"), "no projectors"),
        (lambda text: text.replace(" Reciprocal Space Part\n", "\n", 1), "and 1 follow"),
        (lambda text: text.replace("PAW_PBE O", "PAW_PBE Q").replace("=O:", "=Q:"), "names an el"),
    ],
)
def test_damaged_files_are_refused_with_place_and_cause(potcar, made_up_potcar, damage, message):
    path = potcar(damage(made_up_potcar("O") + made_up_potcar("H")))
    with pytest.raises(InputError, match=message) as caught:
        read_potcar(path)
    assert str(path) in str(caught.value)


def test_a_missing_or_cut_off_file_is_refused(tmp_path, made_up_potcar):
    with pytest.raises(InputError, match=r"cat O/POTCAR H/POTCAR > POTCAR"):
        read_potcar(tmp_path / "POTCAR")
    packed = tmp_path / "POTCAR.gz"
    packed.write_bytes(gzip.compress(made_up_potcar("O").encode())[:-20])
    with pytest.raises(DensityFileError, match="gzip"):
        read_potcar(packed)


def test_charges_need_one_number_of_valence_electrons_for_each_element(
    made_up_potcar, complete, ice, tmp_path
):
    complete.get_density_grid(ice, shape=(12, 12, 12)).write(tmp_path / "CHGCAR")
    sets = [("O", 6.0), ("O", 4.0), ("H", 1.0)]
    text = "".join(made_up_potcar(symbol, valence=valence) for symbol, valence in sets)
    (tmp_path / "POTCAR").write_text(text)
    output = run("partition", tmp_path / "CHGCAR", code=2).output
    assert "data sets of O with 6 and with 4" in output
