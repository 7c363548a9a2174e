import csv
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock
from safetensors.torch import load_file

from eac_model.checkpoint import load_model, save_model
from eac_model.data.sample import DensitySample, Provenance
from eac_model.engine.kernels import fingerprint
from eac_model.errors import ConfigurationError, StructureError
from eac_model.network import EACNet, NetworkConfig
from eac_model.training import TrainingConfig, train
from eac_model.training.module import TrainingModule

from .synthetic import PBE, config, grid, scattered, settings, store_of

LAST = Path("checkpoints") / "last.ckpt"
TRAIN = """
import sys
import torch
from eac_model.network import EACNet, NetworkConfig
from eac_model.training import TrainingConfig, train
from eac_model.training.module import TrainingModule
torch.set_num_threads(1)
{prelude}
train(TrainingConfig.from_yaml(sys.argv[1]), sys.argv[2], resume=True)
"""


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def state(folder: Path):
    return torch.load(folder / LAST, weights_only=True)


def in_other_process(settings_: dict, folder: Path, prelude: str = "") -> subprocess.Popen:
    """Start a run that resumes whatever there is."""
    folder.mkdir(exist_ok=True)
    recipe = folder.with_suffix(".yaml")
    recipe.write_text(yaml.safe_dump(settings_))
    script = TRAIN.format(prelude=prelude)
    return subprocess.Popen(
        [sys.executable, "-c", script, str(recipe), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_run_leaves_its_files_and_nothing_else(finished):
    found = {str(p.relative_to(finished)) for p in finished.rglob("*") if p.is_file()}
    assert found == {
        "config.yaml",
        "metrics.csv",
        "learning_curve.png",
        "model.safetensors",
        "checkpoints/last.ckpt",
    }
    assert (finished / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_log_holds_a_row_for_every_interval_and_validation(finished):
    found = rows(finished)
    assert [int(row["step"]) for row in found] == [2, 4, 5, 6, 8, 10, 12]
    validated = [int(row["step"]) for row in found if row["validation_nmae_percent"]]
    assert validated == [5, 10, 12]
    assert all(float(row["train_nmae_percent"]) > 0 for row in found)
    # For this loss the two columns differ by the factor 100 and by how steps are averaged.
    assert float(found[0]["train_loss"]) == pytest.approx(
        float(found[0]["train_nmae_percent"]) / 100, rel=0.2
    )


def test_the_written_configuration_names_the_elements_and_can_be_trained_again(finished, frames):
    again = TrainingConfig.from_yaml(finished / "config.yaml")
    assert again.network.elements == (1, 8)
    assert train(again, finished, resume=True) == finished / "model.safetensors"


def test_the_error_on_left_out_structures_falls(tmp_path, frames):
    run = config(
        frames,
        optimisation={"steps": 150, "learning_rate": 0.03, "ema_decay": 0.9},
        validate_every=150,
        log_every=10,
        checkpoint_every=150,
        data={"points_per_structure": None},
    )
    train(run, tmp_path / "run")
    assert float(rows(tmp_path / "run")[0]["train_nmae_percent"]) > 20
    assert float(rows(tmp_path / "run")[-1]["validation_nmae_percent"]) < 10


def test_the_superposition_is_fitted_before_training(tmp_path, frames):
    # Superposed Gaussians of two widths are what the tables can represent.
    short = {"steps": 2, "learning_rate": 1e-5}  # what remains is the fit
    run = config(frames, network={"superposition": True}, optimisation=short | {"decay": []})
    network, _ = load_model(train(run, tmp_path / "run"))
    assert network.superposition.table.abs().max() > 0
    assert float(rows(tmp_path / "run")[-1]["validation_nmae_percent"]) < 10


def test_mixed_precision_learns_as_well(tmp_path, frames):
    change = {"optimisation": {"steps": 40}, "validate_every": 40, "accelerator": "cpu"}
    errors = []
    for precision in ("32", "bf16-mixed"):
        train(config(frames, precision=precision, **change), tmp_path / precision)
        errors.append(float(rows(tmp_path / precision)[-1]["validation_nmae_percent"]))
    assert errors[1] == pytest.approx(errors[0], rel=0.2)


def test_several_processes_share_a_run_and_the_structures_left_out(tmp_path, frames):
    recipe = tmp_path / "run.yaml"
    change = {"accelerator": "cpu", "devices": 2, "data": {"validation": 3}}
    recipe.write_text(yaml.safe_dump(settings(frames, **change)))
    script = tmp_path / "run.py"  # the second process starts this file again
    script.write_text(
        "import sys\nfrom eac_model.training import TrainingConfig, train\n"
        "train(TrainingConfig.from_yaml(sys.argv[1]), sys.argv[2])\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script), str(recipe), str(tmp_path / "run")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # what hangs dies with its children
    )
    try:
        _, errors = process.communicate(timeout=180)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, errors
    model = tmp_path / "run" / "model.safetensors"
    _, card = load_model(model)
    # A step too small to change anything, and the validation of one process behind it.
    optimisation = {"steps": 1, "learning_rate": 1e-12, "warmup_steps": 0}
    change = {"data": {"validation": 3}, "optimisation": optimisation, "network": {}}
    again = settings(frames, initialize_from=str(model), **change)
    del again["network"]
    train(TrainingConfig.from_mapping(again), tmp_path / "alone")
    alone = float(rows(tmp_path / "alone")[-1]["validation_nmae_percent"])
    assert alone == pytest.approx(card.training["validation_nmae_percent"], rel=1e-4)


def test_two_runs_with_one_seed_are_equal_and_another_seed_differs(tmp_path, frames, finished):
    card = {"name": "toy", "valence_electrons": {"O": 6}}
    same = load_file(train(config(frames, card=card), tmp_path / "same"))
    other = load_file(train(config(frames, card=card, seed=1), tmp_path / "other"))
    first = load_file(finished / "model.safetensors")
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_the_model_is_the_averaged_network_of_the_best_validation(finished):
    network, card = load_model(finished / "model.safetensors")
    errors = {
        int(row["step"]): float(row["validation_nmae_percent"])
        for row in rows(finished)
        if row["validation_nmae_percent"]
    }
    best = min(errors, key=errors.get)
    assert card.training["steps"] == best
    assert card.training["validation_nmae_percent"] == pytest.approx(errors[best], rel=1e-6)
    if best == 12:
        averaged = state(finished)["state_dict"]
        trained = state(finished)["current_model_state"]
        weights = network.state_dict()
        weights = {k: v for k, v in weights.items() if not k.startswith("expected_error.")}
        assert all(torch.equal(weights[k], averaged[f"network.{k}"]) for k in weights)
        assert not torch.equal(averaged["network.embed.weight"], trained["network.embed.weight"])


def test_the_card_says_what_the_model_learned_from(finished):
    _, card = load_model(finished / "model.safetensors")
    assert card.name == "toy"
    assert card.elements == ("H", "O")
    assert card.provenance == PBE
    assert card.valence_electrons == {"O": 6.0}
    assert card.training["structures"] == 3
    assert card.training["validation_structures"] == 1
    assert card.training["points"] == 360
    assert card.training["seconds"] > 0


def test_checkpoints_hold_nothing_that_has_to_be_unpickled(finished):
    found = state(finished)
    assert found["global_step"] == 12
    for key in ("optimizer_states", "lr_schedulers", "averaging_state", "callbacks"):
        assert found[key]


def test_the_averaged_network_keeps_every_tensor_of_the_network():
    # e3nn's generated code gains buffers when it is copied, from l_max = 3 on.
    shape = NetworkConfig(elements=(1,), l_max=3, channels=2, interactions=2, superposition=True)
    run = TrainingConfig.from_mapping({"data": {"train": "a.h5"}})
    module = TrainingModule(EACNet(shape), run, 0)
    copied = deepcopy(module)
    for kind in ("named_parameters", "named_buffers"):
        pairs = zip(getattr(module, kind)(), getattr(copied, kind)(), strict=True)
        for (name, value), (name_of_copy, copy) in pairs:
            assert name == name_of_copy
            assert torch.equal(value, copy)
            assert value.numel() == 0 or value.data_ptr() != copy.data_ptr()


def test_a_run_without_validation_saves_the_last_average(tmp_path, frames):
    folder = tmp_path / "run"
    path = train(config(frames, data={"validation": 0}), folder)
    network, card = load_model(path)
    averaged = state(folder)["state_dict"]
    assert all(torch.equal(v, averaged[f"network.{k}"]) for k, v in network.state_dict().items())
    assert card.training["steps"] == 12
    assert "validation_nmae_percent" not in card.training


def test_without_averaging_the_weights_themselves_are_saved(tmp_path, frames):
    folder = tmp_path / "run"
    run = config(frames, data={"validation": 0}, optimisation={"ema_decay": None})
    network, _ = load_model(train(run, folder))
    trained = state(folder)["state_dict"]
    assert all(torch.equal(v, trained[f"network.{k}"]) for k, v in network.state_dict().items())


@pytest.mark.parametrize("validate_every", [7, 1000])
def test_a_killed_run_resumes_to_the_same_weights(tmp_path, frames, validate_every):
    run = settings(
        frames,
        optimisation={"steps": 80},
        validate_every=validate_every,
        checkpoint_every=3,
        log_every=4,
    )
    whole = tmp_path / "whole"
    train(TrainingConfig.from_mapping(run), whole)

    killed = tmp_path / "killed"
    process = in_other_process(run, killed)
    try:
        deadline = time.monotonic() + 120
        while not (killed / LAST).exists():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 0 < state(killed)["global_step"] < 80, "the run was over before it was killed"
    train(TrainingConfig.from_mapping(run), killed, resume=True)

    expected, found = state(whole), state(killed)
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(v, found[key][name]) for name, v in expected[key].items())
    assert found["callbacks"]["Recorder"]["best"] == expected["callbacks"]["Recorder"]["best"]
    models = [load_file(folder / "model.safetensors") for folder in (whole, killed)]
    assert all(torch.equal(v, models[1][name]) for name, v in models[0].items())
    logs = [[{**row, "seconds": ""} for row in rows(folder)] for folder in (whole, killed)]
    assert logs[0] == logs[1]


def test_resuming_without_a_checkpoint_starts_from_the_beginning(tmp_path, frames):
    path = train(config(frames, optimisation={"steps": 3}), tmp_path / "new", resume=True)
    assert path.exists()


def test_a_folder_with_a_run_is_not_overwritten(finished, frames):
    with pytest.raises(ConfigurationError, match="already holds a run"):
        train(config(frames), finished)


def test_a_model_without_its_checkpoint_is_not_overwritten(tmp_path, finished, frames):
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    with pytest.raises(ConfigurationError, match=r"move model\.safetensors away"):
        train(config(frames, seed=5), tmp_path / "run")
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before


def test_a_complete_run_whose_model_is_gone_says_so(tmp_path, finished, frames):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").unlink()
    with pytest.raises(ConfigurationError, match="is gone"):
        train(config(frames), tmp_path / "run", resume=True)


@pytest.mark.parametrize("kept", [0, 5000, 20000, None])
def test_a_damaged_checkpoint_is_named(tmp_path, finished, frames, kept):
    shutil.copytree(finished, tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    if kept is None:
        torch.save({"weights": torch.zeros(3)}, last)
    else:
        last.write_bytes(last.read_bytes()[:kept])
    with pytest.raises(ConfigurationError, match=r"last\.ckpt is damaged"):
        train(config(frames), tmp_path / "run", resume=True)


def test_hardware_that_is_not_there_is_named(tmp_path, frames):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigurationError, match="accelerator: 'gpu'"):
        train(config(frames, accelerator="gpu"), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"optimisation": {"learning_rate": 0.5}}, r"optimisation\.learning_rate: .*0\.02.*0\.5"),
        ({"network": {"channels": 5}}, r"network\.channels: "),
        ({"seed": 7}, r"seed: "),
        ({"optimisation": {"steps": 24}}, r"optimisation\.steps: "),
    ],
)
def test_a_run_is_not_resumed_with_another_configuration(finished, frames, changes, key):
    with pytest.raises(ConfigurationError, match=key):
        train(config(frames, **changes), finished, resume=True)


