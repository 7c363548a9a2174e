"""How many iterations and how much CPU time a predicted start saves GPAW.

    export OMP_NUM_THREADS=1
    python benchmarks/scf_acceleration.py --oracle --systems Si2 Al2 H2O
    python benchmarks/scf_acceleration.py --model si-pbe --stores data/si-pbe-test.store
    python benchmarks/scf_acceleration.py --model si-pbe --systems Si2 Si8
    python benchmarks/scf_acceleration.py --oracle --moves --systems Si2 Al2
    python benchmarks/scf_acceleration.py --model si-pbe --moves --systems Si2

Every system is calculated from GPAW's default start, from ñ alone (D of free atoms), from ñ with D
refreshed, from ñ and D, and from the exact state, each with GPAW's default mixer and with a tuned
one (beta 0.25, history 8); ``--mixers Pulay`` adds the default of classic GPAW for periodic cells
(beta 0.05, history 5). ``--oracle`` takes, instead of a model, the exact state with synthetic
errors: smooth noise proportional to ñ (0.2, 0.5 and 1 % of ∫ñ), and in D 5 % of the free atom's
error. ``--stores`` takes the structures of stores of `eac data gpaw`, whose exact states and
settings are known, instead of ``--systems``. ``--moves`` counts instead the iterations along
chains of random steps and of volumes, with GPAW's wave functions reused and with predictions; with
a model also those from superposed atoms.

Passes of the eigensolver before the first iteration are counted as iterations; CPU time includes
the prediction. Results go to OUT.json after every run, and a second call does only what is missing;
OUT.md is the summary.
"""

import argparse
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from time import process_time
from typing import Any, get_args

import numpy as np
from ase import Atoms
from ase.build import bulk, fcc111, molecule, surface
from ase.formula import Formula
from gpaw import GPAW
from runs import RESULTS, KeyedResults
from tqdm import tqdm

from eac_ase import EACDensity
from eac_ase.adapters.gpaw import KnownDensity, Moves, start_from_density
from eac_ase.adapters.gpaw_mixing import take_whole_steps
from eac_ase.error_estimate import ErrorEstimate
from eac_ase.reference.gpaw import calculate, gpaw_parameters
from eac_ase.reference.recipe import Settings
from eac_model.data import DensityStore
from eac_model.data.sample import DensitySample
from eac_model.files import digest, write_bytes
from eac_model.registry import find_model

MIXERS: dict[str, dict[str, Any]] = {
    "default": {},
    "tuned": {"mixer": {"beta": 0.25, "nmaxold": 8}},
    "Pulay": {"mixer": {"name": "pulay", "beta": 0.05, "nmaxold": 5, "weight": 50}},
}
ERRORS = (0.002, 0.005, 0.01)
SMOOTHNESS = 3.0  # Å⁻¹, width of the errors' Gaussian spectrum
ENERGY = 1e-5  # eV an atom


def rattled(atoms: Atoms, moments: float = 0.0) -> Atoms:
    atoms.rattle(0.1, seed=1)
    if moments:
        atoms.set_initial_magnetic_moments([moments] * len(atoms))
    return atoms


def aluminium_slab() -> Atoms:
    atoms = fcc111("Al", (1, 1, 4), vacuum=5.0)
    atoms.pbc = (True, True, False)
    return atoms


def oxide_slab() -> Atoms:
    atoms = surface(bulk("MgO", "rocksalt", 4.21, cubic=True), (0, 0, 1), 2, vacuum=5.0)
    atoms.pbc = (True, True, False)
    return atoms


SYSTEMS: dict[str, Callable[[], Atoms]] = {
    "Si2": lambda: rattled(bulk("Si")),
    "Si8": lambda: rattled(bulk("Si", cubic=True)),
    "Si64": lambda: rattled(bulk("Si", cubic=True).repeat(2)),
    "Al2": lambda: rattled(bulk("Al").repeat((2, 1, 1))),
    "Al4": lambda: rattled(bulk("Al", cubic=True)),
    "Al slab": lambda: rattled(aluminium_slab()),
    "Fe2": lambda: rattled(bulk("Fe", cubic=True), moments=2.3),
    "GaAs": lambda: rattled(bulk("GaAs", "zincblende", 5.65)),
    "MgO": lambda: rattled(bulk("MgO", "rocksalt", 4.21)),
    "MgO slab": lambda: rattled(oxide_slab()),
    "NaCl": lambda: rattled(bulk("NaCl", "rocksalt", 5.64)),
    "H2O": lambda: rattled(molecule("H2O", vacuum=3.0)),
    "CH4": lambda: rattled(molecule("CH4", vacuum=3.0)),
}


