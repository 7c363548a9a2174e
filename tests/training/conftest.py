"""Runs that several tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from eac_model.training import train

from .synthetic import config, scattered, store_of


@pytest.fixture(scope="session")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of four structures with scattered points."""
    folder = tmp_path_factory.mktemp("frames")
    return store_of(folder / "frames.store", [scattered(seed) for seed in range(4)])


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, frames: Path) -> Path:
    """Folder of a finished run on :func:`frames`; not to be changed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(config(frames, card={"name": "toy", "valence_electrons": {"O": 6}}), folder)
    return folder
