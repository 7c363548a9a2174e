import json
import math

import numpy as np
import pytest

from eac_model.errors import GridError
from eac_model.metrics import DensityErrors, nmae_percent


def test_errors_by_hand():
    errors = DensityErrors.between([1.0, -2.0, 5.0], [1.5, -1.0, 4.5], point_volume=0.5)
    assert errors.nmae_percent == pytest.approx(25.0)
    assert errors.mae == pytest.approx(2 / 3)
    assert errors.max_error == pytest.approx(1.0)
    assert errors.electrons_reference == pytest.approx(2.0)
    assert errors.electrons_predicted == pytest.approx(2.5)
    assert nmae_percent([1.0, -2.0, 5.0], [1.5, -1.0, 4.5]) == pytest.approx(25.0)


def test_blocks_add_up_to_the_whole():
    rng = np.random.default_rng(0)
    exact, found = rng.normal(size=(2, 7, 8, 9)).astype(np.float32)
    whole = DensityErrors.between(exact, found, 0.1)
    blocks = zip(np.array_split(exact.ravel(), 5), np.array_split(found.ravel(), 5), strict=True)
    added = sum((DensityErrors.between(a, b, 0.1) for a, b in blocks), DensityErrors())
    assert added.points == whole.points == 504
    for name in ("nmae_percent", "mae", "max_error", "electrons_reference", "electrons_predicted"):
        assert getattr(added, name) == pytest.approx(getattr(whole, name), rel=1e-12)


def test_sums_are_accumulated_in_double_precision():
    many = np.full(2_000_000, 0.1, dtype=np.float32)
    exact = DensityErrors.between(many, many, 1.0).electrons_reference
    assert exact == pytest.approx(2_000_000 * float(np.float32(0.1)), rel=1e-12)


def test_electrons_are_unknown_without_a_volume():
    figures = DensityErrors.between([1.0], [1.0]).as_dict()
    assert figures["electrons_reference"] is None
    assert json.loads(json.dumps(figures))["nmae_percent"] == 0.0


def test_a_zero_reference_has_no_finite_relative_error():
    assert nmae_percent([0.0, 0.0], [0.0, 0.0]) == 0.0
    assert math.isinf(nmae_percent([0.0], [1.0]))


def test_different_shapes_and_nan_are_refused():
    with pytest.raises(GridError, match=r"\(2,\).*\(3,\)"):
        nmae_percent([1, 2], [1, 2, 3])
    with pytest.raises(GridError, match="prediction holds values"):
        nmae_percent([1.0], [float("nan")])
