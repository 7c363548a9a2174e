"""The commands of `eac`."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import write
from safetensors.torch import load_file
from typer.testing import CliRunner

from eac_ase import DensityGrid, EACDensity
from eac_ase.cli import app
from eac_model.data import DensitySample, DensityStore

from .conftest import run

COMMANDS = [
    *("predict", "vasp", "demo", "partition", "train", "evaluate", "models", "info"),
    *("data convert", "data info", "data gpaw", "models import"),
    *("benchmark ecd", "benchmark layout"),
]


@pytest.fixture
def reference(tmp_path: Path, crystal: Atoms, model_file: Path) -> Path:
    """A CHGCAR of the model's own prediction, 1 % too large."""
    grid = EACDensity(model_file, device="cpu").get_density_grid(crystal, shape=(8, 9, 10))
    (grid * 1.01).write(tmp_path / "CHGCAR_ref")
    return tmp_path / "CHGCAR_ref"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_examples(command):
    output = run(*command.split(), "--help").output
    assert "Example" in output
    assert f"eac {command}" in output
    if command == "predict":
        assert "Any structure file ASE reads" in output


def test_the_version_is_printed():
    assert run("--version").output.startswith("eac ")


# -- predict -----------------------------------------------------------------------------------


def test_predict_writes_every_output_and_says_what_it_did(structure, model_file, tmp_path):
    names = ["CHGCAR", "x.cube", "x.h5", "x.xsf"]
    outputs = [part for name in names for part in ("-o", tmp_path / name)]
    result = run(
        "predict", structure, *outputs, "-m", model_file, "--plot", tmp_path / "x.png",
        "--spacing", 0.5,
    )  # fmt: skip
    for name in [*names, "x.png"]:
        assert (tmp_path / name).stat().st_size > 0
        assert name in result.output
    assert "electrons" in result.output
    assert "points/s" in result.output
    grids = [DensityGrid.read(tmp_path / name) for name in names[:3]]
    assert np.allclose(grids[0].values, grids[1].values, atol=1e-4)
    assert np.allclose(grids[0].values, grids[2].values, atol=1e-6)


def test_predict_reports_json(structure, model_file, tmp_path):
    result = run(
        "predict", structure, "-o", tmp_path / "CHGCAR", "-m", model_file,
        "--shape", 8, 9, 10, "--json",
    )  # fmt: skip
    report = json.loads(result.stdout)
    grid = DensityGrid.read(tmp_path / "CHGCAR")
    assert report["shape"] == [8, 9, 10] == list(grid.shape)
    assert report["electrons"] == pytest.approx(grid.integrate(), rel=1e-8)
    assert report["files"] == [str(tmp_path / "CHGCAR")]
    assert report["points_per_second"] > 0


def test_predict_normalises_on_demand(structure, model_file, tmp_path):
    run("predict", structure, "-o", tmp_path / "CHGCAR", "-m", model_file, "--spacing", 0.5,
        "--normalize")  # fmt: skip
    assert DensityGrid.read(tmp_path / "CHGCAR").integrate() == pytest.approx(16, rel=1e-8)


def test_predict_takes_moments_for_spin_models(structure, spin_model_file, tmp_path, crystal):
    run("predict", structure, "-o", tmp_path / "CHGCAR", "-m", spin_model_file, "--spacing", 0.5,
        "--spin", "O=1.5")  # fmt: skip
    grid = DensityGrid.read(tmp_path / "CHGCAR")
    crystal.set_initial_magnetic_moments([1.5 * (s == "O") for s in crystal.symbols])
    expected = EACDensity(spin_model_file).get_density_grid(crystal, spacing=0.5)
    assert np.abs(expected.spin).max() > 1e-3
    assert grid.integrate_spin() == pytest.approx(expected.integrate_spin(), abs=1e-6)


@pytest.mark.parametrize(
    ("spin", "message"),
    [("1,2", "2 moments for 6 atoms"), ("Fe=2", "no Fe"), ("up", "expected")],
)
def test_moments_that_do_not_fit_are_refused(structure, spin_model_file, tmp_path, spin, message):
    result = run("predict", structure, "-o", tmp_path / "CHGCAR", "-m", spin_model_file,
                 "--spin", spin, code=2)  # fmt: skip
    assert message in result.stderr


