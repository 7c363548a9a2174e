"""The EAC-Net authors' code against ours: equal densities, and who computes them faster.

    git clone https://github.com/qin2xue3jian4/EAC-Net
    python benchmarks/import_eac.py equality EAC-Net     # some minutes
    python benchmarks/import_eac.py speed EAC-Net        # some minutes, one thread
    python benchmarks/import_eac.py fixture EAC-Net      # writes tests/imports/data/eac_net*

``equality`` makes networks of theirs with random weights, saves them as their program does, reads
the files with :mod:`eac_model.imports` and compares densities in float32. ``speed`` compares
points a second. Results go into benchmarks/results/import_eac.json.

Their model code needs torch, e3nn, torch-geometric, h5py and ASE; of what else it imports
(torch-scatter, torch-cluster, hydra, omegaconf, dpdata) stand-ins are used where it is not
installed: a scatter from torch-geometric, and neighbours from SciPy's k-d tree.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import importlib.util
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor
from torch_geometric.utils import scatter

from eac_model.engine import encode, evaluate_grid, evaluate_points
from eac_model.files import write_bytes
from eac_model.graph import AtomGraph
from eac_model.imports import import_model
from eac_model.imports.eac_net import WEIGHTS
from eac_model.neighbors import atom_graph, point_pairs
from eac_model.network import DensityNetwork, EACNet, NetworkConfig, build

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results" / "import_eac.json"
FIXTURE = REPOSITORY / "tests" / "imports" / "data"
POINTS = 400


def main() -> None:
    options = options_of(__doc__, RESULTS)
    torch.set_num_threads(1)
    reference = Reference(options.checkout)
    match options.what:
        case "equality":
            store("equality", measure_equality(reference), options.output)
            store("equality_published_sizes", measure_published(reference), options.output)
        case "speed":
            store("speed", measure_speed(reference, options.repeats), options.output)
        case "fixture":
            write_fixture(reference)


def measure_equality(reference: Reference) -> list[dict[str, Any]]:
    """Largest deviation over the largest density, for every combination of options."""
    rows = []
    for l_max, method, spin in itertools.product((2, 3, 4, 5), WEIGHTS, (False, True)):
        settings = small_settings(l_max, method, spin)
        rows.append(
            {"network": f"L = {l_max}, C = 6", "weight": WEIGHTS[method], "spin": spin}
            | compare(reference, settings, hydroxide(), seed=len(rows))
        )
        print(rows[-1])
    return rows


def measure_published(reference: Reference) -> list[dict[str, Any]]:
    """The same for networks of the sizes the authors trained."""
    rows = []
    for name, settings in {"water example": water_settings(), "EAC-mp": eac_mp_settings()}.items():
        method = settings["probe"]["probe_edge_weight"]["method"]
        rows.append(
            {"network": name, "weight": WEIGHTS[method], "spin": False}
            | compare(reference, settings, water_box(), seed=len(rows))
        )
        print(rows[-1])
    return rows


def compare(
    reference: Reference, settings: dict[str, Any], atoms: Atoms, seed: int
) -> dict[str, Any]:
    """One network of theirs, through a file, against ours: the network, and the engine."""
    theirs = reference.network(settings, seed)
    # Not the atoms' own random numbers: on a nucleus a direction, and so the network, is undefined.
    points = some_points(atoms, POINTS, 100 + seed)
    expected = reference.density(theirs, atoms, points)
    network = through_a_file(lambda path: reference.save(theirs, settings, path))
    # Their softmaxes add 1e-8 to what is left of the largest score in the batch: not a softmax.
    theirs.probe_fit_model.edge_weight_net.threshold = 0.0
    exact = reference.density(theirs, atoms, points)
    scale = np.abs(expected).max()
    zonal = of_network(network, atoms, points)
    plain = of_network(network, atoms, points, zonal=False)
    engine = evaluate_points(network, encode(network, atoms), points)
    return {
        "parameters_theirs": sum(p.numel() for p in theirs.parameters()),
        "parameters_ours": sum(p.numel() for p in network.parameters()),
        "largest_density": float(scale),
        "deviation_without_threshold": float(np.abs(zonal - exact).max() / scale),
        "deviation_zonal": float(np.abs(zonal - expected).max() / scale),
        "deviation_e3nn": float(np.abs(plain - expected).max() / scale),
        "deviation_engine": float(np.abs(engine - expected).max() / scale),
    }


def measure_speed(reference: Reference, repeats: int) -> list[dict[str, Any]]:
    """Points a second on liquid water (48 atoms), one thread, descriptors known."""
    networks = (
        ("L = 3, C = 20", water_settings(), 200),
        ("L = 5, C = 36", eac_mp_settings(), 100),
    )
    return [
        speed_of(reference, name, settings, count, repeats) for name, settings, count in networks
    ]


def speed_of(
    reference: Reference, name: str, settings: dict[str, Any], count: int, repeats: int
) -> dict[str, Any]:
    """One network: theirs as it is, our two forms on the same points, our engine on a grid."""
    atoms = water_box()
    theirs = reference.network(settings, 0)
    network = through_a_file(lambda path: reference.save(theirs, settings, path), elements=(1, 8))
    points = some_points(atoms, count, 0)
    encoded = encode(network, atoms)
    graph = atom_graph(atoms, network.config.atom_cutoff)
    # A corner of the grid that VASP takes at 680 eV.
    grid = (28, 28, 28)
    piece = np.asarray(atoms.cell) * 28 / 140
    batch = reference.graph(atoms, points, theirs)
    features = reference.describe(theirs, batch)

    def ours(*, zonal: bool) -> None:
        pairs = point_pairs(atoms, points, network.config.point_cutoff)
        with torch.no_grad():
            network.density(encoded.descriptors, encoded.numbers, pairs, zonal=zonal)

    def theirs_with_neighbours() -> None:
        reference.decode(theirs, reference.graph(atoms, points, theirs), features)

    measured = {
        "theirs": (theirs_with_neighbours, count),
        "theirs_without_neighbours": (lambda: reference.decode(theirs, batch, features), count),
        "ours_e3nn_form": (lambda: ours(zonal=False), count),
        "ours_zonal_form": (lambda: ours(zonal=True), count),
        "ours_engine": (lambda: evaluate_grid(network, encoded, grid, cell=piece), 28**3),
    }
    if network.config.l_max == 3:
        linear = linear_network()
        known = encode(linear, atoms)
        measured["ours_linear_decoder"] = (
            lambda: evaluate_grid(linear, known, grid, cell=piece),
            28**3,
        )
    row: dict[str, Any] = {"network": name, "structure": "48 atoms of water"}
    for key, seconds in best_times({k: f for k, (f, _) in measured.items()}, repeats).items():
        row[f"points_per_second_{key}"] = measured[key][1] / seconds
    # Without neighbours: the stand-in for torch-cluster would count against them.
    base = row["points_per_second_theirs_without_neighbours"]
    row |= {
        key.replace("points_per_second", "times"): value / base
        for key, value in row.items()
        if key.startswith("points_per_second_ours")
    }
    describing = {
        "theirs": lambda: reference.describe(theirs, batch),
        "ours": lambda: describe(network, graph),
    }
    for key, seconds in best_times(describing, repeats).items():
        row[f"seconds_descriptors_{key}"] = seconds
    print(json.dumps(row, indent=1))
    return row


def through_a_file(
    save: Callable[[Path], None], elements: tuple[int, ...] | None = None
) -> DensityNetwork:
    """A network of theirs as ours."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        save(path)
        return import_model(path, elements=elements)[0]


