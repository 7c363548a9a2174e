"""Metrics of ECD against numbers made by hand, and against GPAW."""

from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk

from eac_ase.adapters.gpaw_state import KnownDensity
from eac_ase.ecd.measure import (
    Spread,
    band_gap,
    converged_gap,
    iterations,
    predicted_gap,
)
from eac_ase.ecd.report import summary, table
from eac_ase.ecd.tasks import PBE, TASKS, TUNED, Stage
from eac_model.data import DensitySample
from eac_model.errors import ConfigurationError


def test_spreads_are_means_and_deviations_of_the_sample():
    found = Spread.of([0.5, 0.7, 0.9])
    assert (found.mean, found.largest, found.count) == (pytest.approx(0.7), 0.9, 3)
    assert found.deviation == pytest.approx(0.2)
    assert found.text() == "0.700 ± 0.200"
    assert Spread.of([2.0]).deviation == 0.0
    assert Spread.of([]) is None


def test_gaps_lie_between_occupied_and_empty_states_of_any_k_points():
    energies = np.array([[[-5.0, 1.0, 4.0], [-4.0, 2.0, 3.5]]])
    filled = np.array([[[2.0, 2.0, 0.0], [2.0, 1.9, 0.1]]])
    assert band_gap(energies, filled) == pytest.approx(1.5)


def test_spins_share_one_gap():
    energies = np.array([[[0.0, 3.0]], [[0.5, 2.0]]])
    filled = np.array([[[1.0, 0.0]], [[1.0, 0.0]]])
    assert band_gap(energies, filled) == pytest.approx(1.5)


def test_metals_have_no_gap():
    energies = np.array([[[0.0, 1.0], [2.0, 3.0]]])
    filled = np.array([[[2.0, 0.2], [1.9, 0.0]]])
    assert band_gap(energies, filled) == 0.0
    with pytest.raises(ConfigurationError, match="occupied and empty"):
        band_gap(energies, np.full((1, 2, 2), 2.0))


def test_bands_that_cross_the_fermi_level_leave_no_gap():
    energies = np.array([[[0.0, 1.0, 4.0], [0.5, 2.5, 3.0]]])
    filled = np.array([[[2.0, 2.0, 0.0], [2.0, 0.0, 0.0]]])
    assert band_gap(energies, filled) == 0.0


def row(name: str, error: float, achieved: int | None, optimal: int = 6) -> dict:
    return {
        "model": "pbe",
        "name": name,
        "nmae_percent": error,
        "default": 10,
        "optimal": optimal,
        "achieved": achieved,
    }


def test_ratios_are_means_of_ratios_and_failures_are_counted_apart():
    rows = [row("a", 1.0, 8), row("b", 3.0, 6, 4), row("c", 2.0, None)]
    (found,) = summary(TASKS["PBE-id"], rows)
    assert found["nmae_percent"]["mean"] == pytest.approx(2.0)
    assert found["nmae_percent"]["deviation"] == pytest.approx(1.0)
    assert found["achieved_ratio"]["mean"] == pytest.approx(0.7)
    assert found["achieved_ratio"]["count"] == 2
    assert found["optimal_ratio"]["mean"] == pytest.approx(1.6 / 3)
    assert found["failed"] == 1


def test_gap_errors_are_against_experiment():
    rows = [
        {
            "model": "pbe",
            "name": name,
            "functional": "PBE",
            "seen": seen,
            "measured": 2.0,
            "predicted": predicted,
            "converged": 1.5,
        }
        for name, seen, predicted in (("a", True, 1.0), ("b", False, 1.6))
    ]
    (found,) = summary(TASKS["EXP-id"], rows)
    assert found["mae_ev"]["mean"] == pytest.approx(0.7)
    assert found["converged_mae_ev"]["mean"] == pytest.approx(0.5)
    assert found["mae_to_converged_ev"]["mean"] == pytest.approx(0.3)
    assert found["unseen"] == 1


def test_tables_have_a_row_a_model_and_dashes_where_nothing_was_measured():
    rows = [{"model": "pbe", "name": "a", "nmae_percent": 1.234}]
    content = {
        "task": "PBE-id",
        "tested_on": "pbe",
        "models": [{"model": "pbe", "training": {"structures": 7}}],
        "rows": summary(TASKS["PBE-id"], rows),
    }
    assert table([content]).splitlines()[-1] == (
        "| PBE-id | pbe | 7 | pbe, 1 | 1.23 ± 0.00 | – | – | – |"
    )


def test_there_are_seven_tasks_and_four_parts_of_the_tuning_data():
    assert len(TASKS) == 7
    assert [stage.quarters for stage in TUNED] == [1, 2, 3, 4]
    assert all(stage.start == PBE for stage in TUNED)
    assert Stage("hse", 1).name == "hse-25"
    assert TUNED[0].name == "pbe+hse-25"


# -- with GPAW ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def silicon():
    pytest.importorskip("gpaw.dft")
    from eac_ase.reference.gpaw import calculate
    from eac_ase.reference.recipe import Settings

    return calculate(bulk("Si"), Settings(cutoff=200, kpoint_density=0.9, smearing=0.05))


def test_the_exact_start_needs_fewer_iterations_than_the_default_one(silicon):
    optimal = iterations(silicon, None)
    assert 1 < optimal < silicon.calculation.iterations
    assert iterations(silicon, KnownDensity([silicon])) == optimal


def test_the_gap_at_the_exact_density_is_the_converged_one(silicon):
    exact = converged_gap(silicon)
    assert 0.4 < exact < 1.0
    assert predicted_gap(silicon, KnownDensity([silicon])) == pytest.approx(exact, abs=1e-3)


def test_a_model_of_another_functional_may_start_a_calculation(silicon):
    labelled = replace(silicon, provenance=replace(silicon.provenance, functional="HSE06"))
    assert iterations(silicon, KnownDensity([labelled])) == iterations(silicon, None)


def test_densities_alone_start_nothing(silicon):
    with pytest.raises(ConfigurationError, match="only the density is known"):
        iterations(DensitySample(silicon.atoms, silicon.density), None)


def test_hybrids_use_data_sets_of_pbe_and_say_so():
    pytest.importorskip("gpaw.dft")
    from eac_ase.reference.gpaw import calculate
    from eac_ase.reference.recipe import Settings

    helium = bulk("He", "fcc", a=3.5)  # a closed shell converges on every machine
    found = calculate(helium, Settings(xc="HSE06", cutoff=200, kpoint_density=None))
    assert found.provenance.functional == "HSE06"
    assert found.provenance.paw_datasets == ("He.PBE",)
    assert found.calculation.datasets["He"].name == "He.PBE"
