"""`eac vasp`."""

import json

import pytest

from eac_ase import DensityGrid

from ..conftest import run


def test_it_explains_itself_with_examples():
    output = run("vasp", "--help").output
    assert "Example" in output
    assert "eac vasp run --write-incar" in output


def test_it_writes_chgcar_and_says_what_to_set(make_run, ice, complete_model):
    folder = make_run(ice)
    result = run("vasp", folder, "-m", complete_model)
    assert DensityGrid.read(folder / "CHGCAR").integrate() == pytest.approx(16)
    for words in ("ICHARG = 1", "SCAN", "24 × 28 × 28", "16.0000", "PAW occupancies  yes"):
        assert words in result.stdout
    assert (folder / "INCAR").read_text().count("ICHARG") == 0
    assert "Note: SCAN" in result.stderr


def test_it_edits_incar_on_demand(make_run, ice, complete_model):
    folder = make_run(ice)
    result = run("vasp", folder, "-m", complete_model, "--write-incar")
    assert "edited" in result.stdout
    assert (folder / "INCAR").read_text().endswith("ICHARG = 1\n")
    again = run("vasp", folder, "-m", complete_model, "--force")
    assert "ready as it is" in again.stdout


def test_it_reports_json(make_run, ice, complete_model):
    folder = make_run(ice)
    arguments = ["--shape", 20, 24, 30, "--no-occupancies", "--no-normalize", "--json"]
    report = json.loads(run("vasp", folder, "-m", complete_model, *arguments).stdout)
    assert report["shape"] == [20, 24, 30]
    assert report["model"] == "complete"
    assert report["occupancies"] is False
    assert report["incar_changes"]["NGXF"] == "20"
    assert report["electrons"] == report["electrons_predicted"] != pytest.approx(16, rel=1e-6)
    assert report["notes"][0].startswith("No augmentation occupancies: the model 'complete' was")
    assert report["chgcar"] == str(folder / "CHGCAR")


@pytest.mark.parametrize(
    ("incar", "arguments", "message"),
    [
        ("ENCUT = 200\n", [], "the run is PBE"),
        ("METAGGA = SCAN\n", ["--bands"], "points of weight zero"),
        ("METAGGA = SCAN\n", ["--shape", 20, 20, 38], "the next is 40"),
        ("METAGGA = SCAN\n", ["--like", "nowhere/OUTCAR"], "no file nowhere/OUTCAR"),
        ("METAGGA = SCAN\n", ["--like", "x", "--shape", 4, 4, 4], "not both"),
        ("METAGGA = SCAN\nLSORBIT = T\n", [], "non-collinear"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    make_run, ice, complete_model, incar, arguments, message
):
    folder = make_run(ice, incar)
    result = run("vasp", folder, "-m", complete_model, *arguments, code=2)
    assert message in result.stderr
    assert result.stdout == ""
    assert not (folder / "CHGCAR").exists()


def test_another_functional_is_accepted_on_demand(make_run, ice, complete_model):
    result = run("vasp", make_run(ice, "ENCUT = 200\n"), "-m", complete_model, "--any-functional")
    assert "The density is that of SCAN" in result.stderr
