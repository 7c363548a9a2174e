"""ChargE3Net is trained like any other architecture."""

import numpy as np

from eac_model.checkpoint import load_model
from eac_model.engine import encode, evaluate_points
from eac_model.network import ChargE3Net
from eac_model.training import TrainingConfig, train

from .synthetic import scattered, settings


def test_it_learns(frames, tmp_path):
    network = {
        "architecture": "charge3net",
        "l_max": 1,
        "channels": 8,
        "interactions": 1,
        "atom_cutoff": 2.0,
        "point_cutoff": 2.5,
        "basis_size": 8,
        "radial_hidden": [16],
    }
    changes = {"optimisation": {"steps": 120, "learning_rate": 0.1}, "validate_every": 120}
    configuration = TrainingConfig.from_mapping(settings(frames, **changes) | {"network": network})
    trained, card = load_model(train(configuration, tmp_path / "run"))
    assert isinstance(trained, ChargE3Net)
    assert trained.config.elements == (1, 8)
    assert card.training["validation_nmae_percent"] < 60
    sample = scattered(17)
    found = evaluate_points(trained, encode(trained, sample.atoms), sample.points)[0]
    assert np.abs(found - sample.density).sum() < 0.7 * sample.density.sum()