def test_moments_are_refused_by_models_without_spin(structure, model_file, tmp_path):
    result = run("predict", structure, "-o", tmp_path / "C.cube", "-m", model_file, "--spin", "1",
                 code=2)  # fmt: skip
    assert "knows no spin" in result.stderr


def test_existing_files_are_kept_unless_forced(structure, model_file, tmp_path):
    (tmp_path / "CHGCAR").write_text("precious")
    arguments = ["predict", structure, "-o", tmp_path / "CHGCAR", "-m", model_file,
                 "--spacing", 0.6]  # fmt: skip
    assert "--force" in run(*arguments, code=2).stderr
    assert (tmp_path / "CHGCAR").read_text() == "precious"
    run(*arguments, "--force")
    assert DensityGrid.read(tmp_path / "CHGCAR").integrate() > 0


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (["-o", "density.txt"], "no density format"),
        (["-o", "nowhere/CHGCAR"], "no folder nowhere"),
        (["--plot", "x.doc"], "no picture format"),
        ([], "at least one output"),
        (["-o", "CHGCAR", "--spacing", "-1"], "spacing"),
        (["-o", "CHGCAR", "--spacing", "0.1", "--shape", "4", "4", "4"], "not both"),
        (["-o", "CHGCAR", "--device", "abacus"], "abacus"),
    ],
)
def test_impossible_wishes_are_refused_in_one_line(
    structure, model_file, tmp_path, monkeypatch, output, message
):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    result = run("predict", structure, "-m", model_file, *output, code=2)
    assert message in result.stderr
    assert result.stdout == ""
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no structure file"), ("nonsense\n", "cannot read a structure")]
)
def test_bad_structure_files_are_named(tmp_path, model_file, content, message):
    path = tmp_path / "x.xyz"
    if content is not None:
        path.write_text(content)
    result = run("predict", path, "-o", tmp_path / "CHGCAR", "-m", model_file, code=2)
    assert message in result.stderr
    assert "x.xyz" in result.stderr


def test_a_folder_in_place_of_a_structure_is_explained(tmp_path, model_file):
    result = run("predict", tmp_path, "-o", tmp_path / "CHGCAR", "-m", model_file, code=2)
    assert "is a folder" in result.stderr


def test_structures_the_model_cannot_handle_are_refused(tmp_path, model_file):
    write(tmp_path / "x.xyz", Atoms("FeO", [(0, 0, 0), (0, 0, 1.6)]))
    result = run("predict", tmp_path / "x.xyz", "-o", tmp_path / "CHGCAR", "-m", model_file, code=2)
    assert "does not know Fe" in result.stderr
    assert not (tmp_path / "CHGCAR").exists()


def test_magnetic_elements_without_moments_are_remarked_on(tmp_path):
    iron = tmp_path / "iron.xyz"
    write(iron, Atoms("Fe", cell=2.83 * (1 - np.eye(3)) / np.sqrt(2), pbc=True))
    arguments = ("predict", iron, "-o", tmp_path / "x.cube", "-m", "fe-pbe", "--spacing", 0.4, "-f")
    assert "Fe is taken to be non-magnetic" in run(*arguments).stderr
    assert "non-magnetic" not in run(*arguments, "--spin", 2.2).stderr


def test_strange_surroundings_are_a_remark_and_no_line_of_code(tmp_path):
    close = tmp_path / "close.xyz"
    write(close, Atoms("Fe2", [(0, 0, 0), (0, 0, 1.0)], cell=[4, 4, 4], pbc=True))
    remark = run(
        "predict", close, "-o", tmp_path / "x.cube", "-m", "fe-pbe", "--spacing", 0.4
    ).stderr
    assert "knows no surroundings like those of Fe 0" in remark
    assert ".py" not in remark


def test_a_density_is_no_structure(reference):
    assert "name a structure file" in run("predict", reference, "-o", "x.cube", code=2).stderr


def test_an_interrupt_while_writing_leaves_no_half_file(
    structure, model_file, tmp_path, monkeypatch
):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("eac_model.data.cube.format_rows", interrupt)
    before = sorted(tmp_path.iterdir())
    result = run("predict", structure, "-o", tmp_path / "x.cube", "-m", model_file,
                 "--spacing", 0.6, code=130)  # fmt: skip
    assert "Interrupted" in result.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_errors_of_the_program_itself_have_exit_code_1(structure, model_file, monkeypatch):
    def fail(*args, **kwargs):
        raise ZeroDivisionError

    monkeypatch.setattr("eac_ase.calculator.evaluate_grid", fail)
    result = CliRunner().invoke(
        app, ["predict", str(structure), "-o", "CHGCAR", "-m", str(model_file)]
    )
    assert result.exit_code == 1


