"""What GPAW begins with, from a model: ñ on its grid and the matrices D_a, in atomic units.

Nothing here imports GPAW: densities, builders and setups come in as objects of
:mod:`gpaw.new`, and arrays go out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.data import chemical_symbols
from ase.units import Bohr
from numpy.typing import NDArray

from eac_ase.error_estimate import ErrorEstimate
from eac_ase.grid import DensityGrid
from eac_model.checkpoint import ModelCard
from eac_model.data.sample import DensitySample, PawDataset
from eac_model.errors import ConfigurationError
from eac_model.lattice import Shape
from eac_model.neighbors import check_structure
from eac_model.onsite import OnsiteLayout

Array = NDArray[np.floating]


class DensityModel(Protocol):
    """What is asked of a model; :class:`~eac_ase.calculator.EACDensity` has it."""

    @property
    def card(self) -> ModelCard:
        """Name, functional, density kind."""

    @property
    def network(self) -> Any:
        """Its ``config`` says ``elements``, ``spin`` and the layout of on-site data, ``onsite``."""

    def get_density_grid(
        self, atoms: Atoms, *, like: DensityGrid, progress: bool | None = None
    ) -> DensityGrid:
        """Density, and on-site data if the model has them, on the points of a grid."""

    def get_error_estimate(self, atoms: Atoms) -> ErrorEstimate:
        """What errors to expect; PropertyNotImplementedError if the model cannot tell."""


@dataclass(frozen=True)
class PawState:
    """A predicted density of GPAW."""

    total: Array
    """ñ↑ + ñ↓ with the smooth core, e/Bohr³, shape (n1, n2, n3)."""
    difference: Array | None
    """ñ↑ − ñ↓, e/Bohr³; None if the model knows no spin."""
    onsite: tuple[Array, ...] | None
    """D↑ + D↓ of every atom, shape (i, i); None if the model has none."""
    onsite_difference: tuple[Array, ...] | None
    """D↑ − D↓."""
    expected_error: float | None
    """ε_mae that the model expects of the density, percent; None if it cannot tell."""
    unfamiliar: bool
    """Whether some surroundings are unlike all that the model was trained on."""

    def is_of_doubtful_moments(self, n_spin: int) -> bool:
        """Whether a calculation with so many spins had better begin by itself.

        A wrong density costs a few iterations, moments of another magnetic state cost many.
        """
        return self.unfamiliar and n_spin == 2 and self.difference is not None


def predict_state(model: DensityModel, atoms: Atoms, shape: Shape) -> PawState:
    """Evaluate a model on GPAW's grid: the whole cell, first point at its corner.

    Parameters
    ----------
    atoms
        Structure with the initial magnetic moments of the calculation.
    shape
        Number of grid points along the cell vectors.

    Raises
    ------
    UnknownElementError
        The model was not built for an element.
    """
    a, b, c = (bool(flag) for flag in atoms.pbc)
    target = DensityGrid(
        np.broadcast_to(0.0, shape), atoms, np.array(atoms.cell.complete()), pbc=(a, b, c)
    )
    grid = model.get_density_grid(atoms, like=target, progress=False)
    estimate = None
    with suppress(PropertyNotImplementedError):
        estimate = model.get_error_estimate(atoms)
    return PawState(
        total=grid.values * Bohr**3,
        difference=None if grid.spin is None else grid.spin * Bohr**3,
        onsite=grid.onsite,
        onsite_difference=grid.onsite_spin,
        expected_error=None if estimate is None else estimate.structure,
        unfamiliar=estimate is not None and len(estimate.unfamiliar) > 0,
    )


def channels_of_spin(total: Array, difference: Array | None, present: Array) -> Array:
    """Values of the spins that a calculation has.

    Parameters
    ----------
    total, difference
        Sum and difference of up and down; the difference may be missing.
    present
        What the calculation holds, shape (s, …); its own difference serves where none was
        predicted.

    Returns
    -------
    ndarray
        Shape of `present`.
    """
    if len(present) == 1:
        return total[None]
    if difference is None:
        difference = present[0] - present[1]
    return np.stack([total + difference, total - difference]) / 2


class KnownDensity:
    """Stored calculations in place of a model: the best start there is, and a tool for tests.

    Parameters
    ----------
    samples
        GPAW's ñ and D of one or several structures with their PAW data sets
        (``sample.calculation``), as :func:`eac_ase.reference.gpaw.calculate` returns and stores
        keep them.
    onsite
        Offer the matrices D, too.

    Raises
    ------
    ConfigurationError
        A sample without ``calculation`` or matrices.
    """

    def __init__(self, samples: Sequence[DensitySample], *, onsite: bool = True) -> None:
        datasets: dict[str, PawDataset] = {}
        for sample in samples:
            if sample.calculation is None or sample.onsite is None:
                raise ConfigurationError(
                    f"The sample {sample.provenance.source!r} lacks its calculation or the "
                    "matrices D; `eac data gpaw` stores both."
                )
            datasets |= sample.calculation.datasets
        self.samples = tuple(samples)
        numbers = np.concatenate([sample.atoms.numbers for sample in samples])
        self.card = ModelCard(name="known density", provenance=samples[0].provenance)
        layout = OnsiteLayout(
            code="GPAW",
            channels={symbol: known.channels for symbol, known in datasets.items()},
            datasets={
                symbol: f"{known.name} {known.fingerprint}" for symbol, known in datasets.items()
            },
        )
        self.network = SimpleNamespace(
            config=SimpleNamespace(
                elements=tuple(np.unique(numbers).tolist()),
                spin=any(sample.spin_density is not None for sample in samples),
                onsite=layout if onsite else None,
            )
        )

    def get_density_grid(
        self, atoms: Atoms, *, like: DensityGrid, progress: bool | None = None
    ) -> DensityGrid:
        """The density of the sample with these atoms, interpolated if the grid is another.

        Raises
        ------
        ConfigurationError
            There is none.
        """
        for sample in self.samples:
            if (
                np.array_equal(sample.atoms.numbers, atoms.numbers)
                and np.allclose(sample.atoms.cell, atoms.cell, atol=1e-6)
                and np.allclose(sample.atoms.positions, atoms.positions, atol=1e-6)
                and (sample.spin_density is None or _same_moments(sample.atoms, atoms))
            ):
                break
        else:
            raise ConfigurationError(
                f"None of the {len(self.samples)} stored calculations is of this structure "
                f"({atoms.get_chemical_formula()}, these positions, moments and this cell)."
            )
        grid = DensityGrid.from_sample(sample)
        if grid.shape != like.shape:
            grid = grid.resample(like.shape)
        if self.network.config.onsite is None:
            grid = replace(grid, onsite=None, onsite_spin=None)
        return grid

    def get_error_estimate(self, atoms: Atoms) -> ErrorEstimate:
        """Of stored calculations there is none: nothing is predicted.

        Raises
        ------
        ase.calculators.calculator.PropertyNotImplementedError
        """
        raise PropertyNotImplementedError("Stored calculations have no error estimate.")


def _same_moments(first: Atoms, second: Atoms) -> bool:
    """Whether two structures ask for one magnetic state."""
    return np.allclose(first.get_initial_magnetic_moments(), second.get_initial_magnetic_moments())


# -- does the model fit? -----------------------------------------------------------------------


def _functional_of(calculator: Any) -> str:
    """Name of the functional of a calculator of GPAW, new or classic."""
    if hasattr(calculator, "params"):
        return str(calculator.params.xc.name)
    xc = calculator.parameters.xc
    return str(xc.get("name") if isinstance(xc, dict) else getattr(xc, "name", xc))


def check_model(model: DensityModel, calculator: Any, any_functional: bool = False) -> None:
    """Refuse models of other densities than those of a calculation.

    Parameters
    ----------
    calculator
        Of GPAW, new or classic.
    any_functional
        Its functional may be another than the model's.

    Raises
    ------
    ConfigurationError
        Density kind, code of the on-site data, or functional differ; both sides are named. Or it
        is no model.
    """
    if not hasattr(model, "card"):
        raise ConfigurationError(f"{model!r} is no model: pass EACDensity({model!r}), say.")
    card, origin = model.card, model.card.provenance
    if origin.density_kind not in ("pseudo", "unknown"):
        raise ConfigurationError(
            f"The model {card.name!r} predicts {origin.density_kind} densities ({origin.code}); "
            "GPAW starts from its own pseudo density (density kind 'pseudo'). Take a model that "
            "was trained on GPAW's data."
        )
    layout = model.network.config.onsite
    if layout is not None and layout.code != "GPAW":
        raise ConfigurationError(
            f"The model {card.name!r} predicts on-site data of {layout.code}; GPAW needs its own "
            "matrices D. Take a model that was trained on GPAW's data."
        )
    functional = _functional_of(calculator)
    if not any_functional and origin.functional not in ("unknown", functional):
        raise ConfigurationError(
            f"Functional: the calculation has xc={functional!r}, the model {card.name!r} predicts "
            f"{origin.functional} densities. Change xc, take another model, or allow it with "
            "any_functional=True: hybrids with the PAW data sets of PBE start well from densities "
            "of PBE."
        )


def check_setups(model: DensityModel, atoms: Atoms, setups: Iterable[Any]) -> None:
    """Refuse densities and matrices of other PAW data sets than those of a calculation.

    Parameters
    ----------
    setups
        GPAW's setup of every atom.

    Raises
    ------
    ConfigurationError
        Projector channels, name or fingerprint of a data set differ; both sides are named.
    UnknownElementError
        The model was not built for an element.
    """
    config = model.network.config
    check_structure(atoms, config.elements, spin=config.spin)
    layout = config.onsite
    known_sets = _datasets_of_card(model)
    remedy = "Change setups, or take a model that was trained with these."
    # Atoms of one element may have several.
    for setup in {id(setup): setup for setup in setups}.values():
        symbol, name = setup.symbol, model.card.name
        if symbol.endswith(".ghost"):
            raise ConfigurationError(
                f"{symbol.removesuffix('.ghost')} has ghost atoms: basis functions without "
                "electrons, of which models know nothing. Start without a model."
            )
        if layout is None:
            if known_sets.get(symbol, dataset_name(setup)) != dataset_name(setup):
                raise ConfigurationError(
                    f"PAW data set of {symbol}: {dataset_name(setup)} in the calculation, "
                    f"{known_sets[symbol]} in the data of the model {name!r}. {remedy}"
                )
            continue
        channels = tuple(int(l) for l in setup.l_j)
        expected = layout.channels_of(symbol)
        if channels != expected:
            raise ConfigurationError(
                f"Projectors of {symbol}: l = {_list(channels)} in GPAW's {dataset_name(setup)!r}, "
                f"{_list(expected)} in the matrices of the model {name!r}. {remedy}"
            )
        known, _, fingerprint = layout.datasets.get(symbol, "").partition(" ")
        ours = dataset_name(setup)
        if known and (known, fingerprint or setup.fingerprint) != (ours, setup.fingerprint):
            raise ConfigurationError(
                f"PAW data set of {symbol}: {ours} {setup.fingerprint} in the calculation, "
                f"{known} {fingerprint} in the matrices of the model {name!r}. {remedy}"
            )


def _datasets_of_card(model: DensityModel) -> dict[str, str]:
    """Names of the data sets by element; cards list them in the order of the symbols."""
    names = model.card.provenance.paw_datasets
    symbols = sorted(chemical_symbols[number] for number in model.network.config.elements)
    return dict(zip(symbols, names, strict=True)) if len(names) == len(symbols) else {}


def dataset_name(setup: Any) -> str:
    """Name of a setup's file without compression suffix: ``Si.PBE``."""
    return str(getattr(setup.data, "stdfilename", f"{setup.symbol}.{setup.type}"))


