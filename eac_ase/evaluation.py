"""How well a model reproduces a known density."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from eac_ase.calculator import EACDensity
from eac_ase.grid import DensityGrid
from eac_model.data.readers import read_density
from eac_model.data.sample import DensitySample
from eac_model.data.store import DensityStore
from eac_model.metrics import DensityErrors


@dataclass(frozen=True)
class SampleErrors:
    """Errors of a predicted density and, where both sides have one, of the spin density.

    Errors of several samples add up: every point weighs the same.
    """

    density: DensityErrors = field(default_factory=DensityErrors)
    spin: DensityErrors | None = None

    def __add__(self, other: SampleErrors) -> SampleErrors:
        if not isinstance(other, SampleErrors):
            return NotImplemented
        spins = [errors for errors in (self.spin, other.spin) if errors is not None]
        return SampleErrors(
            self.density + other.density, sum(spins, DensityErrors()) if spins else None
        )

    def as_dict(self) -> dict[str, Any]:
        """Figures for JSON; those of the spin density under ``spin``."""
        figures = self.density.as_dict()
        if self.spin is not None:
            spin = self.spin.as_dict()
            figures["spin"] = {key: spin[key] for key in ("nmae_percent", "mae", "max_error")}
        return figures


def evaluate_sample(
    calculator: EACDensity, sample: DensitySample, *, progress: bool | None = None
) -> SampleErrors:
    """Compare a prediction with a sample at all of the sample's points.

    Parameters
    ----------
    sample
        Reference density on a grid or at points. Numbers of electrons are known for grids only.
    progress
        Progress bar on stderr: True, False, or None for only on a terminal.
    """
    spin_model = calculator.network.config.spin
    predicted_spin = None
    if sample.is_grid:
        reference = DensityGrid.from_sample(sample)
        grid = calculator.get_density_grid(sample.atoms, like=reference, progress=progress)
        predicted, predicted_spin = grid.values, grid.spin
        voxel = reference.volume / reference.values.size
    else:
        assert sample.points is not None
        predicted = calculator.evaluate(sample.points, sample.atoms)
        if spin_model:
            predicted_spin = calculator.get_spin_density(sample.atoms, points=sample.points)
        voxel = float("nan")
    spin = None
    if spin_model and sample.spin_density is not None:
        assert predicted_spin is not None
        spin = DensityErrors.between(sample.spin_density, predicted_spin, voxel)
    return SampleErrors(DensityErrors.between(sample.density, predicted, voxel), spin)


def samples_in(path: Path) -> Iterator[tuple[str, DensitySample]]:
    """Samples of a density file (one) or of a store (many), with a name for each.

    Raises
    ------
    DensityFileError
        The file, or a sample of the store, cannot be read.
    """
    for name, read in references_in(path):
        yield name, read()


def references_in(path: Path) -> Iterator[tuple[str, Callable[[], DensitySample]]]:
    """As :func:`samples_in`, but samples are read, or fail, one by one."""
    if not path.is_dir():
        yield str(path), partial(read_density, path)
        return
    store = DensityStore.open(path)
    for index, entry in enumerate(store.entries):
        yield f"{path}[{index}] {entry.source}".rstrip(), partial(store.read, index)


def kinds_differ(calculator: EACDensity, sample: DensitySample) -> bool:
    """Whether the sample's density is known to count other electrons than the model's."""
    kinds = {calculator.card.provenance.density_kind, sample.provenance.density_kind}
    return len(kinds - {"unknown"}) > 1