def settings_of(atoms: Atoms, cutoff: float, kpoint_density: float) -> Settings:
    isolated = not atoms.pbc.any()
    return Settings(
        cutoff=cutoff,
        kpoint_density=None if isolated else kpoint_density,
        smearing=0.0 if isolated else 0.1,
    )


def with_errors(sample: DensitySample, size: float, seed: int = 0) -> DensitySample:
    """Smooth noise in ñ with ∫|error| = size · ∫ñ, and in D 5 % of the free atoms' error."""
    rng = np.random.default_rng(seed)
    shape = sample.density.shape
    indices = np.stack(np.meshgrid(*(np.fft.fftfreq(n) * n for n in shape), indexing="ij"), -1)
    squares = ((indices @ (2 * np.pi * sample.atoms.cell.reciprocal())) ** 2).sum(-1)
    spectrum = np.fft.fftn(rng.normal(size=shape)) * np.exp(-squares / 2 / SMOOTHNESS**2)
    noise = np.fft.ifftn(spectrum).real * sample.density
    noise -= sample.density * noise.sum() / sample.density.sum()
    noise *= size * np.abs(sample.density).sum() / np.abs(noise).sum()
    matrices = []
    for exact, free in zip(sample.onsite or (), sample.free_atoms.onsite, strict=True):
        error = rng.normal(size=exact.shape)
        error += error.T
        size_of_error = 0.05 * np.linalg.norm(exact - free) / np.linalg.norm(error)
        matrices.append(exact + size_of_error * error)
    return replace(sample, density=sample.density + noise, onsite=tuple(matrices))


class DensityAlone:
    """A model without its matrices D."""

    def __init__(self, model: EACDensity) -> None:
        self.model, self.card = model, model.card
        config = model.network.config.model_copy(update={"onsite": None})
        self.network = type("Network", (), {"config": config})

    def get_density_grid(self, *arguments: Any, **keywords: Any) -> Any:
        """The model's grid."""
        grid = self.model.get_density_grid(*arguments, **keywords)
        return replace(grid, onsite=None, onsite_spin=None)

    def get_error_estimate(self, atoms: Atoms) -> ErrorEstimate:
        """The model's."""
        return self.model.get_error_estimate(atoms)


Starts = Iterator[tuple[str, Any, dict[str, Any]]]


def starts_of(sample: DensitySample, model: EACDensity | None) -> Starts:
    """Name, model and options of every way to begin."""
    yield "default", None, {}
    yield "default, whole steps", None, {"whole_steps": True}
    yield "exact ñ, D of free atoms", KnownDensity([sample], onsite=False), {"refresh": 0}
    yield "exact ñ, D refreshed", KnownDensity([sample], onsite=False), {}
    yield "exact", KnownDensity([sample]), {}
    if model is not None:
        yield "ñ, D of free atoms", DensityAlone(model), {"refresh": 0}
        yield "ñ, D refreshed", DensityAlone(model), {}
        yield "ñ and D, hold 0", model, {"hold": 0}
        yield "ñ and D", model, {}
        return
    for hold in (0, 1, 2, 4):
        yield f"exact, hold {hold}", KnownDensity([sample]), {"hold": hold}
    for size in ERRORS:
        wrong = with_errors(sample, size)
        alone = KnownDensity([wrong], onsite=False)
        yield f"{size:.1%} error, D refreshed", alone, {}
        yield f"{size:.1%} error, hold 0", KnownDensity([wrong]), {"hold": 0}
        yield f"{size:.1%} error", KnownDensity([wrong]), {}


def run(atoms: Atoms, parameters: dict[str, Any], model: Any, options: dict[str, Any]) -> dict:
    began = process_time()
    calculator = GPAW(**parameters, txt=None)
    if options.get("whole_steps"):  # GPAW's own start, with the mixing of predictions
        calculator.create_new_calculation(atoms.copy())
        take_whole_steps(calculator.dft, calculator.params)
    elif model is not None:
        calculator = start_from_density(calculator, model, **options)
    energies = [
        step.energies.total_extrapolated * 27.211386 for step in calculator.iconverge(atoms.copy())
    ]
    passes = calculator.predicted_start.starts[-1].passes if model is not None else 0
    close = np.abs(np.array(energies) - energies[-1]) <= ENERGY * len(atoms)
    return {
        "iterations": len(energies) + passes,
        "of energy": int(len(energies) - np.argmin(close[::-1]) if not close.all() else 0)
        + passes
        + 1,
        "seconds": process_time() - began,
        "energy": energies[-1],
    }


