"""What a general model is worth: errors on held-out compositions, where they sit, and their cost.

    export OMP_NUM_THREADS=1
    python benchmarks/general_model.py measure eac-pbe data/eac-pbe-test.store
    python benchmarks/general_model.py report data/eac-pbe-test.store --train data/eac-pbe.store

`measure` predicts every structure of the store on the grid of its reference and keeps the figures
of each; called again it goes on. `report` makes OUT.md and the pictures of them, and measures first
if --model is given; it predicts the ten worst structures once more, to draw them.

Keys name the entries of the recipes in recipes/data, which decide the families. Errors
of an element are those at the points nearer to its atoms than to others, in units of covalent
radii, as a share of the density there. Everything is about GPAW's pseudo density, core included.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from ase.calculators.calculator import PropertyNotImplementedError
from ase.formula import Formula
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray
from runs import RESULTS, Help, save_picture
from scipy.stats import spearmanr
from tqdm import tqdm

from eac_ase import DensityGrid, EACDensity
from eac_ase.grid import Plane, PlaneCut
from eac_ase.plotting import plot_plane
from eac_model.data import DensitySample, DensityStore
from eac_model.errors import UnfamiliarStructureWarning, UnknownElementError
from eac_model.files import digest, write_bytes
from eac_model.neighbors import point_pairs
from eac_model.registry import find_model
from eac_model.training.calibration import nearest_atoms

FAMILIES: dict[str, tuple[str, ...]] = {
    "elements": ("elements", "boron", "carbon", "al", "mg"),
    "binaries": (
        *("rocksalt", "zincblende", "wurtzite", "caesium-chloride", "fluorite", "antifluorite"),
        *("rutile", "layered", "cuprite", "pyrite", "corundum", "quartz", "pairs", "cdi2"),
    ),
    "intermetallics": (
        *("b2", "l10", "l12", "d03", "laves", "diborides", "nickeline", "heusler"),
        *("cscl", "alb2"),
    ),
    "ternaries": ("perovskite", "half-heusler", "chalcopyrite"),
    "alloys": (
        *("alloy", "al-mg", "alloys-of-any", "alloys-of-chromium", "alloys-of-manganese"),
        *("alloys-of-iron", "alloys-of-cobalt", "alloys-of-nickel", "ordered"),
    ),
    "zero-shot alloys": ("alloys",),
    "magnets": (
        *("magnets", "magnetic", "antiferromagnets", "iron"),
        *("antiferromagnet", "bcc", "fcc", "disordered", "vacancy"),
    ),
    "silicon": (
        *("silicon", "amorphous", "diamond", "thermal", "lonsdaleite", "beta", "bc8", "dense"),
        *("vacancy-7", "vacancy-15"),
    ),
    "surfaces": ("slab",),
    "defects": ("vacancies", "al-vacancy"),
    "molecules": ("molecules", "radicals"),
    "water": ("water", "monomer", "cluster", "liquid"),
}
"""Names of the recipes' entries, without ``test-``, ``drawn-`` or ``ideal-``, or what they begin
with before a hyphen."""

TARGETS: tuple[tuple[str, str, float], ...] = (
    ("al-mg", "Al–Mg", 0.24),
    ("amorphous", "amorphous-like Si", 0.8),
    ("iron", "Fe", 0.05),
    ("iron:spin", "Fe, spin density", 0.42),
    ("water", "water", 0.21),
    ("alloys", "zero-shot alloys", 1.5),
)
"""Entry, name and what published networks reach on such structures with VASP's densities, %."""

GRADIENTS = np.geomspace(0.1, 100, 16)
"""Edges of the bins of |∇ρ| / ρ^(4/3)."""

VACUUM = 1e-3
"""e/Å³. Where there is less, gradients over densities say nothing."""

WORST = 10

NEAREST_BLOCK = 20_000
"""Points whose nearest atoms are looked for at once."""


