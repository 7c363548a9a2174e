"""Starting GPAW from a predicted density.

:func:`start_from_density` makes a ``GPAW(...)`` calculator begin its self-consistent runs with the
density ñ and the matrices D_a that a model predicts, instead of with superposed atoms.
:func:`fixed_density` keeps the prediction: bands, density of states and the Harris–Foulkes energy
without self-consistency. :func:`all_electron_density` adds the atomic corrections to a prediction.

Where the state goes in (:meth:`gpaw.dft.Parameters.create_dft_calculation_components` of GPAW
26.7): GPAW builds its superposition of atoms, the prediction replaces it and is symmetrised with
the symmetry of the calculation, and GPAW goes on. It scales ñ so that the charge is right together
with the matrices D that were put in, makes the potential, and takes its first wave functions from
that. GPAW's own numbers, put in this way, give GPAW's own run.

Classic GPAW (``legacy_gpaw=True``) starts from predictions, too, without the other options.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from functools import cache
from numbers import Integral
from time import perf_counter
from typing import Any, Literal, get_args
from weakref import ref

import numpy as np
from ase import Atoms
from ase.symbols import Symbols

from eac_ase.adapters.gpaw_classic import start_classic
from eac_ase.adapters.gpaw_mixing import take_whole_steps
from eac_ase.adapters.gpaw_parallel import predict_once
from eac_ase.adapters.gpaw_passes import eigensolver_passes, hold_density, update_potential
from eac_ase.adapters.gpaw_state import (
    Array,
    Correction,
    DensityModel,
    KnownDensity,
    PawState,
    check_model,
    check_setups,
    fill_density,
)
from eac_ase.charge import plain_atoms
from eac_ase.grid import DensityGrid
from eac_model.errors import ConfigurationError

__all__ = [
    "KnownDensity",
    "PredictedStart",
    "Start",
    "all_electron_density",
    "fixed_density",
    "start_from_density",
]

Moves = Literal["reuse", "extrapolate", "predict", "restart"]
"""What happens when atoms or cell change and GPAW has wave functions: ``reuse`` those and the
density that follows from them, as GPAW does; ``extrapolate``, reuse the wave functions and add to
the last density the change that the model predicts; ``predict`` the density and reuse the wave
functions; or ``restart`` from a prediction alone.

