"""On-site data learned together with the density."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from safetensors import safe_open

from eac_model.checkpoint import load_model
from eac_model.data.sample import Calculation, DensitySample, PawDataset
from eac_model.errors import ConfigurationError
from eac_model.neighbors import atom_graph
from eac_model.network import EACNet, NetworkConfig, build
from eac_model.network import with_onsite as with_layout
from eac_model.network.spherical_averages import RADII
from eac_model.onsite import OnsiteLayout
from eac_model.training import train
from eac_model.training.callbacks import MOST_BLOCKS, _readable
from eac_model.training.data import Batch, concatenate, onsite_rows
from eac_model.training.losses import onsite_errors
from eac_model.training.module import onsite_percents

from .synthetic import PBE, config, scattered, store_of
from .test_train import LAST, rows

CHANNELS = {"H": [0], "O": [0, 1]}  # 1 and 6 numbers
ONSITE = {"onsite": {"code": "VASP", "channels": CHANNELS}}
LAYOUT = OnsiteLayout(code="VASP", channels=CHANNELS)


def with_onsite(seed: int, spin: bool = False) -> DensitySample:
    """Occupancies that are functions of the geometry, as real ones are."""
    sample = scattered(seed)
    oxygen, *hydrogens = sample.atoms.positions
    bonds = np.array([h - oxygen for h in hydrogens])
    lengths = np.linalg.norm(bonds, axis=1)
    dipole = bonds.sum(axis=0)
    tensor = np.array([0.0, *dipole[[1, 2, 0]], lengths.sum(), 0.1 * lengths.prod()])
    # s1s1, s1p1 (three, in the order y, z, x), p1p1 L = 0 … and five of L = 2 left at a constant
    blocks = (
        np.concatenate([[2.0], tensor[1:4], [tensor[4]], np.zeros(5)]),
        lengths[:1],
        lengths[1:],
    )
    return DensitySample(
        sample.atoms,
        sample.density,
        points=sample.points,
        spin_density=0.1 * sample.density if spin else None,
        onsite=blocks,
        onsite_spin=tuple(0.5 * values for values in blocks) if spin else None,
        provenance=sample.provenance,
    )


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    folder = tmp_path_factory.mktemp("onsite")
    return store_of(folder / "frames", [with_onsite(seed) for seed in range(6)])


def test_rows_of_missing_data_are_nan_and_spin_paired_data_have_no_difference():
    sample = with_onsite(0)
    found = onsite_rows(LAYOUT, sample)
    assert found.shape == (2, 3, 10)
    np.testing.assert_array_equal(found[0, 0], sample.onsite[0])
    assert (found[1, 0] == 0).all()
    assert np.isnan(found[:, 1, 1:]).all()
    assert np.isnan(onsite_rows(LAYOUT, scattered(0))).all()


def test_data_of_another_layout_are_refused():
    with pytest.raises(ConfigurationError, match="O has 10 on-site numbers"):
        onsite_rows(OnsiteLayout(code="VASP", channels={"H": (0,), "O": (0, 0)}), with_onsite(0))


def test_a_layout_without_an_element_of_the_data_is_refused(tmp_path, frames):
    run = config(frames, network={"onsite": {"code": "VASP", "channels": {"H": [0]}}})
    with pytest.raises(ConfigurationError, match="no on-site layout of O, only of H"):
        train(run, tmp_path / "run")


def test_batches_join_onsite_data_along_the_atoms():
    rows_ = [torch.as_tensor(onsite_rows(LAYOUT, with_onsite(seed))) for seed in (0, 1)]
    network = EACNet(NetworkConfig(elements=(1, 8), l_max=1, channels=2, interactions=1))
    from eac_model.training.data import BatchBuilder, LoadedSource

    builder = BatchBuilder(
        [LoadedSource(with_onsite(0)), LoadedSource(with_onsite(1))],
        network.config.model_copy(update={"onsite": LAYOUT}),
        torch.float64,
        0,
    )
    both = concatenate([builder.at_points(0), builder.at_points(1)])
    assert torch.equal(both.onsite.nan_to_num(7), torch.cat(rows_, dim=1).nan_to_num(7))
    assert builder.at_points(0, onsite=False).onsite is None


def test_spin_models_are_compared_in_the_sum_and_the_difference():
    torch.manual_seed(0)
    network = EACNet(
        NetworkConfig(
            elements=(1, 8), l_max=2, channels=2, interactions=1, spin=True, onsite=LAYOUT
        )
    ).double()
    network.onsite.fit([with_onsite(seed, spin=True) for seed in range(6)])
    sample = with_onsite(0, spin=True)
    sample.atoms.set_initial_magnetic_moments([1.0, 0.0, 0.0])
    graph = atom_graph(sample.atoms, 2.0, torch.float64)
    descriptors = network.spin_descriptors(graph)
    up, down = network.onsite_data(descriptors, graph)
    exact = torch.stack([up + down, up - down]).detach()
    batch = Batch(graph, None, torch.ones(1), torch.ones(1), torch.ones(1), onsite=exact)
    assert onsite_errors(network, descriptors, batch).nan_to_num(0).max() < 1e-5
    batch.onsite = exact + torch.tensor([[[0.0]], [[1.0]]])
    errors = onsite_errors(network, descriptors, batch)
    assert errors[0].nan_to_num(0).max() < 1e-5
    assert errors[1].nan_to_num(0).max() > 0.1


def test_readouts_are_the_least_squares_fit_to_the_descriptors():
    torch.manual_seed(0)
    shape = {"elements": (1, 8), "l_max": 2, "channels": 4, "interactions": 1, "onsite": LAYOUT}
    network, truth = (build(NetworkConfig(**shape), torch.float64) for _ in range(2))
    graph = atom_graph(with_onsite(0).atoms, 2.0, torch.float64)
    examples = []
    for _ in range(40):
        descriptors = torch.randn(len(graph.numbers), 9, 4, dtype=torch.float64)
        averages = torch.randn(len(graph.numbers), len(RADII), dtype=torch.float64)
        data = truth.onsite(descriptors, averages, graph.numbers)
        examples.append((descriptors, averages, graph.numbers, data + 0.3))
    network.onsite.regress(examples)
    for descriptors, averages, numbers, data in examples[:3]:
        found = network.onsite(descriptors, averages, numbers)
        # Only blocks of L = 0 have a constant; the others are 0.3 off in each of their components.
        torch.testing.assert_close(found[1:, 0], data[1:, 0], atol=1e-5, rtol=0)
        torch.testing.assert_close(found[0, [0, 4]], data[0, [0, 4]], atol=1e-5, rtol=0)


def test_scalar_data_may_be_products_of_different_channels():
    torch.manual_seed(0)
    shape = {"elements": (1,), "l_max": 2, "channels": 16, "interactions": 1}
    layout = OnsiteLayout(code="VASP", channels={"H": (0,)})
    network = build(NetworkConfig(**shape, onsite=layout), torch.float64)

    def draw(atoms):
        # Few directions matter, as in real descriptors.
        descriptors = torch.randn(atoms, 9, 16, dtype=torch.float64)
        descriptors[:, :, 3:] *= 1e-3
        product = (descriptors[:, 4:9, 0] * descriptors[:, 4:9, 1]).sum(dim=1, keepdim=True)
        averages = torch.zeros(atoms, len(RADII), dtype=torch.float64)
        return descriptors, averages, torch.ones(atoms, dtype=torch.int64), product

    network.onsite.regress(draw(30) for _ in range(10))
    *inputs, product = draw(100)
    error = network.onsite(*inputs) - product
    assert error.square().mean() < 1e-4 * product.square().mean()


def test_noise_is_not_fitted():
    torch.manual_seed(0)
    shape = {"elements": (1,), "l_max": 2, "channels": 16, "interactions": 1}
    layout = OnsiteLayout(code="VASP", channels={"H": (0,)})
    network = build(NetworkConfig(**shape, onsite=layout), torch.float64)

    def draw(atoms):
        descriptors = torch.randn(atoms, 9, 16, dtype=torch.float64)
        averages = torch.randn(atoms, len(RADII), dtype=torch.float64)
        return descriptors, averages, torch.ones(atoms, dtype=torch.int64)

    network.onsite.regress((*draw(6), torch.randn(6, 1, dtype=torch.float64)) for _ in range(10))
    assert network.onsite(*draw(500)).std() < 0.3


def test_rounding_in_symmetric_crystals_teaches_nothing():
    torch.manual_seed(0)
    network = build(
        NetworkConfig(elements=(1, 8), l_max=2, channels=4, onsite=LAYOUT), torch.float64
    )
    numbers = torch.tensor([8, 1, 1])
    width = network.onsite.width

    def draw(variation):
        descriptors = variation * torch.randn(3, 9, 4, dtype=torch.float64)
        descriptors[:, 0] += 1
        averages = 1 + variation * torch.randn(3, len(RADII), dtype=torch.float64)
        return descriptors, averages, numbers

    perfect = [(*draw(1e-7), 1e-4 * torch.randn(3, width, dtype=torch.float64)) for _ in range(10)]
    network.onsite.regress(perfect)
    assert network.onsite(*draw(0.3)).abs().max() < 1


def test_one_structure_is_enough_for_readouts():
    torch.manual_seed(0)
    network = build(
        NetworkConfig(elements=(1, 8), l_max=2, channels=4, onsite=LAYOUT), torch.float64
    )
    descriptors = torch.randn(3, 9, 4, dtype=torch.float64)
    numbers = torch.tensor([8, 1, 1])
    data = torch.as_tensor(onsite_rows(LAYOUT, with_onsite(0))[0])
    averages = torch.randn(3, len(RADII), dtype=torch.float64)
    network.onsite.regress([(descriptors, averages, numbers, data)])
    found = network.onsite(descriptors, averages, numbers)
    assert torch.isfinite(found).all()
    assert (found - data.nan_to_num(0)).abs().max() < data.nan_to_num(0).abs().max()


def test_a_network_may_change_its_layout_and_keeps_everything_else():
    network = build(
        NetworkConfig(elements=(1, 8), l_max=2, channels=4, onsite=LAYOUT), torch.float32
    )
    other = OnsiteLayout(code="GPAW", channels={"H": (0, 0), "O": (0, 1)})
    changed = with_layout(network, other)
    assert changed.config.onsite == other
    weights = changed.state_dict()
    for name, value in network.state_dict().items():
        if not name.startswith("onsite."):
            assert torch.equal(weights[name], value), name
    assert with_layout(changed, None).onsite is None
    assert with_layout(network, LAYOUT) is network


def test_fine_tuning_may_learn_another_layout(tmp_path, frames):
    first = train(config(frames, network=ONSITE, optimisation={"steps": 2}), tmp_path / "first")
    other = {"code": "VASP", "channels": {"H": [0], "O": [0, 1]}, "datasets": {"H": "PAW H"}}
    run = config(
        frames, initialize_from=str(first), network={"onsite": other}, optimisation={"steps": 2}
    )
    network, _ = load_model(train(run, tmp_path / "second"))
    assert network.config.onsite.datasets == {"H": "PAW H"}


@pytest.mark.parametrize(("code", "kept"), [("VASP 99.1", True), ("GPAW 26.7", False)])
def test_fine_tuning_keeps_on_site_data_of_the_same_code_and_of_no_other(
    tmp_path, frames, code, kept
):
    first = train(config(frames, network=ONSITE, optimisation={"steps": 2}), tmp_path / "first")
    samples = [
        replace(with_onsite(seed) if kept else scattered(seed), provenance=replace(PBE, code=code))
        for seed in (7, 8)
    ]
    data = store_of(tmp_path / "mine.store", samples)
    run = config(data, initialize_from=str(first), optimisation={"steps": 2})
    network, _ = load_model(train(run, tmp_path / "second"))
    assert (network.onsite is not None) is kept


def test_fitting_to_few_elements_leaves_the_others_what_they_have():
    network = build(
        NetworkConfig(elements=(1, 8), onsite=LAYOUT, l_max=1, channels=4), torch.float32
    )
    network.onsite.fit([with_onsite(0), with_onsite(1)])
    known = network.onsite.shift_O.clone()
    hydrogen = replace(with_onsite(2), atoms=Atoms("H", cell=[3] * 3), onsite=(np.array([7.0]),))
    with pytest.raises(ConfigurationError, match="no on-site data of O"):
        network.onsite.fit([hydrogen])
    network.onsite.fit([hydrogen], all_elements=False)
    assert network.onsite.shift_H.item() == pytest.approx(7.0)
    assert torch.equal(network.onsite.shift_O, known)


def test_structures_without_onsite_data_do_not_disturb_the_others(tmp_path):
    mixed = [with_onsite(0), scattered(1), with_onsite(2), scattered(3)]
    model = train(
        config(
            store_of(tmp_path / "mixed", mixed), network=ONSITE, data={"structures_per_batch": 2}
        ),
        tmp_path / "run",
    )
    weights = load_model(model)[0].state_dict()
    trained = [v for name, v in weights.items() if not name.startswith("expected_error.")]
    assert all(torch.isfinite(value).all() for value in trained)


def test_percents_are_root_mean_squares_and_leave_out_what_never_occurred():
    sums = torch.tensor([[[0.08, 0.0]], [[2.0, 0.0]]], dtype=torch.float64)
    assert onsite_percents(sums, ["a", "b"]) == pytest.approx({"a": 20.0})


def test_the_errors_of_onsite_data_are_small_from_the_first_and_logged(tmp_path):
    frames = store_of(tmp_path / "frames", [with_onsite(seed) for seed in range(48)])
    network = {**ONSITE, "l_max": 2, "channels": 8, "interactions": 2}
    model = train(
        config(
            frames,
            network=network | {"atom_cutoff": 3.0, "atom_radial_hidden": [32]},
            data={"validation": 8, "structures_per_batch": 4},
            optimisation={"steps": 30, "learning_rate": 0.005, "warmup_steps": 10},
            loss={"onsite_weight": 5.0},
            validate_every=10,
        ),
        tmp_path / "run",
    )
    found = [float(r["validation_onsite_percent"]) for r in rows(tmp_path / "run")
             if r["validation_onsite_percent"]]  # fmt: skip
    # The first ones are good already: least squares on untrained descriptors.
    assert min(found[:2]) < 60
    assert found[-1] < 75
    with safe_open(model, "pt") as file:
        blocks = json.loads(file.metadata()["card"])["training"]["validation_onsite_blocks_percent"]
    # O s1s1 and O p1p1 L=2 never vary in these data: nothing is to be learned there.
    assert set(blocks) == {"H s1s1 L=0", "O s1p1 L=1", "O p1p1 L=0"}


def test_cards_list_elements_where_there_are_many_blocks():
    blocks = {f"Si b{n} L=0": 10.0 for n in range(MOST_BLOCKS)}
    assert _readable(blocks) == blocks
    assert _readable(blocks | {"O b0 L=0": 3.0, "O b1 L=0 spin": 4.0}) == {"Si": 10.0, "O": 3.5}


def test_a_run_with_onsite_data_resumes_to_the_same_weights(tmp_path, frames, monkeypatch):
    whole = train(config(frames, network=ONSITE), tmp_path / "whole")
    from eac_model.training.module import TrainingModule

    steps = 0
    step = TrainingModule.training_step

    def dies_at_eight(self, batch, batch_idx):
        nonlocal steps
        steps += 1
        if steps == 8:
            raise RuntimeError("power failure")
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "training_step", dies_at_eight)
        with pytest.raises(RuntimeError, match="power failure"):
            train(config(frames, network=ONSITE), tmp_path / "broken")
    assert (tmp_path / "broken" / LAST).exists()
    resumed = train(config(frames, network=ONSITE), tmp_path / "broken", resume=True)
    first, second = load_model(whole)[0].state_dict(), load_model(resumed)[0].state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["onsite.spread_O"].min() < 1


def test_training_data_without_onsite_data_are_refused(tmp_path):
    frames = store_of(tmp_path / "bare", [scattered(seed) for seed in range(3)])
    with pytest.raises(ConfigurationError, match="no on-site data of H"):
        train(config(frames, network=ONSITE), tmp_path / "run")


def with_datasets(seed: int) -> DensitySample:
    """Matrices of one s projector each, and the PAW data sets they belong to."""
    calculation = Calculation(
        energy=0.0,
        free_energy=0.0,
        forces=np.zeros((3, 3)),
        kpoints=np.zeros((1, 3)),
        weights=np.ones(1),
        eigenvalues=np.zeros((1, 1, 1)),
        occupations=np.zeros((1, 1, 1)),
        fermi_level=0.0,
        iterations=1,
        seconds=1.0,
        datasets={
            "O": PawDataset("O.PBE", "123", (0,), 6.0),
            "H": PawDataset("H.PBE", "456", (0,), 1.0),
        },
    )
    onsite = tuple(np.array([[value]]) for value in (1.5 + 0.1 * seed, 0.5, 0.5))
    return replace(scattered(seed), onsite=onsite, calculation=calculation)


def test_the_layout_may_come_from_the_data(tmp_path):
    frames = store_of(tmp_path / "frames", [with_datasets(seed) for seed in range(3)])
    run = config(frames, network={"onsite": "from-data"}, optimisation={"steps": 2})
    network, _ = load_model(train(run, tmp_path / "run"))
    assert network.config.onsite == OnsiteLayout(
        code="GPAW",
        channels={"H": (0,), "O": (0,)},
        datasets={"H": "H.PBE 456", "O": "O.PBE 123"},
    )


def test_a_layout_from_data_that_do_not_say_it_is_refused(tmp_path, frames):
    run = config(frames, network={"onsite": "from-data"}, optimisation={"steps": 2})
    with pytest.raises(ConfigurationError, match=r"which PAW data set H has\. Only stores"):
        train(run, tmp_path / "run")
