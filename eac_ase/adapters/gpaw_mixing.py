"""GPAW's default mixer near the solution: whole steps, with long waves damped as matter screens.

The error of a good start is so small that what an iteration makes of the density answers to it
linearly: R = −ε·δn. Away from long waves ε is 1, so that a whole step removes the error, where
GPAW's mixer, careful with superposed atoms, takes three quarters of it at most. Long waves are
screened, and whole steps would go too far: those are divided by a model of ε, in metals one of
electrons where they are, so that surfaces and slabs are no worse than crystals.

Molecules, slabs and liquids of wide gap do not fit such a model, and screen little: there the first
step is half a residual, later ones are whole and undivided.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from scipy.fft import irfftn, rfftn
from scipy.sparse.linalg import LinearOperator, cg

from eac_ase.adapters.gpaw_state import Array

FIRST_STEP = 0.5
"""Of a residual that is not divided by ε(G). GPAW's own is 0.05."""

STEP = 0.9
"""Of a residual, after the division by ε(G): the mixer's first step, and the part of later ones
that the history of the densities does not predict."""

METAL = 0.1
"""eV. With a smaller gap screening is that of a metal."""

WIDE = 2.0
"""eV. With a larger gap long waves are screened so little that undivided steps do no harm."""

EMPTY = 1e-3
"""Electrons in a cube of one Bohr: a point with less is empty. Matter with a gap of which more than
a tenth is empty does not screen long waves as the mean of its density would: superposed atoms of a
slab of MgO took 17 iterations with the model, 13 with GPAW's mixing and 12 with undivided steps."""

SHORT = 1.0
"""Bohr⁻²: waves of larger G² are hardly screened. What undivided steps would remove of a
prediction's error, in displaced silicon and in aluminium: 3.0, 2.0, 1.6, 1.2 and 1.0 of it at
G² = 0.45, 0.8, 1.25, 2.5 and 5."""

TOLERANCE = 1e-3
"""Of the solution for the screening of metals, a part of the residual."""


@dataclass(frozen=True)
class Steps:
    """How far to follow residuals."""

    first: float
    """Part of the first one."""

    later: float | None
    """Part of what the history does not explain; None: as GPAW's mixer decides."""

    divided: bool
    """By ε(G), before."""


def steps_of(dft: Any) -> Steps:
    """Those that suit a ``gpaw.new.calculation.DFT``, judged by its density and its gap."""
    grid, gap = dft.density.nt_sR.desc, _band_gap(dft)
    periodic = not any(grid.zerobc_c)  # Others have no waves to tell apart.
    metal, insulator = gap is not None and gap <= METAL, gap is not None and gap > WIDE
    if periodic and (metal or not _has_vacuum(dft.density)):
        return Steps(STEP, STEP, divided=True)
    return Steps(FIRST_STEP, STEP if insulator else None, divided=False)


def take_whole_steps(dft: Any, parameters: Any) -> None:
    """Let GPAW's default mixer take the steps of :func:`steps_of`; one that was asked for stays.

    Parameters
    ----------
    dft
        ``gpaw.new.calculation.DFT`` with the wave functions it begins with.
    parameters
        ``gpaw.dft.Parameters`` of the calculator.
    """
    mixer = dft.scf_loop.mixer
    default = type(parameters)(mode=parameters.mode).mixer.todict()
    if parameters.mixer.todict() != default or not hasattr(mixer, "A_lims"):
        return
    steps = steps_of(dft)
    mixer.beta = steps.first
    if steps.later is not None:
        mixer.A_lims[:] = [steps.later, steps.later]
    if steps.divided and not hasattr(mixer, "screening"):
        kind: Any = type(mixer)
        mixer.__class__ = _screened(kind)
        mixer.screening = 1.0
    # Where wave functions have moved, what was known of them before.
    if hasattr(mixer, "screening") and _band_gap(dft) is not None:
        mixer.screening = dielectric_constant(dft) if steps.divided else 1.0


def dielectric_constant(dft: Any) -> float:
    """Estimated from density and gap, infinite for metals.

    Penn's model (Phys. Rev. 128, 2093 (1962)), 1 + (ω_p / E)², with E = 4 eV + 2 · gap of PBE in
    place of the mean gap: 11 for silicon, 7.5 for diamond, 2.3 for rock salt.
    """
    from ase.units import Hartree

    gap = _band_gap(dft)
    if gap is None or gap <= METAL:
        return np.inf
    grid = dft.density.nt_sR.desc
    electrons = dft.density.nvalence / abs(np.linalg.det(grid.cell_cv))
    return float(1 + 4 * np.pi * electrons * Hartree**2 / (4 + 2 * gap) ** 2)


def _band_gap(dft: Any) -> float | None:
    """In eV, 0 for metals; None where the wave functions have no eigenvalues yet."""
    from ase.units import Hartree

    if not all(wfs.has_eigs and wfs.has_occs for wfs in dft.ibzwfs):
        return None
    # GPAW counts electrons: the gap above a band that is half full is none.
    partly = any(((wfs.occ_n > 0.25) & (wfs.occ_n < 0.75)).any() for wfs in dft.ibzwfs)
    if dft.ibzwfs.kpt_comm.max_scalar(float(partly)):
        return 0.0
    homo, lumo = dft.ibzwfs.get_homo_lumo()
    gap = (lumo - homo) * Hartree
    return float(gap) if gap > 0 else 0.0  # Without a band it may be NaN.


