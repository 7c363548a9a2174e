"""GPAW's default mixer near the solution: whole steps, with long waves damped as matter screens.

The error of a good start is so small that what an iteration makes of the density answers to it
linearly: R = −ε·δn. Away from long waves ε is 1, so that a whole step removes the error, where
GPAW's mixer, careful with superposed atoms, takes three quarters of it at most. Long waves are
screened, and whole steps would go too far: those are divided by a model of ε. In metals, molecules
and liquids it is one of electrons where they are, so that surfaces are no worse than crystals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from scipy.fft import irfftn, rfftn
from scipy.sparse.linalg import LinearOperator, cg

from eac_ase.adapters.gpaw_state import Array

Cloud = Callable[[Array, Array, Any], Array]
"""What electrons add to a charge as they screen it, (1/ε − 1) times it; from the charge, the
electrons' density (both in Bohr⁻³) and GPAW's grid."""

FIRST_STEP = 0.5
"""Of a residual that is not divided by ε. GPAW's own is 0.05."""

STEP = 0.9
"""Of a residual, after the division by ε: the mixer's first step, and the part of later ones that
the history of the densities does not predict."""

METAL = 0.1
"""eV. With a smaller gap screening is that of a metal."""

WIDE = 2.0
"""eV. With a larger gap matter that is partly empty screens as molecules do."""

EMPTY = 1e-3
"""Electrons in a cube of one Bohr: a point with less is empty. Matter with a gap of which more than
a tenth is empty does not screen long waves as the mean of its density would."""

EXCITATION = 20.0
"""eV. Where the electrons of molecules are excited: polarizabilities of 8 electrons in 9.8 (water),
14 (ammonia), 17 (methane, hydrogen chloride) Bohr³ are those of oscillators of 25, 20 and 18 eV."""

SHORT = 1.0
"""Bohr⁻²: waves of larger G² are hardly screened. What undivided steps would remove of a
prediction's error, in displaced silicon and in aluminium: 3.0, 2.0, 1.6, 1.2 and 1.0 of it at
G² = 0.45, 0.8, 1.25, 2.5 and 5."""

SHORT_IN_MOLECULES = 0.5
"""The same for molecules. Predictions of liquids of eight molecules of water took 8 iterations, and
9 with twice as much."""

TOLERANCE = 1e-3
"""Of the solution for the screening by electrons where they are, a part of the residual."""


@dataclass(frozen=True)
class Steps:
    """How far to follow residuals."""

    first: float
    """Part of the first one."""

    later: float | None
    """Part of what the history does not explain; None: as GPAW's mixer decides."""

    cloud: Cloud | None
    """Divided by ε, before, with what electrons add to a charge; None: not divided."""

    rough: Cloud | None
    """The same where the wave functions behind a residual are still rough."""


def steps_of(dft: Any) -> Steps:
    """Those that suit a ``gpaw.new.calculation.DFT``, judged by its density and its gap."""
    gap = _band_gap(dft)
    periodic = not any(dft.density.nt_sR.desc.zerobc_c)  # Others have no waves to tell apart.
    if periodic and gap is not None and gap <= METAL:
        return Steps(STEP, STEP, cloud_of_metal, cloud_of_metal)
    if periodic and not _has_vacuum(dft.density):
        cloud = None if gap is None else partial(_cloud_of_insulator, dielectric_constant(dft))
        return Steps(STEP, STEP, cloud, cloud_of_metal)
    if gap is None or gap <= WIDE:
        return Steps(FIRST_STEP, None, None, None)
    if periodic:
        return Steps(STEP, STEP, cloud_of_molecules, cloud_of_molecules)
    return Steps(FIRST_STEP, STEP, None, None)


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
    if steps.cloud is not None and not hasattr(mixer, "cloud"):
        kind: Any = type(mixer)
        mixer.__class__ = _screened(kind)
        mixer.cloud = steps.cloud
    # Where wave functions have moved, what was known of them before.
    elif hasattr(mixer, "cloud") and _band_gap(dft) is not None:
        mixer.cloud = steps.cloud


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


def divide_by_screening(change: Any, charge: Any, density: Any, cloud: Cloud) -> None:
    """Divide a change of the density by ε, in place. Its integral stays.

    Parameters
    ----------
    change
        ``gpaw.core.UGArray``, on one or several processes.
    charge
        The same with the change of the compensation charges.
    density
        ``gpaw.new.density.Density``.
    cloud
        How electrons screen.
    """
    # A grid that is shared among processes is put together on the first of them.
    whole, electrons = charge.gather(), density.nt_sR.gather()
    found = None
    if whole is not None:
        values = electrons.to_xp(np).data.sum(axis=0)
        found = whole.xp.asarray(cloud(whole.to_xp(np).data, values, whole.desc))
    part = change.new()
    part.scatter_from(found)
    change.data += part.data


def _cloud_of_insulator(constant: float, charge: Array, density: Array, grid: Any) -> Array:
    """With one dielectric constant for long waves: ε(G) = 1 + 1 / (1 / (ε − 1) + g + g²).

    g = G²/k². The response to short waves falls as G⁻⁴ (Levine and Louie, Phys. Rev. B 25, 6310
    (1982)).
    """
    squares = _squares(grid) / SHORT
    least = 1 / (constant - 1) if constant > 1 else np.inf
    answer: Array = -1 / (1 + least + squares + squares**2)
    answer[0, 0, 0] = 0
    return irfftn(rfftn(charge) * answer, charge.shape)


