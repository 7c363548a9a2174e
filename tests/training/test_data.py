import numpy as np
import pytest
import torch

from eac_model.data.chgcar import write_chgcar
from eac_model.data.sample import DensitySample
from eac_model.data.sampling import SamplingMixture
from eac_model.data.store import DensityStore
from eac_model.errors import ConfigurationError, DensityFileError
from eac_model.neighbors import point_pairs
from eac_model.network import NetworkConfig
from eac_model.training import data as training_data
from eac_model.training.data import (
    BatchBuilder,
    LoadedSource,
    TrainingBatches,
    ValidationBatches,
    concatenate,
    load_sources,
    superposition_samples,
)

from .synthetic import config, gaussian_density, grid, scattered, store_of


def builder(sources, cache=10**8):
    network = NetworkConfig(elements=(1,), atom_cutoff=2.0, point_cutoff=2.5)
    return BatchBuilder(sources, network, torch.float64, cache)


def test_pairs_that_are_kept_change_nothing_but_time(monkeypatch):
    searches = []
    monkeypatch.setattr(
        training_data, "point_pairs", lambda *given: searches.append(given) or point_pairs(*given)
    )
    sources = [LoadedSource(scattered(seed)) for seed in range(2)]
    never, kept = builder(sources, 0), builder(sources)
    rng = np.random.default_rng(5)
    for index in (0, 1, 0, 1):
        one, two = (make.drawn(index, None, SamplingMixture(), rng) for make in (never, kept))
        assert torch.equal(one.pairs.vectors, two.pairs.vectors)
    assert len(searches) == 4 + 2
    assert kept.drawn(0, 30, SamplingMixture(), rng).pairs.n_points == 30


def test_structures_of_a_store_are_kept_while_memory_allows_and_give_the_same_batches(
    tmp_path, monkeypatch
):
    stored = store_of(tmp_path / "s.store", [grid(0), grid(1), scattered(2)])
    mixture = SamplingMixture(uniform=1, density=1)
    reads = []
    read = DensityStore.read_points
    monkeypatch.setattr(
        DensityStore, "read_points", lambda *given: reads.append(given) or read(*given)
    )
    batches, counts = [], []
    for cache in (0, 10**8, 1):
        sources, _ = load_sources(config(stored, data={"validation": 0}))
        make, rng = builder(sources, cache), np.random.default_rng(5)
        reads.clear()
        batches.append([make.drawn(i, 30, mixture, rng) for i in (0, 1, 0, 1, 0)])
        counts.append(len(reads))
    for other in batches[1:]:
        for one, two in zip(batches[0], other, strict=True):
            assert torch.equal(one.density, two.density)
            assert torch.equal(one.weights, two.weights)
            assert torch.equal(one.pairs.vectors, two.pairs.vectors)
    assert counts == [5, 0, 2]


def test_densities_belong_to_their_points_from_memory_and_from_a_store(tmp_path):
    stored = store_of(tmp_path / "s.store", [grid(0), scattered(1)])
    from_store, _ = load_sources(config(stored, data={"validation": 0}))
    for source in [*from_store, LoadedSource(grid(0)), LoadedSource(scattered(1))]:
        indices, weights = source.draw(40, SamplingMixture(), np.random.default_rng(0))
        sample = source.select(indices)
        expected = gaussian_density(source.atoms, sample.points)
        np.testing.assert_allclose(sample.density, expected, rtol=1e-5)
        assert len(weights) == 40


def test_weights_undo_importance_sampling():
    source = LoadedSource(grid(0, (16, 16, 16)))
    mixture = SamplingMixture(uniform=0.2, density=1, core=1, gradient=1)
    exact = source.select(np.arange(source.n_points)).density.mean()
    batches = [
        builder([source]).drawn(0, 400, mixture, np.random.default_rng(seed)) for seed in range(20)
    ]
    estimates = [(b.weights * b.density).mean().item() for b in batches]
    assert np.mean(estimates) == pytest.approx(exact, rel=0.03)
    assert batches[0].density.mean() > 2 * exact


def test_batches_of_several_structures_keep_them_apart(frames):
    run = config(frames, data={"structures_per_batch": 3, "validation": 0})
    sources, _ = load_sources(run)
    make = builder(sources)
    batch = TrainingBatches(make, run, 0, 1)[4]
    assert batch.graph.n_atoms == 9
    assert batch.pairs.n_points == len(batch.density) == 150
    last = batch.pairs.atom >= 6
    assert batch.pairs.point[last][batch.pairs.mask[last]].min() >= 100
    one = concatenate([make.at_points(0)])
    assert len(one.density) == 120


def test_a_step_draws_the_same_batch_again_and_another_rank_another(frames):
    run = config(frames, data={"validation": 0})
    sources, _ = load_sources(run)
    first, again = (TrainingBatches(builder(sources), run, 0, 2)[3] for _ in range(2))
    other = TrainingBatches(builder(sources), run, 1, 2)[3]
    assert torch.equal(first.density, again.density)
    assert not torch.equal(first.density, other.density)


