"""Classic GPAW: ``gpaw.old`` of 26.7 (``legacy_gpaw=True``), and GPAW up to 25.7."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms

from eac_ase.adapters.gpaw_parallel import predict_once
from eac_ase.adapters.gpaw_state import DensityModel, channels_of_spin, check_setups
from eac_model.errors import ConfigurationError


def start_classic(calculator: Any, model: DensityModel) -> Any:
    """Make a classic GPAW calculator begin from a predicted density.

    Geometries that it begins afresh are predicted; when atoms move it goes on with its own wave
    functions.

    Parameters
    ----------
    calculator
        ``GPAW(..., legacy_gpaw=True)``; it is changed, and returned.
    model
        As for :func:`eac_ase.adapters.gpaw.start_from_density`, and checked already.
    """
    initialize = calculator.initialize

    def initialize_with_prediction(atoms: Atoms | None = None, reading: bool = False) -> None:
        initialize(atoms, reading)
        density = calculator.density
        superpose = density.initialize_from_atomic_densities

        def predict(basis_functions: Any) -> None:
            superpose(basis_functions)
            _replace(calculator, model)

        density.initialize_from_atomic_densities = predict

    calculator.initialize = initialize_with_prediction
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
