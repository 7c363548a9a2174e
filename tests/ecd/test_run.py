"""Tasks of ECD end to end on densities of Gaussians: trainings, measurements, tables, resuming."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ase import Atoms
from typer.testing import CliRunner

from eac_ase import EACDensity
from eac_ase.cli import app
from eac_ase.ecd import TASKS, Budget, run, run_task
from eac_ase.ecd.layout import GAPS, write_set
from eac_ase.ecd.run import Results
from eac_ase.evaluation import evaluate_sample
from eac_model.checkpoint import load_model, read_header, save_model
from eac_model.data import DensitySample, Provenance
from eac_model.errors import ConfigurationError, DensityFileError
from eac_model.training import TrainingConfig


def sample(seed: int, functional: str) -> DensitySample:
    """Two atoms with Gaussians on them; HSE ones are narrower."""
    rng = np.random.default_rng(seed)
    atoms = Atoms("HHe", [(0, 0, 0), (1.5, 1.5, 1.5) + 0.2 * rng.random(3)], cell=[3] * 3, pbc=True)
    empty = DensitySample(atoms, np.zeros((8, 8, 8)))
    density = np.zeros(512)
    widths = {1: 0.5, 2: 0.4} if functional == "PBE" else {1: 0.48, 2: 0.39}
    for number, position in zip(atoms.numbers, atoms.positions, strict=True):
        away = (empty.grid_points() - position + 1.5) % 3 - 1.5
        density += number * np.exp(-((away / widths[number]) ** 2).sum(axis=1) / 2)
    origin = Provenance(code="VASP", functional=functional, density_kind="valence")
    return replace(empty, density=density.reshape(8, 8, 8), provenance=origin)


def configuration(**changes: object) -> TrainingConfig:
    return TrainingConfig.from_mapping(
        {
            "data": {"train": "anything", "points_per_structure": 100},
            "network": {
                "elements": [1, 2],
                "superposition": True,
                "l_max": 1,
                "channels": 4,
                "interactions": 1,
                "point_cutoff": 2.0,
                "linear_basis": {"kind": "natural-spline", "size": 8, "cutoff_power": 3},
            },
            "optimisation": {"steps": 6, "warmup_steps": 1},
            "validate_every": 6,
            "checkpoint_every": 3,
            "accelerator": "cpu",
            **changes,
        }
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Ten PBE densities, seven HSE ones, two others."""
    root = tmp_path_factory.mktemp("ecd")
    names = [f"{i}.chgcar" for i in range(10)]
    for folder, functional, count, train in (("pbe", "PBE", 10, 6), ("hse", "HSE06", 7, 4)):
        chosen = names[:count]
        splits = {
            "train": chosen[count - train :],
            "validation": chosen[:1],
            "test": chosen[1 : count - train],
        }
        samples = {name: sample(i, functional) for i, name in enumerate(chosen)}
        # The states are where the functional is known.
        write_set(root / folder, samples, chosen, splits, states=True)
    others = {f"{i}.chgcar": sample(i, "PBE") for i in (20, 21)}
    write_set(root / "gnome", others, list(others), {}, states=True)
    return root


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    """A folder with the trainings of the fine-tuning task."""
    folder = tmp_path_factory.mktemp("runs")
    budget = Budget(training=configuration(), tuning=configuration(seed=1))
    run_task(TASKS["PBE_HSE_tuning-id"], data, folder, budget, progress=False)
    return folder


@pytest.fixture
def no_work(monkeypatch) -> None:
    """Fails on trainings and evaluations."""

    def refuse(*arguments: object, **keywords: object) -> None:
        raise AssertionError("this was done before")

    for name in ("train", "evaluate_sample", "EACDensity"):
        monkeypatch.setattr(run, name, refuse)


def test_fine_tuning_sees_growing_parts_of_the_data(finished):
    content = json.loads((finished / "PBE_HSE_tuning-id.json").read_text())
    names = ["pbe+hse-25", "pbe+hse-50", "pbe+hse-75", "pbe+hse"]
    assert [row["model"] for row in content["rows"]] == names
    assert [m["training"]["structures"] for m in content["models"]] == [1, 2, 3, 4]
    assert {row["name"] for row in content["structures"]} == {"1.chgcar", "2.chgcar"}
    table = (finished / "PBE_HSE_tuning-id.md").read_text()
    assert table.count("| PBE_HSE_tuning-id | pbe+hse") == 4


