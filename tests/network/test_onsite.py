"""On-site data: layouts of VASP and GPAW, the head, and how both turn."""

import numpy as np
import pytest
import torch
from ase.build import molecule
from e3nn import o3
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from eac_model.checkpoint import ModelCard, load_model, save_model
from eac_model.data.sample import DensitySample
from eac_model.errors import ConfigurationError, ModelFileError
from eac_model.neighbors import atom_graph
from eac_model.network import NetworkConfig, build
from eac_model.onsite import OnsiteLayout, axes_of_codes

WATER = {"H": (0, 0, 1), "O": (0, 0, 1, 1)}
WITH_D = {"H": (0, 0, 1), "O": (0, 1, 0, 1, 2)}


def layout(code="VASP", channels=WITH_D, **further):
    return OnsiteLayout(code=code, channels=channels, **further)


def network(onsite, **settings):
    torch.manual_seed(0)
    shape = dict(elements=(1, 8), l_max=2, channels=6, interactions=2)
    found = build(NetworkConfig(**(shape | settings), onsite=onsite), torch.float64)
    for name, value in found.onsite.fitted():
        value.fill_(0.3 if name.startswith("spread") else 0.0)
    return found


def water(seed=0):
    atoms = molecule("H2O")
    atoms.rattle(0.1, seed=seed)
    return atoms


def onsite(found, atoms):
    graph = atom_graph(atoms, 4.0, torch.float64)
    with torch.no_grad():
        return found.onsite_data(found.spin_descriptors(graph), graph).numpy()


def sample(atoms, rows, spin=None):
    point = np.zeros((1, 3))
    return DensitySample(atoms, np.ones(1), points=point, onsite=tuple(rows), onsite_spin=spin)


# -- layouts -------------------------------------------------------------------------------------


def test_vasp_blocks_of_water_stand_where_real_files_have_them():
    found = layout(channels=WATER)
    assert (found.size("H"), found.size("O"), found.width) == (15, 33, 33)
    starts = {block.name: block.columns.start for block in found.blocks("O")}
    # Offsets checked against CHGCAR files of VASP: s1s2 at 1, s1p1 at 2, s2p1 at 9, p1p2 at 21.
    assert [starts[n] for n in ("s1s2 L=0", "s1p1 L=1", "s2s2 L=0", "s2p1 L=1")] == [1, 2, 8, 9]
    assert [starts[n] for n in ("p1p1 L=2", "p1p2 L=0", "p2p2 L=0", "p2p2 L=2")] == [16, 21, 27, 28]


def test_what_lies_above_lmaxmix_is_zero_in_blocks_of_full_length():
    everything, mixed = layout(), layout(l_max=2)
    assert everything.size("O") == mixed.size("O") == 78
    assert all(block.irrep.l <= 2 for block in mixed.blocks("O"))
    left_out = everything.irreps("O").dim - mixed.irreps("O").dim
    assert left_out == 9 + 7 + 7  # d1d1 L=4, p1d1 and p2d1 L=3
    assert (np.abs(mixed.basis("O")).sum(axis=1) == 0).sum() == left_out


def test_molybdenum_has_as_many_numbers_as_in_files_of_vasp():
    assert layout(channels={"Mo": (2, 2, 0, 0, 1, 1)}, l_max=2).size("Mo") == 138


def test_gpaw_irreps_span_exactly_the_symmetric_matrices():
    found = layout("GPAW", {"Si": (0, 1, 0, 1, 2)})
    assert found.irreps("Si").sort().irreps.simplify() == o3.Irreps(
        "7x0e + 6x1o + 1x1e + 2x2o + 6x2e + 2x3o + 1x4e"
    )
    matrix = np.random.default_rng(0).normal(size=(13, 13))
    matrix += matrix.T
    basis = found.basis("Si")
    np.testing.assert_allclose(basis @ (basis.T @ matrix.ravel()), matrix.ravel(), atol=1e-13)


