"""GPAW's state (ñ, D): valence densities, and the multipoles inside the augmentation spheres.

The true density is n = ñ + Σ_a (n^a − ñ^a) (Blöchl, Phys. Rev. B 50, 17953, eq. 13). The multipoles
of n^a − ñ^a, nucleus included, are Q_aL = Σ_ij D^a_ij Δ^a_ijL + δ_L0 Δ^a_00 (Mortensen et al.,
J. Chem. Phys. 160, 092503, §4), in GPAW's sign: electrons positive.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import pi, sqrt
from typing import Any

import numpy as np
import torch
from ase.units import Bohr
from numpy.typing import NDArray

from eac_ase.analysis.moments import sphere
from eac_ase.grid import DensityGrid
from eac_model.errors import AnalysisError

Array = NDArray[np.floating]

_MOMENTS = """\
The pseudo density alone says neither how many electrons an atom has nor where they are: matrices D
are missing. Take a model that predicts them, a file that holds them (.gpw, samples of `eac data
gpaw`), or an all-electron density (eac_ase.adapters.gpaw.all_electron_density)."""


@dataclass(frozen=True)
class SphereMoments:
    """What the augmentation spheres add to ñ: moments about the nuclei, electrons positive."""

    coefficients: Array
    """Q_aL, L = 0 … 8, e·Å^l, shape (n, 9), nucleus and core included: GPAW's compensation charges
    carry them."""
    electrons: Array
    """√4π Q_a0 with the nucleus left out: added to ∫ñ they count valence electrons, shape (n,)."""
    firsts: Array
    """∫(n^a − ñ^a) r dr, e·Å, shape (n, 3)."""
    seconds: Array
    """Traceless part of ∫(n^a − ñ^a) r r dr, e·Å², shape (n, 3, 3)."""
    spins: Array | None
    """∫(n^a↑ − ñ^a↑) − (n^a↓ − ñ^a↓) dr, μ_B, shape (n,)."""
    widths: Array
    """r_c of the Gaussians r^l exp(−(r/r_c)²) GPAW compensates with, Å, shape (n,)."""
    valences: Array
    """Valence electrons of the neutral atoms, shape (n,)."""


def sphere_moments(grid: DensityGrid) -> SphereMoments:
    """Moments of the augmentation spheres of a pseudo density with matrices D.

    Raises
    ------
    AnalysisError
        The grid has no matrices D, is none of GPAW's, or GPAW is not installed.
    """
    setups, matrices, spin = _setups(grid)
    n = len(setups)
    coefficients, spins = np.zeros((n, 9)), np.zeros(n)
    widths, valences = np.zeros(n), np.zeros(n)
    powers = Bohr ** np.array([0, 1, 1, 1, 2, 2, 2, 2, 2])
    for a, setup in enumerate(setups):
        delta = np.asarray(setup.Delta_iiL)[:, :, :9]
        found = np.einsum("ij,ijL->L", matrices[a], delta)
        coefficients[a, : len(found)] = found
        coefficients[a, 0] += setup.Delta0
        if spin is not None:
            spins[a] = sqrt(4 * pi) * float((spin[a] * delta[:, :, 0]).sum())
        shape = setup.data.shape_function
        widths[a] = shape["rc"] * Bohr / (1 if shape["type"] == "gauss" else 3)
        valences[a] = setup.Nv
    coefficients *= powers
    # GPAW orders l = 1 as y, z, x.
    firsts = sqrt(4 * pi / 3) * coefficients[:, [3, 1, 2]]
    return SphereMoments(
        coefficients=coefficients,
        electrons=sqrt(4 * pi) * coefficients[:, 0] + valences,
        firsts=firsts,
        seconds=_second_moments(coefficients[:, 4:]),
        spins=None if spin is None else spins,
        widths=widths,
        valences=valences,
    )


def all_electron_valence(grid: DensityGrid) -> tuple[DensityGrid, Array, Array | None]:
    """Valence density with its nodes at the nuclei, from ñ and D, on the grid's points.

    Returns
    -------
    grid
        ñ without the smooth core, plus Σ_ij D_ij (φ_i φ_j − φ̃_i φ̃_j); kind ``valence``.
    missing
        Electrons the grid is too coarse to hold near the nuclei, shape (n,). With these the sum is
        exact; they belong to the nuclei.
    missing_spin
        The same of ρ↑ − ρ↓, or None.

    Raises
    ------
    AnalysisError
        As for :func:`sphere_moments`.
    """
    setups, matrices, spin_matrices = _setups(grid)
    values = np.array(grid.values, dtype=float, order="C")
    spin = None
    if grid.spin is not None and spin_matrices is not None:
        spin = np.array(grid.spin, dtype=float, order="C")
    flat = torch.from_numpy(values.reshape(-1))
    flat_spin = None if spin is None else torch.from_numpy(spin.reshape(-1))
    voxel = grid.volume / grid.values.size
    missing, missing_spin = np.zeros(len(setups)), np.zeros(len(setups))
    for a, setup in enumerate(setups):
        delta = np.asarray(setup.Delta_iiL)[:, :, 0]
        missing[a] = sqrt(4 * pi) * float((matrices[a] * delta).sum()) - setup.Nct
        if spin_matrices is not None:
            missing_spin[a] = sqrt(4 * pi) * float((spin_matrices[a] * delta).sum())
        rcut = 2 * max(setup.rcut_j) * Bohr
        for part in sphere(grid, grid.atoms.positions[a], rcut):
            pairs, core = _partial_waves(setup, part.vectors.numpy(), part.distance.numpy())
            added: Array = (_contracted(pairs, matrices[a]) - core) / Bohr**3
            flat.index_add_(0, part.point, torch.from_numpy(added))
            missing[a] -= added.sum() * voxel
            if flat_spin is not None and spin_matrices is not None:
                added = _contracted(pairs, spin_matrices[a]) / Bohr**3
                flat_spin.index_add_(0, part.point, torch.from_numpy(added))
                missing_spin[a] -= added.sum() * voxel
    whole = replace(grid, values=values, spin=spin, onsite=None, onsite_spin=None, kind="valence")
    return whole, missing, None if spin is None else missing_spin


def _setups(grid: DensityGrid) -> tuple[list[Any], list[Array], list[Array] | None]:
    """GPAW's setup and the matrices of every atom."""
    if grid.onsite is None:
        raise AnalysisError(_MOMENTS)
    try:
        from gpaw.setup import Setups
        from gpaw.xc import XC
    except ImportError as error:
        raise AnalysisError(
            "GPAW's PAW data sets are needed to make electrons of ñ and D: "
            "pip install 'eac-density[gpaw]'"
        ) from error
    functional = grid.provenance.functional
    if functional == "unknown":
        raise AnalysisError(
            "The functional of this density is unknown, and so are its PAW data sets: set "
            "provenance.functional of the grid."
        )
    setups = list(Setups(grid.atoms.numbers, _kinds(grid), {}, XC(functional)))
    for a, (setup, matrix) in enumerate(zip(setups, grid.onsite, strict=True)):
        if np.shape(matrix) != (setup.ni, setup.ni):
            raise AnalysisError(
                f"Atom {a} ({setup.symbol}): its matrix D has the shape {np.shape(matrix)}, GPAW's "
                f"data set {setup.symbol}.{functional} has {setup.ni} projectors."
            )
    spin = None
    if grid.onsite_spin is not None:
        spin = [np.asarray(matrix, dtype=float) for matrix in grid.onsite_spin]
    return setups, [np.asarray(matrix, dtype=float) for matrix in grid.onsite], spin