def test_a_run_is_not_resumed_with_other_structures(tmp_path):
    data = store_of(tmp_path / "s.store", [scattered(0), scattered(1)])
    run = config(data, data={"validation": 0}, optimisation={"steps": 3})
    train(run, tmp_path / "run")
    (data / "samples" / "00000001.h5").unlink()
    with pytest.raises(ConfigurationError, match=r"data\.train: the files hold other structures"):
        train(run, tmp_path / "run", resume=True)


def test_keys_that_do_not_decide_the_weights_may_change_on_resuming(finished, frames):
    train(config(frames, checkpoint_every=4, data={"cache_megabytes": 1}), finished, resume=True)


def test_a_card_that_changed_is_that_of_the_resumed_model(finished, frames, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    before, card = load_model(folder / "model.safetensors")
    train(config(frames, card={"name": "renamed", "licence": "MIT"}), folder, resume=True)
    after, renewed = load_model(folder / "model.safetensors")
    assert (renewed.name, renewed.licence) == ("renamed", "MIT")
    assert renewed.training == card.training
    assert fingerprint(after) == fingerprint(before)


def test_fine_tuning_starts_from_the_weights_of_a_model(tmp_path, frames, finished):
    start = finished / "model.safetensors"
    run = config(
        frames,
        initialize_from=str(start),
        optimisation={"steps": 1, "learning_rate": 1e-12, "warmup_steps": 0, "decay": []},
    )
    tuned = load_file(train(run, tmp_path / "run"))
    before = load_file(start)
    for key, value in before.items():
        assert torch.allclose(tuned[key], value, atol=1e-9)
    assert rows(tmp_path / "run")[-1]["step"] == "1"


def test_fine_tuning_takes_the_network_of_the_model(tmp_path, frames, finished):
    run = settings(frames, initialize_from=str(finished / "model.safetensors"))
    run["optimisation"]["steps"] = 2
    del run["network"]
    network, _ = load_model(train(TrainingConfig.from_mapping(run), tmp_path / "run"))
    assert network.config.channels == 4


def test_fine_tuning_runs_in_the_precision_asked_for(tmp_path, frames, finished):
    network, card = load_model(finished / "model.safetensors", dtype=torch.float64)
    save_model(network, card, tmp_path / "double.safetensors")
    run = config(
        frames,
        initialize_from=str(tmp_path / "double.safetensors"),
        optimisation={"steps": 1, "learning_rate": 1e-12, "warmup_steps": 0, "decay": []},
    )
    tuned, _ = load_model(train(run, tmp_path / "run"))
    assert tuned.dtype == torch.float32


def test_fine_tuning_on_another_code_fits_its_free_atoms(tmp_path, frames, finished):
    network, card = load_model(finished / "model.safetensors")
    network = EACNet(network.config.model_copy(update={"superposition": True}))
    changes = {"optimisation": {"steps": 1, "learning_rate": 1e-12, "warmup_steps": 0, "decay": []}}
    tables = []
    for code in ("GPAW", card.provenance.code):
        origin = replace(card.provenance, code=code)
        save_model(network, replace(card, provenance=origin), tmp_path / f"{code}.safetensors")
        run = config(
            frames,
            initialize_from=str(tmp_path / f"{code}.safetensors"),
            network={"superposition": True},
            **changes,
        )
        tables.append(load_model(train(run, tmp_path / code))[0].superposition.table)
    assert tables[0].abs().max() > 0
    assert torch.equal(tables[1], network.superposition.table)


def test_fine_tuning_another_network_is_refused(tmp_path, frames, finished):
    model = str(finished / "model.safetensors")
    with pytest.raises(ConfigurationError, match=r"network\.channels: 8 .* has 4"):
        train(config(frames, initialize_from=model, network={"channels": 8}), tmp_path / "run")


def test_elements_the_network_does_not_know_are_refused(tmp_path, frames):
    with pytest.raises(ConfigurationError, match=r"network\.elements: the data hold O.*only H"):
        train(config(frames, network={"elements": [1]}), tmp_path / "run")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("functional", "SCAN"),
        ("code", "GPAW"),
        ("density_kind", "pseudo"),
        ("paw_datasets", ("PAW_H_h", "PAW_O")),
    ],
)
def test_data_of_several_origins_are_refused_unless_the_card_says_what_they_are(
    tmp_path, field, value
):
    changed = {"code": "VASP", "functional": "PBE", "density_kind": "valence"}
    changed["paw_datasets"] = PBE.paw_datasets
    other = Provenance(**{**changed, field: value})
    data = store_of(tmp_path / "s.store", [scattered(0), scattered(1, provenance=other)])
    run = {"data": {"validation": 0}, "optimisation": {"steps": 2}}
    with pytest.raises(ConfigurationError, match=rf"differ in {field}.*card\.provenance\.{field}"):
        train(config(data, **run), tmp_path / "run")
    meant = config(data, **run, card={"provenance": {field: value}})
    _, card = load_model(train(meant, tmp_path / "run"))
    assert getattr(card.provenance, field) == value


