"""One GPAW calculation, from atoms to a checked sample.

Kept are the two halves of GPAW's state (§4 of Mortensen et al., J. Chem. Phys. 160, 092503): the
pseudo density ñ, smooth core included and compensation charges left out, and the atomic density
matrices D. Both are those that enter the last iteration, so they belong together exactly. ñ is
kept on the grid of the wave functions, not on the twice finer one of the potential: the finer one
is its Fourier interpolation, and a calculation starts from the coarser.
"""

from __future__ import annotations

import math
from importlib.metadata import version
from time import process_time
from typing import Any

import numpy as np
from ase import Atoms
from ase.units import Bohr, Ha
from numpy.typing import NDArray

from eac_ase.adapters.gpaw_state import dataset_name
from eac_ase.reference.recipe import Settings
from eac_model.data.sample import (
    Calculation,
    DensitySample,
    FreeAtoms,
    PawDataset,
    Provenance,
)
from eac_model.errors import ConfigurationError, EACError

ELECTRON_TOLERANCE = 1e-4
"""Largest error of the charge and of the moment, electrons for each valence electron."""


class CalculationError(EACError):
    """A calculation gave no result, or one that contradicts itself."""


def kpoint_mesh(atoms: Atoms, density: float | None) -> tuple[int, int, int]:
    """Γ-centred mesh n_i = ⌈density · |b_i|⌉, 1 along directions without periodicity.

    Parameters
    ----------
    atoms
        Their cell gives the reciprocal vectors b_i, factor 2π included, Å⁻¹.
    density
        Å; None: Γ alone.
    """
    if density is None:
        return (1, 1, 1)
    lengths = 2 * math.pi * np.linalg.norm(atoms.cell.reciprocal(), axis=1)
    # a cubic cell must not get another mesh for its last digit
    counts = [
        max(1, math.ceil(density * length - 1e-6)) if periodic else 1
        for length, periodic in zip(lengths, atoms.pbc, strict=True)
    ]
    return counts[0], counts[1], counts[2]


def gpaw_parameters(atoms: Atoms, settings: Settings) -> dict[str, Any]:
    """Input parameters of GPAW for a structure, of plain numbers and texts."""
    occupations: dict[str, Any] = {"name": "fermi-dirac", "width": settings.smearing}
    return {
        "mode": {"name": "pw", "ecut": settings.cutoff},
        "xc": settings.xc,
        "kpts": {"size": list(kpoint_mesh(atoms, settings.kpoint_density)), "gamma": True},
        "occupations": occupations if settings.smearing else {"width": 0.0},
        "convergence": {"density": settings.density_convergence},
        "maxiter": settings.max_iterations,
    }


def calculate(atoms: Atoms, settings: Settings, source: str = "") -> DensitySample:
    """Run GPAW to self-consistency and keep its state.

    Spin-polarised where `atoms` have an initial magnetic moment that is not zero.

    Parameters
    ----------
    atoms
        Structure, with initial magnetic moments.
    settings
        Settings of the calculation.
    source
        Name of the sample.

    Raises
    ------
    ConfigurationError
        GPAW is not installed.
    CalculationError
        No convergence, or a result that fails :func:`check_sample`.
    """
    try:
        from gpaw import KohnShamConvergenceError
        from gpaw.dft import Parameters
        from gpaw.new.calculation import DFT
    except ImportError as error:
        raise ConfigurationError(
            "Reference data need GPAW 26.7 or newer: pip install 'eac-density[gpaw]'"
        ) from error
    began = process_time()
    structure = atoms.copy()
    structure.calc = None
    parameters = gpaw_parameters(structure, settings)
    dft = DFT(structure, mode="", txt=None, converge=False, _parameters=Parameters(**parameters))
    free = FreeAtoms(*_state(dft.density))
    try:
        iterations = max(step.niter for step in dft.iconverge())
    except KohnShamConvergenceError:
        raise CalculationError(
            f"no self-consistency after {settings.max_iterations} iterations"
        ) from None
    energy = dft.calculate_energy()
    forces = dft.calculate_forces()
    density, spin_density, onsite, onsite_spin = _state(dft.density)
    moment, moments = dft.magmoms()
    eigenvalues, occupations = dft.ibzwfs.get_all_eigs_and_occs()
    polarised = spin_density is not None
    weights = np.asarray(dft.ibzwfs.ibz.weight_k, dtype=float)
    sample = DensitySample(
        atoms=structure,
        density=density,
        spin_density=spin_density,
        onsite=onsite,
        onsite_spin=onsite_spin,
        provenance=Provenance(
            code=f"GPAW {version('gpaw')}",
            functional=settings.xc,
            density_kind="pseudo",
            paw_datasets=tuple(
                dataset_name(setup)
                for _, setup in sorted({s.symbol: s for s in dft.setups}.items())
            ),
            source=source,
        ),
        free_atoms=free,
        calculation=Calculation(
            energy=float(energy),
            free_energy=float(dft.results["free_energy"]) * Ha,
            forces=np.array(forces),
            kpoints=np.array(dft.ibzwfs.ibz.kpt_kc),
            weights=weights,
            eigenvalues=np.array(eigenvalues) * Ha,
            occupations=np.array(occupations) * (1 if polarised else 2),
            fermi_level=float(dft.ibzwfs.fermi_levels[0]) * Ha,
            iterations=int(iterations),
            seconds=process_time() - began,
            moment=float(moment[2]),
            moments=np.array(moments)[:, 2] if polarised else None,
            settings=parameters,
            datasets={
                setup.symbol: PawDataset(
                    name=dataset_name(setup),
                    fingerprint=str(setup.fingerprint),
                    channels=tuple(int(l) for l in setup.l_j),
                    electrons=float(setup.Nv),
                )
                for setup in dft.setups.setups.values()
            },
        ),
    )
    check_sample(sample, [(setup.Delta_iiL[:, :, 0], setup.Delta0) for setup in dft.setups])
    return sample