def test_fine_tuned_models_say_what_they_predict_and_keep_their_free_atoms(finished):
    models = finished / "models"
    before, after = (models / name / "model.safetensors" for name in ("pbe", "pbe+hse"))
    assert read_header(before).card.provenance.functional == "PBE"
    assert read_header(after).card.provenance.functional == "HSE06"
    tables = [
        EACDensity(path, device="cpu").network.superposition.table for path in (before, after)
    ]
    assert tables[0].equal(tables[1])


def test_another_start_is_no_finished_fine_tuning(finished, data, monkeypatch):
    budget = Budget(training=configuration(), tuning=configuration(seed=1))
    monkeypatch.setattr(run, "digest", lambda path: "another model")
    with pytest.raises(ConfigurationError, match="fine-tuned from another model"):
        run_task(TASKS["PBE_HSE_tuning-id"], data, finished, budget, progress=False)


def test_errors_are_those_of_the_models_on_the_test_split(finished, data):
    content = json.loads((finished / "PBE_HSE_tuning-id.json").read_text())
    row = content["structures"][0]
    model = EACDensity(finished / "models" / "pbe+hse-25" / "model.safetensors", device="cpu")
    expected = evaluate_sample(model, sample(1, "HSE06")).density
    assert row["name"] == "1.chgcar"
    assert row["nmae_percent"] == pytest.approx(expected.nmae_percent, rel=1e-4)
    assert row["points"] == 512


def test_tasks_share_trainings_and_measurements(finished, data, no_work):
    budget = Budget(training=configuration(), tuning=configuration(seed=1))
    again = run_task(TASKS["PBE_HSE_tuning-id"], data, finished, budget, progress=False)
    assert again == json.loads((finished / "PBE_HSE_tuning-id.json").read_text())


def test_other_tasks_train_nothing_that_is_there(finished, data, monkeypatch):
    monkeypatch.setattr(run, "train", lambda *a, **k: pytest.fail("trained again"))
    budget = Budget(training=configuration(), structures=1)
    for name, folder in (("PBE-id", "pbe"), ("PBE_HSE-id", "hse"), ("OOD-id", "gnome")):
        content = run_task(TASKS[name], data, finished, budget, progress=False)
        assert content["tested_on"] == folder
        assert [row["model"] for row in content["rows"]] == ["pbe"]
        assert content["rows"][0]["nmae_percent"]["count"] == 1