def test_full_grids_and_spin_are_trained_on(tmp_path):
    samples = []
    for seed in (0, 1):
        plain = grid(seed)
        atoms = plain.atoms.copy()
        atoms.set_initial_magnetic_moments([1.0, 0.0, 0.0])
        spin = 0.2 * plain.density
        samples.append(DensitySample(atoms, plain.density, spin_density=spin, provenance=PBE))
    data = store_of(tmp_path / "s.store", samples)
    run = config(
        data,
        data={"sampling": {"uniform": 1, "core": 1}, "validation_points": 300},
        network={"spin": True},
        optimisation={"steps": 60},
        validate_every=20,
        log_every=20,
    )
    train(run, tmp_path / "run")
    for key in ("validation_nmae_percent", "validation_spin_nmae_percent"):
        errors = [float(row[key]) for row in rows(tmp_path / "run")]
        assert errors[-1] < errors[0]


@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "muon"])
def test_other_optimizers_train_and_resume(tmp_path, frames, optimizer):
    if optimizer != "adamw":
        pytest.importorskip("pytorch_optimizer")
    changes = {"data": {"validation": 0}, "checkpoint_every": 4}
    run = {**changes, "optimisation": {"steps": 6, "optimizer": optimizer, "weight_decay": 0.01}}
    train(config(frames, **run), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        _train_until(5, config(frames, **run), tmp_path / "cut")
    train(config(frames, **run), tmp_path / "cut", resume=True)
    whole, cut = (state(tmp_path / name)["state_dict"] for name in ("whole", "cut"))
    assert all(torch.equal(v, cut[k]) for k, v in whole.items())


def _train_until(step: int, run: TrainingConfig, folder: Path) -> None:
    """Train, but die of an error that nothing catches at some step."""
    from eac_model.training.data import TrainingBatches

    original = TrainingBatches.__getitem__

    def broken(self, item):
        if item == step:
            raise _Cut
        return original(self, item)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingBatches, "__getitem__", broken)
        try:
            train(run, folder)
        except _Cut:
            raise KeyboardInterrupt from None


