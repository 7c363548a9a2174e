import pytest

from eac_model.training.config import OptimisationSection
from eac_model.training.schedule import learning_rate


def test_the_learning_rate_rises_linearly_and_decays_exponentially_in_stages():
    config = OptimisationSection(
        steps=100,
        learning_rate=1e-2,
        warmup_steps=10,
        decay=[{"final": 1e-3, "steps": 20}, {"final": 1e-5, "steps": 40}],
    )
    assert learning_rate(config, 0) == pytest.approx(1e-3)
    assert learning_rate(config, 4) == pytest.approx(5e-3)
    assert learning_rate(config, 9) == pytest.approx(1e-2)
    assert learning_rate(config, 10) == pytest.approx(1e-2)
    assert learning_rate(config, 20) == pytest.approx(1e-2 * 0.1**0.5)
    assert learning_rate(config, 30) == pytest.approx(1e-3)
    assert learning_rate(config, 50) == pytest.approx(1e-4)
    assert learning_rate(config, 70) == pytest.approx(1e-5)
    assert learning_rate(config, 99) == pytest.approx(1e-5)


def test_a_last_stage_without_length_reaches_the_end_of_the_run():
    config = OptimisationSection(
        steps=50, learning_rate=1e-2, warmup_steps=0, decay=[{"final": 1e-4}]
    )
    assert learning_rate(config, 0) == pytest.approx(1e-2)
    assert learning_rate(config, 25) == pytest.approx(1e-3)
    assert learning_rate(config, 50) == pytest.approx(1e-4)


def test_without_stages_the_learning_rate_is_constant():
    config = OptimisationSection(steps=50, learning_rate=0.3, warmup_steps=0, decay=[])
    assert {learning_rate(config, step) for step in range(50)} == {0.3}
