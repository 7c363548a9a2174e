"""Hybrid functionals: their own potential from the first iteration on."""

import pytest
from ase.build import bulk

from eac_ase.adapters.gpaw import KnownDensity, fixed_density


def test_a_density_is_held_in_the_potential_of_a_hybrid_not_in_that_of_pbe():
    pytest.importorskip("gpaw.dft")
    from gpaw import GPAW

    from eac_ase.reference.gpaw import calculate
    from eac_ase.reference.recipe import Settings

    crystal = bulk("LiH", "rocksalt", a=4.08)
    exact = calculate(crystal, Settings(xc="HSE06", cutoff=200, kpoint_density=None))
    crystal.calc = fixed_density(
        GPAW(**exact.calculation.settings, txt=None), KnownDensity([exact])
    )
    assert crystal.get_potential_energy() == pytest.approx(exact.calculation.energy, abs=1e-4)