def moved(atoms: Atoms, step: float) -> list[Atoms]:
    """A structure and three more, each a random step (Å, standard deviation) from the last one."""
    rng = np.random.default_rng(0)
    images = [atoms]
    for _ in range(3):
        image = images[-1].copy()
        image.positions += step * rng.normal(size=image.positions.shape)
        images.append(image)
    return images


def strained(atoms: Atoms, step: float) -> list[Atoms]:
    """Four volumes of an equation of state, lengths `step` apart (a fraction)."""
    images = [atoms.copy() for _ in range(4)]
    for k, image in enumerate(images):
        image.set_cell(atoms.cell * (1 + step * (k - 1.5)), scale_atoms=True)
    return images


CHAINS: dict[str, Callable[[Atoms], list[Atoms]]] = {
    "0.02 Å": lambda atoms: moved(atoms, 0.02),
    "0.1 Å": lambda atoms: moved(atoms, 0.1),
    "1 % strain": lambda atoms: strained(atoms, 0.01),
    "3 % strain": lambda atoms: strained(atoms, 0.03),
}


def chain(
    images: list[Atoms], settings: Settings, model: EACDensity | None
) -> dict[str, list[int]]:
    """Iterations of every geometry but the first, by what is done when the structure changes.

    Without a model exact states are taken, with errors.
    """
    # Those of the first one for all, as in an equation of state.
    parameters = gpaw_parameters(images[0], settings)

    def iterations(model: Any, **options: Any) -> list[int]:
        calculator = GPAW(**parameters, txt=None)
        if model is not None:
            calculator = start_from_density(calculator, model, **options)
        counts = []
        # GPAW keeps the symmetry of the first structure and refuses others.
        atoms = images[0].copy()
        for image in images:
            atoms.set_cell(image.cell)
            atoms.positions = image.positions
            counts.append(sum(1 for _ in calculator.iconverge(atoms)))
        if model is not None:
            starts = calculator.predicted_start.starts
            counts = [n + start.passes for n, start in zip(counts, starts, strict=True)]
        return counts[1:]

    def afresh(image: Atoms) -> int:
        return sum(1 for _ in GPAW(**parameters, txt=None).iconverge(image.copy()))

    found = {"reuse": iterations(None)}
    if model is not None:
        found["superposed atoms"] = [afresh(image) for image in images[1:]]
        for moves in get_args(Moves):
            found[f"{moves}, from a prediction"] = iterations(model, moves=moves)
        return found
    exact = [calculate(image, settings) for image in images]
    for size in (0.0, *ERRORS):
        wrong = [
            with_errors(image, size, seed) if size else image for seed, image in enumerate(exact)
        ]
        for moves in ("predict", "restart"):
            name = f"{moves}, {size:.1%} error"
            found[name] = iterations(KnownDensity(wrong), moves=moves)
    return found