def _kinds(grid: DensityGrid) -> dict[str, str]:
    """GPAW's names of the data sets that are not its default ones, by symbol."""
    kinds: dict[str, str] = {}
    for name in grid.provenance.paw_datasets:
        symbol, *parts = name.split(".")
        kind = ".".join(parts[:-1]) or "paw"
        if kinds.setdefault(symbol, kind) != kind:
            raise AnalysisError(
                f"Atoms of {symbol} have PAW data sets of two kinds, {kinds[symbol]!r} and "
                f"{kind!r}; which atom has which is not known."
            )
    return kinds


def _partial_waves(
    setup: Any, vectors: Array, distance: Array
) -> tuple[tuple[Array, Array], Array]:
    """φ_i and φ̃_i (i, m), and the smooth core (m,), at points (m, 3), in Bohr^(−3/2) and Bohr⁻³."""
    from gpaw.sphere.spherical_harmonics import Y

    v, r = vectors / Bohr, distance / Bohr
    true, smooth, *_ = setup.get_partial_waves()
    rows: tuple[list[Array], list[Array]] = ([], [])
    for waves, found in zip((true, smooth), rows, strict=True):
        for wave in waves:
            radial = wave.map(r)
            for index in range(wave.l**2, (wave.l + 1) ** 2):
                found.append(radial * Y(index, *v.T))
    rcut = 2 * max(setup.rcut_j)
    core = setup.data.rgd.spline(setup.data.nct_g, rcut, points=1000).map(r) / sqrt(4 * pi)
    return (np.array(rows[0]), np.array(rows[1])), core


def _contracted(pairs: tuple[Array, Array], matrix: Array) -> Array:
    """Σ_ij D_ij (φ_i φ_j − φ̃_i φ̃_j), (m,)."""
    true, smooth = pairs
    first: Array = np.einsum("im,im->m", matrix @ true, true)
    return first - np.einsum("im,im->m", matrix @ smooth, smooth)


def _second_moments(coefficients: Array) -> Array:
    """Traceless tensors from moments with r² Y_2m in GPAW's order, (n, 5) → (n, 3, 3)."""
    xy, yz, zz, zx, xx_yy = coefficients.T * sqrt(4 * pi / 15)
    tensor = np.zeros((len(coefficients), 3, 3))
    tensor[:, 0, 1] = tensor[:, 1, 0] = xy
    tensor[:, 1, 2] = tensor[:, 2, 1] = yz
    tensor[:, 2, 0] = tensor[:, 0, 2] = zx
    tensor[:, 2, 2] = 2 / sqrt(3) * zz  # ∫ρ (3z² − r²)/3
    tensor[:, 0, 0] = -tensor[:, 2, 2] / 2 + xx_yy
    tensor[:, 1, 1] = -tensor[:, 2, 2] / 2 - xx_yy
    return tensor
