"""ChargE3Net's own code against ours: equal densities, and who computes them faster.

    git clone https://github.com/AIforGreatGood/charge3net
    python benchmarks/import_charge3net.py equality charge3net
    python benchmarks/import_charge3net.py speed charge3net
    python benchmarks/import_charge3net.py fixture charge3net   # tests/imports/data/charge3net*

``equality`` makes networks of theirs with random weights, saves them as their trainer does, reads
the files with :mod:`eac_model.imports` and compares densities in float32. ``speed`` compares
points a second and seconds for the atoms; results go into
benchmarks/results/import_charge3net.json. Their model code needs torch, e3nn, SciPy and ASE only.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from ase import Atoms
from import_eac import (
    FIXTURE,
    RESULTS,
    best_times,
    describe,
    hydroxide,
    options_of,
    silicon,
    some_points,
    store,
    through_a_file,
    water_box,
)
from numpy.typing import NDArray
from torch.nn.functional import one_hot

from eac_model.engine import encode, evaluate_points
from eac_model.neighbors import atom_graph

SMALL = {"mul": 40, "num_interactions": 3, "num_basis": 8}
PUBLISHED = {"mul": 500, "lmax": 4, "num_interactions": 3, "num_basis": 20}


def main() -> None:
    options = options_of(__doc__, RESULTS.with_name("import_charge3net.json"))
    torch.set_num_threads(1)
    reference = Reference(options.checkout)
    match options.what:
        case "equality":
            store("equality", measure_equality(reference), options.output)
        case "speed":
            store("speed", measure_speed(reference, options.repeats), options.output)
        case "fixture":
            write_fixture(reference)


def measure_equality(reference: Reference) -> list[dict[str, Any]]:
    """Largest deviation over the largest density."""
    rows = []
    for l_max in (2, 3, 4, 5):
        for spin in (False, True):
            settings = {**SMALL, "lmax": l_max, "spin": spin}
            for structure in (hydroxide(), silicon()):
                rows.append(compare(reference, settings, structure, len(rows)))
                print(rows[-1])
    rows.append(compare(reference, {**PUBLISHED, "spin": False}, hydroxide(), 0))
    print(rows[-1])
    return rows


def compare(
    reference: Reference, settings: dict[str, Any], atoms: Atoms, seed: int
) -> dict[str, Any]:
    """One network of theirs, through a file, against ours."""
    theirs = reference.network(settings, seed)
    points = some_points(atoms, 60, 100 + seed)
    expected = reference.density(theirs, atoms, points)
    network = through_a_file(lambda path: reference.save(theirs, path))
    found = evaluate_points(network, encode(network, atoms), points)
    scale = float(np.abs(expected).max())
    return {
        **settings,
        "structure": str(atoms.symbols),
        "parameters": sum(p.numel() for p in theirs.parameters()),
        "largest_density": scale,
        "deviation": float(np.abs(found - expected).max() / scale),
    }


def measure_speed(reference: Reference, repeats: int) -> list[dict[str, Any]]:
    """The published size on liquid water (48 atoms), one thread."""
    atoms, count = water_box(), 64
    theirs = reference.network({**PUBLISHED, "spin": False}, 0)
    network = through_a_file(lambda path: reference.save(theirs, path), elements=(1, 8))
    points = some_points(atoms, count, 0)
    encoded = encode(network, atoms)
    inputs = reference.inputs(atoms, points, theirs)
    with torch.no_grad():
        known = theirs.atom_model(inputs)
    graph = atom_graph(atoms, network.config.atom_cutoff)
    times = best_times(
        {
            "theirs": lambda: reference.decode(
                theirs, reference.inputs(atoms, points, theirs), known
            ),
            "theirs_without_neighbours": lambda: reference.decode(theirs, inputs, known),
            "ours": lambda: evaluate_points(network, encoded, points),
            "atoms_theirs": lambda: reference.describe(theirs, inputs),
            "atoms_ours": lambda: describe(network, graph),
        },
        repeats,
    )
    row: dict[str, Any] = {"network": "published size", "structure": "48 atoms of water"}
    for name, seconds in times.items():
        if name.startswith("atoms"):
            row[f"seconds_{name}"] = seconds
        else:
            row[f"points_per_second_{name}"] = count / seconds
    print(row)
    return [row]


def write_fixture(reference: Reference) -> None:
    """Small networks with random weights and their densities, for the tests."""
    FIXTURE.mkdir(parents=True, exist_ok=True)
    # Three layers are the fewest that lead to the odd scalar of the second spin.
    for spin, l_max, layers in ((False, 2, 2), (True, 1, 3)):
        settings = {"mul": 4 * l_max + 4, "lmax": l_max, "num_interactions": layers}
        theirs = reference.network({**settings, "num_basis": 4, "spin": spin}, 3)
        name = f"charge3net_{'spin' if spin else 'total'}"
        reference.save(theirs, FIXTURE / f"{name}.pt")
        arrays: dict[str, NDArray] = {}
        for structure, atoms in (("cell", hydroxide()), ("crystal", silicon())):
            arrays[f"{structure}_points"] = some_points(atoms, 40, 1)
            arrays[f"{structure}_density"] = reference.density(
                theirs, atoms, arrays[f"{structure}_points"]
            )
        np.savez_compressed(FIXTURE / f"{name}.npz", **arrays)
        print(name, {path.name: path.stat().st_size for path in FIXTURE.glob(f"{name}*")})


class Reference:
    """Their code at a path; of its data package only what builds graphs is imported."""

    def __init__(self, checkout: Path) -> None:
        source = checkout / "src"
        if not (source / "charge3net" / "models").is_dir():
            raise SystemExit(f"{checkout} is no checkout of https://github.com/…/charge3net")
        for name in ("src", "src.charge3net", "src.charge3net.data", "src.charge3net.models"):
            package = ModuleType(name)
            package.__path__ = [str(checkout.joinpath(*name.split(".")))]
            sys.modules[name] = package
        self.models = importlib.import_module("src.charge3net.models.e3")
        # Recent versions of e3nn do not multiply integers, their one-hot vectors, by weights.
        self.models.F = SimpleNamespace(
            one_hot=lambda *args, **options: one_hot(*args, **options).to(torch.get_default_dtype())
        )
        self.graphs = importlib.import_module("src.charge3net.data.graph_construction")
        self.layer = importlib.import_module("src.charge3net.data.layer")

    def network(self, settings: dict[str, Any], seed: int) -> Any:
        """Their network with random weights, in float32."""
        torch.manual_seed(seed)
        return self.models.E3DensityModel(num_neighbors=20, cutoff=4.0, **settings).eval()

    def save(self, network: torch.nn.Module, path: Path) -> None:
        """A file as their trainer writes it, without the optimiser's state."""
        torch.save({"epoch": 1, "step": 1, "model": network.state_dict(), "best_nmape": 1.0}, path)

    def inputs(self, atoms: Atoms, points: NDArray, network: Any) -> dict[str, Any]:
        """Their neighbour lists, as a batch of one."""
        constructor = self.graphs.KdTreeGraphConstructor(network.atom_model.cutoff)
        graph = constructor(np.zeros(len(points)), atoms, points)
        return {key: value.unsqueeze(0) for key, value in graph.items()}

    def density(self, network: Any, atoms: Atoms, points: NDArray) -> NDArray:
        """ρ, or ρ↑ and ρ↓, (outputs, p), e/Å³, of what their forward returns."""
        with torch.no_grad():
            found = network(self.inputs(atoms, points, network))[0].numpy()
        if found.ndim == 1:
            return found[None]
        total, spin = found.T
        return np.stack([total + spin, total - spin]) / 2

    def describe(self, network: Any, inputs: dict[str, Any]) -> None:
        """Features of the atoms."""
        with torch.no_grad():
            network.atom_model(inputs)

    def decode(self, network: Any, inputs: dict[str, Any], known: Any) -> None:
        """Densities from known features of the atoms."""
        with torch.no_grad():
            network.probe_model(inputs, copy.copy(known))


if __name__ == "__main__":
    main()