@pytest.mark.parametrize("l", range(5))
def test_harmonics_of_the_codes_are_those_of_e3nn_with_turned_axes(l):
    points = torch.randn(4, 3, dtype=torch.float64)
    ours = o3.spherical_harmonics(l, points, normalize=True).numpy()
    theirs = o3.spherical_harmonics(l, points[:, [1, 2, 0]], normalize=True).numpy()
    np.testing.assert_allclose(ours @ axes_of_codes(l).T, theirs, atol=1e-13)


def test_gpaw_matrices_of_a_density_turn_as_gpaws_own_harmonics_do():
    """D_ij = <i|f><f|j> of a function f over GPAW's harmonics, against the rotated f."""
    spherical_harmonics = pytest.importorskip("gpaw.sphere.spherical_harmonics")
    channels = WITH_D["O"]
    found = layout("GPAW")
    rng = np.random.default_rng(1)
    torch.manual_seed(1)  # near the poles e3nn's angles lose more digits than are left here
    rotation = o3.rand_matrix(dtype=torch.float64).numpy()
    directions = rng.normal(size=(40, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)

    def projections(axis):
        """Coefficients of 1 + 2 u·a + 3 (u·a)², which harmonics up to l = 2 hold exactly."""
        along = directions @ axis
        rows = [
            [spherical_harmonics.Y(component, *u) for component in range(9)] for u in directions
        ]
        fit = np.linalg.lstsq(np.array(rows), 1 + 2 * along + 3 * along**2, rcond=None)[0]
        return np.concatenate([fit[l * l : (l + 1) ** 2] for l in channels])

    axis = np.array([0.3, -0.5, 0.8])
    before, after = projections(axis), projections(rotation @ axis)
    basis = found.basis("O")
    turn = found.irreps("O").D_from_matrix(torch.as_tensor(rotation)).numpy()
    turned = basis @ turn @ basis.T @ np.outer(before, before).ravel()
    # e3nn's Wigner matrices are exact to single precision.
    np.testing.assert_allclose(turned, np.outer(after, after).ravel(), atol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"code": "ORCA", "channels": WATER},
        {"code": "VASP", "channels": {}},
        {"code": "VASP", "channels": {"Xx": (0,)}},
        {"code": "VASP", "channels": WATER, "datasets": {"Fe": "PAW_PBE Fe"}},
    ],
)
def test_layouts_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValidationError):
        OnsiteLayout(**wrong)


def test_elements_without_channels_have_no_onsite_data():
    found = network(layout(channels={"H": (0, 0)}))
    atoms = water()
    graph = atom_graph(atoms, found.config.atom_cutoff, torch.float64)
    rows = found.onsite_data(found.spin_descriptors(graph), graph)[0]
    hydrogen = graph.numbers == 1
    assert (rows[~hydrogen] == 0).all()
    assert (rows[hydrogen].abs().sum(dim=1) > 0).all()
    with pytest.raises(ConfigurationError, match="no on-site layout of O, only of H"):
        found.config.onsite.size("O")


# -- the head ------------------------------------------------------------------------------------


@pytest.mark.parametrize("improper", [1, -1])
@pytest.mark.parametrize("code", ["VASP", "GPAW"])
def test_onsite_data_turn_with_the_structure(code, improper):
    found = network(layout(code))
    atoms = water()
    rotation = improper * o3.rand_matrix(dtype=torch.float64)
    turned = atoms.copy()
    turned.positions = atoms.positions @ rotation.numpy().T
    before, after = onsite(found, atoms)[0], onsite(found, turned)[0]
    for index, symbol in enumerate(atoms.symbols):
        size, basis = found.onsite.layout.size(symbol), found.onsite.layout.basis(symbol)
        matrix = found.onsite.layout.irreps(symbol).D_from_matrix(rotation).numpy()
        expected = basis @ matrix @ basis.T @ before[index, :size]
        # e3nn's Wigner matrices, which the test turns with, are exact to single precision.
        np.testing.assert_allclose(after[index, :size], expected, rtol=0, atol=1e-6)
        assert np.abs(after[index, :size]).max() > 1e-3
        assert (after[index, size:] == 0).all()