def test_a_measurement_that_was_cut_short_is_made_again(finished, data, tmp_path):
    budget = Budget()
    model = str(finished / "models" / "pbe" / "model.safetensors")
    whole = run_task(TASKS["MP-id"], data, tmp_path, budget, model=model, progress=False)
    lines = (tmp_path / "results.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 3
    (tmp_path / "results.jsonl").write_text(lines[0] + lines[1][:20])
    assert run_task(TASKS["MP-id"], data, tmp_path, budget, model=model, progress=False) == whole
    assert len(Results(tmp_path / "results.jsonl")._rows) == 3


def test_a_model_of_other_weights_is_measured_anew(finished, data, tmp_path):
    for name in ("pbe", "pbe+hse"):
        model = str(finished / "models" / name / "model.safetensors")
        run_task(TASKS["PBE-id"], data, tmp_path, Budget(), model=model, progress=False)
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 6


def test_matrices_are_learned_where_the_data_have_them_of_every_element(finished, data, tmp_path):
    layout = {"code": "GPAW", "channels": {"H": [0, 1], "He": [0, 1]}}
    network = configuration().network.model_dump(mode="json") | {"onsite": layout}
    budget = Budget(training=configuration(network=network), structures=1)
    run_task(TASKS["HSE-id"], data, tmp_path, budget, progress=False)
    header = read_header(tmp_path / "models" / "hse" / "model.safetensors")
    assert header.config.onsite is None


def test_what_a_task_lacks_is_said(finished, data, tmp_path):
    with pytest.raises(ConfigurationError, match="name it with --model"):
        run_task(TASKS["MP-id"], data, tmp_path, Budget(), progress=False)
    with pytest.raises(ConfigurationError, match="'hse' needs a configuration"):
        run_task(TASKS["HSE-id"], data, tmp_path, Budget(), progress=False)
    model = str(finished / "models" / "pbe" / "model.safetensors")
    with pytest.raises(ConfigurationError, match="not the calculation"):
        run_task(TASKS["PBE-id"], data, tmp_path, Budget(scf=1), model=model, progress=False)
    with pytest.raises(ConfigurationError, match="EXP-id compares"):
        run_task(TASKS["EXP-id"], data, tmp_path, Budget(), model=model, progress=False)


def test_gaps_of_materials_without_states_are_refused(finished, data, tmp_path):
    (data / GAPS).parent.mkdir(exist_ok=True)
    (data / GAPS).write_text("name,gap_ev,source\nelsewhere.chgcar,1.0,x\n")
    model = str(finished / "models" / "pbe" / "model.safetensors")
    with pytest.raises(ConfigurationError, match="none of the materials"):
        run_task(TASKS["EXP-id"], data, tmp_path, Budget(), model=model, progress=False)
    (data / GAPS).unlink()


def test_changed_training_data_are_noticed(finished, data, tmp_path):
    (tmp_path / "ecd").symlink_to(data)
    split = data / "pbe" / "split.json"
    content = split.read_text()
    changed = json.loads(content)
    changed["train"][0], changed["test"][0] = changed["test"][0], changed["train"][0]
    try:
        split.write_text(json.dumps(changed))
        with pytest.raises(ConfigurationError, match="which the split does not list"):
            run_task(
                TASKS["PBE-id"], data, finished, Budget(training=configuration()), progress=False
            )
    finally:
        split.write_text(content)


def test_what_is_missing_is_said_before_anything_is_trained(data, tmp_path, no_work):
    budget = Budget(training=configuration(), scf=1)
    for root, task, message in (
        (tmp_path, "PBE-id", "there is no such file"),
        (data, "EXP-id", "EXP-id compares"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            run_task(TASKS[task], root, tmp_path / "run", budget, progress=False)
    assert not (tmp_path / "run").exists()
    write_set(tmp_path / "pbe", {"a": sample(0, "PBE")}, ["a"], {"test": ["a"]}, states=False)
    with pytest.raises(ConfigurationError, match="no test structure has a state"):
        run_task(TASKS["PBE-id"], tmp_path, tmp_path / "run", budget, progress=False)
    with pytest.raises(ConfigurationError, match="nothing is listed for train"):
        run_task(TASKS["PBE-id"], tmp_path, tmp_path / "run", replace(budget, scf=0))
    (tmp_path / "pbe" / "a").unlink()
    with pytest.raises(DensityFileError, match=r"filelist\.txt lists it"):
        run_task(TASKS["PBE-id"], tmp_path, tmp_path / "run", replace(budget, scf=0))


def test_a_quarter_of_three_materials_is_none(tmp_path, no_work):
    names = ["a", "b", "c", "d"]
    samples = {name: sample(i, "PBE") for i, name in enumerate(names)}
    for folder in ("pbe", "hse"):
        splits = {"train": names[:3], "test": names[3:]}
        write_set(tmp_path / folder, samples, names, splits, states=False)
    budget = Budget(training=configuration())
    with pytest.raises(ConfigurationError, match="of 3, 25 % are none"):
        run_task(TASKS["PBE_HSE_tuning-id"], tmp_path, tmp_path / "run", budget)


def test_a_structure_that_cannot_be_measured_is_left_out_and_the_others_are_not(
    finished, data, tmp_path
):
    strange = sample(30, "PBE")
    strange.atoms.symbols = "HLi"
    names = ["new.chgcar", "20.chgcar", "cut.chgcar"]
    samples = {name: sample(20, "PBE") for name in names} | {"new.chgcar": strange}
    write_set(tmp_path / "gnome", samples, names, {}, states=False)
    with (tmp_path / "gnome" / "cut.chgcar").open("r+") as file:
        file.truncate(900)
    model = str(finished / "models" / "pbe" / "model.safetensors")
    arguments = ["benchmark", "ecd", "OOD-id", "--data", tmp_path, "-o", tmp_path / "run"]
    result = CliRunner().invoke(
        app, [str(a) for a in (*arguments, "--model", model)], env={"COLUMNS": "250"}
    )
    assert result.exit_code == 2
    assert "gnome, 1 (2 left out)" in result.output
    assert "2 structures are left out, new.chgcar" in result.output
    content = json.loads((tmp_path / "run" / "OOD-id.json").read_text())
    errors = {row["name"]: row.get("error", "") for row in content["structures"]}
    assert "Li" in errors["new.chgcar"]
    assert "cut.chgcar" in errors["cut.chgcar"]
    assert errors["20.chgcar"] == ""


def test_iterations_are_of_the_model_and_of_the_exact_state(finished, data, monkeypatch):
    def count(known: DensitySample, model: EACDensity | None) -> int:
        return 6 if model is None else 8 if model.card.name == "pbe" else 0

    monkeypatch.setattr(run.measure, "iterations", count)
    monkeypatch.setattr(run.measure, "calculation_of", lambda known: SimpleNamespace(iterations=10))
    budget = Budget(training=configuration(), tuning=configuration(seed=1), scf=1)
    content = run_task(TASKS["PBE-id"], data, finished, budget, progress=False)
    counted, *others = content["structures"]
    assert (counted["default"], counted["achieved"], counted["optimal"]) == (10, 8, 6)
    assert all("achieved" not in row for row in others)
    assert content["rows"][0]["achieved_ratio"]["mean"] == pytest.approx(0.8)
    assert content["rows"][0]["optimal_ratio"]["mean"] == pytest.approx(0.6)


def test_gaps_are_of_the_functional_that_a_model_predicts(finished, data, tmp_path, monkeypatch):
    def predicted(known: DensitySample, model: EACDensity) -> float:
        assert known.provenance.functional == model.card.provenance.functional
        return 2.0 if model.card.name == "pbe" else 5.0

    def converged(known: DensitySample) -> float:
        return {"PBE": 2.5, "HSE06": 4.0}[known.provenance.functional]

    monkeypatch.setattr(run.measure, "predicted_gap", predicted)
    monkeypatch.setattr(run.measure, "converged_gap", converged)
    # The second was trained on, the first was not.
    (data / GAPS).parent.mkdir(exist_ok=True)
    (data / GAPS).write_text("name,gap_ev,source\n1.chgcar,4.5,x\n6.chgcar,3,x\n")
    budget = Budget(training=configuration(), tuning=configuration(seed=1))
    model = str(finished / "models" / "pbe" / "model.safetensors")
    try:
        content = run_task(TASKS["EXP-id"], data, finished, budget, progress=False)
        other = run_task(TASKS["EXP-id"], data, tmp_path, Budget(), model=model, progress=False)
    finally:
        (data / GAPS).unlink()
    rows = {row["model"]: row for row in content["rows"]}
    assert [rows[name]["functional"] for name in ("pbe", "pbe+hse")] == ["PBE", "HSE06"]
    assert rows["pbe"]["mae_ev"]["mean"] == pytest.approx((2.5 + 1.0) / 2)
    assert rows["pbe"]["converged_mae_ev"]["mean"] == pytest.approx((2.0 + 0.5) / 2)
    assert rows["pbe+hse"]["mae_to_converged_ev"]["mean"] == pytest.approx(1.0)
    assert rows["pbe"]["unseen"] == 1
    assert other["rows"][0]["unseen"] is None  # what it was trained on is not known here
    assert "2 (–)" in (tmp_path / "EXP-id.md").read_text()


def test_gaps_in_other_functionals_are_refused(finished, data, tmp_path, monkeypatch):
    network, card = load_model(finished / "models" / "pbe" / "model.safetensors")
    card = replace(card, provenance=replace(card.provenance, functional="SCAN"))
    save_model(network, card, tmp_path / "scan.safetensors")
    (data / GAPS).parent.mkdir(exist_ok=True)
    (data / GAPS).write_text("name,gap_ev,source\n1.chgcar,1.0,x\n")
    try:
        with pytest.raises(ConfigurationError, match="densities of SCAN"):
            run_task(
                TASKS["EXP-id"], data, tmp_path, Budget(), model=str(tmp_path / "scan.safetensors")
            )
    finally:
        (data / GAPS).unlink()


def test_a_folder_of_results_is_of_one_folder_of_data(finished, data, tmp_path):
    (tmp_path / "others").symlink_to(data)
    with pytest.raises(ConfigurationError, match=r"not of .*others"):
        run_task(TASKS["PBE-id"], tmp_path / "others", finished, Budget(training=configuration()))


def test_the_command_prints_the_table(finished, data, tmp_path):
    model = finished / "models" / "pbe" / "model.safetensors"
    arguments = ["benchmark", "ecd", "MP-id", "--data", data, "-o", tmp_path, "--model", model]
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "MP-id" in result.output
    assert "ε_mae / %" in result.output
    result = CliRunner().invoke(app, [str(a) for a in (*arguments, "--json")])
    assert json.loads(result.stdout)["task"] == "MP-id"
    wrong = CliRunner().invoke(app, ["benchmark", "ecd", "XYZ", "--data", str(data)])
    assert wrong.exit_code == 2
    assert "no task of ECD" in wrong.output