def test_validation_covers_all_points_or_a_fixed_part_of_a_grid():
    sources = [LoadedSource(grid(0, (18, 18, 18))), LoadedSource(scattered(1))]
    whole = ValidationBatches(builder(sources), None, seed=0)
    points = [len(whole[i].density) for i in range(len(whole))]
    assert sum(points) == 18**3 + 120
    assert max(points) <= 4000
    part = [ValidationBatches(builder(sources), 500, seed=0) for _ in range(2)]
    assert [len(part[0][i].density) for i in range(2)] == [500, 120]
    assert torch.equal(part[0][0].density, part[1][0].density)


def test_validation_files_are_taken_out_of_the_training_files(tmp_path):
    for seed in range(3):
        store_of(tmp_path / f"{seed}.store", [scattered(seed)])
    run = config(tmp_path / "*.store", data={"validation": str(tmp_path / "1.store")})
    train, validation = load_sources(run)
    assert [len(train), len(validation)] == [2, 1]
    np.testing.assert_allclose(validation[0].atoms.positions, scattered(1).atoms.positions)


def test_a_structure_that_came_twice_is_not_on_both_sides(tmp_path, caplog):
    samples = [grid(seed) for seed in range(4)]
    data = store_of(tmp_path / "all.store", samples)
    for number, sample in enumerate(samples):
        write_chgcar(tmp_path / f"CHGCAR_{number}", sample)
    left_out = str(tmp_path / "CHGCAR_1")
    train, validation = load_sources(config(data, data={"validation": left_out}))
    assert [len(train), len(validation)] == [3, 1]
    assert "1 structures are left out of the training, too" in caplog.text
    both = [str(data), str(tmp_path / "CHGCAR_*")]
    train, validation = load_sources(config(data, data={"train": both, "validation": 2}))
    places = [{source.atoms.positions.round(4).tobytes() for source in side}
              for side in (train, validation)]  # fmt: skip
    assert len(validation) == 2
    assert train
    assert not places[0] & places[1]


@pytest.mark.parametrize(("share", "count"), [(0, 0), (2, 2), (0.25, 1), (0.01, 1)])
def test_a_number_or_a_fraction_of_structures_is_left_out(frames, share, count):
    train, validation = load_sources(config(frames, data={"validation": share}))
    assert [len(train), len(validation)] == [4 - count, count]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"train": "/nowhere/*.h5"}}, r"data\.train: there is no file '/nowhere/\*\.h5'"),
        ({"data": {"validation": "/nowhere.h5"}}, r"data\.validation: there is no file"),
        ({"data": {"validation": 4}}, r"data\.validation: 4 of 4 structures cannot be left out"),
        ({"data": {"sampling": {"core": 1}}}, r"data\.sampling: sampled files"),
        ({"network": {"spin": True}}, r"network\.spin: none of the training data"),
    ],
)
def test_data_that_do_not_fit_the_configuration_are_refused(frames, changes, message):
    with pytest.raises(ConfigurationError, match=message):
        load_sources(config(frames, **changes))


def test_grids_need_a_number_of_points(tmp_path):
    stored = store_of(tmp_path / "s.store", [grid(0)])
    run = config(stored, data={"validation": 0, "points_per_structure": None})
    with pytest.raises(ConfigurationError, match=r"data\.points_per_structure"):
        load_sources(run)


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "bad.cube").write_text("nothing\n")
    with pytest.raises(DensityFileError, match=r"bad\.cube"):
        load_sources(config(tmp_path / "bad.cube", data={"validation": 0}))


def test_spin_densities_reach_the_batch():
    sample = scattered(0)
    spin = DensitySample(
        sample.atoms, sample.density, points=sample.points, spin_density=0.1 * sample.density
    )
    batch = builder([LoadedSource(spin)]).at_points(0)
    assert torch.allclose(batch.spin_density, 0.1 * batch.density)


def test_every_element_is_among_the_structures_that_free_atoms_are_fitted_to():
    common = [scattered(seed) for seed in range(70)]
    rare = scattered(70)
    rare.atoms.numbers[1] = 79
    sources = [LoadedSource(sample) for sample in [*common, rare]]
    chosen = list(superposition_samples(sources, seed=3))
    assert any("Au" in sample.atoms.symbols for sample in chosen)
    assert 64 <= len(chosen) <= 65


def test_many_structures_share_the_points_that_free_atoms_are_fitted_to(monkeypatch):
    sources = [LoadedSource(scattered(seed, points=6000)) for seed in range(3)]

    def sizes():
        return [sample.density.size for sample in superposition_samples(sources, seed=3)]

    assert sizes() == [5000, 5000, 5000]
    monkeypatch.setattr("eac_model.training.data.SUPERPOSITION_POINTS", 6000)
    assert sizes() == [2000, 2000, 2000]