``extrapolate`` takes a sixth fewer iterations than ``reuse`` in chains of random steps and volumes
(Si₂, GaAs, Fe₂; as many in H₂O; docs, page GPAW). It is the default for models with matrices D;
others need passes for D at every geometry, and ``reuse``."""

REFRESH_WITHOUT_ONSITE = 2
"""Refresh passes for models without matrices D."""

HOLD_BELOW = 1.0
"""Expected ε_mae, percent, of densities that are held by default. Of worse ones GPAW's first wave
functions give a density as good, and the passes are lost (``benchmarks/scf_acceleration.py``)."""

MOMENTS_DIFFER = 0.5
"""μ_B. Larger differences between initial and predicted moments are warned of where the prediction
is kept. Moments in the PAW spheres are a tenth of a μ_B from those of atoms anyway."""


@dataclass(frozen=True)
class Start:
    """How one geometry was begun."""

    kind: Literal["new", "moved", "new cell"]
    """Whether GPAW began afresh, moved the atoms, or changed the cell."""
    predicted: bool
    """Whether from a prediction; otherwise as GPAW begins, or goes on, by itself."""
    passes: int
    """Passes of the eigensolver before the first iteration; each costs about as much as one."""
    seconds: float
    """Wall time of the prediction alone."""


class PredictedStart:
    """What :func:`start_from_density` leaves on a calculator, as ``predicted_start``.

    Parameters
    ----------
    model, refresh, hold, moves, any_functional
        As for :func:`start_from_density`.
    keep
        Never update the density (:func:`fixed_density`).
    """

    def __init__(
        self,
        model: DensityModel,
        refresh: int | None,
        hold: int | None,
        moves: Moves | None,
        *,
        keep: bool = False,
        any_functional: bool = False,
    ) -> None:
        self.model, self.any_functional = model, any_functional
        if refresh is None:
            refresh = REFRESH_WITHOUT_ONSITE if model.network.config.onsite is None else 0
        self.refresh, self.hold = refresh, hold
        if moves is None:
            moves = "reuse" if model.network.config.onsite is None else "extrapolate"
        self.moves: Moves = moves
        self.keep = keep
        self.starts: list[Start] = []
        """Every geometry so far, in order."""
        self._seconds = 0.0
        self._expected_error: float | None = None
        self._declined = False
        self._begun: ref[Any] | None = None
        self._state: PawState | None = None
        self._moments: Any = None

    def afresh(self) -> PredictedStart:
        """The same for another calculator."""
        return PredictedStart(
            self.model,
            self.refresh,
            self.hold,
            self.moves,
            keep=self.keep,
            any_functional=self.any_functional,
        )

    def begin(self, calculator: Any, atoms: Atoms) -> None:
        """Instead of GPAW's ``create_new_calculation``."""
        begun = None if self._begun is None else self._begun()
        if begun is not None and begun is calculator._dft and begun.scf_loop.niter == 0:
            from gpaw.new.ase_interface import compare_atoms

            # In LCAO mode GPAW begins twice: it misses the wave functions that it is about to make.
            if not compare_atoms(calculator.atoms, atoms):
                return
        with calculator.timer("Init"):
            calculator._dft = self.new_dft(calculator, atoms)
        self._begun = ref(calculator._dft)
        calculator._atoms = atoms.copy()
        try:
            self._after_filling(calculator, "new")
        except BaseException:
            calculator._dft = None  # What is begun by half would go on as GPAW's own.
            raise

    def go_on(
        self,
        gpaws: Callable[[Atoms], None],
        kind: Literal["moved", "new cell"],
        calculator: Any,
        atoms: Atoms,
    ) -> None:
        """Instead of GPAW's ``move_atoms`` or ``create_new_calculation_from_old``: `gpaws`."""
        # Of files without wave functions GPAW would move the density, and then begin afresh.
        if self.moves == "restart" or not calculator.dft.ibzwfs.has_wave_functions():
            self.begin(calculator, atoms)
            return
        correction = self._correction(calculator) if self.moves == "extrapolate" else None
        self._state = None  # Of the last geometry, and of none if this is interrupted.
        gpaws(atoms)
        if self.moves == "reuse":
            self.starts.append(Start(kind, predicted=False, passes=0, seconds=0.0))
            calculator.log("Density: from the wave functions of the last geometry\n")
            return
        dft = calculator.dft
        atoms = _with_moments(atoms, calculator)
        if correction is not None:
            # What GPAW has converged since would count as a change.
            atoms.set_initial_magnetic_moments(self._moments)
        state = self._predict(atoms, dft.density, calculator.comm)
        if not self._declined:
            fill_density(dft.density, state)
            if correction is not None and correction.fits(dft.density):
                correction.add_to(dft.density)
                self._expected_error = 0.0  # What changes is a small part of the density.
            dft.density.symmetrize(dft.ibzwfs.ibz.symmetries)
            dft.density.normalize(dft.pot_calc.charge)
            update_potential(dft)
        self._after_filling(calculator, kind)

    def _correction(self, calculator: Any) -> Correction | None:
        """What the prediction of the last geometry lacked; None where it says nothing."""
        dft, state = calculator.dft, self._state
        shape = tuple(dft.density.nt_sR.desc.size_c)
        # What there is came from a file, from GPAW before this was attached, or of another mode.
        if state is None or state.total.shape != shape:
            atoms = _with_moments(calculator.atoms, calculator)
            state = self._predict(atoms, dft.density, calculator.comm)
        elif not dft.scf_loop.niter:
            return None
        return None if self._declined else Correction.of(dft.density, state)

    def new_density(self, calculator: Any, atoms: Atoms) -> tuple[Any, Any, Any]:
        """A predicted, symmetrised and normalised density, without potential or wave functions.

        Returns
        -------
        density, setups, relative positions
        """
        from gpaw.utilities import check_atoms_too_close, check_atoms_too_close_to_boundary

        check_atoms_too_close(atoms)
        check_atoms_too_close_to_boundary(atoms)
        builder = calculator.params.dft_component_builder(
            atoms, log=calculator.log, comm=calculator.comm
        )
        density = builder.density_from_superposition(builder.create_basis_set())
        self._fill_new(builder, density)
        density.normalize(builder.create_potential_calculator().charge)
        return density, builder.setups, builder.relpos_ac

    def new_dft(self, calculator: Any, atoms: Atoms) -> Any:
        """A ``gpaw.new.calculation.DFT`` before its first iteration, begun from a prediction."""
        from gpaw.new.calculation import DFT

        parameters = copy(calculator.params)

        def builder_with_prediction(*arguments: Any, **keywords: Any) -> Any:
            builder = calculator.params.dft_component_builder(*arguments, **keywords)
            superposition = builder.density_from_superposition

            def prediction(basis: Any) -> Any:
                density = superposition(basis)
                self._fill_new(builder, density)
                return density

            builder.density_from_superposition = prediction
            return builder

        parameters.dft_component_builder = builder_with_prediction
        components = parameters.create_dft_calculation_components(
            atoms, calculator.comm, calculator.log
        )
        components = (*components[:7], calculator.params, *components[8:])
        dft = DFT(atoms, mode="", converge=False, _components=components)
        if self.keep:
            self.hold_fast(dft)
        elif self.refresh or self.hold:
            _check_eigensolver(dft)
        return dft

    def hold_fast(self, dft: Any) -> None:
        """Never update the density, whatever has been changed since the last calculation."""
        _check_eigensolver(dft)
        if dft.pot_calc.xc.type == "MGGA":
            raise ConfigurationError(
                f"{dft.pot_calc.xc.name} depends on the kinetic energy density, which follows from "
                "wave functions and not from a prediction: a density alone fixes no potential. "
                "Take start_from_density."
            )
        dft.scf_loop.update_density_and_potential = False
        for name in ("density", "forces"):
            dft.scf_loop.convergence.pop(name, None)

    def _fill_new(self, builder: Any, density: Any) -> None:
        atoms = builder.atoms.copy()
        if density.ncomponents == 4:
            raise ConfigurationError(
                "The calculation is non-collinear (magmoms with three components, or soc=True); "
                f"the model {self.model.card.name!r} predicts collinear spins at most. Start "
                "without it."
            )
        atoms.set_initial_magnetic_moments(
            builder.initial_magmom_av[:, 2] if density.ncomponents == 2 else None
        )
        check_setups(self.model, atoms, builder.setups)
        state = self._predict(atoms, density, builder.log.comm)
        if self.keep and state.difference is None and self._moments.any():
            raise ConfigurationError(
                f"The model {self.model.card.name!r} predicts no spin density; that of free atoms, "
                "kept, makes errors of tenths of an eV an atom. Take a model with spin, "
                "start_from_density, which converges the spins, or no initial moments."
            )
        if not self._declined:
            fill_density(density, state)
            density.symmetrize(builder.ibz.symmetries)

    def _predict(self, atoms: Atoms, density: Any, comm: Any) -> PawState:
        began = perf_counter()
        n1, n2, n3 = (int(n) for n in density.nt_sR.desc.size_c)
        atoms = atoms.copy()
        # Plane waves have no borders, whatever the atoms say.
        atoms.pbc = ~np.asarray(density.nt_sR.desc.zerobc_c)
        state = predict_once(self.model, atoms, (n1, n2, n3), comm)
        self._moments = atoms.get_initial_magnetic_moments()
        if self.moves == "extrapolate":
            self._state = state
        self._seconds = perf_counter() - began
        self._expected_error = state.expected_error
        self._declined = state.is_of_doubtful_moments(density.ncomponents) and not self.keep
        return state

    def _after_filling(self, calculator: Any, kind: Literal["new", "moved", "new cell"]) -> None:
        dft = calculator.dft
        if self._declined:
            self.starts.append(Start(kind, predicted=False, passes=0, seconds=self._seconds))
            calculator.log(
                f"Density: GPAW's own, surroundings unknown to the model {self.model.card.name}\n"
            )
            return
        if dft.pot_calc.xc.exx_fraction:
            # GPAW takes the first wave functions of a hybrid from PBE's potential.
            update_potential(dft)
        # A refresh has improved the wave functions already; in LCAO mode they are exact at once.
        iterative = dft.ibzwfs.mode != "lcao" and not _minimises_directly(dft)
        error = self._expected_error
        # Expected errors are those of the total density.
        good = error is None or (error < HOLD_BELOW and dft.density.ncomponents == 1)
        # The kinetic energy density of meta-GGAs is that of atoms until GPAW makes it anew.
        good = good and dft.pot_calc.xc.type != "MGGA"
        by_itself = self.hold is None and iterative and not (self.refresh or self.keep) and good
        hold = self.hold or 0
        eigensolver_passes(dft, self.refresh, new_matrices=True)
        if by_itself:
            hold = hold_density(dft)
        else:
            eigensolver_passes(dft, hold, new_matrices=False)
        take_whole_steps(dft, calculator.params)
        if self.keep:
            _warn_of_moments(dft.density, dft.atoms.symbols, self._moments)
        start = Start(kind, True, self.refresh + hold, self._seconds)
        self.starts.append(start)
        calculator.log(
            f"Density: predicted by the model {self.model.card.name} in {start.seconds:.2f} s\n"
            + (f"  {start.passes} passes of the eigensolver went ahead\n" if start.passes else "")
        )