class _Cut(Exception):
    pass


def test_double_precision_is_saved_as_such(tmp_path, frames):
    run = config(frames, precision="64", optimisation={"steps": 2}, data={"validation": 0})
    network, _ = load_model(train(run, tmp_path / "run"))
    assert network.dtype == torch.float64


def test_a_diverged_run_stops_and_says_so(tmp_path, frames):
    run = config(
        frames,
        optimisation={"learning_rate": 1e30, "warmup_steps": 0, "gradient_clip": None, "decay": []},
        loss={"kind": "l2"},
    )
    with pytest.raises(ConfigurationError, match="no finite number any more at step"):
        train(run, tmp_path / "run")


def test_a_folder_that_cannot_be_made_is_named(tmp_path, frames):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"file/run.*could not be .*written"):
        train(config(frames), tmp_path / "file" / "run")


def test_a_full_disk_stops_the_run_and_leaves_no_half_written_file(tmp_path, frames):
    # A limit on the size of files fails like a full disk: in the middle of a write.
    limit = 30_000
    prelude = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    folder = tmp_path / "run"
    process = in_other_process(settings(frames), folder, prelude)
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "ConfigurationError: The run in" in errors
    assert "could not be read or written" in errors
    assert not (folder / LAST).exists()
    assert not list(folder.rglob(".*"))
    assert (folder / "config.yaml").exists()
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != limit


