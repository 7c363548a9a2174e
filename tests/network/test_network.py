"""Symmetry, smoothness and the equality of the zonal and the e3nn form."""

import copy
import functools
import itertools

import e3nn
import numpy as np
import pytest
import scipy.spatial
import torch
from ase import Atoms
from e3nn import o3
from pydantic import ValidationError

from eac_model.data.sample import DensitySample
from eac_model.graph import AtomGraph
from eac_model.neighbors import atom_graph, point_pairs
from eac_model.network import NetworkConfig, RadialBasis, build
from eac_model.network.interaction import by_component, by_irrep
from eac_model.network.radial import SplineBasis

WEIGHTS = ["I", "S", "MLP+S", "MLPxS", "SoftmaxxS", "smooth"]
VARIANTS = [("linear", "S")] + [
    (decoder, weight) for decoder in ("value-weight", "linear+value-weight") for weight in WEIGHTS
]
SKEWED = [[3.0, 0, 0], [1.0, 3.2, 0], [0.3, 0.4, 2.8]]


def small_network(seed=0, **settings):
    torch.manual_seed(seed)
    defaults = {
        "elements": (1, 8),
        "l_max": 2,
        "channels": 4,
        "interactions": 2,
        "atom_radial_hidden": (8,),
        "point_radial_hidden": (8,),
        "coupling_scalars": 10,
        "bottleneck": (8, 6),
        "value_hidden": (8,),
        "weight_hidden": (8,),
        "atom_cutoff": 3.0,
        "point_cutoff": 4.0,
        "superposition": True,
    }
    network = build(NetworkConfig(**defaults | settings), torch.float64)
    with torch.no_grad():
        network.superposition and network.superposition.table.uniform_(0, 1)
        if network.linear is not None:
            network.linear.functions.mul_(1000)
    return network


@functools.cache
def complete_network(l_max, spin):
    return small_network(decoder="linear+value-weight", weight="smooth", l_max=l_max, spin=spin)


def variant(decoder, weight, l_max=2, spin=False):
    """A network with another decoder and weight; building one of each would take minutes."""
    network = copy.copy(complete_network(l_max, spin))
    network._modules = dict(network._modules)
    if "linear" not in decoder:
        network._modules["linear"] = None
    if "value-weight" in decoder:
        network._modules["value_weight"] = copy.copy(network.value_weight)
        network.value_weight.kind = weight
    else:
        network._modules["value_weight"] = None
    return network


def some_atoms(pbc=True, cell=SKEWED, seed=0, magmoms=None):
    rng = np.random.default_rng(seed)
    atoms = Atoms("OHHO", rng.random((4, 3)) * 3, cell=cell, pbc=pbc)
    if magmoms is not None:
        atoms.set_initial_magnetic_moments(magmoms)
    return atoms


def density(network, atoms, points, **options):
    graph = atom_graph(atoms, network.config.atom_cutoff, torch.float64)
    pairs = point_pairs(atoms, points, network.config.point_cutoff, torch.float64)
    return network(graph, pairs, **options)


def random_points(count=30, seed=5):
    return np.random.default_rng(seed).uniform(-1, 4, (count, 3))


def rotation(seed=0):
    return scipy.spatial.transform.Rotation.random(random_state=seed).as_matrix()


def relative(a, b):
    return float((a - b).detach().abs().max() / b.detach().abs().max())


