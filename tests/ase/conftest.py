"""Small untrained models: every promise of the calculator but accuracy can be checked on them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.io import write
from click.testing import Result
from typer.testing import CliRunner

from eac_ase import EACDensity
from eac_ase.cli import app
from eac_model.checkpoint import ModelCard, save_model
from eac_model.data.sample import DensitySample, Provenance
from eac_model.network import EACNet, NetworkConfig

VALENCES = {"H": 1.0, "O": 6.0}


def run(*arguments: object, code: int = 0) -> Result:
    """``eac`` with these arguments, ending with this code."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def structure(tmp_path: Path, crystal: Atoms) -> Path:
    write(tmp_path / "POSCAR", crystal, format="vasp")
    return tmp_path / "POSCAR"


def gaussian_water() -> DensitySample:
    """Six and one electrons in Gaussians on the atoms of a molecule."""
    atoms = molecule("H2O")
    atoms.center(vacuum=2.5)
    shape = (30, 34, 32)
    empty = DensitySample(atoms, np.zeros(shape))
    squares = ((empty.grid_points()[:, None] - atoms.positions) ** 2).sum(axis=-1)
    values = np.exp(-3 * squares) @ np.array([6, 1, 1]) * (3 / np.pi) ** 1.5
    return DensitySample(atoms, values.reshape(shape))


def tiny_network(**changes: object) -> EACNet:
    """Superposed atoms that make sense, and a little untrained deformation."""
    settings = {
        "elements": (1, 8),
        "l_max": 1,
        "channels": 4,
        "interactions": 1,
        "atom_radial_hidden": (8,),
        "atom_cutoff": 3.0,
        "point_cutoff": 2.5,
        "superposition": True,
        **changes,
    }
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = EACNet(NetworkConfig(**settings)).double()
    network.fit_superposition([gaussian_water()])
    with torch.no_grad():
        network.linear.functions *= 20
    return network


def write_model(path: Path, network: EACNet, valences: dict[str, float] | None = None) -> Path:
    card = ModelCard(
        name=path.stem,
        summary="untrained, for tests",
        elements=("H", "O"),
        provenance=Provenance(code="VASP", functional="SCAN", density_kind="valence"),
        valence_electrons=VALENCES if valences is None else valences,
    )
    save_model(network, card, path)
    return path


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny.safetensors", tiny_network())


@pytest.fixture(scope="session")
def single_model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model in single precision, as training leaves models."""
    folder = tmp_path_factory.mktemp("models")
    return write_model(folder / "single.safetensors", tiny_network().float())


@pytest.fixture(scope="session")
def spin_model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    return write_model(folder / "spin.safetensors", tiny_network(spin=True))


@pytest.fixture(scope="session")
def model_file_of_unknown_oxygen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The card does not say how many electrons of oxygen the density counts."""
    folder = tmp_path_factory.mktemp("models")
    return write_model(folder / "bare.safetensors", tiny_network(), {"H": 1.0})


@pytest.fixture
def calculator(model_file: Path) -> EACDensity:
    return EACDensity(model_file, device="cpu")


@pytest.fixture
def spin_calculator(spin_model_file: Path) -> EACDensity:
    return EACDensity(spin_model_file, device="cpu")


@pytest.fixture
def water() -> Atoms:
    """One molecule without a cell."""
    return molecule("H2O")


@pytest.fixture
def crystal() -> Atoms:
    """Two molecules in a small skewed cell."""
    atoms = molecule("H2O") + molecule("H2O")
    atoms.rotate(50, (1, 2, 3))
    atoms.positions[3:] += (1.9, 1.7, 1.6)
    atoms.set_cell([[3.6, 0, 0], [0.4, 3.8, 0], [0.3, -0.5, 3.9]])
    atoms.pbc = True
    atoms.wrap()
    return atoms