def best_times(measured: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """CPU seconds of the fastest repetition; the candidates take turns.

    On one thread that is the time it takes, whatever else the machine does.
    """
    best = dict.fromkeys(measured, float("inf"))
    for turn in range(repeats + 1):
        for name, function in measured.items():
            start = time.process_time()
            function()
            if turn:  # the first one warms up
                best[name] = min(best[name], time.process_time() - start)
    return best


def linear_network() -> EACNet:
    """Our linear decoder at the size of the paper's water model."""
    torch.manual_seed(0)
    config = NetworkConfig(elements=(1, 8), l_max=3, channels=20, point_cutoff=6.0)
    network = build(config, torch.float32)
    assert isinstance(network, EACNet)
    return network.eval()


def describe(network: DensityNetwork, graph: AtomGraph) -> None:
    """Our features of the atoms."""
    with torch.no_grad():
        network.descriptors(graph)


def write_fixture(reference: Reference) -> None:
    """Small networks with random weights and their densities, for the tests.

    Densities of the small crystal are those with all periodic images (nx = ny = nz = 4 in their
    environment variables) and, for the record, those with the nearest only, their default, and
    those with the nearest two neighbours of atoms and three of points (their atom_sel, probe_sel).
    """
    FIXTURE.mkdir(parents=True, exist_ok=True)
    for method, spin in (("smooth", False), ("exp+smooth", True)):
        settings = small_settings(2, method, spin, channels=4, hidden=(26, 26))
        theirs = reference.network(settings, 7)
        name = f"eac_net_{'spin' if spin else 'total'}"
        reference.save(theirs, settings, FIXTURE / f"{name}.pt")
        molecule_points = some_points(hydroxide(), 60, 1)
        crystal_points = some_points(silicon(), 60, 2)
        arrays = {
            "cell_points": molecule_points,
            "cell_density": reference.density(theirs, hydroxide(), molecule_points),
            "crystal_points": crystal_points,
            "crystal_density_all_images": reference.density(
                theirs, silicon(), crystal_points, images=4
            ),
            "crystal_density_nearest_images": reference.density(theirs, silicon(), crystal_points),
            "crystal_density_few_neighbours": reference.density(
                theirs, silicon(), crystal_points, images=4, kept=(2, 3)
            ),
        }
        np.savez_compressed(FIXTURE / f"{name}.npz", **arrays)
        print(name, {path.name: path.stat().st_size for path in FIXTURE.glob(f"{name}*")})


class Reference:
    """The authors' code at a path, with stand-ins for packages that are not installed."""

    def __init__(self, checkout: Path) -> None:
        if not (checkout / "eac" / "model").is_dir():
            raise SystemExit(f"{checkout} is no checkout of https://github.com/…/EAC-Net")
        absent = {}
        for name, stand_in in _stand_ins().items():
            if importlib.util.find_spec(name.partition(".")[0]) is None:
                absent[name] = stand_in
        sys.modules |= absent
        sys.path.insert(0, str(checkout))
        self.models = importlib.import_module("eac.model")
        self.keys = importlib.import_module("eac.data.keys")
        self.lists = importlib.import_module("eac.data.dataset.funcs")
        self.collate = importlib.import_module("eac.data.load.collate")

    def network(self, settings: dict[str, Any], seed: int) -> torch.nn.Module:
        """Their network with random weights, in float32."""
        torch.manual_seed(seed)
        network = self.models.get_model({"model": copy.deepcopy(settings)})
        with torch.no_grad():
            for name, value in network.named_parameters():
                if name.endswith("idt"):
                    value.uniform_(0.5, 1.5)
                if name.endswith("widths"):
                    value[0] = -0.02
        network.infos.update({"chg_mean": 0.3, "chg_std": 0.7})
        if settings["probe"]["spin"]:
            network.infos.update({"chgdiff_mean": 0.02, "chgdiff_std": 0.4})
        network.cutoffs = tuple(
            settings[part]["edge_encoding"]["basis"]["rcut"] for part in ("atom", "probe")
        )
        return network.eval()

    def save(self, network: torch.nn.Module, settings: dict[str, Any], path: Path) -> None:
        """A file as their program writes it."""
        torch.save(
            {"model_state": network.state_dict(), "settings": {"model": settings}},
            path,
        )

    def graph(
        self,
        atoms: Atoms,
        points: NDArray,
        network: torch.nn.Module,
        images: int = 1,
        kept: tuple[int, int] = (100, 300),
    ) -> Any:
        """Their neighbour lists, collated; of ``kept`` neighbours of an atom and of a point."""
        offsets = sorted(
            itertools.product(range(-images, images + 1), repeat=3),
            key=lambda offset: sum(x * x for x in offset),
        )
        self.lists.periodic_indexs = torch.tensor(offsets)
        for module in network.modules():
            if hasattr(module, "periodic_indexs"):
                module.periodic_indexs = self.lists.periodic_indexs
        data = self.lists.npydict_to_heterodata(
            {
                "atom_pos": atoms.positions,
                "atom_type": atoms.numbers,
                "probe_pos": points,
                "probe_idxs": np.arange(len(points)),
                "cell": np.asarray(atoms.cell),
            },
            torch.float32,
        )
        self.lists.construct_adjacency(
            data, network.cutoffs[0], kept[0], network.cutoffs[1], kept[1]
        )
        return self.collate.BatchCollater(None)([data])

    def density(
        self, network: torch.nn.Module, atoms: Atoms, points: NDArray, **lists: Any
    ) -> NDArray:
        """ρ, or ρ↑ and ρ↓, (outputs, p), e/Å³; options of :meth:`graph`."""
        with torch.no_grad():
            found = network(self.graph(atoms, points, network, **lists), out_type="probe")
        total = found["chg"].numpy()
        if "chgdiff" not in found:
            return total[None]
        spin = found["chgdiff"].numpy()
        return np.stack([total + spin, total - spin]) / 2

    def describe(self, network: torch.nn.Module, batch: Any) -> Tensor:
        """Their descriptors."""
        fresh = copy.copy(batch)
        with torch.no_grad():
            network.atom_env_model(fresh, True)
        features: Tensor = fresh["atom"]["features"]
        return features

    def decode(self, network: torch.nn.Module, batch: Any, features: Tensor) -> None:
        """Their densities from known descriptors, as their prediction does it."""
        edge = batch["atom", "to", "probe"]
        if "features" in edge:
            del edge["features"]
        batch["atom"]["features"] = features
        with torch.no_grad():
            network(batch, out_type="probe")


def of_network(network: EACNet, atoms: Atoms, points: NDArray, *, zonal: bool = True) -> NDArray:
    """Our network itself, without the engine."""
    graph = atom_graph(atoms, network.config.atom_cutoff)
    pairs = point_pairs(atoms, points, network.config.point_cutoff)
    with torch.no_grad():
        return network(graph, pairs, zonal=zonal).numpy()


def settings_of(
    *,
    l_max: int,
    channels: int,
    atom_layers: int,
    hidden: list[int],
    simple: list[int],
    method: str = "smooth",
    spin: bool = False,
    atom_cutoff: float = 4.0,
    point_cutoff: float = 6.0,
    onehot: int = 0,
) -> dict[str, Any]:
    """Their settings, as eac/configs/model/space.yaml composes them."""

    def encoding(cutoff: float, power: int, basis: str) -> dict[str, Any]:
        return {
            "spherical": {"lmax": l_max, "normalize": True, "normalization": "component"},
            "basis": {"method": basis, "num_basis": 8, "rcut": cutoff, "epsilon": 1e-10},
            "smooth": {"p": power, "rcut": cutoff, "epsilon": 1e-10},
        }

    def messages(layers: int, last_update: bool) -> dict[str, Any]:
        return {
            "invariant_neurons": hidden,
            "invariant_active": "silu",
            "num_layers": layers,
            "lmax": l_max,
            "feature_length": channels,
            "feature_smooth": False,
            "resnet": True,
            "last_update": last_update,
        }

    return {
        "atom": {
            "atom_encoding": {
                "onehot": {"length": onehot, "max_element": 110},
                "physics": {"electronic_layout": 7, "atomic_number": False},
                "feature_length": channels,
            },
            "edge_encoding": encoding(atom_cutoff, 6, "bessel"),
            "message_passing": messages(atom_layers, True),
        },
        "probe": {
            "spin": spin,
            "edge_encoding": encoding(point_cutoff, 3, "gaussian"),
            "message_passing": messages(2, False),
            "feature_simple": {
                "drop_probability": 0.0,
                "neuron": simple,
                "cat_keys": ["length", "basis", "node_attrs"],
            },
            "probe_edge_weight": {
                "smooth": None,
                "method": method,
                "neurons": hidden,
                "active": "silu",
                "probe_cut": point_cutoff,
                "threshold": 1e-8,
            },
            "charge_head": {
                "neuron": hidden,
                "active": "silu",
                "bias": True,
                "idt": True,
                "resnet": True,
            },
        },
    }


def small_settings(
    l_max: int, method: str, spin: bool, channels: int = 6, hidden: Sequence[int] = (52, 52)
) -> dict[str, Any]:
    """A small network whose value network has residual connections."""
    # They exist because G, r, B(r) and Z are 8 + 1 + 8 + 7 + 2 numbers, a divisor of the widths.
    return settings_of(
        l_max=l_max,
        channels=channels,
        atom_layers=2,
        hidden=list(hidden),
        simple=[20, 8],
        method=method,
        spin=spin,
        atom_cutoff=3.0,
        point_cutoff=3.5,
        onehot=2,
    )


def water_settings() -> dict[str, Any]:
    """Their example of liquid water."""
    return settings_of(l_max=3, channels=20, atom_layers=3, hidden=[128], simple=[128, 24])


def eac_mp_settings() -> dict[str, Any]:
    """EAC-mp: 3.08 million parameters."""
    return settings_of(
        l_max=5,
        channels=36,
        atom_layers=4,
        hidden=[128, 128],
        simple=[128, 48],
        method="exp+smooth",
    )


def hydroxide() -> Atoms:
    """Some atoms in a skewed cell that is wider than the small networks' cutoffs."""
    rng = np.random.default_rng(5)
    cell = [[5.0, 0, 0], [1.0, 4.8, 0], [0.4, 0.6, 5.2]]
    return Atoms("OHHOSiFe", rng.random((6, 3)) @ np.array(cell), cell=cell, pbc=True)


def silicon() -> Atoms:
    """Two atoms in a cell much smaller than the cutoff, displaced."""
    atoms = bulk("Si")
    atoms.rattle(0.05, seed=3)
    return atoms


def water_box() -> Atoms:
    """16 molecules at the density of water, on a rattled lattice."""
    rng = np.random.default_rng(0)
    side = 7.82
    water = Atoms(cell=[side] * 3, pbc=True)
    places = list(itertools.product(range(3), repeat=3))[:16]
    for place in places:
        part = molecule("H2O")
        part.rotate(rng.uniform(0, 360), rng.normal(size=3))
        part.translate((np.array(place) + 0.5) * side / 3 - part.get_center_of_mass())
        water += part
    water.rattle(0.05, seed=1)
    return water


def some_points(atoms: Atoms, count: int, seed: int) -> NDArray:
    """Random points of the cell."""
    return np.random.default_rng(seed).random((count, 3)) @ np.asarray(atoms.cell)


def store(name: str, rows: list[dict[str, Any]], path: Path) -> None:
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    results[name] = rows
    write_bytes(path, (json.dumps(results, indent=1) + "\n").encode())


def _stand_ins() -> dict[str, ModuleType]:
    """What their modules import beside what this project needs, by module."""

    def radius(
        x: Tensor, y: Tensor, r: float, max_num_neighbors: int = 32, ignore_same_index: bool = False
    ) -> Tensor:
        pairs = list(_neighbours(x.double().numpy(), y.double().numpy(), r, ignore_same_index))
        kept = [(i, j) for i, found in enumerate(pairs) for j in found[:max_num_neighbors]]
        return torch.tensor(kept, dtype=torch.long).reshape(-1, 2).T

    def their_scatter(
        src: Tensor, index: Tensor, dim: int = -1, *_: Any, dim_size: int | None = None, **__: Any
    ) -> Tensor:
        return scatter(src, index, dim, dim_size)

    attributes: dict[str, dict[str, Any]] = {
        "torch_scatter": {"scatter": their_scatter},
        "torch_cluster": {"radius": radius},
        "hydra": {"main": lambda **_: lambda function: function},
        "omegaconf": {"OmegaConf": object, "DictConfig": type("DictConfig", (), {})},
        "omegaconf.dictconfig": {"DictConfig": type("DictConfig", (), {})},
        "dpdata": {"System": object, "LabeledSystem": object},
    }
    stand_ins = {}
    for name, values in attributes.items():
        stand_ins[name] = ModuleType(name)
        vars(stand_ins[name]).update(values)
    return stand_ins


def _neighbours(
    images: NDArray, centers: NDArray, cutoff: float, ignore_same_index: bool
) -> Iterator[list[int]]:
    for i, found in enumerate(cKDTree(images).query_ball_point(centers, cutoff)):
        yield [j for j in found if not (ignore_same_index and j == i)]


def options_of(description: str, output: Path) -> argparse.Namespace:
    """The command line of this script and of import_charge3net.py."""
    parser = argparse.ArgumentParser(description=description.split("\n", maxsplit=1)[0])
    parser.add_argument("what", choices=["equality", "speed", "fixture"])
    parser.add_argument("checkout", type=Path, help="folder with the authors' repository")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=output)
    return parser.parse_args()


if __name__ == "__main__":
    main()
