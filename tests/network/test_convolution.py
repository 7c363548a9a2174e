"""The convolution over neighbours: torch, compiled, and what e3nn defines."""

import sys

import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from e3nn import o3

from eac_model.engine.descriptors import descriptors_in_blocks
from eac_model.neighbors import atom_graph
from eac_model.network import NetworkConfig, build, convolution
from eac_model.network.convolution import convolve
from eac_model.network.interaction import Interaction, Kinds, natural_irreps

needs_numba = pytest.mark.skipif(
    convolution.compiled_convolution() is None, reason="numba is not installed"
)
ATOMS, EDGES, BASIS, ATTRIBUTES = 7, 40, 5, 3
OF_ATOM = torch.tensor([2, 0, 2, 3, 3, 2, 0])
"""Elements of the atoms; there is none of element 1."""


@pytest.fixture
def without_loops(monkeypatch):
    monkeypatch.setattr(convolution, "compiled_convolution", lambda: None)


@pytest.fixture
def dense_never_called(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("the compiled loops were not used")

    monkeypatch.setattr(convolution, "convolve_dense", refuse)


def interaction(l_max, *, channels=4, scalars=False, dtype=torch.float64, biases=False):
    torch.manual_seed(l_max)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    features = o3.Irreps(f"{channels}x0e") if scalars else natural_irreps(channels, l_max)
    try:
        return Interaction(features, channels, l_max, ATTRIBUTES, BASIS, (6,), 9.0, biases=biases)
    finally:
        torch.set_default_dtype(before)


def inputs(layer, edges=EDGES, seed=0):
    """Features, attributes of four elements, elements of the atoms, senders, receivers, Y, basis.

    Receivers are unsorted, and atom 0 has no neighbours.
    """
    generator = torch.Generator().manual_seed(seed)
    dtype = layer.linear_in.weight.dtype

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    senders = torch.randint(0, ATOMS, (edges,), generator=generator)
    receivers = torch.randint(1, ATOMS, (edges,), generator=generator)
    harmonics = o3.SphericalHarmonics(
        list(range(layer.paths.l_max + 1)), normalize=True, normalization="component"
    ).to(dtype)(normal(edges, 3))
    features = normal(ATOMS, layer.linear_in.irreps_in.dim)
    return [
        features,
        normal(4, ATTRIBUTES),
        OF_ATOM,
        senders,
        receivers,
        harmonics,
        normal(edges, BASIS),
    ]


def called(form, features, attributes, of_atom, *others):
    return form(features, Kinds(attributes, of_atom), *others)


def gradients(layer, form, values):
    """The result, and gradients with respect to all parameters and all real inputs."""
    leaves = [v.clone().requires_grad_() if v.is_floating_point() else v for v in values]
    result = called(form, *leaves)
    above = torch.randn(result.shape, generator=torch.Generator().manual_seed(1)).to(result)
    wanted = [*layer.parameters(), *(v for v in leaves if v.is_floating_point())]
    return [result, *torch.autograd.grad(result, wanted, above)]


def parameter_gradients(layer, form, values):
    """The same with respect to parameters and features only, as in training."""
    features = values[0].clone().requires_grad_()
    result = called(form, features, *values[1:])
    above = torch.randn(result.shape, generator=torch.Generator().manual_seed(1)).to(result)
    return [result, *torch.autograd.grad(result, [*layer.parameters(), features], above)]


def assert_close(found, expected, tolerance):
    for one, other in zip(found, expected, strict=True):
        largest = max(float(other.detach().abs().max()), 1e-30) if other.numel() else 1.0
        assert one.shape == other.shape
        assert torch.equal(one.isfinite(), torch.ones_like(one, dtype=torch.bool))
        if other.numel():
            assert float((one - other).detach().abs().max()) <= tolerance * largest


@pytest.mark.parametrize("scalars", [False, True])
@pytest.mark.parametrize("l_max", range(6))
def test_values_and_all_gradients_are_those_of_e3nn(l_max, scalars):
    layer = interaction(l_max, scalars=scalars, biases=l_max == 2)
    values = inputs(layer)
    expected = gradients(layer, layer.forward_e3nn, values)
    assert_close(gradients(layer, layer.forward, values), expected, 1e-10)


@needs_numba
@pytest.mark.parametrize(
    ("l_max", "channels", "scalars"),
    [(0, 16, False), (1, 5, False), (3, 20, False), (6, 3, False), (4, 32, True)],
)
def test_compiled_values_and_gradients_are_those_of_e3nn(
    l_max, channels, scalars, dense_never_called
):
    layer = interaction(l_max, channels=channels, scalars=scalars, biases=l_max == 2)
    values = inputs(layer)
    expected = parameter_gradients(layer, layer.forward_e3nn, values)
    single = layer.float()
    found = parameter_gradients(
        single, single.forward, [v.float() if v.is_floating_point() else v for v in values]
    )
    assert_close([f.double() for f in found], expected, 2e-6)


@needs_numba
@pytest.mark.parametrize("sharing", [False, True])
def test_compiled_sums_are_those_of_torch(sharing, monkeypatch):
    layer = interaction(3, channels=16, dtype=torch.float32)
    *_, senders, receivers, harmonics, _ = inputs(layer)
    features = torch.randn(ATOMS, 16, 16, requires_grad=True)
    rows = torch.randint(0, 9, (EDGES,)) if sharing else None
    weights = torch.randn(9 if sharing else EDGES, len(layer.paths.triples), 16, requires_grad=True)

    def everything():
        found = convolve(layer.paths, features, weights, harmonics, senders, receivers, rows)
        return [found, *torch.autograd.grad(found.square().sum(), [features, weights])]

    found = everything()
    monkeypatch.setattr(convolution, "compiled_convolution", lambda: None)
    assert_close(found, everything(), 2e-6)


@needs_numba
def test_results_do_not_depend_on_threads(monkeypatch):
    layer = interaction(3, channels=48, dtype=torch.float32)
    values = inputs(layer, edges=600)
    one = parameter_gradients(layer, layer.forward, values)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    several = parameter_gradients(layer, layer.forward, values)
    assert all(torch.equal(a, b) for a, b in zip(one, several, strict=True))


@needs_numba
def test_the_same_twice_is_the_same_to_the_last_digit():
    layer = interaction(3, channels=16, dtype=torch.float32)
    first, second = (parameter_gradients(layer, layer.forward, inputs(layer)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@needs_numba
def test_second_derivatives_pass_the_compiled_loops(monkeypatch):
    layer = interaction(2, channels=16, dtype=torch.float32)

    def second():
        features, *others = inputs(layer)
        features.requires_grad_()
        result = called(layer, features, *others)
        (first,) = torch.autograd.grad(result.square().sum(), features, create_graph=True)
        return torch.autograd.grad(first.square().sum(), [features, *layer.parameters()])

    found = second()
    monkeypatch.setattr(convolution, "compiled_convolution", lambda: None)
    assert_close(found, second(), 1e-5)


@pytest.mark.parametrize("compiled", [False, True])
def test_without_edges_only_the_species_count(compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(convolution, "compiled_convolution", lambda: None)
    layer = interaction(2, dtype=torch.float32)
    values = inputs(layer, edges=0)
    expected = parameter_gradients(layer, layer.forward_e3nn, values)
    assert_close(parameter_gradients(layer, layer.forward, values), expected, 1e-6)


def small_network(dtype=torch.float32, **settings):
    torch.manual_seed(0)
    defaults = {
        "elements": (1, 8, 14),
        "l_max": 3,
        "channels": 6,
        "interactions": 2,
        "atom_radial_hidden": (8,),
        "atom_cutoff": 3.5,
        "point_cutoff": 3.0,
        "decoder": "linear",
    }
    return build(NetworkConfig(**defaults | settings), dtype)


def water_box() -> Atoms:
    atoms = molecule("H2O")
    atoms.set_cell([4.0, 4.5, 5.0])
    atoms.pbc = True
    return atoms


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_descriptors_turn_with_the_structure(dtype):
    network = small_network(dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-6
    rotation = o3.rand_matrix(dtype=torch.float64)
    atoms = water_box()
    turned = atoms.copy()
    turned.set_cell(atoms.cell.array @ rotation.numpy().T, scale_atoms=True)
    with torch.no_grad():
        found = network.descriptors(atom_graph(turned, 3.5, dtype))
        expected = network.descriptors(atom_graph(atoms, 3.5, dtype))
    d = o3.Irreps.spherical_harmonics(3).D_from_matrix(rotation).to(dtype)
    expected = torch.einsum("ab,nbc->nac", d, expected)
    assert_close([found], [expected], tolerance)


@pytest.mark.parametrize("compiled", [False, True])
def test_edges_of_one_length_share_weights(compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(convolution, "compiled_convolution", lambda: None)
    network = small_network()
    graph = atom_graph(bulk("Si", "diamond", 5.43), 3.5)
    basis, rows = network.distance_basis(graph.vectors)
    assert len(basis) < len(rows) / 2
    found = network.descriptors(graph)
    monkeypatch.setattr(
        type(network), "distance_basis", lambda self, v: (self.atom_basis(v.norm(dim=1)), None)
    )
    assert_close([found], [network.descriptors(graph)], 2e-6)


def test_gradients_with_respect_to_positions_are_those_of_differences():
    network = small_network(torch.float64, l_max=2)
    graph = atom_graph(water_box(), 3.5, torch.float64)

    def total(vectors):
        moved = type(graph)(graph.numbers, graph.magmoms, graph.receivers, graph.senders, vectors)
        return network.descriptors(moved).square().sum()

    assert torch.autograd.gradcheck(total, graph.vectors.clone().requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("compiled", [False, True])
def test_blocks_of_edges_give_the_same_descriptors(compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(convolution, "compiled_convolution", lambda: None)
    network = small_network()
    graph = atom_graph(water_box() * (2, 2, 1), 3.5)
    with torch.no_grad():
        found = descriptors_in_blocks(network, graph, edges_at_once=50)
        assert_close([found], [network.descriptors(graph)], 2e-6)


def test_parameters_are_those_of_the_e3nn_modules():
    names = [name for name, _ in interaction(2).named_parameters()]
    assert names == [
        "linear_in.weight",
        "radial.layer0.weight",
        "radial.layer1.weight",
        "linear_out.weight",
        "species.weight",
    ]


@pytest.mark.parametrize("forbidden_by", ["environment", "missing numba"])
def test_without_compiled_loops_torch_computes(forbidden_by, monkeypatch):
    if forbidden_by == "environment":
        monkeypatch.setenv("EAC_COMPILED", "0")
    else:
        monkeypatch.delattr(sys.modules["eac_model.network"], "convolution_loops", raising=False)
        monkeypatch.setitem(sys.modules, "eac_model.network.convolution_loops", None)
    convolution.compiled_convolution.cache_clear()
    try:
        assert convolution.compiled_convolution() is None
        layer = interaction(1, dtype=torch.float32)
        values = inputs(layer)
        assert_close([called(layer, *values)], [called(layer.forward_e3nn, *values)], 2e-6)
    finally:
        monkeypatch.undo()
        convolution.compiled_convolution.cache_clear()
