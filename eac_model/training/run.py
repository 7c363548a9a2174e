"""Training from a configuration to a model file."""

from __future__ import annotations

import hashlib
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from ase.data import chemical_symbols
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from eac_model.checkpoint import ModelCard, ModelHeader, load_model, read_header, save_model
from eac_model.data.sample import Provenance
from eac_model.errors import ConfigurationError
from eac_model.files import alone, write_bytes
from eac_model.network import DensityNetwork, build, network_config, with_onsite
from eac_model.registry import find_model
from eac_model.training.calibration import calibrate
from eac_model.training.callbacks import EndOnInterrupt, ErrorBar, ExponentialAverage, Recorder
from eac_model.training.config import TrainingConfig, network_section
from eac_model.training.data import (
    DensityData,
    Source,
    load_sources,
    onsite_examples,
    onsite_layout,
    superposition_samples,
    with_progress,
)
from eac_model.training.files import AtomicCheckpointIO, RunFiles, load_state
from eac_model.training.module import TrainingModule
from eac_model.training.provenance import join_provenance

log = logging.getLogger(__name__)

TERMINATED = 143
"""Exit status of a run that SIGTERM ended, 128 + 15."""

FREE_TO_CHANGE = (
    "card",
    "accelerator",
    "checkpoint_every",
    "data.workers",
    "data.cache_megabytes",
)
"""Keys a resumed run may change: they do not decide the weights."""


def train(config: TrainingConfig, directory: str | Path, *, resume: bool = False) -> Path:
    """Train a network.

    Parameters
    ----------
    config
        What to do; :meth:`TrainingConfig.from_yaml` reads it.
    directory
        Where the files of the run go: ``config.yaml``, ``metrics.csv``, ``learning_curve.png``,
        ``model.safetensors`` (the averaged weights of the best validation so far, or, without
        validation, of the last checkpoint) and ``checkpoints/last.ckpt``.
    resume
        Go on from the last checkpoint in ``directory``, as if the run had never stopped; without
        one the run starts from the beginning.

    Returns
    -------
    Path
        The model file.

    Raises
    ------
    ConfigurationError
        The configuration contradicts itself, the data or the run to resume; the directory already
        holds a run and ``resume`` is not set; a file cannot be written; or the run diverged.
    SystemExit
        With status 143, behind a checkpoint, if the process gets SIGTERM.
    """
    files = RunFiles(Path(directory).absolute())
    try:
        # The caller's random numbers stay what they were.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            if not _is_first_process():
                return _train(config, files, resume=resume)  # the first one holds the lock
            files.directory.mkdir(parents=True, exist_ok=True)
            busy = f"{files.directory}: another run is working in this folder."
            with alone(files.directory / ".lock", busy):
                return _train(config, files, resume=resume)
    except SIGTERMException as ended:
        # Lightning's has the exit status 0, as if the run were complete.
        raise SystemExit(TERMINATED) from ended
    except OSError as error:
        raise ConfigurationError(
            f"The run in {directory} stopped because a file could not be read or written: {error}. "
            "Make room or choose another directory; what was saved before is intact, and --resume "
            "goes on from there."
        ) from error


def _train(config: TrainingConfig, files: RunFiles, *, resume: bool) -> Path:
    state = load_state(files.last) if resume and files.last.exists() else None
    # Other ranks arrive here after the first one may have written its first checkpoint.
    if not resume and _is_first_process() and (files.last.exists() or files.model.exists()):
        way_on = "resume it (--resume)" if files.last.exists() else "move model.safetensors away"
        raise ConfigurationError(
            f"{files.directory} already holds a run. Choose another directory, or {way_on}."
        )
    train_sources, validation_sources = load_sources(config)
    if config.network.onsite == "from-data":
        layout = onsite_layout([*train_sources, *validation_sources])
        section = config.network.model_copy(update={"onsite": layout})
        config = config.model_copy(update={"network": section})
    card = _card(config, train_sources, validation_sources)
    network, config, origin = _network(config, train_sources, validation_sources)
    prints = [_fingerprint(train_sources), _fingerprint(validation_sources)]
    if state is not None:
        _check_same_run(config, prints, state)
    else:
        _fit_tables(network, config, train_sources, origin)
    if _is_first_process():
        write_bytes(files.config, config.to_yaml().encode())
    facts = {
        "structures": len(train_sources),
        "validation_structures": len(validation_sources),
        "points": sum(source.n_points for source in train_sources),
    }

    def save(averaged: DensityNetwork, summary: dict[str, Any]) -> None:
        save_model(averaged, ModelCard(**card, training={**facts, **summary}), files.model)

    if _is_first_process():
        _say_what_comes(config, files, train_sources, validation_sources, resume, state)
    if state is None or state["global_step"] < config.optimisation.steps:
        _fit(config, files, network, train_sources, validation_sources, prints, state, save)
    elif not files.model.exists():
        raise ConfigurationError(
            f"The run in {files.directory} is complete, and its {files.model.name} is gone. Put it "
            "back, or begin anew in another directory."
        )
    if state is not None and _is_first_process():
        # Of the best step, which may lie before the interruption, as may the card it was given.
        averaged, saved = load_model(files.model)
        if saved != (renewed := ModelCard(**card, training=saved.training)):
            save_model(averaged, renewed, files.model)
    if validation_sources and _is_first_process():
        calibrate(files.model, config, train_sources, validation_sources)
    return files.model


