"""INCAR: reading as VASP does, editing without touching the rest."""

import gzip

import pytest
from ase.calculators.calculator import InputError
from hypothesis import given
from hypothesis import strategies as st

from eac_ase.adapters.incar import Incar

TEXT = """General settings
 SYSTEM = my water = wet ; PREC = Accurate    a comment without a sign
! ENCUT = 999
   ICHARG =      2    charge: 1-file 2-atom 10-const
MAGMOM = 2*0.6 \\
 3*-1.0  2 1.5d0 # moments
LOCPROJ = "1 : s
  2 : p = 3"
PLUGINS {
  LOCAL = T
  ICHARG = 7 }
ENCUT = 4.0D2 eV; ISPIN=2!spin
LASPH=.TRUE. # more
LREAL = Auto
"""


def test_statements_are_found_where_vasp_finds_them():
    incar = Incar.parse(TEXT.replace("my water = wet", "my water"))
    assert incar.word("PREC") == "Accurate"
    assert incar.integer("ICHARG") == 2
    assert incar.number("ENCUT") == 400
    assert incar.integer("ISPIN") == 2
    assert incar.boolean("LASPH")
    assert not incar.boolean("LDAU")
    assert incar.word("LREAL") == "Auto"
    assert incar.word("PLUGINS/LOCAL") == "T"
    assert incar.numbers("MAGMOM") == [0.6, 0.6, -1, -1, -1, 2, 1.5]
    assert "CHARGE" not in incar
    assert incar.statements["ICHARG"][0].line == 4


def test_pymatgen_reads_the_same_values():
    inputs = pytest.importorskip("pymatgen.io.vasp.inputs")
    text = "ENCUT = 520\nISPIN = 2 # two\nMAGMOM = 3*0.6 2*-1 5\nPREC = Accurate\nGGA = PS\n"
    ours, theirs = Incar.parse(text), inputs.Incar.from_str(text)
    assert ours.number("ENCUT") == theirs["ENCUT"]
    assert ours.integer("ISPIN") == theirs["ISPIN"]
    assert ours.numbers("MAGMOM") == theirs["MAGMOM"]
    assert ours.word("PREC") == theirs["PREC"]


def test_absent_tags_are_none():
    incar = Incar.parse("")
    assert incar.integer("ISPIN") is None
    assert incar.number("ENCUT") is None
    assert incar.numbers("MAGMOM") == []
    assert incar.word("PREC", "Normal") == "Normal"


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("3*0.6 2", [0.6, 0.6, 0.6, 2]),
        ("2*5.0 2*-5.0", [5, 5, -5, -5]),
        ("2 * 1.0, 3", [1, 1, 3]),
        ("1 -1 comment of old times", [1, -1]),
        ('"1 2\n 3"', [1, 2, 3]),
    ],
)
def test_repeated_moments_are_written_out(text, numbers):
    assert Incar.parse(f"MAGMOM = {text}\n").numbers("MAGMOM") == numbers


@pytest.mark.parametrize(
    ("text", "read", "message"),
    [
        ("ISPIN = two", lambda i: i.integer("ISPIN"), "line 1: ISPIN = 'two', expected a whole"),
        ("\nENCUT = high", lambda i: i.number("ENCUT"), "line 2: ENCUT = 'high', expected a num"),
        ("LASPH = yes", lambda i: i.boolean("LASPH"), "expected .TRUE."),
        ("MAGMOM = x*2", lambda i: i.numbers("MAGMOM"), r"expected count\*number"),
        ("MAGMOM = up down", lambda i: i.numbers("MAGMOM"), "expected a number"),
        ("ISPIN = 1\nISPIN = 2", lambda i: i.integer("ISPIN"), "'1' in line 1, '2' in line 2"),
        ("ENCUT = 400 ISPIN = 2", lambda i: i, "several statements"),
    ],
)
def test_values_that_make_no_sense_are_refused_with_their_line(text, read, message):
    with pytest.raises(InputError, match=message):
        read(Incar.parse(text))


def test_the_same_value_twice_is_no_contradiction():
    assert Incar.parse("ISPIN = 2\nISPIN = 2\n").integer("ISPIN") == 2


def test_an_edit_changes_one_word_and_nothing_else():
    incar = Incar.parse(TEXT.replace("my water = wet", "my water"))
    edited = incar.changed({"ICHARG": "1", "ISPIN": "1"})
    expected = incar.text.replace("ICHARG =      2    charge", "ICHARG =      1    charge")
    assert edited.text == expected.replace("ISPIN=2!spin", "ISPIN=1!spin")
    assert edited.integer("ICHARG") == 1
    assert edited.word("PLUGINS/ICHARG") == "7"


def test_new_tags_are_appended_also_after_a_last_line_without_end():
    assert Incar.parse("ENCUT = 400").changed({"ICHARG": "1"}).text == "ENCUT = 400\nICHARG = 1\n"
    windows = Incar.parse("ENCUT = 400\r\n").changed({"ICHARG": "1"})
    assert windows.text == "ENCUT = 400\r\nICHARG = 1\r\n"
    assert windows.number("ENCUT") == 400


@given(
    lines=st.lists(
        st.sampled_from(
            ["ENCUT = 400", "# ICHARG = 5", "ISPIN = 2 ; ICHARG = 2", "words", "", "A = 1 \\\n 2"]
        ),
        max_size=6,
    )
)
def test_an_edit_sets_the_tag_and_keeps_every_other(lines):
    incar = Incar.parse("\n".join(lines))
    edited = incar.changed({"ICHARG": "11"})
    assert edited.integer("ICHARG") == 11
    for tag in incar.statements:
        if tag != "ICHARG":
            assert edited.words(tag) == incar.words(tag)
    for line in lines:
        if "ICHARG = 2" not in line:
            assert line in edited.text


def test_files_are_read_packed_and_plain(tmp_path):
    (tmp_path / "INCAR").write_bytes(b"\xef\xbb\xbfISPIN = 2\r\n")
    (tmp_path / "INCAR.gz").write_bytes(gzip.compress(b"ISPIN = 2\n"))
    assert Incar.read(tmp_path / "INCAR").integer("ISPIN") == 2
    assert Incar.read(tmp_path / "INCAR.gz").integer("ISPIN") == 2
    with pytest.raises(InputError, match="no file"):
        Incar.read(tmp_path / "nowhere")
