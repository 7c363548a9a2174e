"""Running a task: trainings, then measurements, each kept as soon as it is there.

Folder of a run, shared by all tasks on the same data::

    data/pbe-train.store …    densities to train on
    models/pbe/ …             trainings, one folder each (eac_ase.ecd.tasks.Stage.name)
    results.jsonl             a measurement a line
    PBE-id.json, PBE-id.md    tables
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from ase.data import chemical_symbols
from ase.formula import Formula

from eac_ase.calculator import EACDensity
from eac_ase.ecd import measure
from eac_ase.ecd.layout import EcdSet, MeasuredGap, read_gaps
from eac_ase.ecd.report import summary, table
from eac_ase.ecd.tasks import QUARTERS, EcdTask, Stage
from eac_ase.evaluation import evaluate_sample
from eac_ase.progress import progress_bar
from eac_model.checkpoint import load_model, read_header, save_model
from eac_model.data import DensityStore
from eac_model.errors import ConfigurationError, DensityFileError, StructureError
from eac_model.files import alone, append_line, digest, write_bytes
from eac_model.registry import find_model
from eac_model.training import TrainingConfig, train
from eac_model.training.config import network_section

Loaded = Callable[[], EACDensity]
"""A model, loaded when it is first needed."""

Measured = Callable[[str, EcdSet, str], dict[str, Any]]
"""What is measured (a key of OF_MODELS), the set, the name of the material: the figures."""

OF_STRUCTURES = (DensityFileError, StructureError)
"""What is wrong with one structure and not with the task."""

FUNCTIONAL = {"pbe": "PBE", "hse": "HSE06", "gnome": "PBE"}


@dataclass(frozen=True)
class Budget:
    """What a task may spend."""

    training: TrainingConfig | None = None
    """Trainings from random weights; ``data.train``, ``data.validation`` and ``initialize_from``
    are the task's. None where a model is given."""
    tuning: TrainingConfig | None = None
    """Fine-tunings; None: as trainings."""
    structures: int | None = None
    """Test structures, the first of the split; None: all."""
    scf: int = 0
    """Of those, structures whose iterations with GPAW are counted."""


@dataclass(frozen=True)
class Tested:
    """A model with a name for the table."""

    name: str
    path: Path
    fingerprint: str
    """Of the file: measurements of another file of the same name are no results of this one."""

    @classmethod
    def of(cls, name: str, path: Path) -> Tested:
        """With the fingerprint of the file as it is."""
        return cls(name, path, digest(path))


