"""What is measured on a structure: error of the density, iterations with GPAW, band gaps.

Iterations and gaps come from calculations with GPAW, with the settings of the reference
calculation, and need its state (:data:`eac_ase.ecd.layout.STATES`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np
from ase.units import Ha
from numpy.typing import ArrayLike

from eac_ase.adapters.gpaw_state import DensityModel, KnownDensity
from eac_model.data import DensitySample
from eac_model.data.sample import Calculation
from eac_model.errors import ConfigurationError


@dataclass(frozen=True)
class Spread:
    """Mean and spread of a figure over structures."""

    mean: float
    deviation: float
    """Standard deviation of the sample, 0 for one structure."""
    largest: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """Of the values of all structures; None if there are none."""
        if not values:
            return None
        deviation = stdev(values) if len(values) > 1 else 0.0
        return cls(fmean(values), deviation, max(values), len(values))

    def text(self, form: str = ".3f") -> str:
        """``0.757 ± 0.105``."""
        return f"{self.mean:{form}} ± {self.deviation:{form}}"


def iterations(sample: DensitySample, model: DensityModel | None) -> int:
    """Iterations to self-consistency with GPAW, passes before the first one counted.

    Parameters
    ----------
    sample
        Structure and settings.
    model
        Where the density and, if it has them, the matrices D come from; None for those of the
        sample itself, the best start there is.

    Raises
    ------
    ConfigurationError
        The sample has no calculation, GPAW is missing, or the model's densities are not GPAW's.
    gpaw.KohnShamConvergenceError
        No convergence.
    """
    from gpaw import GPAW

    from eac_ase.adapters.gpaw import start_from_density

    known = calculation_of(sample)
    start: DensityModel = KnownDensity([sample]) if model is None else model
    calculator = GPAW(**known.settings, txt=None)
    calculator = start_from_density(calculator, start, any_functional=True)
    count = sum(1 for _ in calculator.iconverge(sample.atoms.copy()))
    return count + int(calculator.predicted_start.starts[-1].passes)


def predicted_gap(sample: DensitySample, model: DensityModel) -> float:
    """Band gap at the predicted density, held; functional and settings of the sample, eV.

    Raises
    ------
    As :func:`iterations`.
    """
    from gpaw import GPAW

    from eac_ase.adapters.gpaw import fixed_density

    known = calculation_of(sample)
    calculator = fixed_density(GPAW(**known.settings, txt=None), model, any_functional=True)
    for _ in calculator.iconverge(sample.atoms.copy()):
        pass
    eigenvalues, occupations = calculator.dft.ibzwfs.get_all_eigs_and_occs()
    spins = len(eigenvalues)
    return band_gap(np.array(eigenvalues) * Ha, np.array(occupations) * (3 - spins))


def converged_gap(sample: DensitySample) -> float:
    """Band gap of the self-consistent calculation, eV."""
    known = calculation_of(sample)
    return band_gap(known.eigenvalues, known.occupations)


def band_gap(eigenvalues: ArrayLike, occupations: ArrayLike) -> float:
    """Smallest energy between an occupied and an empty state, of whatever k-points; 0 for metals.

    In a metal some k-points have more occupied states of a spin than others.

    Parameters
    ----------
    eigenvalues : shape (s, k, n)
        eV.
    occupations : shape (s, k, n)
        Electrons in each state, at most 2 / s. More than half of that is occupied.

    Raises
    ------
    ConfigurationError
        No state is empty, or none is occupied.
    """
    energies, filled = np.asarray(eigenvalues, float), np.asarray(occupations, float)
    occupied = filled > 1.0 / len(energies)
    if occupied.all() or not occupied.any():
        raise ConfigurationError("A band gap needs occupied and empty bands.")
    bands = occupied.sum(axis=2)
    if (bands != bands[:, :1]).any():
        return 0.0
    return max(0.0, float(energies[~occupied].min() - energies[occupied].max()))


def calculation_of(sample: DensitySample) -> Calculation:
    """The calculation a sample comes from.

    Raises
    ------
    ConfigurationError
        It is not known.
    """
    if sample.calculation is None or sample.onsite is None:
        raise ConfigurationError(
            f"{sample.provenance.source}: only the density is known, not the calculation (matrices "
            "D, settings). Iterations and gaps need a store of states beside the CHGCARs."
        )
    return sample.calculation


def as_row(figures: dict[str, Any]) -> dict[str, Any]:
    """What is kept of the errors of a density."""
    return {key: figures[key] for key in ("nmae_percent", "mae", "max_error", "points")}
