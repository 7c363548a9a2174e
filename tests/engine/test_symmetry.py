"""Equivalent grid points of crystals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from eac_model.engine import encode, evaluate_grid
from eac_model.engine.symmetry import unique_points
from eac_model.imports import import_model
from eac_model.network import EACNet, NetworkConfig

CHARGE3NET = Path(__file__).parents[1] / "imports" / "data" / "charge3net_spin.pt"


def network(elements, **chosen):
    torch.manual_seed(0)
    config = {"elements": elements, "l_max": 3, "channels": 4, "interactions": 1, "spin": True}
    model = EACNet(NetworkConfig(**config | chosen)).eval()
    with torch.no_grad():
        if model.linear is not None:
            model.linear.functions.mul_(1000)
    return model


def antiferromagnet():
    atoms = bulk("Fe", "bcc", 2.87, cubic=True)
    atoms.set_initial_magnetic_moments([2.0, -2.0])
    return atoms


CRYSTALS = {
    "diamond": (bulk("Si", "diamond", 5.43), (12, 12, 12), 48),
    "cubic cell": (bulk("Si", "diamond", 5.43, cubic=True), (12, 12, 12), 192),
    "quarters of the cell off the grid": (bulk("Si", "diamond", 5.43), (9, 9, 9), 24),
    "hcp": (bulk("Mg", "hcp", 3.2, c=5.2), (6, 6, 8), 24),
    "unequal axes": (bulk("Cu", "fcc", 3.6, cubic=True), (8, 8, 6), 64),
    "antiferromagnet": (antiferromagnet(), (8, 8, 8), 48),
}


@pytest.mark.parametrize("decoder", ["linear", "value-weight"])
@pytest.mark.parametrize("name", list(CRYSTALS))
def test_unique_points_give_the_density_of_the_whole_grid(name, decoder):
    atoms, shape, operations = CRYSTALS[name]
    # float32 descriptors of an atom in a symmetric place are symmetric to 1e-5 only.
    model = network(tuple(sorted(set(atoms.numbers.tolist()))), decoder=decoder).double()
    encoded = encode(model, atoms)
    unique = unique_points(atoms, shape)
    assert len(unique.indices) >= np.prod(shape) / operations
    assert len(unique.indices) < 0.3 * np.prod(shape)
    found = evaluate_grid(model, encoded, shape)
    expected = evaluate_grid(model, encoded, shape, symmetry=False)
    assert np.abs(found - expected).max() < 1e-9 * np.abs(expected).max()
    if name == "antiferromagnet":
        assert np.abs(found[0] - found[1]).max() > 1e-4 * np.abs(found).max()


def test_progress_counts_the_points_of_the_whole_grid():
    atoms = bulk("Si", "diamond", 5.43)
    model = network((14,))
    done: list[int] = []
    evaluate_grid(model, encode(model, atoms), (9, 9, 9), block_size=10, progress=done.append)
    assert sum(done) == 9**3
    assert len(done) > 2


def test_the_density_is_exactly_symmetric():
    atoms = bulk("Si", "diamond", 5.43)
    model = network((14,), decoder="linear")
    density = evaluate_grid(model, encode(model, atoms), (8, 8, 8))[0]
    assert np.array_equal(density, density.transpose(1, 0, 2))
    assert np.array_equal(density, density.transpose(2, 0, 1))


def test_what_breaks_the_symmetry_is_seen():
    atoms = bulk("Si", "diamond", 5.43)
    full = len(unique_points(atoms, (12, 12, 12)).indices)
    atoms.set_initial_magnetic_moments([1.0, 0.0])
    assert len(unique_points(atoms, (12, 12, 12)).indices) > full
    atoms.rattle(1e-3, seed=0)
    lower = unique_points(atoms, (12, 12, 12))
    assert lower is None or len(lower.indices) > 2 * full


def test_networks_that_tell_left_from_right_are_not_mirrored():
    network, _ = import_model(CHARGE3NET)
    # Inversion is its only symmetry; no atom sits on a centre.
    atoms = Atoms(
        "Fe2O2",
        scaled_positions=[(0.1, 0.2, 0.35), (0.9, 0.8, 0.65), (0.4, 0.15, 0.7), (0.6, 0.85, 0.3)],
        cell=[[4.5, 0, 0], [0.7, 4.8, 0], [0.3, -0.9, 5.1]],
        pbc=True,
    )
    shape = (6, 6, 6)
    assert len(unique_points(atoms, shape).indices) < 0.6 * np.prod(shape)
    encoded = encode(network, atoms)
    found = evaluate_grid(network, encoded, shape)
    expected = evaluate_grid(network, encoded, shape, symmetry=False)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    inverted = np.roll(expected[:, ::-1, ::-1, ::-1], 1, axis=(1, 2, 3))
    assert np.abs(inverted - expected).max() > 0.1 * np.abs(expected).max()


@pytest.mark.parametrize(
    "atoms",
    [molecule("H2O", vacuum=3.0), Atoms("Si", cell=[3, 4, 5], pbc=(True, True, False))],
)
def test_open_directions_have_no_symmetric_grids(atoms):
    assert unique_points(atoms, (4, 4, 4)) is None


def test_progress_counts_all_points():
    atoms = bulk("Si", "diamond", 5.43)
    model = network((14,), decoder="linear")
    done = []
    evaluate_grid(model, encode(model, atoms), (8, 8, 8), progress=done.append)
    assert sum(done) == 512