def test_unnatural_parities_and_high_angular_momenta_are_predicted_too():
    found = network(layout("GPAW"))
    atoms = molecule("H2O2")  # in no plane: in water pseudovectors all but vanish
    atoms.rattle(0.1, seed=0)
    data = onsite(found, atoms)[0][0]
    irreps = found.onsite.layout.basis("O").T @ data[: found.onsite.layout.size("O")]
    for block in found.onsite.layout.blocks("O"):
        assert np.abs(irreps[block.columns]).max() > 1e-9, block.name


def test_what_no_product_of_descriptors_reaches_is_refused_with_a_remedy():
    with pytest.raises(ConfigurationError, match=r"Raise network.l_max"):
        network(layout("GPAW"), l_max=1)


def test_gpaw_matrices_are_symmetric():
    data = onsite(network(layout("GPAW")), water())[0]
    matrix = data[0].reshape(13, 13)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)


def test_flipping_all_moments_swaps_the_spins_of_onsite_data():
    found = network(layout("GPAW"), spin=True)
    atoms = water()
    atoms.set_initial_magnetic_moments([1.0, 0.5, -0.2])
    up, down = onsite(found, atoms)
    atoms.set_initial_magnetic_moments([-1.0, -0.5, 0.2])
    np.testing.assert_allclose(onsite(found, atoms), [down, up], atol=1e-12)
    assert np.abs(up - down).max() > 1e-4


def test_the_fit_takes_means_of_scalars_and_spreads_of_everything():
    found = network(layout(channels=WATER))
    rng = np.random.default_rng(0)
    structures = []
    for seed in range(30):
        atoms = water(seed)
        rows = [rng.normal(3.0, 2.0, size=found.onsite.layout.size(s)) for s in atoms.symbols]
        structures.append(sample(atoms, rows))
    found.onsite.fit(structures)
    fitted = dict(found.onsite.fitted())
    first = np.array([row[0] for s in structures for row in s.onsite[:1]])
    assert fitted["shift_O"][0].item() == pytest.approx(first.mean())
    assert fitted["spread_O"][0].item() == pytest.approx(first.std())
    assert fitted["shift_O"][2:5].abs().max() == 0  # s1p1 L=1 has no invariant part
    assert fitted["spread_O"][2].item() == pytest.approx((3**2 + 2**2) ** 0.5, rel=0.1)


def test_blocks_that_never_vary_stay_what_they_are():
    found = network(layout(channels=WATER))
    rows = [np.full(found.onsite.layout.size(symbol), 2.5) for symbol in "OHH"]
    found.onsite.fit([sample(water(seed), rows) for seed in range(3)])
    data = onsite(found, water(9))[0]
    assert data[0, 0] == pytest.approx(2.5)
    # Of L > 0 only zero is a constant that turns with the structure.
    assert found.onsite.get_buffer("spread_O")[0] == 0 < found.onsite.get_buffer("spread_O")[2]
    errors = found.onsite.block_errors(torch.as_tensor(data), torch.tensor([8, 1, 1]))
    assert torch.isnan(errors[0, found.onsite.block_names().index("O s1s1 L=0")])


def test_blocks_that_hardly_vary_have_a_spread_of_their_possible_size():
    found = network(layout(channels=WATER))
    rng = np.random.default_rng(0)
    structures = []
    for seed in range(3):
        rows = [rng.normal(scale=1e-5, size=found.onsite.layout.size(s)) for s in "OHH"]
        rows[0][[0, 8, 16]] += 4.0, 1.0, 0.1  # s1s1, s2s2, and L = 2 of p1p1
        structures.append(sample(water(seed), rows))
    found.onsite.fit(structures)
    spread = found.onsite.get_buffer("spread_O")
    np.testing.assert_allclose(spread[[0, 1, 8]], [4e-3, 2e-3, 1e-3], rtol=1e-3)
    assert spread[16] == pytest.approx(0.1 / 5**0.5, rel=1e-3)