def check_sample(sample: DensitySample, deltas: list[tuple[NDArray[np.floating], float]]) -> None:
    """Check that ñ and D are finite and hold the electrons and the moment they should.

    The charge of ñ and of the compensation charges, ∫ñ + √4π Σ_a (Σ_ij D^a_ij Δ^a_ij,00 + Δ^a_00),
    vanishes with the nuclei (Blöchl, Phys. Rev. B 50, 17953, eq. 14; the atoms are neutral). Its
    spin part, without the Δ_00 of the core, is the moment of the cell, which also follows from
    the occupations.

    Parameters
    ----------
    sample
        With calculation and on-site data.
    deltas
        For each atom Δ_ij,00 of shape (i, i) and Δ_00.

    Raises
    ------
    CalculationError
        Otherwise; the message says what is wrong and by how much.
    """
    known = sample.calculation
    if known is None or sample.onsite is None or len(sample.onsite) != len(deltas):
        raise CalculationError("the sample lacks its calculation or on-site data")
    arrays = [sample.density, *sample.onsite, known.forces, known.eigenvalues]
    arrays += [a for a in (sample.spin_density, *(sample.onsite_spin or ())) if a is not None]
    if sample.free_atoms is not None:
        arrays += [sample.free_atoms.density, *(sample.free_atoms.onsite or ())]
    if not all(np.isfinite(array).all() for array in arrays) or not math.isfinite(known.energy):
        raise CalculationError("NaN or infinite values in the result")
    electrons = sum(known.datasets[symbol].electrons for symbol in sample.atoms.symbols)
    allowed = ELECTRON_TOLERANCE * electrons
    volume = sample.atoms.get_volume()
    root = math.sqrt(4 * math.pi)
    charge = volume * float(np.mean(sample.density, dtype=float)) + root * sum(
        float(np.sum(d * delta)) + core
        for d, (delta, core) in zip(sample.onsite, deltas, strict=True)
    )
    if abs(charge) > allowed:
        raise CalculationError(f"ñ and D hold {charge:+.2e} electrons too many")
    counted = float(np.einsum("k,skn->", known.weights, known.occupations))
    if abs(counted - electrons) > allowed:
        raise CalculationError(f"the bands hold {counted - electrons:+.2e} electrons too many")
    if sample.spin_density is None or sample.onsite_spin is None:
        return
    moment = volume * float(np.mean(sample.spin_density, dtype=float)) + root * sum(
        float(np.sum(d * delta)) for d, (delta, _) in zip(sample.onsite_spin, deltas, strict=True)
    )
    up, down = (float(known.weights @ bands.sum(axis=1)) for bands in known.occupations)
    # mixing keeps the electrons, and the moment only as far as the density has converged
    if abs(moment - known.moment) > allowed or abs(moment - (up - down)) > 1e-2 * electrons:
        raise CalculationError(
            f"ñ and D have the moment {moment:.4f} μ_B, GPAW reports {known.moment:.4f} and the "
            f"bands {up - down:.4f}"
        )


def _state(density: Any) -> tuple[Any, Any, Any, Any]:
    """Total and spin parts of ñ (e/Å³) and D, copied."""
    grids = np.array(density.nt_sR.to_pbc_grid().data) / Bohr**3
    matrices = [np.array(d_sii.real) for d_sii in density.D_asii.values()]
    total = grids.sum(axis=0), tuple(d.sum(axis=0) for d in matrices)
    if len(grids) == 1:
        return total[0], None, total[1], None
    return total[0], grids[0] - grids[1], total[1], tuple(d[0] - d[1] for d in matrices)
