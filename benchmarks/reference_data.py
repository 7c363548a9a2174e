"""What stores of reference data hold, by entry of their recipe, as a Markdown table.

    python benchmarks/reference_data.py data/si-pbe.store data/si-pbe-test.store

Columns: structures; atoms; GPAW iterations and CPU seconds, median and largest; how far the
superposition of free atoms is from the density (∫|ñ − ñ₀| / ∫|ñ|) and from the matrices
(‖D − D₀‖ / ‖D‖), the same for the spin parts where the atoms have any.
"""

import argparse
import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from eac_model.data import DensitySample, DensityStore
from eac_model.files import replacing

HEADINGS = [
    "entry",
    "structures",
    "atoms",
    "iterations",
    "CPU s",
    "ñ₀ / %",
    "D₀ / %",
    "spin ñ₀ / %",
]


def facts_of(sample: DensitySample) -> dict:
    known, free = sample.calculation, sample.free_atoms
    facts = {
        "atoms": len(sample.atoms),
        "iterations": known.iterations,
        "seconds": known.seconds,
        "density": relative(sample.density, free.density),
        "onsite": relative(
            np.concatenate([d.ravel() for d in sample.onsite]),
            np.concatenate([d.ravel() for d in free.onsite]),
            order=2,
        ),
    }
    if sample.spin_density is not None:
        facts["spin"] = relative(sample.spin_density, free.spin_density)
    return facts


def relative(values: np.ndarray, guess: np.ndarray, order: int = 1) -> float:
    difference = np.linalg.norm(np.ravel(values - guess), order)
    return float(100 * difference / max(np.linalg.norm(np.ravel(values), order), 1e-12))


def row(name: str, found: list[dict]) -> list[str]:
    def median(key: str, form: str = ".1f") -> str:
        values = [facts[key] for facts in found if key in facts]
        return format(np.median(values), form) if values else ""

    def span(key: str, form: str) -> str:
        values = [facts[key] for facts in found]
        return f"{np.median(values):{form}} ({max(values):{form}})"

    atoms = sorted({facts["atoms"] for facts in found})
    sizes = f"{atoms[0]}" if len(atoms) == 1 else f"{atoms[0]}–{atoms[-1]}"
    return [
        name,
        str(len(found)),
        sizes,
        span("iterations", ".0f"),
        span("seconds", ".1f"),
        median("density"),
        median("onsite"),
        median("spin"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stores", nargs="+", type=Path)
    parser.add_argument("--json", type=Path, help="write the facts of every structure")
    arguments = parser.parse_args()
    everything = {}
    for path in arguments.stores:
        store = DensityStore.open(path)
        families: dict[str, list[dict]] = defaultdict(list)
        elements: Counter[str] = Counter()
        for index, entry in enumerate(tqdm(store.entries, desc=path.name)):
            sample = store.read(index)
            facts = facts_of(sample)
            families[entry.key.split("/")[0]].append(facts)
            elements.update(set(sample.atoms.symbols))
            everything[f"{path.name}: {entry.key}"] = facts
        every = [facts for family in families.values() for facts in family]
        if not every:
            continue
        print(f"\n**{path.name}**, {len(elements)} elements\n")
        print("| " + " | ".join(HEADINGS) + " |\n|" + "---|" * len(HEADINGS))
        for name, found in [*families.items(), ("all", every)]:
            print("| " + " | ".join(row(name, found)) + " |")
        failures = path / "failures.jsonl"
        if failures.exists():
            print(f"\n{len(failures.read_text().splitlines())} failures, see {failures.name}")
    if arguments.json:
        with replacing(arguments.json) as temporary:
            temporary.write_text(json.dumps(everything, indent=1) + "\n")


if __name__ == "__main__":
    main()