def start_from_density(
    calculator: Any,
    model: DensityModel,
    *,
    refresh: int | None = None,
    hold: int | None = None,
    moves: Moves | None = None,
    any_functional: bool = False,
) -> Any:
    """Make a GPAW calculator begin from a predicted density.

    The calculator stays an ordinary one, for relaxations, dynamics, equations of state, NEB or
    phonons. Every geometry that GPAW would begin afresh, because it is the first, has other
    elements, or a cell with other k-points, gets its own prediction. ``calculator.predicted_start``
    lists what was done (``starts``; not in classic GPAW), and GPAW's text output says it.

    Parameters
    ----------
    calculator
        What ``GPAW(...)`` returned, in mode PW, FD or LCAO, spin-paired or collinear; it is
        changed, and returned.
    model
        A model of GPAW's pseudo density (:class:`~eac_ase.calculator.EACDensity`), best with the
        matrices D (``config.onsite``), for the same functional and PAW data sets.
    refresh
        Passes of the eigensolver with ñ held, after each of which D is computed from the wave
        functions. Default: 0 for models with matrices D, 2 for those without.
    hold
        Further passes with ñ and D held. Default: until the density that follows from the wave
        functions differs from the prediction more than their own error explains, and then a damped
        step towards it (:func:`hold_density`); 0 where the model expects an error above
        :data:`HOLD_BELOW`, or expects errors and there is spin, which they do not cover; after
        refresh passes; and in LCAO mode, where every diagonalisation is exact.
    moves
        When atoms move or the cell changes a little, GPAW moves its wave functions along:
        ``extrapolate``, reuse them and add to the density that was converged last the change that
        the model predicts (the default for models with matrices D); ``reuse`` them, as GPAW does;
        ``predict`` the density all the same; or ``restart`` from a prediction alone.
    any_functional
        Allow calculations with another functional than the model's, such as a hybrid from a model
        of PBE. PAW data sets must be the model's all the same.

    Returns
    -------
    The calculator.

    Raises
    ------
    ConfigurationError
        The calculator is none of GPAW's or its version is not supported; the model is of another
        code, functional or kind of density; `refresh` or `hold` is no number of passes. Data sets
        and elements are checked when a geometry begins.

    Notes
    -----
    Models without spin predict ñ↑ + ñ↓; what they lack comes from GPAW's superposition. The moments
    given to spin models are those GPAW starts with: the initial ones, or after a change of cell,
    those it had converged. Where atoms are in surroundings unlike a spin model's training data
    (:class:`~eac_model.errors.UnfamiliarStructureWarning`), its moments may be those of another
    magnetic state, and spin-polarised calculations begin as GPAW does by itself. Charged cells are
    scaled as a whole. If the calculation has GPAW's default mixer, its steps are larger, and
    screened (:mod:`~eac_ase.adapters.gpaw_mixing`); a mixer of your own is left alone.

    Examples
    --------
    >>> from gpaw import GPAW
    >>> from eac_ase import EACDensity
    >>> gpaw = GPAW(mode={"name": "pw", "ecut": 400}, xc="PBE", kpts={"density": 3})
    ...                                                                 # doctest: +SKIP
    >>> atoms.calc = start_from_density(gpaw, EACDensity("si-pbe"))     # doctest: +SKIP
    >>> atoms.get_potential_energy()                                    # doctest: +SKIP
    """
    if moves is not None and moves not in get_args(Moves):
        raise ConfigurationError(f"moves={moves!r}: one of {', '.join(get_args(Moves))}.")
    _check_passes(refresh=refresh, hold=hold)
    if getattr(calculator, "old", False):
        _check_options_of_classic(refresh, hold, moves)
        start_classic(calculator, model, any_functional)
        _warn_of_missing_matrices(model, 0)
        _warn_of_charge(calculator.parameters.charge)
        return calculator
    _check_calculator(calculator)
    check_model(model, calculator, any_functional)
    start = PredictedStart(model, refresh, hold, moves, any_functional=any_functional)
    _warn_of_missing_matrices(model, refresh)
    _warn_of_charge(calculator.params.charge)
    return _attach(calculator, start)


