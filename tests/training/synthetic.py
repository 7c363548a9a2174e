"""Small synthetic densities: sums of Gaussians on the atoms of a periodic cell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from eac_model.data.sample import DensitySample, Provenance
from eac_model.data.store import DensityStore
from eac_model.training import TrainingConfig

WIDTH = {1: 0.5, 8: 0.7}
ELECTRONS = {1: 1.0, 8: 6.0}
PBE = Provenance(
    code="VASP", functional="PBE", density_kind="valence", paw_datasets=("PAW_H", "PAW_O")
)


def gaussian_density(atoms: Atoms, points: np.ndarray) -> np.ndarray:
    """Σ over atoms and images of normalised Gaussians, (p,), e/Å³."""
    shifts = np.array([(i, j, k) for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)])
    density = np.zeros(len(points))
    for number, position in zip(atoms.numbers, atoms.positions, strict=True):
        sigma = WIDTH[number]
        for image in position + shifts @ atoms.cell.array:
            squared = ((points - image) ** 2).sum(axis=1)
            density += (
                ELECTRONS[number]
                * np.exp(-squared / (2 * sigma**2))
                / ((2 * np.pi) ** 1.5 * sigma**3)
            )
    return density


def structure(seed: int) -> Atoms:
    """A shaken water molecule in a 4 Å cell."""
    rng = np.random.default_rng(seed)
    water = np.array([(2, 2, 2), (2.76, 2.59, 2), (1.24, 2.59, 2)], dtype=float)
    positions = water + rng.normal(scale=0.1, size=(3, 3))
    return Atoms("OHH", positions=positions, cell=[4.0, 4.0, 4.0], pbc=True)


def scattered(seed: int, points: int = 120, provenance: Provenance = PBE) -> DensitySample:
    """Density at random points."""
    atoms = structure(seed)
    where = np.random.default_rng([seed, 1]).random((points, 3)) @ atoms.cell.array
    return DensitySample(atoms, gaussian_density(atoms, where), points=where, provenance=provenance)


def grid(seed: int, shape: tuple[int, int, int] = (10, 10, 10)) -> DensitySample:
    """Density on a full grid."""
    atoms = structure(seed)
    sample = DensitySample(atoms, np.zeros(shape), provenance=PBE)
    values = gaussian_density(atoms, sample.grid_points()).reshape(shape)
    return DensitySample(atoms, values, provenance=PBE)


def store_of(path: Path, samples: list[DensitySample]) -> Path:
    """Write a store."""
    store = DensityStore.create(path)
    for sample in samples:
        store.append(sample)
    return path


def settings(frames: Path, /, **changes: Any) -> dict[str, Any]:
    """A run of seconds; ``changes`` are merged section by section."""
    base: dict[str, Any] = {
        "data": {"train": str(frames), "validation": 1, "points_per_structure": 50},
        "network": {
            "l_max": 1,
            "channels": 4,
            "interactions": 1,
            "superposition": False,  # free atoms are too good for these
            "atom_cutoff": 2.0,
            "point_cutoff": 2.5,
            "atom_radial_hidden": [8],
            "linear_basis": {"kind": "natural-spline", "size": 10, "cutoff_power": 3},
        },
        "optimisation": {"steps": 12, "learning_rate": 0.02, "warmup_steps": 2},
        "validate_every": 5,
        "checkpoint_every": 3,
        "log_every": 2,
        "accelerator": "cpu",
    }
    for key, value in changes.items():
        base[key] = base.get(key, {}) | value if isinstance(value, dict) else value
    return base


def config(frames: Path, /, **changes: Any) -> TrainingConfig:
    """The configuration of :func:`settings`."""
    return TrainingConfig.from_mapping(settings(frames, **changes))