def cloud_of_metal(charge: Array, density: Array, grid: Any) -> Array:
    """−L (φ − ∫Lφ / ∫L), where (v⁻¹ + L) φ − L ∫Lφ / ∫L = ρ is the charge.

    The density of states at the Fermi level, L, is that of Thomas and Fermi at every point, so that
    electrons answer where they are (Herbst and Levitt, J. Phys.: Condens. Matter 33, 085503
    (2021), have it from the wave functions). In a uniform metal this is Kerker's damping of long
    waves (Phys. Rev. B 23, 3082 (1981)). v is Coulomb's potential, weaker for short waves:
    4π / (G² + G⁴ / k²).
    """
    squares = _squares(grid)
    coulomb = squares + squares**2 / SHORT  # 4π/v; L is 4π times the density of states
    states = 4 / np.pi * (3 * np.pi**2 * np.maximum(density, 0)) ** (1 / 3)
    total = states.sum()

    def above_mean(potential: Array) -> Array:
        return states * (potential - (states * potential).sum() / total)

    def answer(potential: Array) -> Array:
        return irfftn(rfftn(potential) * coulomb, charge.shape) + above_mean(potential)

    return -above_mean(_potential(charge, answer, coulomb + states.mean()))


def cloud_of_molecules(charge: Array, density: Array, grid: Any) -> Array:
    """∇·(χ∇φ), where (v⁻¹ − ∇·χ∇) φ = ρ is the charge: polarization where electrons are.

    4πχ = 4πn / ω² is the answer of oscillators of one frequency ω at every point, v as in metals
    (:func:`cloud_of_metal`).
    """
    from ase.units import Hartree

    waves, squares = _waves(grid), _squares(grid)
    coulomb = squares + squares**2 / SHORT_IN_MOLECULES
    answers = 4 * np.pi * np.maximum(density, 0) * (Hartree / EXCITATION) ** 2

    def polarization(transformed: Array) -> Array:
        """−∇·(4πχ∇φ), transformed."""
        total: Array = sum(
            -1j * wave * rfftn(answers * irfftn(1j * wave * transformed, charge.shape))
            for wave in waves
        )
        return total

    def answer(potential: Array) -> Array:
        transformed = rfftn(potential)
        return irfftn(transformed * coulomb + polarization(transformed), charge.shape)

    near = coulomb + squares * answers.mean()
    near[0, 0, 0] = 1  # The mean of the potential changes nothing.
    return -irfftn(polarization(rfftn(_potential(charge, answer, near))), charge.shape)


def _potential(charge: Array, answer: Callable[[Array], Array], near: Array) -> Array:
    """Solve A φ = ρ − ∫ρ by conjugate gradients; `near` is close to A's transform."""

    def of_columns(function: Callable[[Array], Array]) -> LinearOperator:
        return LinearOperator(
            (charge.size, charge.size), lambda x: function(x.reshape(charge.shape)).ravel()
        )

    potential, _ = cg(
        of_columns(answer),
        (charge - charge.mean()).ravel(),
        M=of_columns(lambda residual: irfftn(rfftn(residual) / near, charge.shape)),
        rtol=TOLERANCE,
        maxiter=50,
    )
    found: Array = potential.reshape(charge.shape)
    return found


def _indices(grid: Any) -> Array:
    """Of the waves that ``rfftn`` makes of a grid, along the reciprocal vectors; last axis 3."""
    sizes = grid.size_c
    counts = [*(np.fft.fftfreq(n, 1 / n) for n in sizes[:2]), np.arange(sizes[2] // 2 + 1)]
    return np.stack(np.meshgrid(*counts, indexing="ij"), axis=-1)


def _waves(grid: Any) -> Array:
    """G in Bohr⁻¹, first axis 3. Waves of half the grid have no direction: nothing along it."""
    indices = _indices(grid)
    indices[2 * abs(indices) == grid.size_c] = 0
    return np.moveaxis(2 * np.pi * indices @ np.linalg.inv(grid.cell_cv).T, -1, 0)


def _squares(grid: Any) -> Array:
    """G² in Bohr⁻²."""
    squares: Array = ((2 * np.pi * _indices(grid) @ np.linalg.inv(grid.cell_cv).T) ** 2).sum(
        axis=-1
    )
    return squares


@cache
def _screened(kind: Any) -> type:
    """GPAW's class of mixers, with steps that are divided by ε; errors are those of before."""

    class ScreenedMixer(kind):
        cloud: Cloud | None

        def add_compensation_charge(
            self,
            n_sX: Any,
            D_asii_data: Any,
            density: Any,
            out: Any = None,
            add_delta0: bool = False,
        ) -> Any:
            out = super().add_compensation_charge(n_sX, D_asii_data, density, out, add_delta0)
            # Without Δ₀ it is a residual, from whose total charge errors follow.
            if not add_delta0 and self.cloud is not None:
                divide_by_screening(n_sX[0], out[0], density, self.cloud)
            return out

    return ScreenedMixer