def test_the_random_numbers_of_the_caller_are_left_alone(tmp_path, frames):
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    expected = torch.rand(3), np.random.random(3)  # noqa: NPY002
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    train(config(frames, optimisation={"steps": 2}), tmp_path / "run")
    assert torch.equal(torch.rand(3), expected[0])
    assert np.array_equal(np.random.random(3), expected[1])  # noqa: NPY002


def test_a_few_steps_on_real_frames_beat_the_superposition_on_the_frame_left_out(
    tmp_path, water_frames
):
    run = settings(
        water_frames[0],
        data={"train": [str(frame) for frame in water_frames[:2]], "points_per_structure": 500},
        network={
            "superposition": True,
            "l_max": 2,
            "channels": 8,
            "atom_cutoff": 3.0,
            "point_cutoff": 3.0,
            "linear_basis": {"kind": "natural-spline", "size": 32, "cutoff_power": 3},
        },
        optimisation={"steps": 100, "learning_rate": 0.01, "ema_decay": 0.9},
        log_every=1,
        validate_every=100,
    )

    train(TrainingConfig.from_mapping(run), tmp_path / "run")
    found = rows(tmp_path / "run")
    untrained = float(found[0]["train_nmae_percent"])
    assert untrained < 15
    assert float(found[-1]["validation_nmae_percent"]) < 0.85 * untrained