INTERRUPTED_RUN = """
import signal
import time
import eac_ase.calculator

# Where the tests run as a background job, Ctrl-C is ignored from birth.
signal.signal(signal.SIGINT, signal.default_int_handler)

def endless(*args, **kwargs):
    print("started", flush=True)
    time.sleep(60)

eac_ase.calculator.evaluate_grid = endless
from eac_ase.cli import app
app()
"""


def test_ctrl_c_ends_a_real_process_cleanly(structure, model_file, tmp_path):
    before = sorted(tmp_path.iterdir())
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED_RUN, "predict", structure, "-o", "x.cube",
         "-m", model_file],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Interrupted" in errors
    assert "Traceback" not in errors
    assert sorted(tmp_path.iterdir()) == before


def test_the_installed_command_predicts(structure, model_file, tmp_path):
    command = Path(sys.executable).with_name("eac")
    if not command.exists():
        pytest.skip("the package is not installed in this environment")
    done = subprocess.run(
        [command, "predict", structure, "-o", "CHGCAR", "-m", model_file, "--spacing", "0.6",
         "--json"],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"},
        check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["atoms"] == 6
    assert (tmp_path / "CHGCAR").exists()


# -- demo --------------------------------------------------------------------------------------


def test_the_demo_writes_its_files_again_and_again(model_file, tmp_path):
    arguments = ["-m", model_file, "--directory", tmp_path / "demo", "--spacing", 0.8, "--json"]
    for _ in range(2):
        report = json.loads(run("demo", *arguments).stdout)
    assert report["atoms"] == 48
    assert report["electrons_expected"] == 128
    names = ["CHGCAR", "water.cube", "water.png"]
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == names
    assert len(DensityGrid.read(tmp_path / "demo" / "CHGCAR").atoms) == 48


# -- evaluate ----------------------------------------------------------------------------------


def test_training_logs_lines_where_there_is_no_terminal(reference, tmp_path):
    (tmp_path / "toy.yaml").write_text(
        "data: {train: CHGCAR_ref, points_per_structure: 20}\n"
        "network: {l_max: 0, channels: 2, interactions: 0}\n"
        "optimisation: {steps: 4, warmup_steps: 1}\n"
        "log_every: 2\n"
    )
    result = run("train", tmp_path / "toy.yaml", "-o", tmp_path / "toy")
    logged = [line for line in result.stderr.splitlines() if line.startswith("step ")]
    assert re.fullmatch(r"step 2 of 4, \d+ s left: errors train [\d.]+ %", logged[0])
    assert re.fullmatch(r"step 4 of 4: errors train [\d.]+ %", logged[1])
    assert len(logged) == 2
    assert "Structures: 1 to train on, 0 left out; 4 steps" in result.stderr
    assert "model.safetensors" in result.stdout
    assert "already holds a run" in run("train", tmp_path / "toy.yaml", "-o", tmp_path / "toy",
                                        code=2).stderr  # fmt: skip


TERMINATE = "os.kill(os.getpid(), signal.SIGTERM)"

INTERRUPTED_TRAINING = """
import os
import signal
import sys

from eac_model.training.data import TrainingBatches

signal.signal(signal.SIGINT, signal.default_int_handler)
read = TrainingBatches.__getitem__

def interrupted(self, item):
    if item == 5 and "--resume" not in sys.argv:
        os.kill(os.getpid(), signal.SIGINT)
    return read(self, item)

TrainingBatches.__getitem__ = interrupted
from eac_ase.cli import app
app()
"""


def test_ctrl_c_keeps_the_step_that_training_had_reached(reference, tmp_path):
    (tmp_path / "toy.yaml").write_text(
        "data: {train: CHGCAR_ref, points_per_structure: 20}\n"
        "network: {l_max: 0, channels: 2, interactions: 0}\n"
        "optimisation: {steps: 12, warmup_steps: 1}\n"
    )

    def train(*arguments):
        return subprocess.run(
            [sys.executable, "-c", INTERRUPTED_TRAINING, "train", "toy.yaml", *arguments],
            cwd=tmp_path, capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    cut = train("-o", "cut")
    assert cut.returncode == 130
    assert "eac train toy.yaml --directory cut --resume" in cut.stderr
    going_on = train("-o", "cut", "--resume")
    assert "Going on from step 6 of 12" in going_on.stderr
    assert train("-o", "whole", "--resume").returncode == 0
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(values, cut[name]) for name, values in whole.items())


def test_ctrl_c_before_the_first_step_says_that_nothing_is_kept(reference, tmp_path):
    (tmp_path / "toy.yaml").write_text(
        "data: {train: CHGCAR_ref, points_per_structure: 20}\n"
        "network: {l_max: 0, channels: 2, interactions: 0}\n"
    )
    program = (
        "import eac_model.training.run as module\n"
        "def interrupted(*args, **kwargs):\n"
        "    raise KeyboardInterrupt\n"
        "module.load_sources = interrupted\n"
        "from eac_ase.cli import app\n"
        "app()\n"
    )
    cut = subprocess.run(
        [sys.executable, "-c", program, "train", "toy.yaml", "-o", "cut"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert cut.returncode == 130
    assert "no checkpoint yet" in cut.stderr


def test_sigterm_keeps_the_step_and_is_no_success(reference, tmp_path):
    (tmp_path / "toy.yaml").write_text(
        "data: {train: CHGCAR_ref, points_per_structure: 20}\n"
        "network: {l_max: 0, channels: 2, interactions: 0}\n"
        "optimisation: {steps: 12, warmup_steps: 1}\n"
    )
    text = INTERRUPTED_TRAINING.replace("os.kill(os.getpid(), signal.SIGINT)", TERMINATE)
    arguments = ["train", "toy.yaml", "-o", "cut"]
    cut = subprocess.run(
        [sys.executable, "-c", text, *arguments],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert cut.returncode == 143
    assert "--resume" in cut.stderr
    assert (tmp_path / "cut" / "checkpoints" / "last.ckpt").exists()
    # Without validation the model is that of the checkpoint.
    assert (tmp_path / "cut" / "model.safetensors").exists()


def test_ctrl_c_reaches_the_workers_of_a_terminal_too_and_is_kept_by_the_run(reference, tmp_path):
    (tmp_path / "toy.yaml").write_text(
        "data: {train: CHGCAR_ref, points_per_structure: 20, workers: 1}\n"
        "network: {l_max: 0, channels: 2, interactions: 0}\n"
        "optimisation: {steps: 400, warmup_steps: 1}\n"
    )
    everyone = "os.killpg(os.getpgid(0), signal.SIGINT)"
    text = INTERRUPTED_TRAINING.replace("os.kill(os.getpid(), signal.SIGINT)", everyone)
    cut = subprocess.run(
        [sys.executable, "-c", text, "train", "toy.yaml", "-o", "cut"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, start_new_session=True,
    )  # fmt: skip
    assert cut.returncode == 130, cut.stderr
    assert "--resume" in cut.stderr
    assert (tmp_path / "cut" / "checkpoints" / "last.ckpt").exists()


def test_evaluate_finds_a_known_error(reference, model_file, tmp_path):
    assert "overall" in run("evaluate", model_file, reference).stdout
    figures = json.loads(run("evaluate", model_file, reference, "--json").stdout)
    (row,) = figures["files"]
    assert row["nmae_percent"] == pytest.approx(100 * 0.01 / 1.01, rel=1e-4)
    assert row["electrons_reference"] == pytest.approx(1.01 * row["electrons_predicted"], rel=1e-4)
    assert row["max_error"] > row["mae"] > 0
    assert figures["overall"]["nmae_percent"] == pytest.approx(row["nmae_percent"])
    assert figures["overall"]["samples"] == 1


def test_evaluate_goes_on_after_a_bad_file_and_says_so(reference, model_file, tmp_path):
    (tmp_path / "CHGCAR_bad").write_text("not a density\n")
    result = run("evaluate", model_file, tmp_path / "CHGCAR_bad", reference, "--json", code=2)
    assert "CHGCAR_bad" in result.stderr
    figures = json.loads(result.stdout)
    assert len(figures["files"]) == 1
    assert figures["failures"][0]["file"].endswith("CHGCAR_bad")


def test_evaluate_goes_on_after_a_bad_sample_of_a_store(reference, model_file, tmp_path, water):
    good = DensityGrid.read(reference).to_sample()
    strange = Atoms("Fe", cell=[3, 3, 3], pbc=True)
    store = DensityStore.create(tmp_path / "a.store")
    for sample in (good, DensitySample(strange, np.ones((6, 6, 6))), good):
        store.append(sample)
    result = run("evaluate", model_file, tmp_path / "a.store", "--json", code=2)
    figures = json.loads(result.stdout)
    assert figures["overall"]["samples"] == 2
    assert "a.store[1]" in figures["failures"][0]["file"]


def test_evaluate_reads_points_stores_and_spin(crystal, spin_model_file, tmp_path):
    crystal.set_initial_magnetic_moments([1.0, 0, 0, 0, 0, 0])
    grid = EACDensity(spin_model_file).get_density_grid(crystal, shape=(6, 6, 6))
    sample = grid.to_sample()
    store = DensityStore.create(tmp_path / "a.store")
    store.append(sample)
    store.append(sample.select(np.arange(0, 216, 5)))
    result = run("evaluate", spin_model_file, tmp_path / "a.store", "--json")
    whole, points = json.loads(result.stdout)["files"]
    assert whole["points"] == 216
    assert points["points"] == 44
    assert points["electrons_reference"] is None
    for row in (whole, points):
        assert row["nmae_percent"] < 1e-3
        assert row["spin"]["nmae_percent"] < 1e-3


def test_evaluate_warns_of_densities_of_another_kind(crystal, model_file, tmp_path):
    grid = EACDensity(model_file).get_density_grid(crystal, shape=(6, 6, 6))
    DensityGrid(grid.values, crystal, grid.cell, kind="all-electron").write(tmp_path / "x.h5")
    assert "all-electron" in run("evaluate", model_file, tmp_path / "x.h5").stderr


# -- data, models, info ------------------------------------------------------------------------


def test_convert_collects_reports_and_resumes(reference, tmp_path):
    (tmp_path / "CHGCAR_bad").write_text("not a density\n")
    arguments = ["data", "convert", tmp_path / "CHGCAR_bad", reference, "-o", tmp_path / "s.store",
                 "--json"]  # fmt: skip
    first = run(*arguments, code=2)
    assert "CHGCAR_bad" in first.stderr
    report = json.loads(first.stdout)
    assert report["converted"] == [str(reference)]
    assert len(report["failures"]) == 1
    assert json.loads(run(*arguments, code=2).stdout)["skipped"] == [str(reference)]
    listing = json.loads(run("data", "info", tmp_path / "s.store", "--json").stdout)
    assert [entry["source"] for entry in listing["samples"]] == [f"{tmp_path.name}/CHGCAR_ref"]
    assert "8 × 9 × 10" in run("info", tmp_path / "s.store").output


def test_info_knows_densities_structures_and_models(reference, structure, model_file):
    density = json.loads(run("info", reference, "--json").stdout)
    assert density["what"] == "density on a grid"
    assert density["points"] == [8, 9, 10]
    assert density["electrons"] > 0
    assert json.loads(run("info", structure, "--json").stdout)["what"] == "structure"
    model = json.loads(run("info", model_file, "--json").stdout)
    assert model["valence_electrons"] == {"H": 1.0, "O": 6.0}
    for path in (reference, structure, model_file):
        assert "H4O2" in run("info", path).output or "tiny" in run("info", path).output


def test_info_names_what_it_does_not_know(tmp_path):
    (tmp_path / "notes.txt").write_text("hello\n")
    assert "notes.txt" in run("info", tmp_path / "notes.txt", code=2).stderr
    assert "absent" in run("info", tmp_path / "absent", code=2).stderr


def test_a_damaged_chgcar_is_not_taken_for_a_structure(reference, tmp_path):
    (tmp_path / "CHGCAR").write_text(reference.read_text()[:3000])
    (tmp_path / "old_CHGCAR").write_text(reference.read_text()[:3000])
    for name in ("CHGCAR", "old_CHGCAR"):
        assert "truncated" in run("info", tmp_path / name, code=2).stderr.lower()


def test_models_prints_cards(model_file):
    assert "untrained, for tests" in run("models", model_file).output
    card = json.loads(run("models", model_file, "--json").stdout)
    assert card["provenance"]["functional"] == "SCAN"
    assert "bundled models are" in run("models", "no-such-model", code=2).stderr
    assert isinstance(json.loads(run("models", "--json").stdout), list)


DISORDERED = """data_x
_cell_length_a 4.1
_cell_length_b 4.1
_cell_length_c 4.1
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_space_group_name_H-M_alt 'P 1'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
O1 O 0 0 0 {oxygen}
H1 H 0 0 0 {hydrogen}
"""


@pytest.mark.parametrize(("oxygen", "hydrogen"), [(0.5, 0.5), (0.3, 0)])
def test_disordered_structures_are_refused(tmp_path, model_file, oxygen, hydrogen):
    text = DISORDERED.format(oxygen=oxygen, hydrogen=hydrogen)
    if not hydrogen:
        text = text.removesuffix("H1 H 0 0 0 0\n")
    (tmp_path / "x.cif").write_text(text)
    target = tmp_path / "x.cube"
    output = run("predict", tmp_path / "x.cif", "-m", model_file, "-o", target, code=2).output
    assert "disordered" in output
    assert not target.exists()


def test_names_of_structures_that_begin_like_vasp_s_densities_are_structures(tmp_path, water):
    write(tmp_path / "chgnet_relaxed.xyz", water)
    assert "H2O" in run("info", tmp_path / "chgnet_relaxed.xyz").output


def test_the_suffix_decides_the_format_before_the_beginning_of_a_name(
    structure, model_file, tmp_path
):
    target = tmp_path / "CHGCAR_x.cube"
    run("predict", structure, "-m", model_file, "-o", target, "--shape", 4, 4, 4)
    assert DensityGrid.read(target).shape == (4, 4, 4)


def test_of_several_structures_the_last_is_taken_and_said_so(tmp_path, water, model_file):
    write(tmp_path / "x.traj", [water, water[:2], water[1:]])
    report = run(
        "predict", tmp_path / "x.traj", "-m", model_file, "-o", tmp_path / "x.cube", "--json"
    )
    assert "x.traj@0 is the first" in report.output
    assert json.loads(report.stdout)["formula"] == "H2"
    write(tmp_path / "one.traj", water)
    assert "holds several" not in run("info", tmp_path / "one.traj").output


@pytest.mark.parametrize(
    ("name", "message"),
    [("x.traj@7", "no such frame"), ("x.traj@:", "pick one")],
)
def test_frames_that_are_not_there_are_refused(
    tmp_path, water, model_file, name, message, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write("x.traj", [water, water])
    assert message in run("predict", name, "-m", model_file, "-o", "x.cube", code=2).output


def test_a_stated_charge_is_remarked_on_unless_normalised(tmp_path, water, model_file):
    water.info["charge"] = 1
    write(tmp_path / "ion.extxyz", water)
    target = tmp_path / "x.cube"
    arguments = ("predict", tmp_path / "ion.extxyz", "-m", model_file, "-o", target, "--force")
    assert "charge +1" in run(*arguments).output
    assert "charge +1" not in run(*arguments, "--normalize").output


def test_a_closed_pipe_ends_quietly(structure, model_file):
    program = "from eac_ase.cli import app\napp()"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", program, "models"], stdout=writer, stderr=subprocess.PIPE,
        text=True, timeout=120,
    )  # fmt: skip
    os.close(writer)
    assert done.returncode == 141
    assert done.stderr == ""


def test_info_takes_frames_of_trajectories(tmp_path, water):
    write(tmp_path / "x.traj", [water, water])
    assert "H2O" in run("info", f"{tmp_path / 'x.traj'}@0").output


def test_moments_of_three_components_are_refused_or_replaced(tmp_path, spin_model_file, crystal):
    crystal.set_initial_magnetic_moments(np.ones((len(crystal), 3)))
    write(tmp_path / "x.traj", crystal)
    command = ["predict", tmp_path / "x.traj", "-m", spin_model_file, "--shape", 4, 4, 4]
    output = run(*command, "-o", tmp_path / "a.cube", code=2).output
    assert "three components" in output
    run(*command, "-o", tmp_path / "a.cube", "--spin", "O=1")
