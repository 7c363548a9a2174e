"""How far a predicted density is from the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from eac_model.errors import GridError


@dataclass(frozen=True)
class DensityErrors:
    """Sums over the points of one structure, or of blocks of it, and the errors they give.

    Errors of disjoint blocks add up to those of their union, so grids that do not fit in memory
    are evaluated block by block::

        errors = sum((DensityErrors.between(a, b, dv) for a, b in blocks), DensityErrors())

    All sums are accumulated in float64. The points weigh equally: on a full grid, or at points
    drawn uniformly from it, the averages are those of the cell.
    """

    points: int = 0
    """Number of points."""
    absolute_error: float = 0.0
    """Σ |ρ − ρ̂|, e/Å³."""
    absolute_reference: float = 0.0
    """Σ |ρ|, e/Å³."""
    max_error: float = 0.0
    """max |ρ − ρ̂|, e/Å³."""
    electrons_reference: float = 0.0
    """Σ ρ dV, electrons; NaN where no volume per point was given."""
    electrons_predicted: float = 0.0
    """Σ ρ̂ dV, electrons; NaN where no volume per point was given."""

    @classmethod
    def between(
        cls, reference: ArrayLike, predicted: ArrayLike, point_volume: float = float("nan")
    ) -> DensityErrors:
        """Errors of one block.

        Parameters
        ----------
        reference, predicted
            Densities at the same points, e/Å³, of one shape (any).
        point_volume
            Volume each point stands for, Å³: cell volume over the number of grid points.

        Raises
        ------
        GridError
            The shapes differ, or a value is not a finite number.
        """
        exact, found = _pair(reference, predicted)
        difference = np.abs(exact - found)
        return cls(
            points=exact.size,
            absolute_error=float(difference.sum()),
            absolute_reference=float(np.abs(exact).sum()),
            max_error=float(difference.max(initial=0.0)),
            electrons_reference=float(exact.sum()) * point_volume,
            electrons_predicted=float(found.sum()) * point_volume,
        )

    def __add__(self, other: DensityErrors) -> DensityErrors:
        if not isinstance(other, DensityErrors):
            return NotImplemented
        return DensityErrors(
            points=self.points + other.points,
            absolute_error=self.absolute_error + other.absolute_error,
            absolute_reference=self.absolute_reference + other.absolute_reference,
            max_error=max(self.max_error, other.max_error),
            electrons_reference=self.electrons_reference + other.electrons_reference,
            electrons_predicted=self.electrons_predicted + other.electrons_predicted,
        )

    @property
    def nmae_percent(self) -> float:
        """ε_mae = 100 ∫|ρ − ρ̂| / ∫|ρ|, percent; 0 for two zero densities, else inf if ρ = 0."""
        if self.absolute_reference == 0.0:
            return 0.0 if self.absolute_error == 0.0 else float("inf")
        return 100.0 * self.absolute_error / self.absolute_reference

    @property
    def mae(self) -> float:
        """Mean absolute error, e/Å³; NaN without points."""
        return self.absolute_error / self.points if self.points else float("nan")

    def as_dict(self) -> dict[str, Any]:
        """The figures a report shows, ready for JSON (None for what is not known)."""
        figures = {
            "nmae_percent": self.nmae_percent,
            "mae": self.mae,
            "max_error": self.max_error,
            "electrons_reference": self.electrons_reference,
            "electrons_predicted": self.electrons_predicted,
        }
        known = {key: value if np.isfinite(value) else None for key, value in figures.items()}
        return {**known, "points": self.points}


def nmae_percent(reference: ArrayLike, predicted: ArrayLike) -> float:
    """ε_mae = 100 Σ|ρ − ρ̂| / Σ|ρ|, percent, of densities at the same equally weighted points.

    Parameters
    ----------
    reference, predicted
        Densities, e/Å³, of one shape (any).

    Raises
    ------
    GridError
        The shapes differ, or a value is not a finite number.
    """
    return DensityErrors.between(reference, predicted).nmae_percent


def _pair(reference: ArrayLike, predicted: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    exact = np.asarray(reference, dtype=np.float64)
    found = np.asarray(predicted, dtype=np.float64)
    if exact.shape != found.shape:
        raise GridError(
            f"The reference has shape {exact.shape}, the prediction {found.shape}; "
            "evaluate the prediction at the points of the reference."
        )
    for name, values in (("reference", exact), ("prediction", found)):
        if not np.isfinite(values).all():
            raise GridError(f"The {name} holds values that are not finite numbers.")
    return exact, found
