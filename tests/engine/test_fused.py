"""The compiled loop of the linear decoder."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms

from eac_model.engine import encode, evaluate_grid, evaluate_points, fused, kernels
from eac_model.engine.fused import AtomTables, FusedLinear
from eac_model.engine.kernels import shell_kernels
from eac_model.engine.linear import ShellLinear
from eac_model.engine.shells import TERMS, ToleranceError, fit_pieces
from eac_model.network import EACNet, NetworkConfig, RadialBasis

needs_numba = pytest.mark.skipif(fused.compiled_loop() is None, reason="numba is not installed")


def network(dtype=torch.float32, **chosen):
    torch.manual_seed(0)
    settings = {"elements": (1, 8), "channels": 4, "interactions": 1, "decoder": "linear"}
    model = EACNet(NetworkConfig(**settings | chosen)).to(dtype).eval()
    with torch.no_grad():
        model.linear.functions.mul_(300)
    return model


def structure(scale=1.0, pbc=True):
    rng = np.random.default_rng(0)
    cell = scale * np.array([[3.0, 0, 0], [1.0, 3.2, 0], [0.3, 0.4, 2.8]])
    return Atoms("OHHO", rng.random((4, 3)) @ cell, cell=cell, pbc=pbc, magmoms=[1, 0, 0, -2])


@needs_numba
@pytest.mark.parametrize("l_max", [0, 1, 5])
@pytest.mark.parametrize("kind", ["natural-spline", "spline", "bessel", "gaussian"])
def test_the_loop_gives_the_density_of_the_network(l_max, kind):
    basis = RadialBasis(kind=kind, size=40 if "spline" in kind else 8, cutoff_power=3)
    chosen = {"l_max": l_max, "linear_basis": basis, "point_cutoff": 4.0}
    model, exact = network(**chosen), network(torch.float64, **chosen)
    assert isinstance(shell_kernels(model).fused, FusedLinear)
    atoms = structure()
    # On a nucleus, at the cutoff and just within it, and far from everything.
    edges = atoms.positions[:1] + np.array([[0, 0, 0], [4.0, 0, 0], [0, 4.0 - 1e-7, 0]])
    points = np.concatenate([np.random.default_rng(1).uniform(-4, 7, (300, 3)), edges])
    for pbc in (True, False):
        atoms.pbc = pbc
        encoded = encode(model, atoms)
        found = evaluate_points(model, encoded, points)
        same = replace(encoded, descriptors=encoded.descriptors.double())
        expected = evaluate_points(exact, same, points)
        # Relative to the largest term where random functions cancel.
        terms = evaluate_points(exact, same, points, contributions=True)
        assert np.abs(found - expected).max() < 2e-6 * np.abs(terms).max()


@needs_numba
def test_with_and_without_numba_densities_are_the_same(monkeypatch):
    model = network(l_max=3, spin=True, superposition=True)
    model.superposition.table.uniform_(0, 0.3)
    atoms = structure()
    found = evaluate_grid(model, encode(model, atoms), (12, 11, 10))
    monkeypatch.setattr(kernels, "compiled_loop", lambda: None)
    assert isinstance(shell_kernels(model).shells[0], ShellLinear)
    assert shell_kernels(model).fused is None
    expected = evaluate_grid(model, encode(model, atoms), (12, 11, 10))
    assert np.abs(found - expected).max() < 3e-6 * np.abs(expected).max()


def test_without_numba_evaluation_goes_on(monkeypatch):
    monkeypatch.setitem(sys.modules, "eac_model.network.linear_loops", None)
    fused.compiled_loop.cache_clear()
    try:
        assert fused.compiled_loop() is None
        assert shell_kernels(network()).fused is None
    finally:
        monkeypatch.undo()
        fused.compiled_loop.cache_clear()


def test_an_environment_variable_forbids_compiled_code(monkeypatch):
    monkeypatch.setenv("EAC_COMPILED", "0")
    fused.compiled_loop.cache_clear()
    try:
        assert fused.compiled_loop() is None
    finally:
        monkeypatch.undo()
        fused.compiled_loop.cache_clear()


@pytest.mark.parametrize("tolerance", [1e-4, 1e-8])
def test_intervals_are_halved_where_functions_are_rough(tolerance):
    def peak(r):
        return torch.stack([torch.exp(-((r - 1) ** 2) / 0.01), r], dim=1)

    pieces = fit_pieces(peak, np.linspace(0.0, 4.0, 5), tolerance)
    widths = np.diff(pieces.edges)
    assert pieces.edges[0] == 0
    assert pieces.edges[-1] == 4
    assert widths[pieces.edges[:-1] >= 2].min() == 1.0
    assert widths.min() < 0.3
    r = torch.linspace(0, 4, 777, dtype=torch.float64)
    row = np.searchsorted(pieces.edges[1:-1], r.numpy(), side="right")
    t = (2 * r.numpy() - pieces.edges[row] - pieces.edges[row + 1]) / widths[row]
    powers = torch.as_tensor(t[:, None] ** np.arange(TERMS))
    found = torch.einsum("pj,pjf->pf", powers, pieces.coefficients[torch.as_tensor(row)])
    assert float((found - peak(r)).abs().max()) < 3 * tolerance * 4


def test_what_no_number_of_intervals_meets_is_refused():
    with pytest.raises(ToleranceError, match="intervals"):
        fit_pieces(lambda r: torch.sin(3000 * r)[:, None], np.linspace(0.0, 4.0, 5), 1e-6)


@needs_numba
@pytest.mark.parametrize("spin", [False, True])
def test_tables_that_were_forgotten_are_made_again(spin):
    model = network(l_max=2, spin=spin)
    kernel = shell_kernels(model).fused
    atoms = structure()
    encoded = encode(model, atoms)
    elements = model.element_index[encoded.numbers]
    descriptors = encoded.descriptors
    everything = AtomTables(kernel, descriptors, elements)
    kept, rows = everything.of(np.arange(4))
    expected = kept[:, rows].copy()
    # Room for two atoms: of four, of others, of one that is there.
    narrow = AtomTables(kernel, descriptors, elements, memory=2 * expected[:, 0].nbytes)
    for chosen in ([0, 1], [2], [1, 2], [0, 1, 2, 3], [3], [0]):
        kept, rows = narrow.of(np.array(chosen))
        assert np.abs(kept[:, rows] - expected[:, chosen]).max() < 1e-6 * np.abs(expected).max()


@needs_numba
def test_memory_of_tables_is_bounded_and_the_density_the_same(monkeypatch):
    model = network(l_max=2)
    atoms = structure(3.0)
    encoded = encode(model, atoms)
    expected = evaluate_grid(model, encoded, (20, 18, 16), block_size=100)
    kernel = shell_kernels(model).fused
    made = []
    write = FusedLinear.write_tables

    def counted(self, descriptors, elements, target):
        made.append(len(elements))
        write(self, descriptors, elements, target)

    monkeypatch.setattr(FusedLinear, "write_tables", counted)
    evaluate_grid(model, encoded, (20, 18, 16), block_size=100)
    assert sum(made) == len(atoms)
    one = 4 * kernel.intervals * (kernel.l_max + 1) ** 2 * TERMS
    monkeypatch.setattr(AtomTables.__init__, "__defaults__", (one,))
    made.clear()
    found = evaluate_grid(model, encoded, (20, 18, 16), block_size=100)
    assert sum(made) > len(atoms)
    assert np.abs(found - expected).max() < 1e-6 * np.abs(expected).max()


@needs_numba
def test_the_density_does_not_depend_on_the_number_of_threads():
    model = network(l_max=2)
    encoded = encode(model, structure(2.0))
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(evaluate_grid(model, encoded, (24, 24, 24)))
    finally:
        torch.set_num_threads(before)
    # The products that make the tables may be cut differently.
    assert np.abs(found[0] - found[1]).max() < 1e-6 * np.abs(found[0]).max()