def main() -> None:
    options = _options()
    if options.command == "measure":
        measure(options)
    else:
        report(options)


# -- measuring -------------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> None:
    """Figures of every structure of the store that has none yet."""
    torch.set_num_threads(1)
    path = find_model(options.model)
    calculator = EACDensity(path, device="cpu")
    store = DensityStore.open(options.test)
    content = _known(options.output, digest(path))
    content["model"] |= {
        "name": calculator.card.name,
        "megabytes": path.stat().st_size / 1e6,
        "parameters": sum(p.numel() for p in calculator.network.parameters()),
        "elements": sorted(calculator.card.elements),
        "training": {
            key: value
            for key, value in calculator.card.training.items()
            if isinstance(value, int | float)
        },
    }
    done = {row["key"] for row in content["structures"]}
    todo = [i for i, entry in enumerate(store.entries) if entry.key not in done]
    if todo:
        _warm_up(calculator, store.structure(todo[0]))
    for index in tqdm(todo, disable=None):
        content["structures"].append(
            {"key": store.entries[index].key} | of_structure(calculator, store.read(index))
        )
        _write_json(options.output, content)
    print(summary(content["structures"]))


def _known(path: Path, model: str) -> dict[str, Any]:
    if not path.exists():
        return {"model": {"digest": model}, "structures": []}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if content["model"]["digest"] != model:
        raise SystemExit(
            f"{path} holds the figures of another model. Choose another --output, or delete it."
        )
    return content


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1, ensure_ascii=False, default=float) + "\n"
    write_bytes(path, text.encode())