def _list(channels: Sequence[int]) -> str:
    return " ".join(map(str, channels))


# -- into GPAW's density -----------------------------------------------------------------------


def fill_density(density: Any, state: PawState) -> None:
    """Put a predicted state in place of what a density of ``gpaw.new`` holds.

    Neither symmetrised nor normalised yet.

    Parameters
    ----------
    density
        ``gpaw.new.density.Density``, collinear; changed in place.
    """
    values, matrices = _arrays(density, state)
    density.nt_sR.data[:] = values.data
    density.D_asii.data[:] = matrices.data


@dataclass(frozen=True)
class Correction:
    """What a prediction lacked of a density that GPAW converged."""

    density: Any
    """Of ñ, a ``UGArray``, e/Bohr³."""
    matrices: Any
    """Of D, ``AtomArrays``."""

    @classmethod
    def of(cls, density: Any, state: PawState) -> Correction:
        """What has to be added to the prediction for the structure of a density of ``gpaw.new``."""
        values, matrices = _arrays(density, state)
        values.data[:] = density.nt_sR.data - values.data
        matrices.data[:] = density.D_asii.data - matrices.data
        return cls(values, matrices)

    def fits(self, density: Any) -> bool:
        """Whether a density, of another geometry, has its points at the same places in the cell."""
        return bool(self.density.data.shape == density.nt_sR.data.shape)

    def add_to(self, density: Any) -> None:
        """Correct a prediction that a density of ``gpaw.new`` holds, for which it `fits`.

        ñ goes with the cell: electrons stay, their density changes with the volume.
        """
        old, new = self.density.desc, density.nt_sR.desc
        density.nt_sR.data += self.density.data * (old.volume / new.volume)
        # Atoms may have moved to other processes.
        density.D_asii.data += self.matrices.moved(density.D_asii.layout.atomdist).data


def _arrays(density: Any, state: PawState) -> tuple[Any, Any]:
    """A prediction as ñ and D of a density of ``gpaw.new``, which stays as it is."""
    grid, xp = density.nt_sR.desc, density.nt_sR.xp
    # The grid points of this process; where the density vanishes at the border, the first layer
    # of the cell is no point.
    part = tuple(slice(b, e) for b, e in zip(grid.start_c, grid.end_c, strict=True))
    present = density.nt_sR.to_xp(np).data
    difference = None if state.difference is None else state.difference[part]
    values = density.nt_sR.copy()
    values.data[:] = xp.asarray(channels_of_spin(state.total[part], difference, present))
    matrices = density.D_asii.copy()
    if state.onsite is None:
        return values, matrices
    for a, of_atom in matrices.items():
        spin = None if state.onsite_difference is None else state.onsite_difference[a]
        present = np.array(density.D_asii.to_xp(np)[a])
        of_atom[:] = xp.asarray(channels_of_spin(state.onsite[a], spin, present))
    return values, matrices