def _say_what_comes(
    config: TrainingConfig,
    files: RunFiles,
    train: Sequence[Source],
    validation: Sequence[Source],
    resume: bool,
    state: dict[str, Any] | None,
) -> None:
    steps = config.optimisation.steps
    log.info(
        "Structures: %d to train on, %d left out; %d steps; files in %s",
        len(train),
        len(validation),
        steps,
        files.directory,
    )
    if state is not None:
        log.info("Going on from step %d of %d", state["global_step"], steps)
    elif resume:
        log.info("There is no checkpoint yet: beginning with step 0")
    if config.network.onsite is None and any(source.has_onsite for source in train):
        log.info(
            "The data hold on-site data of the PAW method, which this model will not learn; DFT "
            "codes gain little from a density alone. `eac data info` and `eac info POTCAR` print "
            "the section network.onsite that is missing."
        )


def _fit_tables(
    network: DensityNetwork,
    config: TrainingConfig,
    train: Sequence[Source],
    origin: ModelHeader | None,
) -> None:
    """What a network takes from the data before it is trained.

    A fine-tuned one keeps what its model file says, unless that is of another code, functional,
    kind of density or layout.
    """
    ours = join_provenance(train, config.card.provenance)
    theirs = None if origin is None else origin.card.provenance
    same = (
        theirs is not None
        and _program(theirs) == _program(ours)
        and (theirs.functional, theirs.density_kind) == (ours.functional, ours.density_kind)
    )
    if network.superposition is not None and not same:
        error = network.fit_superposition(superposition_samples(train, config.seed))
        log.info("superposed free atoms: ε_mae %.2f %%", error)
    if network.onsite is not None:
        layout = None if origin is None else origin.config.onsite
        if not same or layout != network.config.onsite:
            nowhere = np.empty(0, dtype=np.int64)
            network.onsite.fit(
                (source.select(nowhere) for source in with_progress(train, "on-site data")),
                all_elements=origin is None,
            )
    if origin is None:
        network.fit_scales(superposition_samples(train, config.seed))


def _program(origin: Provenance) -> str:
    """The code without its version: PAW data sets are told apart by the layout."""
    return origin.code.partition(" ")[0]


def _fit(
    config: TrainingConfig,
    files: RunFiles,
    network: DensityNetwork,
    train_sources: Sequence[Source],
    validation_sources: Sequence[Source],
    prints: list[str],
    state: dict[str, Any] | None,
    save: Any,
) -> None:
    examples = onsite_examples(config, train_sources)
    module = TrainingModule(network, config, len(validation_sources), prints, examples)
    decay = config.optimisation.ema_decay
    average = None if decay is None else ExponentialAverage(decay)
    recorder = Recorder(config, files, average, save, validate=bool(validation_sources))
    callbacks: list[pl.Callback] = [recorder] if average is None else [average, recorder]
    callbacks.append(EndOnInterrupt(recorder))
    bar = sys.stdout.isatty()
    if bar:
        callbacks.append(ErrorBar(recorder))
    data = DensityData(
        config,
        train_sources,
        validation_sources,
        first_step=0 if state is None else state["global_step"],
    )
    with _quiet():
        try:
            trainer = pl.Trainer(
                accelerator=config.accelerator,
                devices=config.devices,
                precision=config.precision,
                max_steps=config.optimisation.steps,
                max_epochs=-1,
                gradient_clip_val=config.optimisation.gradient_clip,
                val_check_interval=config.validate_every,
                check_val_every_n_epoch=None,
                limit_val_batches=None if validation_sources else 0,
                num_sanity_val_steps=0,
                use_distributed_sampler=False,
                plugins=[AtomicCheckpointIO()],
                callbacks=callbacks,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=bar,
                enable_model_summary=False,
                default_root_dir=files.directory,
            )
        except MisconfigurationException as error:
            raise ConfigurationError(
                f"accelerator: {config.accelerator!r}, devices: {config.devices!r}: {error}"
            ) from error
        trainer.fit(
            module,
            datamodule=data,
            ckpt_path=None if state is None else str(files.last),
            weights_only=True,
        )