def _has_vacuum(density: Any) -> bool:
    grid, data = density.nt_sR.desc, density.nt_sR.data
    empty = grid.comm.sum_scalar(int((abs(data.sum(axis=0)) < EMPTY).sum()))
    return bool(10 * empty > grid.comm.sum_scalar(data[0].size))


def divide_by_screening(change: Any, charge: Any, density: Any, constant: float) -> None:
    """Divide a change of the density by ε, in place. Its integral stays.

    Parameters
    ----------
    change
        ``gpaw.core.UGArray``, on one or several processes.
    charge
        The same with the change of the compensation charges.
    density
        ``gpaw.new.density.Density``.
    constant
        Dielectric constant; infinite for metals.
    """
    # A grid that is shared among processes is put together on the first of them.
    whole, electrons = charge.gather(), density.nt_sR.gather()
    cloud = None
    if whole is not None:
        values, grid, xp = whole.to_xp(np).data, whole.desc, whole.xp
        if np.isinf(constant):
            cloud = _cloud_of_metal(values, electrons.to_xp(np).data.sum(axis=0), grid)
        else:
            cloud = _cloud_of_insulator(values, constant, grid)
        cloud = xp.asarray(cloud)
    part = change.new()
    part.scatter_from(cloud)
    change.data += part.data


def _cloud_of_insulator(charge: Array, constant: float, grid: Any) -> Array:
    """What electrons add to a charge, (1/ε − 1) times it: ε(G) = 1 + 1 / (1 / (ε − 1) + g + g²).

    g = G²/k². The response to short waves falls as G⁻⁴ (Levine and Louie, Phys. Rev. B 25, 6310
    (1982)).
    """
    squares = _squares(grid) / SHORT
    least = 1 / (constant - 1) if constant > 1 else np.inf
    answer: Array = -1 / (1 + least + squares + squares**2)
    answer[0, 0, 0] = 0
    return irfftn(rfftn(charge) * answer, charge.shape)


def _cloud_of_metal(charge: Array, density: Array, grid: Any) -> Array:
    """What electrons add to a charge ρ, −L (φ − ∫Lφ / ∫L), where (v⁻¹ + L) φ − L ∫Lφ / ∫L = ρ.

    The density of states at the Fermi level, L, is that of Thomas and Fermi at every point, so that
    electrons answer where they are (Herbst and Levitt, J. Phys.: Condens. Matter 33, 085503
    (2021), have it from the wave functions). In a uniform metal this is Kerker's damping of long
    waves (Phys. Rev. B 23, 3082 (1981)). v is Coulomb's potential, weaker for short waves:
    4π / (G² + G⁴ / k²).
    """
    squares = _squares(grid)
    coulomb = squares + squares**2 / SHORT  # 4π/v; L is 4π times the density of states
    states = 4 / np.pi * (3 * np.pi**2 * np.maximum(density, 0)) ** (1 / 3)
    total, inner = states.sum(), 1 / (coulomb + states.mean())

    def above_mean(potential: Array) -> Array:
        return states * (potential - (states * potential).sum() / total)

    def answer(potential: Array) -> Array:
        potential = potential.reshape(charge.shape)
        return irfftn(rfftn(potential) * coulomb, charge.shape) + above_mean(potential)

    def precondition(residual: Array) -> Array:
        return irfftn(rfftn(residual.reshape(charge.shape)) * inner, charge.shape)

    size = (charge.size, charge.size)
    potential, _ = cg(
        LinearOperator(size, lambda x: answer(x).ravel()),
        (charge - charge.mean()).ravel(),
        M=LinearOperator(size, lambda x: precondition(x).ravel()),
        rtol=TOLERANCE,
        maxiter=50,
    )
    return -above_mean(potential.reshape(charge.shape))


def _squares(grid: Any) -> Array:
    """G² in Bohr⁻² of what ``rfftn`` makes of a grid."""
    sizes = grid.size_c
    counts = [*(np.fft.fftfreq(n, 1 / n) for n in sizes[:2]), np.arange(sizes[2] // 2 + 1)]
    indices = np.stack(np.meshgrid(*counts, indexing="ij"), axis=-1)
    squares: Array = ((2 * np.pi * indices @ np.linalg.inv(grid.cell_cv).T) ** 2).sum(axis=-1)
    return squares


@cache
def _screened(kind: Any) -> type:
    """GPAW's class of mixers, with steps that are divided by ε; errors are those of before."""

    class ScreenedMixer(kind):
        screening: float

        def add_compensation_charge(
            self,
            n_sX: Any,
            D_asii_data: Any,
            density: Any,
            out: Any = None,
            add_delta0: bool = False,
        ) -> Any:
            out = super().add_compensation_charge(n_sX, D_asii_data, density, out, add_delta0)
            if not add_delta0:  # It is a residual, from whose total charge errors follow.
                divide_by_screening(n_sX[0], out[0], density, self.screening)
            return out

    return ScreenedMixer
