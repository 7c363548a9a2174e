import itertools

import numpy as np
import pytest
import torch
from ase import Atoms

from eac_model import neighbors
from eac_model.errors import StructureError, UnknownElementError
from eac_model.graph import AtomGraph, PointPairs
from eac_model.neighbors import atom_graph, check_structure, point_pairs

SKEWED = [[2.1, 0, 0], [1.3, 2.4, 0], [-0.7, 0.9, 1.9]]


def some_atoms(pbc, cell=SKEWED):
    rng = np.random.default_rng(1)
    return Atoms("HOH", rng.uniform(-3, 4, (3, 3)), cell=cell, pbc=pbc)


def images(atoms, extent=6):
    ranges = [range(-extent, extent + 1) if p else [0] for p in atoms.pbc]
    return np.array(list(itertools.product(*ranges))) @ np.asarray(atoms.cell)


@pytest.mark.parametrize("pbc", list(itertools.product([False, True], repeat=3)))
def test_atom_neighbors_equal_brute_force_for_every_pbc_in_a_cell_smaller_than_the_cutoff(pbc):
    atoms = some_atoms(pbc)
    cutoff = 3.7
    graph = atom_graph(atoms, cutoff, torch.float64)
    expected = []
    for i, j in itertools.product(range(3), repeat=2):
        vectors = atoms.positions[j] + images(atoms, 9) - atoms.positions[i]
        length = np.linalg.norm(vectors, axis=1)
        expected += [(i, j, round(x, 8)) for x in length[(length < cutoff) & (length > 1e-9)]]
    found = zip(
        graph.receivers.tolist(),
        graph.senders.tolist(),
        [round(x, 8) for x in graph.vectors.norm(dim=1).tolist()],
        strict=True,
    )
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("pbc", list(itertools.product([False, True], repeat=3)))
def test_point_pairs_equal_brute_force_for_every_pbc_and_points_outside_the_cell(pbc):
    atoms = some_atoms(pbc)
    points = np.random.default_rng(2).uniform(-4, 4, (20, 3))
    cutoff = 3.1
    pairs = point_pairs(atoms, points, cutoff, torch.float64)
    expected = []
    for i, p in itertools.product(range(3), range(20)):
        vectors = points[p] - (atoms.positions[i] + images(atoms, 9))
        length = np.linalg.norm(vectors, axis=1)
        expected += [(i, p, *np.round(v, 7) + 0.0) for v in vectors[length < cutoff]]
    rows, columns = pairs.mask.nonzero(as_tuple=True)
    found = [
        (
            int(pairs.atom[r]),
            int(pairs.point[r, c]),
            *np.round(pairs.vectors[r, c].numpy(), 7) + 0.0,
        )
        for r, c in zip(rows, columns, strict=True)
    ]
    assert len(found) == len(expected)
    assert np.allclose(sorted(found), sorted(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_loops_find_what_the_tree_finds_in_the_same_order(dtype, monkeypatch):
    if neighbors.compiled_search() is None:
        pytest.skip("numba is not installed")
    atoms = some_atoms((True, False, True))
    for points in (np.random.default_rng(2).uniform(-4, 4, (50, 3)), np.empty((0, 3))):
        compiled = point_pairs(atoms, points, 3.1, dtype)
        with monkeypatch.context() as patch:
            patch.setattr(neighbors, "compiled_search", lambda: None)
            tree = point_pairs(atoms, points, 3.1, dtype)
        assert compiled.vectors.dtype == tree.vectors.dtype == dtype
        assert torch.equal(compiled.mask, tree.mask)
        assert torch.equal(compiled.point, tree.point)
        assert torch.allclose(compiled.vectors, tree.vectors, rtol=0, atol=1e-6)


def test_a_point_on_a_nucleus_is_a_pair():
    atoms = Atoms("H", [[1.0, 2.0, 3.0]])
    pairs = point_pairs(atoms, atoms.positions, 2.0)
    assert pairs.mask.sum() == 1


def test_molecules_need_no_cell():
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 0.74]])
    assert len(atom_graph(atoms, 2.0).senders) == 2
    assert point_pairs(atoms, [[0, 0, 0.3]], 2.0).mask.sum() == 2


def test_concatenated_graphs_and_pairs_keep_structures_apart():
    a, b = some_atoms(True), some_atoms((True, False, False))
    points = np.random.default_rng(3).uniform(0, 2, (7, 3))
    graphs = [atom_graph(x, 3.0) for x in (a, b)]
    pairs = [point_pairs(x, points, 3.0) for x in (a, b)]
    graph = AtomGraph.concatenate(graphs)
    joined = PointPairs.concatenate(pairs, [3, 3], [7, 7])
    assert graph.n_atoms == 6
    assert (graph.senders[: len(graphs[0].senders)] < 3).all()
    assert (graph.senders[len(graphs[0].senders) :] >= 3).all()
    ones = joined.mask.float()
    counts = torch.cat([p.sum_over_atoms(p.mask.float()) for p in pairs])
    assert torch.equal(joined.sum_over_atoms(ones), counts)


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (Atoms(), "no atoms"),
        (Atoms("H", [[np.nan, 0, 0]]), "not a number"),
        (Atoms("H", [[0, np.inf, 0]]), "not a number"),
        (Atoms("H", pbc=True), "no cell vector"),
        (Atoms("H", pbc=(True, False, False)), "no cell vector"),
        (Atoms("H", cell=[[1, 0, 0], [2, 0, 0], [0, 0, 1]], pbc=True), "volume zero"),
        (Atoms("H2", [[0, 0, 0], [0, 0, 0.01]]), "closer than"),
        (Atoms("H2", [[0, 0, 0], [0, 0, 4.99]], cell=[5, 5, 5], pbc=True), "closer than"),
        (Atoms("H", magmoms=[np.nan]), "magnetic moment"),
        (Atoms("H3", [[0, 0, 0], [0, 0, 1], [0, 0, 2e5]]), r"Atom 2 \(H\) .* from others"),
        (
            Atoms("H2", [[0, 0, 0], [0, 0, 3e4]], cell=[3, 3, 0], pbc=(True, True, False)),
            "from others",
        ),
        (Atoms("H", cell=[3, 3, 2e4], pbc=True), "Cell vector 2 is 20000 Å long"),
    ],
)
def test_structures_that_cannot_be_meant_are_refused(atoms, message):
    with pytest.raises(StructureError, match=message):
        check_structure(atoms)


@pytest.mark.parametrize(
    "atoms",
    [
        Atoms("H", cell=[2.5, 2.5, 2.5], pbc=True) * (1, 1, 2000),
        Atoms("H", cell=[3, 3, 6000], pbc=True),
        Atoms("H", cell=[2.5, 2.5, 4000], pbc=(True, True, False)),
        Atoms("H2", [[0, 0, 0], [0, 0, 3000]], cell=[3, 3, 0], pbc=(True, True, False)),
        Atoms("H2", [[7e5, 0, 0], [7e5, 0, 1]], cell=[3, 3, 3], pbc=True),
    ],
    ids=["chain of cells", "long cell", "slab", "layers far apart", "outside the cell"],
)
def test_elongated_and_distant_structures_are_accepted(atoms):
    check_structure(atoms)


def test_unknown_elements_are_named():
    with pytest.raises(UnknownElementError, match="He"):
        check_structure(Atoms("HHe", [[0, 0, 0], [0, 0, 2]]), (1, 8))