def summary(results: dict[str, dict]) -> str:
    """Ratios to the default start with the default mixer and with the same one."""
    systems = list(dict.fromkeys(key.split(" | ")[0] for key in results))
    lines = [
        "Ratios to GPAW's default start and mixer, mean over the systems; passes count as "
        "iterations; energy: largest difference to that from the default start.\n"
        f"Systems: {', '.join(systems)}.\n",
        "| mixer | start | iterations | spread | to the same mixer | until 10 µeV/atom | CPU time "
        "| energy, µeV/atom | iterations |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for mixer, start in dict.fromkeys(tuple(key.split(" | ")[1:]) for key in results):
        rows = []
        for system in systems:
            found = results.get(f"{system} | {mixer} | {start}")
            base = results.get(f"{system} | default | default")
            if found and base:
                rows.append((system, found, base))
        if not rows:
            continue

        def ratios(key: str, rows: list = rows) -> list[float]:
            return [found[key] / base[key] for _, found, base in rows]

        spread = stdev(ratios("iterations")) if len(rows) > 1 else 0.0
        own = [
            found["iterations"] / results[f"{system} | {mixer} | default"]["iterations"]
            for system, found, _ in rows
        ]
        each = ", ".join(f"{system} {found['iterations']}" for system, found, _ in rows)
        energies = [
            1e6 * abs(found["energy"] - base["energy"]) / number_of_atoms(system)
            for system, found, base in rows
        ]
        lines.append(
            f"| {mixer} | {start} | {mean(ratios('iterations')):.2f} | {spread:.2f} | "
            f"{mean(own):.2f} | "
            f"{mean(ratios('of energy')):.2f} | {mean(ratios('seconds')):.2f} | "
            f"{max(energies):.2f} | {each} |"
        )
    return "\n".join(lines) + "\n"


def number_of_atoms(system: str) -> int:
    """Of one of :data:`SYSTEMS`, or of a structure of a store, whose name ends in its formula."""
    if system in SYSTEMS:
        return len(SYSTEMS[system]())
    return sum(Formula(system.split()[-1]).count().values())


def summary_of_moves(results: dict[str, dict[str, list[int]]]) -> str:
    names = list(dict.fromkeys(name for found in results.values() for name in found))
    lines = [
        "Iterations (and passes) of three geometries after the first, all together.\n",
        "| when atoms move | " + " | ".join(results) + " |",
        "|---" * (1 + len(results)) + "|",
    ]
    lines += [
        f"| {name} | " + " | ".join(str(sum(found[name])) for found in results.values()) + " |"
        for name in names
    ]
    return "\n".join(lines) + "\n"


def samples_of(arguments: argparse.Namespace) -> Iterator[tuple[str, DensitySample]]:
    """Names and converged calculations."""
    if arguments.stores:
        for path in arguments.stores:
            store = DensityStore.open(path)
            for index, entry in enumerate(store.entries):
                family, _, number = entry.source.split()[0].removeprefix("test-").split("/")
                yield f"{family} {int(number)} {entry.formula}", store.read(index)
        return
    for system in arguments.systems:
        atoms = SYSTEMS[system]()
        settings = settings_of(atoms, arguments.cutoff, arguments.kpoint_density)
        yield system, calculate(atoms, settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", help="a bundled model or a model file")
    what.add_argument("--oracle", action="store_true", help="the exact state with errors")
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--stores", nargs="+", type=Path, help="stores of test structures")
    parser.add_argument("--starts", nargs="+", help="only these starts, and the default one")
    parser.add_argument("--mixers", nargs="+", choices=list(MIXERS), default=["default", "tuned"])
    parser.add_argument("--cutoff", type=float, default=400.0, help="eV")
    parser.add_argument("--kpoint-density", type=float, default=2.2, help="Å")
    parser.add_argument("--moves", action="store_true", help="chains of similar structures")
    parser.add_argument("--chains", nargs="+", choices=list(CHAINS), default=list(CHAINS))
    parser.add_argument("--out", type=Path, help="stem of the files, default benchmarks/results/…")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    stem = "scf_moves" if arguments.moves else "scf_acceleration"
    kind = "oracle" if arguments.oracle else Path(arguments.model).stem
    out = arguments.out or RESULTS / f"{stem}_{kind}"
    settings = {
        "model": None if arguments.oracle else digest(find_model(arguments.model)),
        "cutoff": arguments.cutoff,
        "kpoint_density": arguments.kpoint_density,
    }
    results = KeyedResults(out.with_suffix(".json"), settings)
    model = None if arguments.oracle else EACDensity(arguments.model)
    if arguments.moves:
        for system, step in tqdm([(s, c) for s in arguments.systems for c in arguments.chains]):
            atoms = SYSTEMS[system]()
            if "strain" in step and not atoms.pbc.any():
                continue
            settings = settings_of(atoms, arguments.cutoff, arguments.kpoint_density)
            if results.missing(key := f"{system}, {step}"):
                results.add(key, chain(CHAINS[step](atoms), settings, model))
        arguments.systems = []
    for system, sample in samples_of(arguments):
        ways = [
            way
            for way in starts_of(sample, model)
            if arguments.starts is None or way[0] in ("default", *arguments.starts)
        ]
        todo = [(mixer, *way) for mixer in arguments.mixers for way in ways]
        for mixer, start, source, options in tqdm(todo, desc=system):
            if results.missing(key := f"{system} | {mixer} | {start}"):
                parameters = {**sample.calculation.settings, **MIXERS[mixer]}
                results.add(key, run(sample.atoms, parameters, source, options))
    text = (summary_of_moves if arguments.moves else summary)(results.values)
    write_bytes(out.with_suffix(".md"), text.encode())
    print(text)


if __name__ == "__main__":
    main()
