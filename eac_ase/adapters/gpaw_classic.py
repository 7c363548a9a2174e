"""Classic GPAW: ``gpaw.old`` of 26.7 (``legacy_gpaw=True``), and GPAW up to 25.7."""

from __future__ import annotations

from typing import Any
from weakref import proxy

import numpy as np
from ase import Atoms

from eac_ase.adapters.gpaw_parallel import predict_once
from eac_ase.adapters.gpaw_state import (
    DensityModel,
    channels_of_spin,
    check_model,
    check_setups,
)
from eac_model.errors import ConfigurationError


def start_classic(calculator: Any, model: DensityModel, any_functional: bool = False) -> Any:
    """Make a classic GPAW calculator begin from a predicted density.

    Geometries that it begins afresh are predicted; when atoms move it goes on with its own wave
    functions.

    Parameters
    ----------
    calculator
        ``GPAW(..., legacy_gpaw=True)``; it is changed, and returned.
    model, any_functional
        As for :func:`eac_ase.adapters.gpaw.start_from_density`.

    Raises
    ------
    ConfigurationError
        The model is of another code, functional or kind of density.
    """
    check_model(model, calculator, any_functional)
    kind = type(calculator)
    # Its own methods must not keep the calculator alive: GPAW ends its text output with it.
    gpaw = proxy(calculator)

    def initialize_with_prediction(atoms: Atoms | None = None, reading: bool = False) -> None:
        kind.initialize(gpaw, atoms, reading)
        density = gpaw.density
        superpose = density.initialize_from_atomic_densities

        def predict(basis_functions: Any) -> None:
            superpose(basis_functions)
            _replace(gpaw, model)

        density.initialize_from_atomic_densities = predict

    def with_other_parameters(**parameters: Any) -> Any:
        return start_classic(kind.new(gpaw, **parameters), model, any_functional)

    calculator.initialize = initialize_with_prediction
    calculator.new = with_other_parameters
    return calculator


def _replace(calculator: Any, model: DensityModel) -> None:
    """A prediction in place of the superposition of atoms."""
    from gpaw.utilities import pack_density, unpack_density

    density, wfs = calculator.density, calculator.wfs
    if not density.collinear:
        raise ConfigurationError(
            "The calculation is non-collinear; the model "
            f"{model.card.name!r} predicts collinear spins at most. Start without it."
        )
    atoms = calculator.atoms.copy()
    # Hund's rule sets moments that the atoms do not have.
    atoms.set_initial_magnetic_moments(density.magmom_av[:, 2] if density.nspins == 2 else None)
    # Plane waves have no borders, whatever the atoms say.
    atoms.pbc = density.gd.pbc_c
    check_setups(model, atoms, density.setups)
    grid = density.gd
    n1, n2, n3 = (int(n) for n in grid.N_c)
    state = predict_once(model, atoms, (n1, n2, n3), wfs.world)
    if state.is_of_doubtful_moments(density.nspins):
        calculator.log(f"Density: GPAW's own, surroundings unknown to {model.card.name}")
        return
    part = tuple(slice(b, e) for b, e in zip(grid.beg_c, grid.end_c, strict=True))
    difference = None if state.difference is None else state.difference[part]
    density.nt_sG[:] = channels_of_spin(state.total[part], difference, density.nt_sG)
    for values in density.nt_sG:
        wfs.kd.symmetry.symmetrize(values, grid)
    if state.onsite is not None:
        for a, packed in density.D_asp.items():
            present = np.array([unpack_density(row) for row in packed])
            spin = None if state.onsite_difference is None else state.onsite_difference[a]
            matrices = channels_of_spin(state.onsite[a], spin, present)
            # GPAW's C code takes single precision for double and reads past the end.
            packed[:] = [pack_density(np.array(matrix, dtype=float)) for matrix in matrices]
        wfs.symmetrize_atomic_density_matrices(density.D_asp)
    # The superposition is in the history of the mixer.
    density.mixer.reset()
    density.calculate_normalized_charges_and_mix()
    calculator.log(f"Density predicted by the model {model.card.name}")
