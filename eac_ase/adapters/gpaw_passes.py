"""Passes of GPAW's eigensolver with a predicted density held, before GPAW mixes."""

from __future__ import annotations

from typing import Any

import numpy as np

from eac_ase.adapters.gpaw_mixing import divide_by_screening, steps_of

MOST_HELD = 4
"""Largest number of passes with the density held, if it is chosen by itself."""

PASS_GAIN = 50.0
"""How much smaller a pass of the eigensolver makes the square of the wave functions' residual, or
somewhat more (Si₂, Al₂, GaAs, H₂O: 20 to 200). Decides how long the density is held."""


def eigensolver_passes(dft: Any, count: int, *, new_matrices: bool) -> float:
    """Improve the wave functions with ñ held.

    Parameters
    ----------
    dft
        ``gpaw.new.calculation.DFT``.
    count
        Number of passes.
    new_matrices
        After each of them compute D from the wave functions, scale ñ to the charge that goes with
        it, and make the potential anew.

    Returns
    -------
    float
        Σ‖(H − εS)ψ‖² over occupied states in the last pass, before it improved them, Hartree².
    """
    loop, density = dft.scf_loop, dft.density
    electrons = density.nvalence - density.charge + dft.pot_calc.charge
    error = np.inf
    for _ in range(count):
        _, error, dft.energies = loop.eigensolver.iterate(
            dft.ibzwfs, density, dft.potential, loop.hamiltonian, dft.pot_calc, dft.energies
        )
        dft.ibzwfs.calculate_occs(loop.occ_calc, electrons)
        if new_matrices:
            held = density.nt_sR.data.copy()
            density.update(dft.ibzwfs)
            density.nt_sR.data[:] = held
            density.normalize(dft.pot_calc.charge)
            update_potential(dft)
    return float(error)


def hold_density(dft: Any) -> int:
    """Improve the wave functions with the density held, as long as that pays; then the density.

    The first wave functions are worse than a good density: a mixer that sees what they make of it
    spoils the density and learns the wrong thing. Passes go on while the part of the density's
    residual that the wave functions' own error explains, about √(N e) electrons for a residual of
    Σ‖(H − εS)ψ‖² = e Hartree² (measured), is more than half of it. What is left then is the error
    of the density itself as the wave functions see it; one damped step takes much of it away.

    Returns
    -------
    int
        Number of passes.
    """
    density = dft.density
    electrons = density.nvalence - density.charge + dft.pot_calc.charge
    enough = 10 * dft.scf_loop.convergence["density"].tol * electrons
    for count in range(1, MOST_HELD + 1):
        error = eigensolver_passes(dft, 1, new_matrices=False)
        residual, size = _residual(dft)
        if (
            count == MOST_HELD
            or np.isinf(error)
            or size < enough
            or (electrons * error / PASS_GAIN) ** 0.5 < size / 2
        ):
            break
    if size > enough:
        _step(dft, *residual)
    return count


def _residual(dft: Any) -> tuple[tuple[Any, Any], float]:
    """What follows from the wave functions minus ñ and D, which stay; the first's ∫|…|, electrons.

    Of all spins, in their arrays.
    """
    density = dft.density
    held, matrices = density.nt_sR.data.copy(), density.D_asii.data.copy()
    density.update(dft.ibzwfs)
    change = density.nt_sR.copy()
    change.data -= held
    change_of_matrices = density.D_asii.data - matrices
    density.nt_sR.data[:] = held
    density.D_asii.data[:] = matrices
    total = change[0].copy()
    total.data[:] = abs(change.data.sum(axis=0))
    return (change, change_of_matrices), float(total.integrate())


def _step(dft: Any, change: Any, change_of_matrices: Any) -> None:
    """Follow a residual, its long waves damped: in crystals as if they were metals.

    Where residuals are not divided, half of it; where it is not known how far to go, nothing.
    """
    steps, density = steps_of(dft), dft.density
    if steps.later is None:
        return
    part = steps.first if steps.rough is None else 1.0
    if steps.rough is not None:
        from gpaw.mixer.base import BaseMixer

        # Without the compensation charges a slab of copper took 16 iterations instead of 13. The
        # method is that of all mixers; ours would divide.
        charges = BaseMixer.add_compensation_charge(
            dft.scf_loop.mixer, change, change_of_matrices, density
        )
        for channel, charge in zip(change, charges, strict=True):
            divide_by_screening(channel, charge, density, steps.rough)
    density.nt_sR.data += part * change.data
    density.D_asii.data += part * change_of_matrices
    density.normalize(dft.pot_calc.charge)
    update_potential(dft)


def update_potential(dft: Any) -> None:
    """Make the potential of the density there is."""
    dft.potential, dft.energies, _ = dft.pot_calc.calculate(
        dft.density, dft.ibzwfs, dft.potential.vHt_x
    )
