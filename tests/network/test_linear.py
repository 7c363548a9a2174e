"""The linear decoder: torch, and compiled loops over pairs."""

import numpy as np
import pytest
import torch
from ase.build import bulk

from eac_model.graph import PointPairs
from eac_model.neighbors import point_pairs
from eac_model.network import NetworkConfig, RadialBasis, linear
from eac_model.network.linear import LinearDecoder

needs_numba = pytest.mark.skipif(linear.compiled_loops() is None, reason="numba is not installed")


def decoder(l_max=3, kind="natural-spline", cutoff=4.0):
    basis = RadialBasis(kind=kind, size=12, core_radius=0.5, cutoff_power=3)
    config = NetworkConfig(
        elements=(14,),
        decoder="linear",
        l_max=l_max,
        channels=4,
        point_cutoff=cutoff,
        linear_basis=basis,
    )
    return LinearDecoder(config, 1)


def silicon_pairs(cutoff=4.0, points=70):
    atoms = bulk("Si", cubic=True)
    places = np.random.default_rng(0).random((points, 3)) @ atoms.cell.array
    places[0] = atoms.positions[3]  # on a nucleus
    places[1:20] = atoms.positions[0] + [0.1, 0.0, 0.2]  # rows of different lengths
    return point_pairs(atoms, places, cutoff, torch.float32)


def coefficients(of, n=8):
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(n, (of.l_max + 1) ** 2, of.basis.size, generator=generator)
    return values.requires_grad_()


def doubled(pairs):
    """The pairs in double precision, which the loops leave to torch."""
    return PointPairs(pairs.atom, pairs.vectors.double(), pairs.mask, pairs.point, pairs.n_points)


@needs_numba
@pytest.mark.parametrize("kind", ["spline", "natural-spline"])
@pytest.mark.parametrize("l_max", [0, 1, 3, 4, 6])
def test_compiled_values_and_gradients_are_those_of_torch_in_double_precision(l_max, kind):
    decode = decoder(l_max, kind)
    pairs, known = silicon_pairs(), coefficients(decode)
    found = decode._from_loops(known, pairs)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad(found, known, weights)
    exact = known.detach().double().requires_grad_()
    expected = decode.double().dense(exact, doubled(pairs))
    (exact_gradient,) = torch.autograd.grad(expected, exact, weights.double())
    assert not found[~pairs.mask].any()
    for one, two in ((found, expected), (gradient, exact_gradient)):
        torch.testing.assert_close(
            one.double(), two, rtol=0, atol=4e-6 * float(two.detach().abs().max())
        )


@needs_numba
def test_second_derivatives_pass_the_compiled_loops():
    decode, pairs = decoder(), silicon_pairs()
    found = []
    for evaluate in (decode._from_loops, decode.dense):
        known = coefficients(decode)
        squares = evaluate(known, pairs).square().sum()
        (gradient,) = torch.autograd.grad(squares, known, create_graph=True)
        gradient.pow(3).sum().backward()
        found.append(known.grad)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4 * float(found[1].abs().max()))


@needs_numba
def test_threads_share_rows_and_change_nothing_but_rounding(monkeypatch):
    decode, pairs = decoder(), silicon_pairs(points=400)
    known = coefficients(decode)
    gradients = []
    for least in (10**9, 64):
        monkeypatch.setattr(linear, "PAIRS_PER_THREAD", least)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
        found = decode._from_loops(known, pairs)
        gradients.append(torch.autograd.grad(found.square().sum(), known)[0])
    size = float(gradients[0].abs().max())
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-5 * size)


@needs_numba
def test_an_atom_may_have_several_rows():
    decode, pairs = decoder(), silicon_pairs()
    known = coefficients(decode)
    apart = PointPairs(
        torch.cat([pairs.atom, pairs.atom]),
        pairs.vectors.repeat(2, 1, 1),
        torch.cat([pairs.mask, pairs.mask]),
        pairs.point.repeat(2, 1),
        pairs.n_points,
    )
    once, twice = (
        torch.autograd.grad(decode._from_loops(known, p).sum(), known)[0] for p in (pairs, apart)
    )
    size = float(once.abs().max())
    torch.testing.assert_close(2 * once, twice, rtol=0, atol=1e-5 * size)


@needs_numba
def test_no_pairs_at_all_give_zeros():
    decode = decoder()
    pairs = point_pairs(bulk("Si"), np.empty((0, 3)), 4.0, torch.float32)
    known = coefficients(decode, n=2)
    found = decode._from_loops(known, pairs)
    assert not found.any()
    assert not torch.autograd.grad(found.sum(), known)[0].any()


def test_training_uses_the_loops_where_they_serve_and_torch_elsewhere(monkeypatch):
    used = []
    for name in ("_from_loops", "dense"):
        original = getattr(LinearDecoder, name)
        monkeypatch.setattr(
            LinearDecoder,
            name,
            lambda *a, name=name, original=original: (used.append(name), original(*a))[1],
        )
    decode, pairs = decoder(), silicon_pairs()
    descriptors, attributes = torch.randn(8, 16, 4), torch.ones(8, 1)
    decode(descriptors, attributes, pairs)
    decode.double()(descriptors.double(), attributes.double(), doubled(pairs))
    pairs.vectors.requires_grad_()
    decode.float()(descriptors, attributes, pairs).sum().backward()
    compiled = "dense" if linear.compiled_loops() is None else "_from_loops"
    assert used == [compiled, "dense", "dense"]
    assert pairs.vectors.grad.isfinite().all()
    monkeypatch.setattr(linear, "compiled_loops", lambda: None)
    decode(descriptors, attributes, silicon_pairs())
    assert used[-1] == "dense"