# Zonal form ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("l_max", range(6))
@pytest.mark.parametrize(("decoder", "weight"), VARIANTS)
def test_the_zonal_form_equals_the_e3nn_form_in_values_and_gradients(decoder, weight, l_max):
    spin = l_max % 2 == 1
    network = variant(decoder, weight, l_max, spin)
    atoms = some_atoms(magmoms=[1.0, 0.0, -0.5, 2.0])
    graph = atom_graph(atoms, 3.0, torch.float64)
    pairs = point_pairs(atoms, random_points(8), 4.0, torch.float64)
    pairs.vectors.requires_grad_()
    graph.vectors.requires_grad_()
    parameters = [p for p in network.parameters() if p.numel()]
    mix = torch.randn(network.n_spin, 8, dtype=torch.float64)
    results = []
    for zonal in (True, False):
        values = network(graph, pairs, zonal=zonal)
        loss = (mix * values).sum()
        gradients = torch.autograd.grad(
            loss, [*parameters, pairs.vectors, graph.vectors], allow_unused=True
        )
        results.append((values, gradients))
    (zonal_values, zonal_gradients), (values, gradients) = results
    assert relative(zonal_values, values) < 1e-10
    largest = max(float(g.abs().max()) for g in gradients if g is not None)
    for a, b in zip(zonal_gradients, gradients, strict=True):
        if b is None or a is None:
            assert a is None or not a.any()
            assert b is None or not b.any()
        else:
            assert float((a - b).abs().max()) < 1e-10 * largest


# Symmetry -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("decoder", "weight"), VARIANTS)
@pytest.mark.parametrize("inversion", [1, -1])
def test_the_density_turns_with_the_structure(decoder, weight, inversion):
    network = variant(decoder, weight, spin=True)
    atoms = some_atoms(magmoms=[1.0, 0.0, -0.5, 2.0])
    points = random_points()
    turn = rotation() * inversion
    turned = atoms.copy()
    turned.set_cell(np.asarray(atoms.cell) @ turn.T)
    turned.positions = atoms.positions @ turn.T
    reference = density(network, atoms, points)
    assert relative(density(network, turned, points @ turn.T), reference) < 1e-10


@pytest.mark.parametrize("l_max", [0, 1, 3, 5])
def test_descriptors_are_equivariant(l_max):
    network = small_network(l_max=l_max)
    atoms = some_atoms()
    turn = rotation()
    turned = atoms.copy()
    turned.set_cell(np.asarray(atoms.cell) @ turn.T)
    turned.positions = atoms.positions @ turn.T
    a = network.descriptors(atom_graph(atoms, 3.0, torch.float64))
    b = network.descriptors(atom_graph(turned, 3.0, torch.float64))
    # The matrices that turn real harmonics, read off the harmonics themselves.
    directions = torch.randn(100, 3, dtype=torch.float64)
    harmonics = o3.SphericalHarmonics(list(range(l_max + 1)), normalize=True)
    before, after = harmonics(directions), harmonics(directions @ torch.tensor(turn).T)
    wigner = torch.linalg.lstsq(before, after).solution.T
    assert relative(torch.einsum("ij,njc->nic", wigner, a), b) < 1e-9


def test_component_order_round_trips():
    irreps = o3.Irreps("3x0e+3x1o+3x2e")
    features = torch.randn(5, irreps.dim)
    assert torch.equal(by_irrep(by_component(features, irreps)), features)


@pytest.mark.parametrize(("decoder", "weight"), VARIANTS)
def test_translations_permutations_and_supercells_change_nothing(decoder, weight):
    network = variant(decoder, weight)
    atoms = some_atoms()
    points = random_points()
    reference = density(network, atoms, points)
    shift = np.array([0.3, -1.7, 5.1])
    moved = atoms.copy()
    moved.positions += shift
    moved.wrap()
    assert relative(density(network, moved, points + shift), reference) < 1e-10
    assert relative(density(network, atoms[[2, 0, 3, 1]], points), reference) < 1e-10
    assert relative(density(network, atoms.repeat((2, 1, 3)), points), reference) < 1e-10


@pytest.mark.parametrize("pbc", list(itertools.product([False, True], repeat=3)))
def test_every_choice_of_periodic_directions_equals_explicit_images(pbc):
    network = small_network(decoder="linear+value-weight", weight="smooth")
    atoms = some_atoms(pbc)
    points = random_points(10)
    # Enough images that neither atoms near the home cell nor its points see the end of the cluster.
    repeats = [range(-6, 7) if p else [0] for p in pbc]
    shifts = np.array(list(itertools.product(*repeats))) @ np.asarray(atoms.cell)
    positions = (atoms.positions[None] + shifts[:, None]).reshape(-1, 3)
    near = np.linalg.norm(positions[:, None] - points[None], axis=2).min(axis=1) < 4.0 + 2 * 3.0
    numbers = np.tile(atoms.numbers, len(shifts))
    cluster = Atoms(numbers[near], positions[near])
    reference = density(network, cluster, points)
    assert relative(density(network, atoms, points), reference) < 1e-9