def _network(
    config: TrainingConfig, train: Sequence[Source], validation: Sequence[Source]
) -> tuple[DensityNetwork, TrainingConfig, ModelHeader | None]:
    """The network to start from, the configuration that has it, the header of its model file."""
    dtype = torch.float64 if config.precision == "64" else torch.float32
    present = sorted({int(z) for s in [*train, *validation] for z in s.atoms.numbers})
    header = None
    if config.initialize_from is None:
        elements = config.network.elements or tuple(present)
        _check_elements(present, elements, "network.elements")
        shape = network_config({**config.network.model_dump(), "elements": elements})
        network = build(shape, dtype)
    else:
        path = find_model(config.initialize_from)
        header = read_header(path)
        network, _ = load_model(path, dtype=dtype)
        network.expected_error = None
        found = network.config.model_dump()
        for key in sorted(config.network.model_fields_set - {"onsite"}):
            wanted = config.network.model_dump()[key]
            if wanted != found.get(key) and not (key == "elements" and not wanted):
                raise ConfigurationError(
                    f"network.{key}: {wanted!r} was asked for, but the model that the run starts "
                    f"from ({config.initialize_from}) has {found.get(key)!r}. Leave the key out."
                )
        _check_elements(present, network.config.elements, "initialize_from")
        if "onsite" in config.network.model_fields_set:
            assert config.network.onsite != "from-data"
            network = with_onsite(network, config.network.onsite)
        elif network.config.onsite is not None:
            ours = _program(join_provenance(train, config.card.provenance))
            if ours != _program(header.card.provenance):
                log.info(
                    "The data are not of %s: its on-site data are not learned (network.onsite may "
                    "name the layout of yours).",
                    _program(header.card.provenance),
                )
                network = with_onsite(network, None)
    section = network_section.validate_python(network.config.model_dump())
    return network.train(), config.model_copy(update={"network": section}), header


def _check_elements(present: Sequence[int], known: Sequence[int], key: str) -> None:
    missing = [chemical_symbols[z] for z in present if z not in known]
    if missing:
        raise ConfigurationError(
            f"{key}: the data hold {', '.join(missing)}, the network knows only "
            f"{', '.join(chemical_symbols[z] for z in known)}."
        )


def _card(
    config: TrainingConfig, train: Sequence[Source], validation: Sequence[Source]
) -> dict[str, Any]:
    """Fields of the model card that are known before training."""
    texts = config.card
    symbols = sorted({symbol for source in train for symbol in source.atoms.symbols})
    strange = sorted(set(texts.valence_electrons) - set(chemical_symbols))
    if strange:
        raise ConfigurationError(f"card.valence_electrons: {strange[0]!r} is no element symbol.")
    return {
        "name": texts.name,
        "summary": texts.summary,
        "elements": tuple(symbols),
        "provenance": join_provenance([*train, *validation], texts.provenance),
        "valence_electrons": dict(texts.valence_electrons),
        "licence": texts.licence,
        "citation": texts.citation,
    }


def _fingerprint(sources: Sequence[Source]) -> str:
    """Tells apart lists of structures; the densities themselves are not read."""
    digest = hashlib.sha256()
    for source in sources:
        digest.update(np.ascontiguousarray(source.atoms.numbers, dtype=np.int64).tobytes())
        digest.update(np.ascontiguousarray(source.atoms.positions).tobytes())
        digest.update(np.ascontiguousarray(source.atoms.cell).tobytes())
        origin = source.provenance
        digest.update(f"{origin.code} {origin.functional} {origin.density_kind};".encode())
        digest.update(f"{source.n_points} {source.is_grid};".encode())
    return digest.hexdigest()


def _check_same_run(config: TrainingConfig, prints: list[str], state: dict[str, Any]) -> None:
    # Keys younger than the run have their defaults, with which it was started in effect.
    started = TrainingConfig.from_mapping(state["training_config"])
    before = _flat(started.model_dump(mode="json"))
    now = _flat(config.model_dump(mode="json"))
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if old != new and not any(f"{key}.".startswith(f"{free}.") for free in FREE_TO_CHANGE):
            raise ConfigurationError(
                f"{key}: the run to resume was started with {old!r}, the configuration says "
                f"{new!r}. Restore it, or start a new run in another directory."
            )
    for key, old, new in zip(
        ("data.train", "data.validation"), state["fingerprints"], prints, strict=True
    ):
        if old != new:
            raise ConfigurationError(
                f"{key}: the files hold other structures than when the run to resume was started. "
                "Restore them, or start a new run in another directory."
            )


def _is_first_process() -> bool:
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            flat |= _flat(value, f"{name}.")
        else:
            flat[name] = value
    return flat


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's remarks on hardware and on choices made here on purpose to itself."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in (
            ".*does not have many workers.*",
            ".*ended before the epoch ended and your dataloader is.*",
            ".*Checkpoint directory.*",
            ".*LeafSpec.*",
        ):
            warnings.filterwarnings("ignore", message)
        try:
            yield
        finally:
            logger.setLevel(level)
