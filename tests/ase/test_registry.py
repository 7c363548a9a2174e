"""Which model is meant, where none is named, and which would do, where one does not."""

import shutil

import pytest
from ase import Atoms
from ase.build import bulk

from eac_ase import EACDensity
from eac_model import registry
from eac_model.errors import ModelFileError, UnknownElementError
from eac_model.registry import bundled_models, default_model, find_model, models_knowing


@pytest.fixture
def models(tmp_path, monkeypatch, single_model_file):
    """A folder of bundled models: two copies of the tiny one."""
    monkeypatch.setattr(registry, "MODELS", tmp_path)
    for name in ("water-scan", "another"):
        shutil.copy(single_model_file, tmp_path / f"{name}.safetensors")
    return tmp_path


def test_without_a_general_model_that_of_water_is_the_default(models):
    assert bundled_models() == ["another", "water-scan"]
    assert default_model() == "water-scan"


def test_a_bundled_general_model_is_the_default(models, spin_model_file):
    shutil.copy(spin_model_file, models / "eac-pbe.safetensors")
    assert default_model() == "eac-pbe"
    assert EACDensity(device="cpu").network.config.spin  # as that file's, not water's


def test_models_are_found_by_what_they_know(models):
    assert models_knowing(["O", "H", "O"]) == ["another", "water-scan"]
    assert models_knowing(["O", "Si"]) == []


def test_an_unknown_element_names_the_models_that_know_it(models, monkeypatch):
    monkeypatch.setattr("eac_ase.calculator.models_knowing", lambda symbols: sorted(set(symbols)))
    calculator = EACDensity(device="cpu")
    silicon = bulk("SiC", "zincblende", 4.36)
    for call in (calculator.get_density_grid, calculator.get_charges):
        with pytest.raises(UnknownElementError, match=r"know C, Si; .* structure: C, Si\."):
            call(silicon)
    with pytest.raises(UnknownElementError, match=r"structure: Ne\."):
        calculator.evaluate([[0.0, 0, 0]], Atoms("Ne"))


def test_no_model_for_an_element_is_said_too(models):
    with pytest.raises(UnknownElementError, match=r"all elements of this structure: none\."):
        EACDensity(device="cpu").evaluate([[0.0, 0, 0]], Atoms("Ne"))


def test_a_name_that_is_no_model_lists_those_there_are(models):
    with pytest.raises(ModelFileError, match="another, water-scan"):
        find_model("eac-pbe")
