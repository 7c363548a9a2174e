"""What every architecture promises, whatever its network is made of."""

from __future__ import annotations

import copy
import functools
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import scipy.spatial
import torch
from ase import Atoms

from eac_model.checkpoint import ModelCard, load_model, read_header, save_model
from eac_model.data.sample import DensitySample
from eac_model.engine import encode, evaluate_grid, evaluate_points, integrate_density
from eac_model.errors import StructureError, UnknownElementError
from eac_model.graph import AtomGraph, PointPairs
from eac_model.neighbors import atom_graph, point_pairs
from eac_model.network import (
    AnyNetworkConfig,
    ChargE3NetConfig,
    DeepChargeConfig,
    DensityNetwork,
    NetworkConfig,
    build,
    network_config,
)
from eac_model.network.architectures import ARCHITECTURES
from eac_model.network.config import ARCHITECTURE_NAMES

ELEMENTS = (1, 8)
SKEWED = np.array([[3.0, 0, 0], [1.0, 3.2, 0], [0.3, 0.4, 2.8]])
"""Shorter than every cutoff: atoms are their own neighbours."""

CONFIGS: dict[str, AnyNetworkConfig] = {
    "eac-net": NetworkConfig(
        elements=ELEMENTS,
        decoder="linear+value-weight",
        weight="smooth",
        l_max=1,
        channels=4,
        interactions=1,
        atom_cutoff=3.0,
        point_cutoff=4.0,
        atom_radial_hidden=(8,),
        point_radial_hidden=(8,),
        coupling_scalars=10,
        bottleneck=(8, 6),
    ),
    "deep-charge": DeepChargeConfig(
        architecture="deep-charge",
        elements=ELEMENTS,
        point_cutoff=4.0,
        embedding_widths=(6, 12, 12),
        axis_neurons=3,
        fitting_widths=(10, 10),
    ),
    "charge3net": ChargE3NetConfig(
        architecture="charge3net",
        elements=ELEMENTS,
        l_max=1,
        channels=8,
        interactions=2,
        atom_cutoff=3.0,
        point_cutoff=4.0,
        basis_size=6,
        radial_hidden=(8,),
    ),
}
"""A small network of every architecture, with smooth cutoffs."""


@functools.cache
def made(name: str, dtype: torch.dtype, **changes) -> DensityNetwork:
    torch.manual_seed(0)
    network = build(CONFIGS[name].model_copy(update=changes), dtype).eval()
    if network.superposition is not None:
        network.superposition.table.uniform_(0, 1)
    return network


def make(name: str, dtype: torch.dtype = torch.float64, **changes) -> DensityNetwork:
    """A network that may be changed; building one anew takes a second."""
    network = made(name, dtype, **changes)
    same = copy.deepcopy(network)
    same.load_state_dict(network.state_dict())
    return same


def atoms_of(pbc=True, cell=SKEWED, magmoms=None, count=4) -> Atoms:
    rng = np.random.default_rng(0)
    atoms = Atoms("OHHO"[:count], rng.random((4, 3))[:count] * 3, cell=cell, pbc=pbc)
    atoms.set_initial_magnetic_moments(magmoms)
    return atoms


def points_of(count=40) -> np.ndarray:
    return np.random.default_rng(5).uniform(-1, 4, (count, 3))


def read(network: DensityNetwork, atoms: Atoms, points: np.ndarray):
    config = network.config
    return (
        atom_graph(atoms, config.atom_cutoff, network.dtype),
        point_pairs(atoms, points, config.point_cutoff, network.dtype),
    )