def fixed_density(
    calculator: Any,
    model: DensityModel,
    *,
    refresh: int | None = None,
    any_functional: bool = False,
) -> Any:
    """Make a GPAW calculator keep the predicted density: no self-consistency at all.

    The wave functions are converged in the potential of the prediction. Eigenvalues, Fermi level,
    density of states (``calculator.dos()``) and bands (``calculator.fixed_density(kpts=…)``) are
    first order in the error of the density; the energy is the Harris–Foulkes functional (Harris,
    Phys. Rev. B 31, 1770; Foulkes and Haydock, Phys. Rev. B 39, 12520), whose error is second
    order. Every new geometry gets its own prediction.

    Parameters
    ----------
    calculator
        What ``GPAW(...)`` of 26.7 or newer returned; it is changed, and returned. What it has
        calculated already, or read from a file, is forgotten.
    model, refresh, any_functional
        As for :func:`start_from_density`.

    Returns
    -------
    The calculator.

    Raises
    ------
    ConfigurationError
        As for :func:`start_from_density`; classic GPAW; and when a geometry begins, functionals of
        the kinetic energy density, eigensolvers that minimise the energy directly, and initial
        moments where the model predicts no spin density.

    Warns
    -----
    UserWarning
        When forces or stresses are asked for: they are those of the self-consistent formula, so
        that their errors are first order in that of the density, in silicon 0.02 eV/Å at 0.2 %
        and 0.3 at 1.2 %.
    """
    start = _kept(calculator, model, refresh, any_functional)
    _warn_of_missing_matrices(model, refresh)
    _warn_of_charge(calculator.params.charge)
    calculator._dft = None
    return _attach(calculator, start)


