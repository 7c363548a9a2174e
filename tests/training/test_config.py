import shutil
from pathlib import Path

import pytest

from eac_model.errors import ConfigurationError
from eac_model.training import TrainingConfig
from eac_model.training.data import load_sources


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("data: {train: a.h5}\noptimisation: {stepss: 3}", r"optimisation\.stepss: there is no"),
        ("data: {train: a.h5}\noptimisation: {steps: 0}", r"optimisation\.steps: .*got 0"),
        ("data: {train: a.h5}\nnetwork: {l_max: -1}", r"network\.l_max: "),
        ("data: {train: a.h5}\nnetwork: {decoder: cubic}", r"network\.decoder: .*got 'cubic'"),
        ("data: {train: a.h5}\nnetwork: {point_cutoff: .inf}", r"network\.point_cutoff: "),
        (
            "data: {train: a.h5}\nnetwork: {linear_basis: {kind: natural-spline, size: 3}}",
            r"network\.linear_basis: .*size of 4 or more",
        ),
        ("data: {train: a.h5}\nloss: {kind: l3}", r"loss\.kind: "),
        ("data: {train: a.h5}\nprecision: 16", r"precision: "),
        ("data: {train: a.h5, validation: -1}", r"data\.validation: files, a number .* not -1"),
        ("data: {train: a.h5, validation: true}", r"data\.validation: files, .* not True"),
        ("data: {train: a.h5, validation: 1.0}", r"data\.validation: files, .* not 1\.0"),
        ("data: {train: a.h5}\nnetwork: {interactions: many}", r"network\.interactions: "),
        ("data: {train: a.h5}\nnetwork: {onsite: from_data}", r"network\.onsite: .*'from_data'"),
        ("data: {train: a.h5}\n? [a, b]\n: 1", r"(?s)this is not YAML: .*unhashable"),
        ("data: {{ x }}", r"(?s)this is not YAML: .*unhashable"),
        ("data: {train: []}", r"data\.train: "),
        ("data: {train: a.h5, sampling: {uniform: 0}}", r"data\.sampling: .*zero"),
        ("seed: 1", r"data: Field required"),
        (
            "data: {train: a.h5}\noptimisation: {steps: 50, warmup_steps: 51}",
            r"optimisation: .*51 steps, the run has 50",
        ),
        (
            "data: {train: a.h5}\noptimisation: {decay: [{final: 1.0}, {final: 0.1, steps: 5}]}",
            r"optimisation: decay: only the last stage",
        ),
    ],
)
def test_a_wrong_key_is_named_with_its_file(tmp_path, text, key):
    path = write(tmp_path, text)
    with pytest.raises(ConfigurationError, match=key) as caught:
        TrainingConfig.from_yaml(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["data: [", "- a\n- b", "just words", ""])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    with pytest.raises(ConfigurationError, match=r"run\.yaml"):
        TrainingConfig.from_yaml(write(tmp_path, text))


def test_the_precision_may_be_a_number(tmp_path):
    path = write(tmp_path, "data: {train: a.h5}\nprecision: 64")
    assert TrainingConfig.from_yaml(path).precision == "64"


def test_brackets_in_names_of_folders_are_no_pattern(tmp_path, frames):
    folder = tmp_path / "run[1]"
    folder.mkdir()
    for name in ("a.h5", "b[2].h5"):
        shutil.copy(frames / "samples" / "00000000.h5", folder / name)
    for pattern, count in (("a.h5", 1), ("b[2].h5", 1), ("*.h5", 2)):
        config = TrainingConfig.from_yaml(write(folder, f"data: {{train: '{pattern}'}}"))
        assert len(load_sources(config)[0]) == count


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"absent\.yaml: cannot be read"):
        TrainingConfig.from_yaml(tmp_path / "absent.yaml")


def test_paths_are_relative_to_the_configuration_file(tmp_path, monkeypatch):
    (tmp_path / "start.safetensors").touch()
    path = write(
        tmp_path,
        "data: {train: [frames/*.h5, /abs/x.h5], validation: v.h5}\n"
        "initialize_from: start.safetensors",
    )
    monkeypatch.chdir("/")
    config = TrainingConfig.from_yaml(path)
    assert config.data.train == (f"{tmp_path}/frames/*.h5", "/abs/x.h5")
    assert config.data.validation == (f"{tmp_path}/v.h5",)
    assert config.initialize_from == f"{tmp_path}/start.safetensors"


def test_the_name_of_a_bundled_model_is_no_path(tmp_path):
    path = write(tmp_path, "data: {train: a.h5}\ninitialize_from: water-scan")
    assert TrainingConfig.from_yaml(path).initialize_from == "water-scan"


def test_floats_may_be_written_without_a_dot(tmp_path):
    path = write(tmp_path, "data: {train: a.h5}\noptimisation: {learning_rate: 5e-3}")
    assert TrainingConfig.from_yaml(path).optimisation.learning_rate == 5e-3


def test_a_written_configuration_reads_back_the_same(tmp_path):
    original = TrainingConfig.from_mapping(
        {
            "data": {"train": "/a/b.h5", "validation": 0.25, "sampling": {"core": 2}},
            "network": {"elements": [1, 8], "spin": True},
            "optimisation": {"decay": [{"final": 1e-3, "steps": 10}, {"final": 1e-5}]},
            "card": {"valence_electrons": {"O": 6}, "provenance": {"functional": "PBE"}},
        }
    )
    assert TrainingConfig.from_yaml(write(tmp_path, original.to_yaml())) == original


def test_every_field_is_documented():
    def undocumented(model, prefix=""):
        for name, field in model.model_fields.items():
            if not field.description:
                yield prefix + name
            if hasattr(field.annotation, "model_fields"):
                yield from undocumented(field.annotation, f"{prefix}{name}.")

    assert list(undocumented(TrainingConfig)) == []


def test_the_recipes_are_valid():
    recipes = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
    assert recipes
    for recipe in recipes:
        TrainingConfig.from_yaml(recipe)