def test_a_single_atom_has_a_spherical_density():
    network = small_network(decoder="linear+value-weight", weight="MLPxS")
    atom = Atoms("O", [[0.2, 0.1, -0.3]])
    directions = np.random.default_rng(0).normal(size=(20, 3))
    points = atom.positions + 1.3 * directions / np.linalg.norm(directions, axis=1)[:, None]
    values = density(network, atom, points)
    assert float(values.detach().std()) < 1e-12 * float(values.detach().abs().max())


@pytest.mark.parametrize(("decoder", "weight"), VARIANTS)
def test_the_density_is_zero_where_no_atom_reaches(decoder, weight):
    network = variant(decoder, weight)
    atoms = Atoms("OH", [[0, 0, 0], [0, 0, 1]])
    values = density(network, atoms, np.array([[9.0, 0, 0], [0.5, 0, 0], [0, -30.0, 0]]))
    assert values[0, 0] == 0
    assert values[0, 2] == 0
    assert values[0, 1] != 0


@pytest.mark.parametrize(("decoder", "weight"), VARIANTS)
def test_atomic_contributions_sum_to_the_density(decoder, weight):
    network = variant(decoder, weight)
    atoms = some_atoms()
    graph = atom_graph(atoms, 3.0, torch.float64)
    pairs = point_pairs(atoms, random_points(), 4.0, torch.float64)
    contributions = network.contributions(network.descriptors(graph), graph.numbers, pairs)
    assert not contributions[~pairs.mask].any()
    assert relative(pairs.sum_over_atoms(contributions), network(graph, pairs)[0]) < 1e-12


# Spin ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("decoder", "weight"), VARIANTS)
def test_flipping_all_moments_swaps_the_spin_channels(decoder, weight):
    network = variant(decoder, weight, spin=True)
    moments = np.array([1.0, 0.0, -0.5, 2.0])
    points = random_points()
    up, down = density(network, some_atoms(magmoms=moments), points)
    flipped_up, flipped_down = density(network, some_atoms(magmoms=-moments), points)
    assert relative(flipped_up, down) < 1e-13
    assert relative(flipped_down, up) < 1e-13
    assert float((up - down).detach().abs().max()) > 1e-9


def test_without_moments_there_is_no_spin_density():
    network = small_network(spin=True)
    up, down = density(network, some_atoms(), random_points())
    assert torch.equal(up, down)


def test_atoms_without_a_moment_get_one_from_their_neighbors():
    network = small_network(spin=True)
    atoms = Atoms("HO", [[0, 0, 0], [0, 0, 1.2]], magmoms=[1.0, 0.0])
    graph = atom_graph(atoms, 3.0, torch.float64)
    flipped = network.descriptors(graph.flipped())
    difference = (network.descriptors(graph) - flipped).detach()
    assert float(difference[1].abs().max()) > 1e-6


def test_an_antiferromagnet_has_opposite_moments_on_its_sublattices():
    network = small_network(spin=True)
    atoms = Atoms("O2", [[0, 0, 0], [1.5, 1.5, 1.5]], cell=[3, 3, 3], pbc=True, magmoms=[2, -2])
    points = random_points()
    up, down = density(network, atoms, points)
    shifted_up, shifted_down = density(network, atoms, points + 1.5)
    assert relative(shifted_up, down) < 1e-10
    assert relative(shifted_down, up) < 1e-10


# Smoothness ---------------------------------------------------------------------------------------


def second_derivative_jump(values, step):
    """Largest change of the second difference between neighbouring steps of a scan."""
    second = np.diff(values, 2) / step**2
    return np.abs(np.diff(second)).max(), np.abs(second).max()