def run_task(
    task: EcdTask,
    data: str | Path,
    directory: str | Path,
    budget: Budget,
    *,
    model: str | None = None,
    device: str | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Train what the task needs, measure, and write its tables; a second call does what is left.

    Parameters
    ----------
    task
        One of :data:`eac_ase.ecd.tasks.TASKS`.
    data
        Folder in ECD's layout (:mod:`eac_ase.ecd.layout`).
    directory
        Folder of the run.
    budget
        Trainings and numbers of structures.
    model
        Bundled model or model file to test instead of training any.
    device
        Device of predictions.
    progress
        Progress bars: True, False, or None for only on a terminal.

    Returns
    -------
    dict
        What is in ``TASK.json``: task, rows of the table, figures of every structure. One that
        cannot be measured has its ``error`` in their place, is left out of the table, and is
        tried again by the next call.

    Raises
    ------
    ConfigurationError
        The data lack what the task needs, a model or a configuration is missing, the folder has
        measurements of other data, or another process works in it.
    DensityFileError
        A density to test on is missing, or one to train on cannot be read.
    """
    _require(task, Path(data), budget, trains=model is None)
    directory = Path(directory).absolute()
    directory.mkdir(parents=True, exist_ok=True)
    with alone(directory / ".lock", f"{directory}: another run is working in this folder."):
        _remember_data(Path(data).absolute(), directory / "data.txt")
        models = _models(task, Path(data), directory, budget, model, progress)
        results = Results(directory / "results.jsonl")
        if task.measures == "gap":
            own = model is None
            rows = _measure_gaps(Path(data), models, own, results, budget, device, progress)
        else:
            rows = _measure(task, Path(data), models, results, budget, device, progress)
    for tested in models:
        errors = [row.get("error") for row in rows if row["model"] == tested.name]
        if all(errors):
            raise DensityFileError(f"{tested.name} can be measured on no structure: {errors[0]}")
    content = {
        "task": task.name,
        "summary": task.summary,
        "tested_on": task.tested_on,
        "models": [_facts(tested) for tested in models],
        "rows": summary(task, rows),
        "structures": rows,
    }
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_bytes(directory / f"{task.name}.json", text.encode())
    write_bytes(directory / f"{task.name}.md", table([content]).encode())
    return content


def _require(task: EcdTask, data: Path, budget: Budget, *, trains: bool) -> None:
    """What is missing is said before anything is trained."""
    if task.measures == "gap":
        _known_gaps(data, budget)
    else:
        ecd = EcdSet.open(data, task.tested_on)
        names = ecd.of_split("test")[: budget.structures]
        ecd.require(names)
        _counted(ecd, names, budget)
    for stage in task.models if trains else ():
        ecd = EcdSet.open(data, stage.data)
        if not _names(ecd, stage):
            raise ConfigurationError(
                f"{ecd.folder}: too few materials to train {stage.name} on: of "
                f"{len(ecd.of_split('train'))}, {100 * stage.quarters // QUARTERS} % are none."
            )
        ecd.require(_names(ecd, stage))


def _counted(ecd: EcdSet, names: Sequence[str], budget: Budget) -> list[str]:
    """Materials whose iterations are counted."""
    counted = [name for name in names if ecd.has_state(name)][: budget.scf]
    if budget.scf and not counted:
        raise ConfigurationError(
            f"{ecd.folder}: no test structure has a state of GPAW, and iterations cannot be "
            "counted (--scf)."
        )
    return counted


def _known_gaps(data: Path, budget: Budget) -> list[MeasuredGap]:
    """Measured gaps of materials whose states are there in both functionals."""
    known = list(_with_states(data, read_gaps(data)))[: budget.structures]
    if not known:
        raise ConfigurationError(
            f"{data}: none of the materials with a measured gap has states of GPAW in pbe and hse."
        )
    return known


def _remember_data(data: Path, known: Path) -> None:
    """Results are known by the names of structures: those of one folder of data go together."""
    if not known.exists():
        write_bytes(known, f"{data}\n".encode())
    if (before := known.read_text().strip()) != str(data):
        raise ConfigurationError(
            f"The results in {known.parent} are of the data in {before}, not of {data}. Choose "
            f"another folder (--output), or delete {known.name} in it if the data only moved."
        )


def _lines(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return text.splitlines()


class Results:
    """Measurements in a file of JSON lines; a line that a kill cut short does not count."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[tuple[str, str, str, str], dict[str, Any]] = {}
        for line in _lines(path):
            try:
                row = json.loads(line)
                self._rows[self._key(row)] = row
            except (ValueError, KeyError, TypeError):
                continue

    @staticmethod
    def _key(row: dict[str, Any]) -> tuple[str, str, str, str]:
        return row["what"], row["set"], row["model"], row["name"]

    def of(
        self,
        what: str,
        set_name: str,
        model: str,
        name: str,
        measured: Callable[[], dict[str, Any]],
    ) -> dict[str, Any]:
        """A measurement, made and kept if it is not there."""
        key = (what, set_name, model, name)
        if key not in self._rows:
            row = {"what": what, "set": set_name, "model": model, "name": name, **measured()}
            append_line(self.path, json.dumps(row, ensure_ascii=False))
            self._rows[key] = row
        return self._rows[key]


# -- models ------------------------------------------------------------------------------------


def _models(
    task: EcdTask,
    data: Path,
    directory: Path,
    budget: Budget,
    model: str | None,
    progress: bool | None,
) -> list[Tested]:
    if model is not None:
        path = find_model(model)
        return [Tested.of(read_header(path).card.name, path)]
    if not task.models:
        raise ConfigurationError(
            f"{task.name} tests a model that was trained on other data: name it with --model."
        )
    return [
        Tested.of(stage.name, _trained(stage, data, directory, budget, progress))
        for stage in task.models
    ]


def _trained(
    stage: Stage, data: Path, directory: Path, budget: Budget, progress: bool | None
) -> Path:
    """The model of a stage, trained if it is not there."""
    if budget.training is None:
        raise ConfigurationError(
            f"The training {stage.name!r} needs a configuration (--config); or give a model."
        )
    folder = directory / "models" / stage.name
    start = None
    base = budget.training
    if stage.start is not None:
        start = _trained(stage.start, data, directory, budget, progress)
        base = budget.tuning or base
    ecd = EcdSet.open(data, stage.data)
    files = _stores(ecd, stage, directory / "data", progress)
    config = _configuration(base, stage, files, start)
    # Which training it was, so that a finished one is not opened again.
    mark = folder / "finished.json"
    key = {
        "config": config.model_dump(mode="json"),
        "names": _names(ecd, stage),
        "start": None if start is None else digest(start),
    }
    model = folder / "model.safetensors"
    if mark.exists() and model.exists():
        before = json.loads(mark.read_text(encoding="utf-8"))
        if before == key:
            return model
        if before.get("start") != key["start"]:
            raise ConfigurationError(
                f"{folder} was fine-tuned from another model than the present {start}. Delete the "
                "folder to fine-tune again."
            )
    train(config, folder, resume=True)
    if start is not None:
        _label(model, FUNCTIONAL[stage.data])
    write_bytes(mark, json.dumps(key, ensure_ascii=False).encode())
    return model


def _configuration(
    base: TrainingConfig, stage: Stage, files: tuple[list[Path], Path | None], start: Path | None
) -> TrainingConfig:
    train_files, validation = files
    section = base.data.model_copy(
        update={
            "train": tuple(map(str, train_files)),
            "validation": 0 if validation is None else (str(validation),),
        }
    )
    card = base.card.model_copy(
        update={"name": stage.name, "summary": f"ECD, training {stage.name}."}
    )
    update: dict[str, Any] = {"data": section, "card": card}
    if start is None and not _know_matrices(base, train_files):
        update["network"] = base.network.model_copy(update={"onsite": None})
    if start is not None:
        # A run that starts from another functional would fit free atoms anew, to the few
        # structures it has: it is told that it stays in its functional, and relabelled.
        known = read_header(start).card.provenance
        told = card.provenance.model_copy(update={"functional": known.functional})
        update["card"] = card.model_copy(update={"provenance": told})
        update["initialize_from"] = str(start)
        update["network"] = network_section.validate_python(
            {"architecture": base.network.architecture}
        )
    return base.model_copy(update=update)


def _know_matrices(base: TrainingConfig, files: Sequence[Path]) -> bool:
    """Whether there are on-site data of every element of the network; without, none are learned."""
    entries = [entry for path in files for entry in DensityStore.open(path).entries]
    known = {symbol for e in entries if e.onsite for symbol in Formula(e.formula).count()}
    wanted = {chemical_symbols[number] for number in base.network.elements}
    return base.network.onsite is None or bool(wanted <= known and known)


def _label(model: Path, functional: str) -> None:
    network, card = load_model(model)
    provenance = replace(card.provenance, functional=functional)
    save_model(network, replace(card, provenance=provenance), model)


def _names(ecd: EcdSet, stage: Stage) -> list[str]:
    return [name for part in _quarters(ecd)[: stage.quarters] for name in part]


def _quarters(ecd: EcdSet) -> list[tuple[str, ...]]:
    """The training split in four parts, in the order of the list."""
    names = ecd.of_split("train")
    edges = [len(names) * k // QUARTERS for k in range(QUARTERS + 1)]
    return [names[a:b] for a, b in pairwise(edges)]


def _stores(
    ecd: EcdSet, stage: Stage, folder: Path, progress: bool | None
) -> tuple[list[Path], Path | None]:
    """Densities as the trainer reads them, one store a quarter; CHGCARs are read once."""
    folder.mkdir(exist_ok=True)
    label = ecd.folder.name
    found = []
    for number, part in enumerate(_quarters(ecd)[: stage.quarters], start=1):
        if part:
            path = folder / f"{label}-train-{number}of{QUARTERS}.store"
            found.append(_store(ecd, part, path, progress))
    if not ecd.splits.get("validation"):
        return found, None
    path = folder / f"{label}-validation.store"
    return found, _store(ecd, ecd.of_split("validation"), path, progress)


def _store(ecd: EcdSet, names: Sequence[str], path: Path, progress: bool | None) -> Path:
    store = DensityStore.open(path) if path.exists() else DensityStore.create(path)
    present = {entry.key for entry in store.entries}
    if strange := present - set(names):
        raise ConfigurationError(
            f"{path} holds {sorted(strange)[0]!r}, which the split does not list. The data have "
            "changed: use another --output."
        )
    todo = [name for name in names if name not in present]
    with progress_bar(f"reading {path.stem}", len(todo), progress) as advance:
        for name in todo:
            store.append(ecd.read(name), key=name)
            advance(1)
    return path


def _facts(tested: Tested) -> dict[str, Any]:
    header = read_header(tested.path)
    known = {"structures", "steps", "seconds", "validation_nmae_percent"}
    return {
        "model": tested.name,
        "fingerprint": tested.fingerprint,
        "architecture": header.config.architecture,
        "parameters": header.parameters,
        "training": {key: v for key, v in header.card.training.items() if key in known},
    }


# -- measurements ------------------------------------------------------------------------------


def _measure(
    task: EcdTask,
    data: Path,
    models: list[Tested],
    results: Results,
    budget: Budget,
    device: str | None,
    progress: bool | None,
) -> list[dict[str, Any]]:
    ecd = EcdSet.open(data, task.tested_on)
    names = ecd.of_split("test")[: budget.structures]
    counted = _counted(ecd, names, budget)
    rows = []
    total = len(models) * (len(names) + len(counted)) + len(counted)
    with progress_bar(f"{task.name}, measuring", total, progress) as advance:
        optimal = {}
        for name in counted:
            key = ("iterations", task.tested_on, "exact", name)
            with suppress(*OF_STRUCTURES):  # Its density cannot be compared either, which is told.
                count = results.of(*key, partial(_exact_iterations, ecd, name))
                optimal[name] = {"default": count["default"], "optimal": count["iterations"]}
            advance(1)
        for tested, measured in _measurements(models, results, device):
            for name in names:
                row = {"model": tested.name, "name": name}
                try:
                    row |= measure.as_row(measured("density", ecd, name))
                    if name in optimal:
                        count = measured("iterations", ecd, name)
                        row |= {**optimal[name], "achieved": count["iterations"]}
                except OF_STRUCTURES as error:
                    row["error"] = str(error)
                rows.append(row)
                advance(2 if name in optimal else 1)
    return rows


def _measurements(
    models: Sequence[Tested], results: Results, device: str | None
) -> Iterator[tuple[Tested, Measured]]:
    """Every model, and what measures it; models are loaded when they are first needed."""
    for tested in models:
        model = cache(partial(EACDensity, str(tested.path), device=device))

        def measured(
            what: str, ecd: EcdSet, name: str, tested: Tested = tested, model: Loaded = model
        ) -> dict[str, Any]:
            key = (what, ecd.folder.name, tested.fingerprint, name)
            return results.of(*key, partial(OF_MODELS[what], ecd, name, model))

        yield tested, measured


def _errors(ecd: EcdSet, name: str, model: Loaded) -> dict[str, Any]:
    errors = evaluate_sample(model(), ecd.read(name), progress=False)
    return measure.as_row(errors.as_dict())


def _exact_iterations(ecd: EcdSet, name: str) -> dict[str, Any]:
    """Of the default start, and from the exact state."""
    sample = ecd.read(name)
    default = measure.calculation_of(sample).iterations
    return {"default": default, **_converging(partial(measure.iterations, sample, None))}


def _iterations(ecd: EcdSet, name: str, model: Loaded) -> dict[str, Any]:
    return _converging(partial(measure.iterations, ecd.read(name), model()))


def _converging(count: Callable[[], int]) -> dict[str, Any]:
    """Iterations; None from a start so bad that there is no count to average."""
    from gpaw import KohnShamConvergenceError

    try:
        return {"iterations": count()}
    except KohnShamConvergenceError:
        return {"iterations": None}


def _gaps(ecd: EcdSet, name: str, model: Loaded) -> dict[str, Any]:
    from gpaw import KohnShamConvergenceError

    sample = ecd.read(name)
    try:
        predicted = measure.predicted_gap(sample, model())
    except KohnShamConvergenceError as error:
        raise StructureError(f"{name}: {error}") from error
    return {"predicted": predicted, "converged": measure.converged_gap(sample)}


OF_MODELS = {"density": _errors, "iterations": _iterations, "gap": _gaps}
"""What is measured of a model on a material."""


def _measure_gaps(
    data: Path,
    models: list[Tested],
    own: bool,
    results: Results,
    budget: Budget,
    device: str | None,
    progress: bool | None,
) -> list[dict[str, Any]]:
    """Gaps of every model in its own functional, that of the densities it predicts."""
    known = _known_gaps(data, budget)
    sets = {FUNCTIONAL[name]: EcdSet.open(data, name) for name in ("pbe", "hse")}
    rows = []
    with progress_bar("EXP-id, measuring", len(models) * len(known), progress) as advance:
        for tested, measured in _measurements(models, results, device):
            functional = read_header(tested.path).card.provenance.functional
            if functional not in sets:
                raise ConfigurationError(
                    f"{tested.name} predicts densities of {functional}; gaps are compared in "
                    f"{' or '.join(sets)}, with whose settings the materials were calculated."
                )
            # Models of HSE06 begin as models of PBE. What others were trained on is not known.
            trained = {
                name
                for one in (sets[functional], sets["PBE"])
                for split in ("train", "validation")
                for name in one.splits.get(split, ())
            }
            for gap in known:
                row = {
                    "model": tested.name,
                    "name": gap.name,
                    "functional": functional,
                    "seen": gap.name in trained if own else None,
                    "measured": gap.gap,
                }
                try:
                    found = measured("gap", sets[functional], gap.name)
                    row |= {key: found[key] for key in ("predicted", "converged")}
                except OF_STRUCTURES as error:
                    row["error"] = str(error)
                rows.append(row)
                advance(1)
    return rows


def _with_states(data: Path, gaps: Sequence[MeasuredGap]) -> Iterator[MeasuredGap]:
    pbe, hse = EcdSet.open(data, "pbe"), EcdSet.open(data, "hse")
    for gap in gaps:
        if pbe.has_state(gap.name) and hse.has_state(gap.name):
            yield gap