def _warm_up(calculator: EACDensity, atoms: Any) -> None:
    """What a process does once (compiled loops, tables) is no cost of a structure."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnfamiliarStructureWarning)
            calculator.get_density_grid(atoms, spacing=0.5, progress=False)
    except UnknownElementError:
        pass


def of_structure(calculator: EACDensity, sample: DensitySample) -> dict[str, Any]:
    """Everything that is asked of one structure."""
    reference = DensityGrid.from_sample(sample)
    row: dict[str, Any] = {
        "formula": sample.atoms.get_chemical_formula(),
        "symbols": sample.atoms.get_chemical_symbols(),
        "points": int(reference.values.size),
    }
    began = process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnfamiliarStructureWarning)
            found = calculator.get_density_grid(sample.atoms, like=reference, progress=False)
    except UnknownElementError as error:
        return row | {"refused": str(error)}
    row["seconds"] = process_time() - began
    if sample.calculation is not None:
        row["scf_seconds"] = sample.calculation.seconds
    total = np.abs(reference.values).sum()
    wrong = np.abs(found.values - reference.values)
    row["nmae"] = 100 * wrong.sum() / total
    if found.spin is not None and reference.spin is not None:
        row |= _of_spin(found.spin, reference.spin, sample, total)
    free = sample.free_atoms
    if free is not None:
        row["free_atoms"] = 100 * np.abs(free.density - reference.values).sum() / total
    row |= _of_onsite(found, sample)
    row |= _of_atoms(sample, wrong, reference)
    row |= _of_gradient(reference, wrong)
    return row | _expected(calculator, sample)


def _of_spin(
    found: NDArray, reference: NDArray, sample: DensitySample, total: float
) -> dict[str, Any]:
    """Errors of the spin density, as a share of itself, and of all electrons."""
    size = np.abs(reference).sum()
    wrong = np.abs(found - reference).sum()
    figures = {"spin_size": size / total, "spin_of_density": 100 * wrong / total}
    # Of what vanishes there is no share.
    if size > 1e-3 * total:
        figures["spin_nmae"] = 100 * wrong / size
        free = None if sample.free_atoms is None else sample.free_atoms.spin_density
        if free is not None:
            figures["spin_free_atoms"] = 100 * np.abs(free - reference).sum() / size
    return figures


def _of_onsite(found: DensityGrid, sample: DensitySample) -> dict[str, Any]:
    """Root mean square errors of the matrices D over that of D, prediction and free atoms."""
    if found.onsite is None or sample.onsite is None:
        return {}

    def norm(rows: Iterable[NDArray]) -> float:
        return float(np.sqrt(sum(np.square(row).sum() for row in rows)))

    def differences(rows: Sequence[NDArray], exact: Sequence[NDArray]) -> float:
        return norm(np.ravel(row) - np.ravel(true) for row, true in zip(rows, exact, strict=True))

    size = norm(sample.onsite)
    figures = {"onsite": 100 * differences(found.onsite, sample.onsite) / size}
    if sample.free_atoms is not None and sample.free_atoms.onsite is not None:
        free = differences(sample.free_atoms.onsite, sample.onsite)
        figures["onsite_free_atoms"] = 100 * free / size
    return figures


def _of_atoms(sample: DensitySample, wrong: NDArray, reference: DensityGrid) -> dict[str, Any]:
    """ε_mae of the points nearest to every atom, and the electrons there."""
    points = reference.points()
    sums = np.zeros((2, len(sample.atoms)))
    numbers = torch.as_tensor(sample.atoms.numbers)
    values = [np.ravel(wrong), np.abs(np.ravel(reference.values))]
    for start in range(0, len(points), NEAREST_BLOCK):
        block = slice(start, start + NEAREST_BLOCK)
        pairs = point_pairs(sample.atoms, points[block], 5.0, torch.float32)
        owner = nearest_atoms(pairs, numbers).numpy()
        inside = owner >= 0
        for row, of_points in zip(sums, values, strict=True):
            np.add.at(row, owner[inside], of_points[block][inside])
    voxel = reference.volume / reference.values.size
    with np.errstate(invalid="ignore", divide="ignore"):
        errors = 100 * sums[0] / sums[1]
    return {
        "atom_errors": [round(float(x), 4) for x in errors],
        "atom_electrons": [round(float(x) * voxel, 4) for x in sums[1]],
    }


def _of_gradient(reference: DensityGrid, wrong: NDArray) -> dict[str, Any]:
    """Sums of |Δρ|, |ρ| and volumes over bins of |∇ρ| / ρ^(4/3)."""
    values = reference.values.astype(float)
    frequencies = np.meshgrid(*(np.fft.fftfreq(n, 1 / n) for n in values.shape), indexing="ij")
    waves = 2 * np.pi * np.stack(frequencies, axis=-1) @ np.linalg.inv(reference.cell).T
    transform = np.fft.fftn(values)
    squares = np.zeros_like(values)
    for axis in range(3):
        squares += np.fft.ifftn(1j * waves[..., axis] * transform).real ** 2
    dense = values > VACUUM
    ratio = np.sqrt(squares[dense]) / values[dense] ** (4 / 3)
    voxel = reference.volume / values.size

    def binned(weights: NDArray) -> list[float]:
        found, _ = np.histogram(np.clip(ratio, *GRADIENTS[[0, -1]]), GRADIENTS, weights=weights)
        return [float(x) for x in found]

    return {
        "gradient_errors": binned(wrong[dense] * voxel),
        "gradient_electrons": binned(values[dense] * voxel),
        "gradient_volumes": binned(np.full(len(ratio), voxel)),
    }


def _expected(calculator: EACDensity, sample: DensitySample) -> dict[str, Any]:
    """What the model itself says of its error."""
    try:
        estimate = calculator.get_error_estimate(sample.atoms)
    except PropertyNotImplementedError:
        return {}
    return {
        "expected": estimate.structure,
        "atom_expected": [round(float(x), 4) for x in estimate.atoms],
        "unfamiliar": len(estimate.unfamiliar),
    }


# -- figures ---------------------------------------------------------------------------------------


def entry_of(key: str) -> str:
    """Name of the recipe's entry, without ``test-``."""
    return key.partition("/")[0].removeprefix("test-")