@pytest.mark.parametrize(
    ("decoder", "weight"), [("linear", "S"), ("value-weight", "S"), ("value-weight", "smooth")]
)
@pytest.mark.parametrize("edge", ["point", "atom"])
def test_smooth_variants_cross_both_cutoffs_without_a_kink(decoder, weight, edge):
    network = variant(decoder, weight)
    network._modules["superposition"] = None
    jumps = []
    for step in (0.01, 0.005):
        scan = np.arange(-0.3, 0.3, step)
        values = []
        for x in scan:
            if edge == "point":
                atoms = Atoms("OH", [[0, 0, 0], [0.9, 0, 0]])
                point = [4.0 + x, 0.0, 0.0]
            else:
                atoms = Atoms("OO", [[0, 0, 0], [3.0 + x, 0, 0]])
                point = [-0.5, 0.3, 0.2]
            values.append(float(density(network, atoms, np.array([point]))[0, 0]))
        jumps.append(second_derivative_jump(np.array(values), step))
    # A continuous second derivative: its change over one step shrinks with the step. The third
    # derivative may jump, so the ratio is near 2; it would stay 1 at a kink of the second.
    assert jumps[1][0] < 0.7 * jumps[0][0]


def test_a_plain_softmax_is_not_smooth_where_an_atom_enters():
    network = small_network(decoder="value-weight", weight="SoftmaxxS", superposition=False)
    atoms = Atoms("OH", [[0, 0, 0], [3.0, 0, 0]])
    inside, outside = (
        float(density(network, atoms, np.array([[-1.0 + x, 0.0, 0.0]]))[0, 0])
        for x in (1e-9, -1e-9)
    )
    assert abs(inside - outside) > 1e-8


def test_the_linear_density_is_smooth_at_a_nucleus():
    network = small_network(decoder="linear", l_max=3)
    atoms = Atoms("OH", [[0, 0, 0], [0.6, 0.7, 0.2]])
    line = np.linspace(-0.02, 0.02, 41)[:, None] * np.array([[1.0, 0.4, -0.2]])
    values = density(network, atoms, line)[0].detach().numpy()
    change, size = second_derivative_jump(values, 0.001)
    assert change < 0.2 * size


# Configuration ------------------------------------------------------------------------------------


@pytest.mark.parametrize("embedding", ["one-hot", "shell-filling", "both"])
@pytest.mark.parametrize("concatenate", [(), ("distance",), ("basis", "type")])
def test_embeddings_and_concatenations_are_free_to_choose(embedding, concatenate):
    network = small_network(
        decoder="value-weight", embedding=embedding, concatenate=concatenate, coupling_updates=3
    )
    assert torch.isfinite(density(network, some_atoms(), random_points())).all()


@pytest.mark.parametrize("kind", ["bessel", "gaussian", "spline", "natural-spline"])
def test_every_radial_basis_serves_everywhere(kind):
    basis = RadialBasis(kind=kind, size=6, cutoff_power=4)
    network = small_network(
        decoder="linear+value-weight", atom_basis=basis, linear_basis=basis, point_basis=basis
    )
    atoms = some_atoms()
    points = np.concatenate([random_points(), atoms.positions])
    assert torch.isfinite(density(network, atoms, points)).all()