def all_electron_density(
    calculator: Any,
    model: DensityModel,
    atoms: Atoms,
    *,
    refinement: int = 2,
    core: bool = True,
    refresh: int | None = None,
    any_functional: bool = False,
) -> DensityGrid:
    """All-electron density from a prediction, without self-consistency.

    Parameters
    ----------
    calculator
        What ``GPAW(...)`` of 26.7 or newer returned; it is left as it is.
    model
        As for :func:`start_from_density`.
    atoms
        Structure.
    refinement
        How many times finer than the grid of the wave functions: 1, 2, 4.
    core
        With the core electrons. Then the charge that a grid is too coarse for near a nucleus goes
        to the nearest point, so that the integral is right; without, it is missing.
    refresh
        As for :func:`start_from_density`. Without passes (the default for models with matrices D)
        no wave functions are needed at all.
    any_functional
        As for :func:`start_from_density`.

    Returns
    -------
    DensityGrid
        e/Å³ on the whole cell, kind ``all-electron``.

    Raises
    ------
    ConfigurationError
        As for :func:`fixed_density`.
    """
    from gpaw.densities import Densities

    start = _kept(calculator, model, refresh, any_functional)
    _warn_of_missing_matrices(model, refresh)
    _warn_of_charge(calculator.params.charge)
    if not _is_whole(refinement, 1):
        raise ConfigurationError(f"refinement={refinement!r}: 1, 2, 4 or another whole number.")
    if start.refresh:
        dft = start.new_dft(calculator, atoms)
        eigensolver_passes(dft, start.refresh, new_matrices=True)
        densities = dft.densities()
    else:
        density, setups, positions = start.new_density(calculator, atoms)
        densities = Densities(density.nt_sR, density.D_asii, positions, setups)
    found = densities.all_electron_densities(grid_refinement=refinement, skip_core=not core)
    values = found.gather(broadcast=True).data
    return DensityGrid(
        values=values.sum(axis=0),
        spin=values[0] - values[1] if len(values) == 2 else None,
        atoms=plain_atoms(atoms),
        cell=np.array(atoms.cell.complete()),
        pbc=tuple(atoms.pbc),
        kind="all-electron",
        provenance=replace(model.card.provenance, density_kind="all-electron"),
    )