def family_of(key: str) -> str:
    """Family of a structure, by its key in the store."""
    entry = entry_of(key).removeprefix("drawn-").removeprefix("ideal-")
    for name, entries in FAMILIES.items():
        if entry in entries:
            return name
    for name, entries in FAMILIES.items():
        if entry.split("-")[0] in entries:
            return name
    return "others"


def predicted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Structures whose elements the model knows."""
    return [row for row in rows if "refused" not in row]


def by_family(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Structures of every family, in the order of :data:`FAMILIES`."""
    groups: dict[str, list[dict[str, Any]]] = {name: [] for name in [*FAMILIES, "others"]}
    for row in rows:
        groups[family_of(row["key"])].append(row)
    return {name: found for name, found in groups.items() if found}


def of_elements(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """ε_mae around the atoms of every element, one value a structure."""
    found: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        sums: dict[str, NDArray] = defaultdict(lambda: np.zeros(2))
        for symbol, error, electrons in zip(
            row["symbols"], row["atom_errors"], row["atom_electrons"], strict=True
        ):
            if electrons > 0:
                sums[symbol] += [error * electrons, electrons]
        for symbol, (wrong, electrons) in sums.items():
            if electrons > 0:
                found[symbol].append(float(wrong / electrons))
    return dict(sorted(found.items()))


def values_of(rows: list[dict[str, Any]], key: str) -> list[float]:
    """A figure of the structures that have it."""
    return [row[key] for row in rows if row.get(key) is not None]


def number(values: Sequence[float], of: Callable[..., Any] = np.median, digits: int = 2) -> str:
    """A statistic, or a dash of nothing."""
    return f"{of(values):.{digits}f}" if len(values) else "–"


def summary(rows: list[dict[str, Any]]) -> str:
    """One line, for the terminal."""
    known = predicted(rows)
    errors = values_of(known, "nmae")
    return (
        f"{len(known)} structures ({len(rows) - len(known)} refused): ε_mae median "
        f"{number(errors)}, mean {number(errors, np.mean)}, largest {number(errors, max)} %"
    )


def table(heading: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    rows = [heading, ["---"] * len(heading), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def family_table(rows: list[dict[str, Any]]) -> str:
    """Errors by family."""
    groups = by_family(predicted(rows)) | {"all": predicted(rows)}
    return table(
        ["family", "structures", "median", "mean", "largest", "free atoms", "spin density", "D"],
        (
            [
                name,
                str(len(found)),
                number(values_of(found, "nmae")),
                number(values_of(found, "nmae"), np.mean),
                number(values_of(found, "nmae"), max),
                number(values_of(found, "free_atoms")),
                number(values_of(found, "spin_nmae")),
                number(onsite_ratios(found)),
            ]
            for name, found in groups.items()
        ),
    )


def onsite_ratios(rows: list[dict[str, Any]]) -> list[float]:
    """Error of D over that of free atoms."""
    return [
        row["onsite"] / row["onsite_free_atoms"] for row in rows if row.get("onsite_free_atoms")
    ]


def target_table(rows: list[dict[str, Any]]) -> str:
    """What was aimed at, and found."""
    known = predicted(rows)
    lines = [["all held-out structures, median", "1", number(values_of(known, "nmae"))]]
    elements = {symbol: float(np.mean(found)) for symbol, found in of_elements(known).items()}
    if elements:
        worst = max(elements, key=elements.__getitem__)
        lines.append(["worst element", "2", f"{elements[worst]:.2f} ({worst})"])
    for name, what, target in TARGETS:
        entry, _, spin = name.partition(":")
        found = [row for row in known if entry_of(row["key"]) == entry]
        key = "spin_nmae" if spin else "nmae"
        lines.append([f"{what}, mean", f"{target:g}", number(values_of(found, key), np.mean)])
    return table(["ε_mae / % of", "aim", "found"], lines)


def spin_table(rows: list[dict[str, Any]]) -> str:
    """Errors of spin densities, structure by structure."""
    found = [row for row in predicted(rows) if "spin_nmae" in row]
    return table(
        ["structure", "ε_mae / %", "of the spin density / %", "free atoms / %"],
        (
            [
                label(row),
                f"{row['nmae']:.2f}",
                f"{row['spin_nmae']:.1f}",
                number([row["spin_free_atoms"]], digits=1) if "spin_free_atoms" in row else "–",
            ]
            for row in sorted(found, key=lambda row: row["spin_nmae"])
        ),
    )


def worst_table(rows: list[dict[str, Any]]) -> str:
    """The worst structures."""
    return table(
        ["structure", "ε_mae / %", "expected / %", "free atoms / %", "worst atom / %"],
        (
            [
                label(row),
                f"{row['nmae']:.2f}",
                f"{row['expected']:.2f}" if "expected" in row else "–",
                f"{row['free_atoms']:.1f}" if "free_atoms" in row else "–",
                worst_atom(row),
            ]
            for row in worst(rows)
        ),
    )


def worst_atom(row: dict[str, Any]) -> str:
    errors = np.nan_to_num(row["atom_errors"])
    index = int(errors.argmax())
    return f"{row['symbols'][index]} {errors[index]:.2f}"


def worst(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(predicted(rows), key=lambda row: -row["nmae"])[:WORST]


def label(row: dict[str, Any]) -> str:
    """Entry and name of a structure, as in the recipe."""
    entry, _, rest = row["key"].partition("/")
    return f"{entry.removeprefix('test-')}: {rest.split('/')[0] or row['formula']}"


def trust(rows: list[dict[str, Any]]) -> dict[str, float]:
    """How well the model knows its errors."""
    found = [row for row in predicted(rows) if "expected" in row]
    if len(found) < 3:
        return {}
    expected, true = (np.array(values_of(found, key)) for key in ("expected", "nmae"))
    atoms = np.array(
        [
            pair
            for row in found
            for pair in zip(row["atom_expected"], row["atom_errors"], strict=True)
            if np.isfinite(pair).all()
        ]
    )
    inside = np.array([not row["unfamiliar"] for row in found])
    ratio = true / expected
    return {
        "structures": len(found),
        "rank_correlation": float(spearmanr(expected, true).statistic),
        "atoms": len(atoms),
        "rank_correlation_of_atoms": float(spearmanr(*atoms.T).statistic),
        "within_twice": float(np.mean((ratio < 2) & (ratio > 0.5))),
        "median_ratio": float(np.median(ratio)),
        "flagged": int((~inside).sum()),
        "median_inside": float(np.median(true[inside])) if inside.any() else float("nan"),
        "median_flagged": float(np.median(true[~inside])) if not inside.all() else float("nan"),
    }


def trust_text(found: dict[str, float]) -> str:
    if not found:
        return "The model has no expected errors.\n"
    lines = [
        f"- Spearman's rank correlation of expected and true ε_mae: "
        f"{found['rank_correlation']:.2f} of {found['structures']} structures, "
        f"{found['rank_correlation_of_atoms']:.2f} of {found['atoms']} atoms.",
        f"- True over expected: {found['median_ratio']:.2f} (median); within a factor of two for "
        f"{100 * found['within_twice']:.0f} % of the structures.",
    ]
    if found["flagged"]:
        lines.append(
            f"- {found['flagged']} structures were flagged as unlike the training data: median "
            f"ε_mae {found['median_flagged']:.2f} %, of the others {found['median_inside']:.2f} %."
        )
    else:
        lines.append("- None was flagged as unlike the training data.")
    return "\n".join(lines) + "\n"


def cost_text(rows: list[dict[str, Any]]) -> str:
    known = predicted(rows)
    seconds = np.array(values_of(known, "seconds"))
    points = np.array(values_of(known, "points"))
    atoms = np.array([len(row["symbols"]) for row in known])
    text = (
        f"CPU seconds a structure, one thread, descriptors, density and D: median "
        f"{np.median(seconds):.2f}, largest {seconds.max():.2f} (median {np.median(atoms):.0f} "
        f"atoms, {np.median(points):.0f} points; {points.sum() / seconds.sum():,.0f} points a "
        "second)."
    )
    ratios = [row["scf_seconds"] / row["seconds"] for row in known if "scf_seconds" in row]
    if ratios:
        text += (
            f" GPAW's own calculation took {np.median(ratios):.0f} times as long (median; forces "
            "included)."
        )
    return text + "\n"


def data_table(train: list[DensityStore], test: list[dict[str, Any]]) -> str:
    """Sizes of the data, by family."""
    counts: Counter[str] = Counter()
    atoms: Counter[str] = Counter()
    for entry in chain.from_iterable(store.entries for store in train):
        counts[family_of(entry.source)] += 1
        atoms[family_of(entry.source)] += entry.n_atoms
    of_test = Counter(family_of(row["key"]) for row in test)
    lines = [
        [name, str(counts[name]), str(atoms[name]), str(of_test[name])]
        for name in [*FAMILIES, "others"]
        if counts[name] or of_test[name]
    ]
    totals = (counts.total(), atoms.total(), of_test.total())
    return table(
        ["family", "calculated to train on", "their atoms", "test structures"],
        [*lines, ["all", *map(str, totals)]],
    )


def elements_of(stores: list[DensityStore]) -> Counter[str]:
    """Structures that hold an element."""
    entries = chain.from_iterable(store.entries for store in stores)
    return Counter(chain.from_iterable(Formula(entry.formula).count() for entry in entries))


# -- the report ------------------------------------------------------------------------------------


def report(options: argparse.Namespace) -> None:
    """Tables and pictures of what was measured."""
    if options.model is not None:
        measure(options)
    if not options.output.exists():
        raise SystemExit(f"There is no {options.output}: call `measure` first, or give --model.")
    content = json.loads(options.output.read_text(encoding="utf-8"))
    rows = content["structures"]
    known = predicted(rows)
    if not known:
        raise SystemExit("The model knows none of the structures.")
    stem = options.output.with_suffix("")
    save_picture(draw_elements(of_elements(known)), Path(f"{stem}_elements.png"))
    save_picture(draw_gradient(known), Path(f"{stem}_gradient.png"))
    figures = trust(rows)
    if figures:
        save_picture(draw_trust(known), Path(f"{stem}_trust.png"))
    calculator = EACDensity(options.model or content["model"]["name"], device="cpu")
    store = DensityStore.open(options.test)
    save_picture(draw_worst(calculator, store, worst(rows)), Path(f"{stem}_worst.png"))
    train = [DensityStore.open(path) for path in options.train]
    text = page(content, stem.name, figures, train)
    write_bytes(stem.with_suffix(".md"), text.encode())
    print(summary(rows))
    print(trust_text(figures))


def page(
    content: dict[str, Any], stem: str, figures: dict[str, float], train: list[DensityStore]
) -> str:
    """The generated part of docs/general-model.md."""
    rows = content["structures"]
    refused = [label(row) for row in rows if "refused" in row]
    model = content["model"]
    training = model["training"]
    learned = f"{training.get('structures', '–')} structures"
    if of_models := training.get("predicted_structures"):
        learned += f", {of_models} of them with densities that an earlier version predicted"
    parts = [
        f"`{model['name']}`: {len(model['elements'])} elements, {model['parameters']:,} parameters "
        f"({model['megabytes']:.1f} MB), trained on {learned}. ε_mae of "
        f"{len(predicted(rows))} held-out structures: "
        f"median {number(values_of(predicted(rows), 'nmae'))} %, "
        f"mean {number(values_of(predicted(rows), 'nmae'), np.mean)} %.\n"
    ]
    if refused:
        parts.append(f"Refused, since an element is not known: {', '.join(refused)}.\n")
    if train:
        parts += ["## Data\n", data_table(train, rows)]
        counts = elements_of(train)
        few = [f"{symbol} {n}" for symbol, n in sorted(counts.items(), key=lambda x: x[1])[:15]]
        parts.append(
            f"{len(counts)} elements. Those in the fewest training structures: {', '.join(few)}.\n"
        )
    parts += [
        "## By family\n",
        "ε_mae in %; free atoms: that of GPAW's own superposition, from which it starts; spin "
        "density: error as a share of the spin density, of magnetic structures; D: error of the "
        "PAW matrices over that of free atoms. Medians where nothing else is said.\n",
        family_table(rows),
        "Aims are what networks reach that were trained on such structures alone, with VASP's "
        "valence densities.\n",
        target_table(rows),
        "## By element\n",
        f"![ε_mae around the atoms of every element]({stem}_elements.png)\n",
        "## Magnets\n",
        spin_table(rows),
        "## Where errors sit\n",
        f"![Error against the gradient of the density]({stem}_gradient.png)\n",
        "## Expected errors\n",
        trust_text(figures),
    ]
    if figures:
        parts.append(f"![Expected and true errors]({stem}_trust.png)\n")
    parts += [
        "## The worst ten\n",
        worst_table(rows),
        f"![Density and error of the worst structures]({stem}_worst.png)\n",
        "## Cost\n",
        cost_text(rows),
    ]
    return "\n".join(parts)


def draw_elements(errors: dict[str, list[float]]) -> Figure:
    """Periodic table of mean errors."""
    import matplotlib as mpl

    mpl.use("Agg")
    from pymatgen.util.plotting import periodic_table_heatmap

    means = {symbol: float(np.mean(found)) for symbol, found in errors.items()}
    top = max(2.0, float(np.quantile(list(means.values()), 0.95)))
    axes = periodic_table_heatmap(
        {symbol: min(value, top) for symbol, value in means.items()},
        cbar_label=f"ε_mae around atoms of the element / % (colours end at {top:.1f})",
        cmap="YlOrRd",
        cmap_range=(0, top),
        blank_color="lightgrey",
        max_row=9 if any(57 <= _number(symbol) <= 71 for symbol in means) else 7,
        pymatviz=False,
    )
    for text in list(axes.texts):
        symbol = text.get_text()
        if symbol in means:
            x, y = text.get_position()
            axes.text(x, y + 0.4, f"{means[symbol]:.2f}", ha="center", va="center", fontsize=9)
    figure: Figure = axes.get_figure(root=True)
    return figure


def _number(symbol: str) -> int:
    from ase.data import atomic_numbers

    return int(atomic_numbers[symbol])


def draw_gradient(rows: list[dict[str, Any]]) -> Figure:
    """ε_mae and shares of error and electrons by reduced gradient."""
    errors, electrons = (
        np.sum([row[key] for row in rows], axis=0)
        for key in ("gradient_errors", "gradient_electrons")
    )
    figure = Figure(figsize=(5.4, 3.8), layout="constrained")
    axes = figure.subplots()
    filled = electrons > 0
    middles = np.sqrt(GRADIENTS[1:] * GRADIENTS[:-1])
    axes.loglog(middles[filled], 100 * errors[filled] / electrons[filled], "o-", color="tab:red")
    axes.set(xlabel="|∇ρ| / ρ^(4/3)", ylabel="ε_mae / %")
    axes.grid(alpha=0.3, which="both")
    shares = axes.twinx()
    for values, name, color in (
        (errors, "share of the error", "tab:orange"),
        (electrons, "share of the electrons", "tab:blue"),
    ):
        shares.stairs(100 * values / values.sum(), GRADIENTS, label=name, color=color)
    shares.set_ylabel("%")
    shares.legend(fontsize="small", loc="upper left")
    return figure


def draw_trust(rows: list[dict[str, Any]]) -> Figure:
    """True against expected errors."""
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.subplots()
    found = [row for row in rows if "expected" in row]
    axes.loglog(
        [x for row in found for x in row["atom_expected"]],
        [y for row in found for y in row["atom_errors"]],
        ".",
        color="0.8",
        markersize=3,
        label="atoms",
    )
    for index, (name, members) in enumerate(by_family(found).items()):
        axes.loglog(
            values_of(members, "expected"),
            values_of(members, "nmae"),
            "osD^vP*X"[index % 8],
            color=f"C{index % 10}",
            markersize=5,
            label=name,
        )
    flagged = [row for row in found if row["unfamiliar"]]
    if flagged:
        axes.loglog(
            values_of(flagged, "expected"),
            values_of(flagged, "nmae"),
            "o",
            markersize=10,
            markerfacecolor="none",
            color="k",
            label="unfamiliar",
        )
    ends = np.array(axes.get_xlim())
    for factor, style in ((1, "k-"), (2, "k:"), (0.5, "k:")):
        axes.loglog(ends, factor * ends, style, linewidth=0.8)
    axes.set(xlabel="expected ε_mae / %", ylabel="true ε_mae / %", xlim=ends)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def draw_worst(calculator: EACDensity, store: DensityStore, rows: list[dict[str, Any]]) -> Figure:
    """Density and error on a plane through the worst atom of each structure."""
    indices = {entry.key: index for index, entry in enumerate(store.entries)}
    lines = -(-len(rows) // 2)
    figure = Figure(figsize=(13, 2.8 * lines), layout="constrained")
    panels = figure.subplots(lines, 4, squeeze=False).reshape(-1, 2)
    for (left, right), row in zip(panels, rows, strict=False):
        reference = DensityGrid.from_sample(store.read(indices[row["key"]]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnfamiliarStructureWarning)
            found = calculator.get_density_grid(reference.atoms, like=reference, progress=False)
        index = int(np.nan_to_num(row["atom_errors"]).argmax())
        atoms = reference.atoms
        if len(atoms) < 3 and atoms.pbc.all():
            atoms = atoms.repeat(2)  # neighbours may be images
        plane = Plane.through_molecule(atoms, index)
        exact, wrong = reference.plane(plane), (found - reference).plane(plane)
        plot_plane(exact, reference.atoms, title=label(row), axes=left)
        draw_error(wrong, f"ε_mae {row['nmae']:.2f} %", right)
    for pair in panels[len(rows) :]:
        for axes in pair:
            axes.set_axis_off()
    return figure


def draw_error(cut: PlaneCut, title: str, axes: Any) -> None:
    """Predicted minus exact density."""
    size = float(np.nanmax(np.abs(cut.values)))
    image = axes.pcolormesh(
        cut.x, cut.y, cut.values.T, cmap="RdBu_r", vmin=-size, vmax=size, rasterized=True
    )
    axes.get_figure(root=True).colorbar(image, ax=axes, label="Δρ (e/Å³)")
    axes.set_aspect("equal")
    axes.set(xlabel="Å", title=title)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure", help="figures of every structure")
    measuring.add_argument("model", help="bundled model or model file")
    reporting = commands.add_parser("report", help="tables and pictures")
    for command in (measuring, reporting):
        command.add_argument("test", type=Path, help="store of structures held out")
        command.add_argument(
            "--output", type=Path, default=RESULTS / "eac_pbe.json", help="figures of structures"
        )
    reporting.add_argument(
        "--train", type=Path, nargs="+", default=[], help="stores trained on, for their sizes"
    )
    reporting.add_argument("--model", help="bundled model or model file, to measure first")
    return parser.parse_args()


if __name__ == "__main__":
    main()