def test_natural_splines_are_splines_without_a_second_derivative_at_the_nucleus():
    free = SplineBasis(12, cutoff=4.0, core_radius=0.5).double()
    natural = SplineBasis(11, cutoff=4.0, core_radius=0.5, natural=True).double()
    coefficients = torch.randn(11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    first = 2 * coefficients[:1] - coefficients[1:2]
    r = torch.linspace(0, 4, 300, dtype=torch.float64)
    expected = free(r) @ torch.cat([first, coefficients])
    torch.testing.assert_close(natural(r) @ coefficients, expected, rtol=0, atol=1e-13)

    def curvature(values):
        x = torch.tensor(1e-5, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(values(0.5 * (2 * x).expm1().sqrt()), x, create_graph=True)
        return abs(float(torch.autograd.grad(slope, x)[0]))

    bent = curvature(lambda r: free(r)[0])
    assert curvature(lambda r: natural(r) @ coefficients) < 1e-2 * bent


def test_without_interactions_atoms_do_not_see_each_other():
    network = small_network(interactions=0, superposition=False)
    pair = Atoms("OH", [[0, 0, 0], [0, 0, 1]])
    points = random_points()
    alone = sum(density(network, pair[[i]], points) for i in (0, 1))
    assert relative(density(network, pair, points), alone) < 1e-12


@pytest.mark.parametrize(
    "settings",
    [
        {"elements": ()},
        {"elements": (8, 1)},
        {"elements": (1, 200)},
        {"channels": 0},
        {"decoder": "cubic"},
        {"concatenate": ("type", "type")},
        {"no_such_field": 1},
    ],
)
def test_configurations_that_contradict_themselves_are_refused(settings):
    with pytest.raises(ValidationError):
        NetworkConfig(**{"elements": (1,)} | settings)


def test_a_seed_determines_the_network_and_its_density():
    a, b = (density(small_network(seed=3), some_atoms(), random_points()) for _ in range(2))
    assert torch.equal(a, b)


def test_structures_in_a_batch_do_not_see_each_other():
    from eac_model.graph import PointPairs

    network = small_network(decoder="linear+value-weight", weight="MLP+S")
    structures = [some_atoms(seed=1), some_atoms((True, False, False), seed=2)]
    points = [random_points(5, 1), random_points(9, 2)]
    graphs = [atom_graph(a, 3.0, torch.float64) for a in structures]
    pairs = [point_pairs(a, p, 4.0, torch.float64) for a, p in zip(structures, points, strict=True)]
    together = network(AtomGraph.concatenate(graphs), PointPairs.concatenate(pairs, [4, 4], [5, 9]))
    apart = torch.cat([network(g, p) for g, p in zip(graphs, pairs, strict=True)], dim=1)
    assert relative(together, apart) < 1e-12


# Superposition ------------------------------------------------------------------------------------


def test_fitted_free_atoms_recover_a_superposition_of_gaussians():
    rng = np.random.default_rng(0)
    samples = []
    for _ in range(3):
        atoms = Atoms("OHH", rng.random((3, 3)) * 4, cell=[4, 4, 4], pbc=True)
        points = rng.random((1500, 3)) * 4
        pairs = point_pairs(atoms, points, 4.0, torch.float64)
        width = torch.where(torch.tensor(atoms.numbers) == 8, 0.5, 0.35).double()[:, None]
        shape = torch.exp(-((pairs.vectors.norm(dim=2) / width) ** 2)) * pairs.mask
        values = pairs.sum_over_atoms(3 * shape).numpy()
        samples.append(DensitySample(atoms, values, points=points))
    network = small_network(
        linear_basis=RadialBasis(kind="natural-spline", size=24, cutoff_power=3)
    )
    error = network.fit_superposition(samples)
    assert error < 0.5
    with torch.no_grad():
        network.linear.functions.zero_()
    held_out = samples[0]
    predicted = density(network, held_out.atoms, held_out.points)[0].detach().numpy()
    assert np.abs(predicted - held_out.density).sum() < 0.005 * held_out.density.sum()


def test_elements_without_samples_keep_their_free_atoms():
    rng = np.random.default_rng(0)
    network = small_network(elements=(1, 8))
    with torch.no_grad():
        network.superposition.table.fill_(3.0)
    points = rng.random((500, 3)) * 4
    hydrogen = Atoms("HH", rng.random((2, 3)) * 4, cell=[4, 4, 4], pbc=True)
    network.fit_superposition([DensitySample(hydrogen, rng.random(500), points=points)])
    of_hydrogen, of_oxygen = network.superposition.table
    assert (of_oxygen == 3).all()
    assert not (of_hydrogen == 3).any()


def test_building_a_network_leaves_the_options_of_e3nn_as_they_were():
    before = dict(e3nn.get_optimization_defaults())
    small_network()
    assert e3nn.get_optimization_defaults() == before
