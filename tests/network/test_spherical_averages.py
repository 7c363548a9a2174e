"""Averages of the density over spheres about the atoms."""

import numpy as np
import pytest
import torch
from ase import Atoms

from eac_model.neighbors import atom_graph, point_pairs
from eac_model.network import NetworkConfig, RadialBasis, build, spherical_averages
from eac_model.network.spherical_averages import RADII


def network(**settings):
    torch.manual_seed(0)
    shape = dict(elements=(1, 8), l_max=3, channels=6, interactions=2, atom_cutoff=12.0)
    shape |= dict(linear_basis=RadialBasis(kind="natural-spline", size=10, cutoff_power=3))
    found = build(NetworkConfig(**(shape | settings)), torch.float64)
    with torch.no_grad():
        if found.linear is not None:
            found.linear.functions *= 1e4  # from almost nothing to densities of about one
        if found.superposition is not None:
            found.superposition.table.uniform_(0.5, 1.0)
    return found


def averages(found, atoms):
    graph = atom_graph(atoms, found.config.atom_cutoff, found.dtype)
    return found.spherical_averages(found.descriptors(graph), graph)


def on_spheres(found, atoms, index):
    """The same by quadrature of the network's density."""
    cosines, weights = np.polynomial.legendre.leggauss(24)
    angles = 2 * np.pi * np.arange(24) / 24
    sines = np.sqrt(1 - cosines[:, None] ** 2)
    z = np.broadcast_to(cosines[:, None], (24, 24))
    sphere = np.stack([sines * np.cos(angles), sines * np.sin(angles), z], axis=-1).reshape(-1, 3)
    values = []
    for radius in RADII:
        graph = atom_graph(atoms, found.config.atom_cutoff, found.dtype)
        pairs = point_pairs(
            atoms, atoms.positions[index] + radius * sphere, found.config.point_cutoff, found.dtype
        )
        with torch.no_grad():
            density = found(graph, pairs)[0].numpy()
        values.append(density.reshape(24, 24).mean(axis=1) @ weights / 2)
    return np.array(values)


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("superposition", [False, True])
def test_averages_are_those_of_the_density(monkeypatch, periodic, superposition):
    monkeypatch.setattr(spherical_averages, "NODES", 40)
    monkeypatch.setattr(spherical_averages, "EDGES_AT_ONCE", 3)
    # Far from each other, so that no other nucleus lies near a sphere.
    atoms = Atoms("OHH", [[0, 0, 0], [1.9, 0.4, 0.1], [-0.5, 2.1, 0.9]], cell=[5, 5.5, 6])
    atoms.pbc = periodic
    found = network(superposition=superposition)
    free = 0.0
    if superposition:
        radii = torch.tensor(RADII, dtype=torch.float64)
        free = (found.linear.basis(radii) @ found.superposition.table.T)[:, [1, 0, 0]].T
    expected = on_spheres(found, atoms, 0)
    np.testing.assert_allclose(
        (averages(found, atoms) + free)[0], expected, rtol=0, atol=2e-4 * abs(expected).max()
    )


@pytest.mark.parametrize("distance", [RADII[-1], 3.999])
def test_averages_are_continuous_in_the_distances(distance):
    found = network(atom_cutoff=4.0, interactions=0)
    near, far = (
        averages(found, Atoms("OH", [[0, 0, 0], [0, 0, distance + step]])) for step in (0, 2e-3)
    )
    alone = averages(found, Atoms("O"))
    assert (near - far).abs().max() < 0.02 * alone.abs().max()


def test_decoders_that_are_not_linear_have_none():
    found = network(decoder="value-weight", point_basis=RadialBasis(size=4))
    assert averages(found, Atoms("OH", [[0, 0, 0], [0, 0, 1]])).shape == (2, 0)