def density(network: DensityNetwork, atoms: Atoms, points: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return network(*read(network, atoms, points)).numpy()


def assert_same(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-11) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()


def test_every_architecture_is_under_contract():
    assert set(CONFIGS) == set(ARCHITECTURES) == set(ARCHITECTURE_NAMES)
    assert all(config.architecture == name for name, config in CONFIGS.items())


@pytest.mark.parametrize("name", CONFIGS)
class TestContract:
    """One network of each architecture; a new one joins with its line in CONFIGS."""

    # Shapes ---------------------------------------------------------------------------------------

    @pytest.mark.parametrize("spin", [False, True])
    def test_descriptors_belong_to_atoms_and_densities_to_points(self, name, spin):
        network = make(name, spin=spin, superposition=True)
        assert network.n_spin == (2 if spin else 1)
        graph, pairs = read(network, atoms_of(magmoms=[1, 0, 0, -2]), points_of(7))
        descriptors = network.spin_descriptors(graph)
        assert descriptors.shape[:2] == (network.n_spin, 4)
        values = network.density(descriptors, graph.numbers, pairs)
        assert values.shape == (network.n_spin, 7)
        assert values.dtype == network.dtype == torch.float64
        assert torch.equal(values, network(graph, pairs))
        assert values.abs().min() > 0

    def test_no_points_have_no_density(self, name):
        network = make(name)
        assert network(*read(network, atoms_of(), np.empty((0, 3)))).shape == (1, 0)

    def test_without_moments_one_set_of_descriptors_serves_both_spins(self, name):
        network = make(name, spin=True, superposition=True)
        graph, pairs = read(network, atoms_of(), points_of(7))
        one = network.spin_descriptors(graph)
        two = network.spin_descriptors(replace(graph, magnetic=True))
        assert (len(one), len(two)) == (1, 2)
        up, down = network.density(one, graph.numbers, pairs)
        assert torch.equal(up, down)
        expected = network.density(two, graph.numbers, pairs)
        torch.testing.assert_close(torch.stack([up, down]), expected, rtol=1e-12, atol=1e-12)

    def test_every_parameter_gets_a_gradient(self, name):
        network = make(name, spin=True)
        network(
            *read(network, atoms_of(magmoms=[1, 0, 0, -2]), points_of())
        ).square().sum().backward()
        idle = [n for n, p in network.named_parameters() if p.numel() and p.grad is None]
        assert not idle

    def test_gradients_with_respect_to_positions_are_those_of_finite_differences(self, name):
        network = make(name)
        graph, pairs = read(network, atoms_of(False), points_of(3))
        pairs.vectors.requires_grad_()
        graph.vectors.requires_grad_()
        shift = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
        moved = PointPairs(
            pairs.atom, pairs.vectors - shift[pairs.atom][:, None], pairs.mask, pairs.point, 3
        )
        bonds = graph.vectors + shift[graph.senders] - shift[graph.receivers]
        shifted = AtomGraph(graph.numbers, graph.magmoms, graph.receivers, graph.senders, bonds)
        (gradient,) = torch.autograd.grad(network(shifted, moved)[0, 1], shift)
        step, atom, axis = 1e-5, 2, 0
        values = []
        for sign in (1, -1):
            atoms = atoms_of(False)
            atoms.positions[atom, axis] += sign * step
            values.append(density(network, atoms, points_of(3))[0, 1])
        assert gradient[atom, axis] == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-6)

    # Symmetry -------------------------------------------------------------------------------------

    def test_the_density_turns_with_the_structure(self, name):
        network = make(name, spin=True, superposition=True)
        turn = scipy.spatial.transform.Rotation.random(random_state=0).as_matrix()
        for improper in (1, -1):
            matrix = improper * turn.T
            atoms = atoms_of(magmoms=[1, 0, 0, -2])
            turned = atoms.copy()
            turned.set_cell(np.asarray(atoms.cell) @ matrix)
            turned.positions = atoms.positions @ matrix
            found = density(network, turned, points_of() @ matrix)
            assert_same(found, density(network, atoms, points_of()))

    def test_the_density_shifts_with_the_structure_and_ignores_lattice_vectors(self, name):
        network = make(name)
        expected = density(network, atoms_of(), points_of())
        shift = np.array([0.4, -7.3, 1.1])
        shifted = atoms_of()
        shifted.positions += shift
        assert_same(density(network, shifted, points_of() + shift), expected)
        wrapped = atoms_of()
        wrapped.positions[1] += 2 * SKEWED[0] - SKEWED[2]
        assert_same(density(network, wrapped, points_of() + SKEWED[1]), expected)

    def test_the_order_of_atoms_and_points_does_not_matter(self, name):
        network = make(name, spin=True)
        atoms = atoms_of(magmoms=[1, 0, 0, -2])
        expected = density(network, atoms, points_of())
        assert_same(density(network, atoms[[2, 0, 3, 1]], points_of()), expected)
        assert_same(density(network, atoms, points_of()[::-1]), expected[:, ::-1])

    @pytest.mark.parametrize("pbc", [True, (True, False, True)])
    def test_supercells_and_clusters_have_the_density_of_the_cell(self, name, pbc):
        network = make(name)
        atoms = atoms_of(pbc)
        expected = density(network, atoms, points_of())
        repeats = tuple(2 if periodic else 1 for periodic in atoms.pbc)
        assert_same(density(network, atoms.repeat(repeats), points_of()), expected)
        images = [range(-6, 7) if periodic else [0] for periodic in atoms.pbc]
        shifts = np.array(list(itertools.product(*images))) @ SKEWED
        positions = (atoms.positions[None] + shifts[:, None]).reshape(-1, 3)
        cluster = Atoms(np.tile(atoms.numbers, len(shifts)), positions)
        distances = np.linalg.norm(positions[:, None] - points_of()[None], axis=2)
        near = distances.min(axis=1) < 4.0 + 2 * 3.0
        assert_same(density(network, cluster[near], points_of()), expected)

    def test_flipping_all_moments_swaps_the_spins(self, name):
        network = make(name, spin=True, superposition=True)
        up, down = density(network, atoms_of(magmoms=[1, 0, 0, -2]), points_of())
        other_up, other_down = density(network, atoms_of(magmoms=[-1, 0, 0, 2]), points_of())
        assert_same(other_up, down)
        assert_same(other_down, up)
        assert np.abs(up - down).max() > 1e-9
        without = density(network, atoms_of(), points_of())
        assert np.array_equal(without[0], without[1])

    # Where there are few atoms, or none -----------------------------------------------------------

    def test_a_single_atom_has_a_spherical_density(self, name):
        network = make(name, superposition=True)
        directions = np.random.default_rng(0).normal(size=(20, 3))
        directions /= np.linalg.norm(directions, axis=1)[:, None]
        atom = Atoms("O", [[0.2, 0.1, -0.3]])
        values = density(network, atom, atom.positions + 1.3 * directions)[0]
        assert np.ptp(values) < 1e-11 * np.abs(values).max()
        assert np.isfinite(density(network, atom, atom.positions)).all()

    @pytest.mark.parametrize("spin", [False, True])
    def test_the_density_is_exactly_zero_where_no_atom_is_in_reach(self, name, spin):
        network = make(name, spin=spin, superposition=True)
        atoms = Atoms("OH", [[0, 0, 0], [0, 0, 1]], magmoms=[1, 0])
        values = density(network, atoms, np.array([[9.0, 0, 0], [0.5, 0, 0], [0, -30.0, 0]]))
        assert not values[:, [0, 2]].any()
        assert values[:, 1].all()
        assert not density(network, atoms, np.array([[9.0, 0, 0]])).any()

    def test_elements_are_told_apart(self, name):
        network = make(name)
        a = density(network, Atoms("O", [[0, 0, 0]]), points_of())
        b = density(network, Atoms("H", [[0, 0, 0]]), points_of())
        assert np.abs(a - b).max() > 1e-3 * np.abs(a).max()

    # Smoothness -----------------------------------------------------------------------------------

    @pytest.mark.parametrize("place", ["last atom", "second atom", "atom of an atom", "nucleus"])
    def test_densities_have_two_continuous_derivatives(self, name, place):
        network = make(name)
        cutoffs = (network.config.point_cutoff, network.config.atom_cutoff)
        jumps = []
        for step in (0.01, 0.005):
            values = []
            for x in np.arange(-0.15, 0.15, step):
                atoms, point = scene(place, x, *cutoffs)
                values.append(density(network, atoms, np.array([point]))[0, 0])
            second = np.diff(values, 2) / step**2
            jumps.append(np.abs(np.diff(second)).max())
        # A continuous second derivative: its change over one step shrinks with the step. The third
        # derivative may jump, so the ratio is near 2; it would stay 1 at a kink of the second.
        assert jumps[1] < 0.7 * jumps[0] or jumps[0] < 1e-9

    # Batches, blocks, caches ----------------------------------------------------------------------

    def test_structures_in_a_batch_do_not_see_each_other(self, name):
        network = make(name, spin=True, superposition=True)
        structures = [atoms_of(magmoms=[1, 0, 0, -2]), atoms_of(False, count=3)]
        points = [points_of(5), points_of(9) + 0.3]
        inputs = [read(network, a, p) for a, p in zip(structures, points, strict=True)]
        graphs, pairs = zip(*inputs, strict=True)
        with torch.no_grad():
            together = network(
                AtomGraph.concatenate(graphs), PointPairs.concatenate(pairs, [4, 3], [5, 9])
            )
        apart = [density(network, a, p) for a, p in zip(structures, points, strict=True)]
        assert_same(together.numpy(), np.concatenate(apart, axis=1))

    @pytest.mark.parametrize("pbc", [True, False, (True, False, True)])
    @pytest.mark.parametrize("block_size", [None, 7])
    def test_densities_in_blocks_are_those_of_the_network(self, name, pbc, block_size):
        network = make(name, spin=True, superposition=True)
        atoms = atoms_of(pbc, magmoms=[1, 0, 0, -2])
        points = np.random.default_rng(1).uniform(-5, 8, (100, 3))
        encoded = encode(network, atoms)
        found = evaluate_points(network, encoded, points, block_size=block_size)
        assert_same(found, density(network, atoms, points))
        still = encode(network, atoms_of(pbc))
        assert_same(
            evaluate_points(network, still, points), density(network, atoms_of(pbc), points)
        )
        assert evaluate_points(network, encoded, np.empty((0, 3))).shape == (2, 0)

    def test_blocks_shrink_where_memory_runs_out(self, name, monkeypatch):
        network = make(name)
        encoded = encode(network, atoms_of())
        expected = evaluate_points(network, encoded, points_of())
        sizes = []
        kind = "contributions" if hasattr(network, "contributions") else "density"
        original = getattr(network, kind)

        def greedy(descriptors, numbers, pairs, **options):
            sizes.append(pairs.n_points)
            if pairs.n_points > 12:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            return original(descriptors, numbers, pairs, **options)

        monkeypatch.setattr(network, kind, greedy)
        assert_same(evaluate_points(network, encoded, points_of()), expected)
        assert max(sizes) == 40
        assert min(sizes) <= 12

    def test_grids_and_their_integrals_are_sums_over_points(self, name):
        network = make(name, spin=True, superposition=True)
        atoms = atoms_of(magmoms=[1, 0, 0, -2])
        encoded = encode(network, atoms)
        shape = (4, 3, 5)
        grid = evaluate_grid(network, encoded, shape, block_size=11)
        fractions = np.stack(np.meshgrid(*(np.arange(n) / n for n in shape), indexing="ij"), -1)
        points = fractions.reshape(-1, 3) @ SKEWED
        expected = density(network, atoms, points)
        assert_same(grid.reshape(2, -1), expected)
        electrons, moments, seconds = integrate_density(network, encoded, shape, block_size=11)
        voxel = atoms.cell.volume / np.prod(shape)
        assert_same(electrons[:, 0], expected.sum(axis=1) * voxel)
        assert_same(moments[:, 0], expected @ points * voxel)
        squares = points[:, :, None] * points[:, None, :]
        assert_same(seconds[:, 0], np.einsum("sp,pab->sab", expected, squares) * voxel)

    def test_descriptors_serve_any_number_of_evaluations(self, name, monkeypatch):
        network = make(name)
        encoded = encode(network, atoms_of())
        monkeypatch.setattr(network, "descriptors", None)
        first = evaluate_points(network, encoded, points_of())
        assert np.array_equal(evaluate_points(network, encoded, points_of()), first)
        assert np.allclose(evaluate_points(network, encoded, points_of()[3:5]), first[:, 3:5])

    def test_float32_is_float64_rounded(self, name):
        network = make(name, torch.float32)
        exact = make(name, torch.float64)
        exact.load_state_dict(network.state_dict())
        found = evaluate_points(network, encode(network, atoms_of()), points_of())
        assert found.dtype == np.float32
        expected = evaluate_points(exact, encode(exact, atoms_of()), points_of())
        # Untrained, Deep Charge is the small difference of two values of its fitting network.
        tolerance = 5e-5 if name == "deep-charge" else 1e-5
        assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()

    def test_structures_that_cannot_be_meant_are_refused(self, name):
        network = make(name)
        with pytest.raises(UnknownElementError, match="Fe"):
            encode(network, Atoms("Fe"))
        with pytest.raises(StructureError):
            encode(network, Atoms("HH", [[0, 0, 0], [0, 0, 0.01]]))

    # What is learned before training, and what is kept --------------------------------------------

    def test_a_model_file_holds_everything(self, name, tmp_path):
        network = make(name, torch.float32, spin=True, superposition=True)
        network.fit_scales([sample()])
        save_model(network, ModelCard(name="α"), tmp_path / "m.safetensors")
        loaded, card = load_model(tmp_path / "m.safetensors")
        assert card.name == "α"
        assert type(loaded) is type(network)
        assert loaded.config == network.config
        assert not loaded.training
        for key, value in network.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value), key
        atoms = atoms_of(magmoms=[1, 0, 0, -2])
        assert np.array_equal(
            density(loaded, atoms, points_of()), density(network, atoms, points_of())
        )
        header = read_header(tmp_path / "m.safetensors")
        assert header.config == network.config
        assert header.parameters == sum(p.numel() for p in network.parameters())
        exact, _ = load_model(tmp_path / "m.safetensors", dtype=torch.float64)
        assert exact.dtype == torch.float64

    def test_configurations_survive_json(self, name):
        config = CONFIGS[name]
        assert network_config(json.loads(config.model_dump_json())) == config

    def test_a_superposition_is_a_starting_point(self, name):
        network = make(name, superposition=True)
        error = network.fit_superposition([sample()])
        assert error < 5
        parameters = [p for n, p in network.named_parameters() if not n.startswith("superposition")]
        with torch.no_grad():
            for parameter in parameters:
                parameter.zero_()
        found = density(network, sample().atoms, sample().points)[0]
        assert np.abs(found - sample().density).sum() < 0.05 * sample().density.sum()

    def test_scales_do_not_change_the_promises(self, name):
        network = make(name)
        network.fit_scales([sample()])
        values = density(network, atoms_of(), np.concatenate([points_of(), [[0, 0, 99.0]]]))
        assert np.isfinite(values).all()
        one = Atoms("O", [[0, 0, 0]])
        assert not density(network, one, np.array([[0, 0, 99.0]])).any()