# -- behind the scenes -------------------------------------------------------------------------


def _kept(
    calculator: Any, model: DensityModel, refresh: int | None, any_functional: bool
) -> PredictedStart:
    """For a calculator that is not to change the prediction; everything is checked."""
    _check_passes(refresh=refresh)
    _check_calculator(calculator)
    check_model(model, calculator, any_functional)
    return PredictedStart(model, refresh, 0, "restart", keep=True, any_functional=any_functional)


def _attach(calculator: Any, start: PredictedStart) -> Any:
    if hasattr(calculator, "predicted_start"):
        calculator._dft = None  # What began otherwise does not go on.
    else:
        kind: Any = type(calculator)
        calculator.__class__ = _predicting(kind)
    calculator.predicted_start = start
    return calculator


@cache
def _predicting(kind: Any) -> type:
    """GPAW's class of calculators, with predictions where it begins a geometry."""

    class GPAWFromPrediction(kind):
        predicted_start: PredictedStart

        def create_new_calculation(self, atoms: Atoms) -> None:
            self.predicted_start.begin(self, atoms)

        def move_atoms(self, atoms: Atoms) -> None:
            self.predicted_start.go_on(super().move_atoms, "moved", self, atoms)

        def create_new_calculation_from_old(self, atoms: Atoms) -> None:
            gpaws = super().create_new_calculation_from_old
            self.predicted_start.go_on(gpaws, "new cell", self, atoms)

        def calculate_property(self, atoms: Atoms | None, prop: str) -> Any:
            if not self.predicted_start.keep:
                return super().calculate_property(atoms, prop)
            if self._dft is not None:
                self.predicted_start.hold_fast(self._dft)
            return _with_warning(prop, super().calculate_property(atoms, prop))

        def new(self, **parameters: Any) -> Any:
            start = self.predicted_start
            other = super().new(**parameters)
            check_model(start.model, other, start.any_functional)
            if "charge" in parameters:
                _warn_of_charge(other.params.charge)
            return _attach(other, start.afresh())

        def __copy__(self) -> Any:
            other = object.__new__(type(self))
            other.__dict__ |= self.__dict__ | {"predicted_start": self.predicted_start.afresh()}
            return other

    return GPAWFromPrediction


def _with_warning(name: str, value: Any) -> Any:
    if name in ("forces", "stress"):
        warnings.warn(
            f"The {name} belong to a density that is not self-consistent: their errors are first "
            "order in its error, in silicon 0.02 eV/Å at 0.2 % and 0.3 at 1.2 %. Do not relax or "
            "run dynamics with them; start_from_density converges.",
            stacklevel=4,
        )
    return value


