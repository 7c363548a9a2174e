"""Moments of the contributions ρ_i that a network gives its atoms.

For decoders that are linear in the descriptors the angular integrals are elementary and one radial
integral a basis function remains: no grid, no error but rounding. Others are summed on grids that
are refined until the populations agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TypeGuard

import numpy as np
import torch
from ase import Atoms
from e3nn import o3
from numpy.typing import NDArray
from torch import Tensor

from eac_ase.progress import progress_bar
from eac_model.engine import EncodedAtoms, Integrals, integrate_density
from eac_model.engine.linear import linear_coefficients, radial_basis_of
from eac_model.lattice import box_around, grid_shape
from eac_model.network import DensityNetwork, EACNet
from eac_model.network.radial import SplineBasis

SPACINGS = (0.2, 0.16, 0.13, 0.1, 0.08, 0.065)
"""Å. Grids for contributions without closed form, coarse to fine."""

TOLERANCE = 1e-4
"""Electrons. Refinement stops when no population changes by more."""

PANELS, NODES = 96, 16
"""Gauss–Legendre quadrature of the radial integrals."""


@dataclass(frozen=True)
class LearnedMoments:
    """Electrons around every atom by spin (one, or up and down); electrons count positive."""

    populations: NDArray[np.float64]
    """∫ρ_i dr, (n_spin, n)."""
    firsts: NDArray[np.float64]
    """∫ρ_i (r − R_i) dr, e·Å, (n_spin, n, 3)."""
    seconds: NDArray[np.float64]
    """∫ρ_i (r − R_i)(r − R_i) dr, e·Å², (n_spin, n, 3, 3); of closed forms without the trace."""
    error: float
    """Largest change of a population from the last but one grid to the last; 0: closed form."""


def learned_moments(
    network: DensityNetwork,
    encoded: EncodedAtoms,
    *,
    spacings: tuple[float, ...] = SPACINGS,
    progress: bool | None = None,
) -> LearnedMoments:
    """Integrate the contributions of all atoms.

    Parameters
    ----------
    spacings
        Grids to try, Å, coarse to fine, where there is no closed form; of a single one the error is
        unknown (NaN).
    progress
        Progress bar on stderr: True, False, or None for only on a terminal.
    """
    if has_closed_form(network):
        return _closed_form(network, encoded)
    assert isinstance(network, EACNet), "other networks have no contributions"
    return _on_grids(network, encoded, spacings, progress)


def has_closed_form(network: DensityNetwork) -> TypeGuard[EACNet]:
    """Whether contributions are linear in the descriptors."""
    return isinstance(network, EACNet) and network.value_weight is None


def _closed_form(network: EACNet, encoded: EncodedAtoms) -> LearnedMoments:
    l_max = min(2, 0 if network.linear is None else network.config.l_max)
    radial = radial_moments(network, l_max)
    elements = network.types.elements(encoded.numbers)
    n = len(encoded.atoms)
    populations, firsts, seconds = [], [], []
    for descriptors in encoded.descriptors:
        coefficients = linear_coefficients(network, descriptors, elements).double().cpu()
        values = [
            (coefficients[:, l * l : (l + 1) ** 2] @ radial[l]).numpy() for l in range(l_max + 1)
        ]
        populations.append(values[0][:, 0])
        # e3nn's harmonics of l = 1 are √3 (x, y, z); their mean squares are 1.
        firsts.append(values[1] / np.sqrt(3) if l_max > 0 else np.zeros((n, 3)))
        tensors = np.einsum("nm,mab->nab", values[2], _quadratic()) if l_max > 1 else None
        seconds.append(np.zeros((n, 3, 3)) if tensors is None else tensors)
    # A spin model without moments has equal spins, of which one is there.
    copies = network.n_spin // len(populations)
    return LearnedMoments(
        np.repeat(populations, copies, axis=0),
        np.repeat(firsts, copies, axis=0),
        np.repeat(seconds, copies, axis=0),
        0.0,
    )


def radial_moments(network: EACNet, l_max: int) -> list[Tensor]:
    """4π ∫ r^(2+l) (r/√(r² + a²))^l B_b(r) S(r) dr for l = 0 … l_max, each (basis,) float64.

    The factor with the core radius a is that of the harmonics, which are taken of r/√(r² + a²).
    """
    import copy

    basis = copy.deepcopy(radial_basis_of(network)).double().cpu()
    core = network.config.linear_basis.core_radius
    cutoff = basis.cutoff
    # Panels uniform in the coordinate of the splines: no knot lies inside of one.
    intervals = basis.basis.intervals if isinstance(basis.basis, SplineBasis) else 1
    panels = intervals * max(1, round(PANELS / intervals))
    x = np.linspace(0, np.log1p((cutoff / core) ** 2), panels + 1)
    edges = core * np.sqrt(np.expm1(x))
    edges[-1] = cutoff
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    half = np.diff(edges)[:, None] / 2
    r = torch.from_numpy((edges[:-1, None] + half * (nodes + 1)).ravel())
    w = torch.from_numpy((half * weights).ravel())
    with torch.no_grad():
        functions = basis(r)
    regular = r / torch.sqrt(r * r + core * core)
    return [4 * np.pi * ((w * r ** (2 + l) * regular**l) @ functions) for l in range(l_max + 1)]


@cache
def _quadratic() -> NDArray[np.float64]:
    """⟨Y_2m (r̂r̂ − 1/3)⟩ over the sphere, (5, 3, 3), for e3nn's harmonics of mean square 1."""
    # Exact with a rule of the sixth order: products of Gauss–Legendre and equal steps in φ.
    z, weights = np.polynomial.legendre.leggauss(6)
    phi = 2 * np.pi * np.arange(12) / 12
    rho = np.sqrt(1 - z**2)
    points = np.stack(
        [np.outer(rho, np.cos(phi)), np.outer(rho, np.sin(phi)), np.outer(z, np.ones(12))], -1
    ).reshape(-1, 3)
    weight = np.repeat(weights / 24, 12)
    harmonics = o3.spherical_harmonics(2, torch.from_numpy(points), False, "component").numpy()
    tensors = points[:, :, None] * points[:, None, :] - np.eye(3) / 3
    result: NDArray[np.float64] = np.einsum("p,pm,pab->mab", weight, harmonics, tensors)
    return result


def _on_grids(
    network: EACNet, encoded: EncodedAtoms, spacings: tuple[float, ...], progress: bool | None
) -> LearnedMoments:
    previous, error = None, float("nan")
    for spacing in spacings:
        found = _on_grid(network, encoded, spacing, progress)
        if previous is not None:
            error = float(np.abs(found.populations - previous).max())
            if error < TOLERANCE:
                break
        previous = found.populations
    return LearnedMoments(*found, error)


def _on_grid(
    network: EACNet, encoded: EncodedAtoms, spacing: float, progress: bool | None
) -> Integrals:
    atoms: Atoms = encoded.atoms
    open_axes = [axis for axis in range(3) if not atoms.pbc[axis]]
    cell, origin = box_around(atoms, network.config.point_cutoff, open_axes)
    shape = grid_shape(cell, spacing)
    with progress_bar("charges", int(np.prod(shape)), progress) as advance:
        return integrate_density(
            network, encoded, shape, by_atom=True, cell=cell, origin=origin, progress=advance
        )