def scene(place: str, x: float, point_cutoff: float, atom_cutoff: float):
    """A structure and a point that pass something at x = 0."""
    match place:
        case "last atom":
            return Atoms("O", [[0, 0, 0]]), [point_cutoff + x, 0, 0]
        case "second atom":
            return Atoms("OH", [[0, 0, 0], [1.5, 0, 0]]), [point_cutoff + x, 0, 0]
        case "atom of an atom":
            return Atoms("OO", [[0, 0, 0], [(atom_cutoff or 1.0) + x, 0, 0]]), [-0.5, 0.3, 0.2]
        case _:
            return Atoms("OH", [[0, 0, 0], [1.0, 0.3, 0]]), [x, 0, 0]


def sample() -> DensitySample:
    """Gaussians on the atoms."""
    rng = np.random.default_rng(0)
    atoms = Atoms("OHH", rng.random((3, 3)) * 4, cell=[4, 4, 4], pbc=True)
    points = rng.random((600, 3)) * 4
    pairs = point_pairs(atoms, points, 4.0, torch.float64)
    width = torch.where(torch.tensor(atoms.numbers) == 8, 0.9, 0.7).double()[:, None]
    values = torch.exp(-((pairs.vectors.norm(dim=2) / width) ** 2)) * pairs.mask
    return DensitySample(atoms, pairs.sum_over_atoms(values).numpy(), points=points)
