"""Shared fixtures: reproducible, single-threaded, and honest about missing data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
settings.register_profile(
    "reproducible",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("reproducible")


@pytest.fixture(scope="session")
def water_frames() -> list[Path]:
    """Sampled VASP densities of liquid water, kept beside the repository."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("EAC_SHARED_DATA", beside)) / "water"
    frames = sorted(folder.glob("*.h5"), key=lambda path: (len(path.stem), path.stem))
    if not frames:
        pytest.skip(f"no water frames in {folder}; EAC_SHARED_DATA names the folder above it")
    return frames