def test_left_out_structures_of_another_kind_are_refused(tmp_path):
    other = replace(PBE, density_kind="all-electron")
    data = store_of(tmp_path / "s.store", [scattered(0)])
    left_out = store_of(tmp_path / "v.store", [scattered(1, provenance=other)])
    with pytest.raises(ConfigurationError, match="differ in density_kind"):
        train(config(data, data={"validation": [str(left_out)]}), tmp_path / "run")


def test_a_sample_of_the_store_that_is_trained_on_is_not_left_out_by_its_file(tmp_path):
    data = store_of(tmp_path / "s.store", [scattered(0), scattered(1)])
    inside = data / "samples" / "00000001.h5"
    with pytest.raises(ConfigurationError, match=r"00000001\.h5 lies in the store"):
        train(config(data, data={"validation": [str(inside)]}), tmp_path / "run")
    with pytest.raises(ConfigurationError, match=r"00000001\.h5 lies in the store"):
        train(config(inside, data={"validation": [str(data)]}), tmp_path / "run")


def test_structures_to_leave_out_have_to_be_there_and_to_hold_a_density(tmp_path, frames):
    empty = store_of(tmp_path / "empty.store", [])
    with pytest.raises(ConfigurationError, match=r"no structure in .*empty\.store"):
        train(config(frames, data={"validation": [str(empty)]}), tmp_path / "run")
    sample = scattered(0)
    nothing = replace(sample, density=np.zeros_like(sample.density))
    void = store_of(tmp_path / "void.store", [nothing])
    with pytest.raises(ConfigurationError, match="structure 0 of those left out"):
        train(config(frames, data={"validation": [str(void)]}), tmp_path / "run")


def test_a_run_is_not_resumed_with_densities_of_another_functional(tmp_path):
    data = store_of(tmp_path / "s.store", [scattered(0), scattered(1)])
    run = config(data, data={"validation": 0}, optimisation={"steps": 3})
    train(run, tmp_path / "run")
    shutil.rmtree(data)
    other = replace(PBE, functional="SCAN")
    store_of(data, [scattered(seed, provenance=other) for seed in (0, 1)])
    with pytest.raises(ConfigurationError, match=r"data\.train: the files hold other structures"):
        train(run, tmp_path / "run", resume=True)


def test_two_runs_in_one_folder_are_refused(tmp_path, frames):
    (tmp_path / "run").mkdir()
    with (
        FileLock(tmp_path / "run" / ".lock"),
        pytest.raises(ConfigurationError, match="another run is working"),
    ):
        train(config(frames), tmp_path / "run", resume=True)


def test_weights_that_are_no_numbers_replace_no_model(tmp_path, frames):
    run = config(
        frames,
        data={"validation": 0},
        optimisation={"learning_rate": 1e30, "warmup_steps": 0, "gradient_clip": None, "decay": []},
        loss={"kind": "l2"},
        log_every=1000,
        checkpoint_every=1,
    )
    with pytest.raises(ConfigurationError, match="no finite number any more at step"):
        train(run, tmp_path / "run")
    network, _ = load_model(tmp_path / "run" / "model.safetensors")
    assert all(weights.isfinite().all() for weights in network.parameters())


@pytest.mark.parametrize("spin", [False, True])
def test_moments_of_three_components_are_ignored_without_spin_and_else_refused(tmp_path, spin):
    samples = [replace(scattered(seed), spin_density=np.zeros(120)) for seed in range(2)]
    samples[0].atoms.set_initial_magnetic_moments(np.ones((3, 3)))
    data = store_of(tmp_path / "s.store", samples)
    run = config(data, data={"validation": 0}, network={"spin": spin}, optimisation={"steps": 2})
    if spin:
        with pytest.raises(StructureError, match="three components"):
            train(run, tmp_path / "run")
    else:
        train(run, tmp_path / "run")