def test_errors_of_blocks_are_in_units_of_the_spread():
    found = network(layout(channels=WATER))
    numbers = torch.tensor([8, 1])
    deviation = torch.zeros(2, found.onsite.width, dtype=torch.float64)
    deviation[0, 2:5] = 0.3 * found.onsite.get_buffer("spread_O")[2]
    errors = found.onsite.block_errors(deviation, numbers)
    names = found.onsite.block_names()
    assert errors[0, names.index("O s1p1 L=1")].item() == pytest.approx(0.3, rel=1e-6)
    assert torch.isnan(errors[0, names.index("H s1s1 L=0")])
    assert torch.isnan(errors[1, names.index("O s1s1 L=0")])
    assert errors[1, names.index("H s1s1 L=0")].item() < 1e-5


def test_data_of_another_data_set_are_refused_with_both_sizes():
    found = network(layout(channels=WATER))
    rows = [np.zeros(10) for _ in range(3)]
    with pytest.raises(ConfigurationError, match=r"O has 10 on-site numbers.*have 33"):
        found.onsite.fit([sample(water(), rows)])


def test_an_element_without_onsite_data_is_named():
    found = network(layout(channels=WATER))
    atoms = molecule("H2")
    with pytest.raises(ConfigurationError, match="no on-site data of O"):
        found.onsite.fit([sample(atoms, [np.zeros(15)] * 2)])


def test_model_files_carry_layout_shift_and_spread(tmp_path):
    found = network(layout("GPAW", datasets={"O": "O.PBE abc"}))
    atoms = water()
    save_model(found, ModelCard(name="test"), tmp_path / "model.safetensors")
    loaded, _ = load_model(tmp_path / "model.safetensors")
    assert loaded.config.onsite.datasets == {"O": "O.PBE abc"}
    np.testing.assert_array_equal(onsite(loaded, atoms), onsite(found, atoms))


@pytest.mark.parametrize("version", ["2", "3", "4", "5"])
def test_readouts_of_older_formats_predict_what_they_did(tmp_path, version):
    found = network(layout("GPAW"), superposition=True)
    path = tmp_path / "model.safetensors"
    save_model(found, ModelCard(name="test"), path)
    tensors = load_file(path)
    before = 6 * (1 + 2)  # channels, and their squared lengths of l = 1 and 2
    if version == "5":
        before += 2 * 21  # pairs of channels
    for symbol in "HO":
        if version < "5":
            del tensors[f"onsite.directions.{symbol}"]
        tensors[f"onsite.read.{symbol}_0e"] = tensors[f"onsite.read.{symbol}_0e"][:before].clone()
    with safe_open(path, "pt") as file:
        header = file.metadata() | {"format_version": version}
    save_file(tensors, path, metadata=header)
    with torch.no_grad():
        for symbol in "HO":
            found.onsite.read[f"{symbol}_0e"][before:] = 0.0
    np.testing.assert_array_equal(onsite(load_model(path)[0], water()), onsite(found, water()))


def test_readouts_that_miss_features_are_refused_in_the_present_format(tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(network(layout("GPAW")), ModelCard(name="test"), path)
    tensors = load_file(path)
    tensors["onsite.read.O_0e"] = tensors["onsite.read.O_0e"][:-1].clone()
    with safe_open(path, "pt") as file:
        header = file.metadata()
    save_file(tensors, path, metadata=header)
    with pytest.raises(ModelFileError, match="do not fit"):
        load_model(path)


def test_turning_the_axes_of_channel_space_changes_no_norm_of_the_products():
    """So a ridge regression on them does not depend on the choice of axes either."""
    head = network(layout(channels=WATER)).onsite
    descriptors = torch.randn(5, 9, 6, dtype=torch.float64)
    averages = torch.randn(5, head.n_averages, dtype=torch.float64)
    before = head.features("O", descriptors, averages)[o3.Irrep("0e")]
    with torch.no_grad():
        turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
        head.directions["O"].copy_(head.directions["O"] @ turn)
    after = head.features("O", descriptors, averages)[o3.Irrep("0e")]
    assert (after - before).abs().max() > 0.1
    torch.testing.assert_close(after @ after.mT, before @ before.mT)