def _minimises_directly(dft: Any) -> bool:
    from gpaw.new.pwfd.diropt import DirOptPWFD

    return isinstance(dft.scf_loop.eigensolver, DirOptPWFD)


def _check_eigensolver(dft: Any) -> None:
    """Refuse one that changes the density."""
    if _minimises_directly(dft):
        raise ConfigurationError(
            "fixed_density, all_electron_density, refresh and hold need an eigensolver that leaves "
            f"the density alone; {type(dft.scf_loop.eigensolver).__name__} minimises the energy "
            "directly. Take another one, such as 'davidson', or set refresh and hold to 0."
        )


def _with_moments(atoms: Atoms, calculator: Any) -> Atoms:
    """With the moments GPAW began with, or those there are if it began with none."""
    from gpaw.new.builder import normalize_initial_magmoms

    density = calculator.dft.density
    moments = None
    if density.ncomponents == 2:
        moments = normalize_initial_magmoms(atoms, calculator.params.magmoms, True)[0][:, 2]
        if not moments.any():
            moments = density.calculate_magnetic_moments()[1][:, 2]
    atoms = atoms.copy()
    atoms.set_initial_magnetic_moments(moments)
    return atoms


def _warn_of_moments(density: Any, symbols: Symbols, begun: Array) -> None:
    """Moments are inputs of models with spin: what comes out should be what went in."""
    if density.ncomponents != 2:
        return
    predicted = density.calculate_magnetic_moments()[1][:, 2]
    a = int(np.argmax(abs(predicted - begun)))
    if abs(predicted[a] - begun[a]) > MOMENTS_DIFFER:
        warnings.warn(
            f"Atom {a} ({symbols[a]}) begins with a moment of {begun[a]:.2f} μ_B, of which "
            f"the model makes {predicted[a]:.2f}. Without self-consistency the energy depends on "
            "that: begin with moments near those of the converged state.",
            stacklevel=4,
        )


def _warn_of_charge(charge: float) -> None:
    if charge:
        warnings.warn(
            f"The cell has the charge {charge:+g}; models know neutral "
            "structures, and the difference is spread in proportion to the density.",
            stacklevel=3,
        )


def _warn_of_missing_matrices(model: DensityModel, refresh: int | None) -> None:
    if model.network.config.onsite is None and refresh == 0:
        warnings.warn(
            f"The model {model.card.name!r} predicts ñ and no matrices D. With D "
            "of free atoms even the exact ñ saves few iterations: take a model with on-site data, "
            "or refresh=2.",
            stacklevel=3,
        )


def _check_passes(**counts: int | None) -> None:
    for name, count in counts.items():
        if count is not None and not _is_whole(count, 0):
            raise ConfigurationError(f"{name}={count!r}: a number of passes, 0, 1, 2, …")


def _is_whole(number: object, smallest: int) -> bool:
    if isinstance(number, bool) or not isinstance(number, Integral):
        return False
    return int(number) >= smallest


def _check_calculator(calculator: Any) -> None:
    """Refuse what is not a calculator of the new GPAW."""
    try:
        from gpaw import __version__
    except ImportError as error:
        raise ConfigurationError("GPAW is missing: pip install 'eac-density[gpaw]'") from error
    if getattr(calculator, "old", False):
        raise ConfigurationError(
            "This is classic GPAW (legacy_gpaw=True), which can only start from a density "
            "(start_from_density). Leave legacy_gpaw out."
        )
    parameters = getattr(calculator, "params", None)
    if not hasattr(calculator, "create_new_calculation") or not hasattr(
        parameters, "create_dft_calculation_components"
    ):
        raise ConfigurationError(
            f"{type(calculator).__module__}.{type(calculator).__qualname__} is no calculator of "
            f"GPAW 26.7 or newer (installed: {__version__}). Pass what GPAW(...) returns."
        )


def _check_options_of_classic(refresh: int | None, hold: int | None, moves: Moves | None) -> None:
    if refresh or hold or moves not in (None, "reuse"):
        raise ConfigurationError(
            "refresh, hold and moves need GPAW's new code; this is classic GPAW "
            "(legacy_gpaw=True). Leave them out, or leave legacy_gpaw out."
        )
