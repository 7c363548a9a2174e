"""From density files to the batches of training and validation."""

from __future__ import annotations

import glob
import logging
import math
import signal
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeVar

import lightning.pytorch as pl
import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from eac_model.data.readers import read_density
from eac_model.data.sample import DensitySample, PawDataset, Provenance
from eac_model.data.sampling import SamplingMap, SamplingMixture, draw_points
from eac_model.data.store import DensityStore
from eac_model.errors import ConfigurationError, EACError
from eac_model.graph import AtomGraph, PointPairs
from eac_model.neighbors import atom_graph, check_structure, point_pairs
from eac_model.network import AnyNetworkConfig
from eac_model.onsite import OnsiteLayout
from eac_model.training.config import TrainingConfig
from eac_model.training.draws import left_out, point_generator, structures_of_step

Item = TypeVar("Item")

log = logging.getLogger(__name__)

VALIDATION_BLOCK = 4000
"""Points evaluated at once in validation; bounds its memory."""


SUPERPOSITION_POINTS = 500_000
"""Points that free-atom densities are fitted to, of all structures together."""

EXAMPLE_STRUCTURES = 300
"""Structures with an element from which its readouts of on-site data are fitted."""


class Source(Protocol):
    """One structure and access to its density."""

    atoms: Atoms
    provenance: Provenance
    is_grid: bool
    has_spin: bool
    has_onsite: bool
    n_points: int

    def select(self, indices: NDArray[np.integer]) -> DensitySample:
        """Density at some of the points (flat C-order indices)."""
        ...

    def draw(
        self, count: int, sampling: SamplingMixture, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Flat indices of ``count`` points drawn by a mixture, and their weights."""
        ...

    def paw_datasets(self) -> dict[str, PawDataset]:
        """Element symbol → PAW data set, as far as the data say."""
        ...


class LoadedSource:
    """A density held in memory, and the map to draw points from it if that is known already."""

    def __init__(self, sample: DensitySample, sampling_map: SamplingMap | None = None) -> None:
        self._sample = sample
        self._map = sampling_map
        self.atoms = sample.atoms
        self.provenance = sample.provenance
        self.is_grid = sample.is_grid
        self.has_spin = sample.spin_density is not None
        self.has_onsite = sample.onsite is not None
        self.n_points = int(sample.density.size)

    def select(self, indices: NDArray[np.integer]) -> DensitySample:
        """Density at some of the points (flat C-order indices)."""
        return self._sample.select(indices)

    def draw(
        self, count: int, sampling: SamplingMixture, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Flat indices of ``count`` points drawn by a mixture, and their weights."""
        if self._map is None and self.is_grid:
            self._map = SamplingMap.from_grid(self.atoms, self._sample.density)
        return draw_points(self._map or self._sample, count, sampling, rng)

    @property
    def nbytes(self) -> int:
        """Memory it takes."""
        arrays = [self._sample.points, self._sample.density, self._sample.spin_density]
        if self._map is not None:
            arrays += [self._map.density, self._map.gradient, self._map.distance]
        return sum(array.nbytes for array in arrays if array is not None)

    def paw_datasets(self) -> dict[str, PawDataset]:
        """Element symbol → PAW data set, as far as the data say."""
        calculation = self._sample.calculation
        return {} if calculation is None else calculation.datasets


class StoredSource:
    """A density in a store; points are read when they are needed, or all of them once."""

    def __init__(self, store: DensityStore, index: int) -> None:
        self._store, self._index = store, index
        entry = store.entries[index]
        empty = self.select(np.empty(0, dtype=np.int64))
        self.atoms = empty.atoms
        self.provenance = empty.provenance
        self.is_grid = len(entry.shape) == 3
        self.has_spin = entry.spin
        self.has_onsite = entry.onsite
        self.n_points = math.prod(entry.shape)

    def select(self, indices: NDArray[np.integer]) -> DensitySample:
        """Density at some of the points (flat C-order indices)."""
        return self._store.read_points(self._index, indices)

    def draw(
        self, count: int, sampling: SamplingMixture, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Flat indices of ``count`` points drawn by a mixture, and their weights."""
        source = self._store.sampling_map(self._index) or self._store.read(self._index)
        return draw_points(source, count, sampling, rng)

    def loaded(self) -> LoadedSource:
        """The same density in memory, without that of free atoms."""
        sample = replace(self._store.read(self._index), free_atoms=None)
        return LoadedSource(sample, self._store.sampling_map(self._index))

    def paw_datasets(self) -> dict[str, PawDataset]:
        """Element symbol → PAW data set, as far as the data say."""
        calculation = self._store.calculation(self._index)
        return {} if calculation is None else calculation.datasets


class Batch:
    """What a step reads: structures, points, reference densities.

    Not a dataclass on purpose: Lightning takes those apart field by field.
    """

    def __init__(
        self,
        graph: AtomGraph,
        pairs: PointPairs,
        density: Tensor,
        spin_density: Tensor,
        weights: Tensor,
        onsite: Tensor | None = None,
        structure: int = -1,
    ) -> None:
        self.graph = graph
        self.pairs = pairs
        self.density = density
        """(p,) | ρ, e/Å³."""
        self.spin_density = spin_density
        """(p,) | ρ↑ − ρ↓, e/Å³; zeros for spin-paired densities."""
        self.weights = weights
        """(p,) | sampling weights; their mean over the points estimates a grid average."""
        self.onsite = onsite
        """(2, n, width) | on-site data of the sum and of the difference of the spins in the code's
        order; NaN where there are none. None: not asked for."""
        self.structure = structure
        """Which structure of the validation set, −1 in training."""

    def to(self, device: torch.device | str) -> Batch:
        """The batch on another device."""
        return Batch(
            self.graph.to(device),
            self.pairs.to(device),
            self.density.to(device),
            self.spin_density.to(device),
            self.weights.to(device),
            None if self.onsite is None else self.onsite.to(device),
            self.structure,
        )


class BatchBuilder:
    """Makes batches; keeps atom graphs, and densities and pairs while memory allows.

    Parameters
    ----------
    sources
        Structures with their densities.
    network
        Whose pairs and on-site data are wanted.
    dtype
        Of all floating point tensors.
    cache_bytes
        Memory for densities out of stores, and for the pairs of sampled structures that are taken
        with all their points. What does not fit is read, or found, at every use.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        network: AnyNetworkConfig,
        dtype: torch.dtype,
        cache_bytes: int,
    ) -> None:
        self.sources = sources
        self._network = network
        self._dtype = dtype
        self._free_bytes = cache_bytes
        self._graphs: dict[int, AtomGraph] = {}
        self._pairs: dict[int, PointPairs] = {}
        self._loaded: dict[int, LoadedSource] = {}

    def at_points(
        self,
        index: int,
        chosen: NDArray[np.int64] | None = None,
        weights: NDArray[np.float64] | None = None,
        *,
        onsite: bool = True,
    ) -> Batch:
        """Structure ``index`` at some of its points (flat indices) or, None, at all of them."""
        source = self._source(index)
        sample = source.select(np.arange(source.n_points) if chosen is None else chosen)
        assert sample.points is not None
        pairs = self._pairs.get(index) if chosen is None else None
        if pairs is None:
            cutoff = self._network.point_cutoff
            pairs = point_pairs(source.atoms, sample.points, cutoff, self._dtype)
            # Structures come in random order again and again: throwing old ones out gains nothing.
            if chosen is None and not source.is_grid and self._free_bytes > 0:
                self._pairs[index] = pairs
                found = (pairs.vectors, pairs.mask, pairs.point, pairs.atom)
                self._free_bytes -= sum(tensor.nbytes for tensor in found)
        if index not in self._graphs:
            self._graphs[index] = atom_graph(source.atoms, self._network.atom_cutoff, self._dtype)
        layout = self._network.onsite
        density = self._tensor(sample.density)
        spin = sample.spin_density
        return Batch(
            graph=self._graphs[index],
            pairs=pairs,
            density=density,
            spin_density=torch.zeros_like(density) if spin is None else self._tensor(spin),
            weights=torch.ones_like(density) if weights is None else self._tensor(weights),
            onsite=None
            if layout is None or not onsite
            else self._tensor(onsite_rows(layout, sample)),
            structure=index,
        )

    def drawn(
        self, index: int, count: int | None, sampling: SamplingMixture, rng: np.random.Generator
    ) -> Batch:
        """Structure ``index`` at ``count`` points drawn from it; None takes all points."""
        source = self._source(index)
        if count is None or (not source.is_grid and count >= source.n_points):
            return self.at_points(index)
        return self.at_points(index, *source.draw(count, sampling, rng))

    def _source(self, index: int) -> Source:
        """A structure, from memory if there is room for it."""
        source = self.sources[index]
        if isinstance(source, StoredSource) and index not in self._loaded and self._free_bytes > 0:
            self._loaded[index] = source.loaded()
            self._free_bytes -= self._loaded[index].nbytes
        return self._loaded.get(index, source)

    def _tensor(self, values: NDArray) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(values), dtype=self._dtype)


def concatenate(batches: Sequence[Batch]) -> Batch:
    """Several structures in one batch."""
    if len(batches) == 1:
        return batches[0]
    onsite = [b.onsite for b in batches if b.onsite is not None]
    return Batch(
        graph=AtomGraph.concatenate([b.graph for b in batches]),
        pairs=PointPairs.concatenate(
            [b.pairs for b in batches],
            [b.graph.n_atoms for b in batches],
            [b.pairs.n_points for b in batches],
        ),
        density=torch.cat([b.density for b in batches]),
        spin_density=torch.cat([b.spin_density for b in batches]),
        weights=torch.cat([b.weights for b in batches]),
        onsite=None if not onsite else torch.cat(onsite, dim=1),
    )


def onsite_rows(layout: OnsiteLayout, sample: DensitySample) -> NDArray[np.float64]:
    """On-site data of the sum and the difference of the spins, (2, n, width), padded with NaN.

    Spin-paired data have a difference of zero.

    Raises
    ------
    ConfigurationError
        The data do not fit the layout.
    """
    symbols = sample.atoms.get_chemical_symbols()
    rows = np.full((2, len(symbols), layout.width), np.nan)
    if sample.onsite is None:
        return rows
    for index, (symbol, values) in enumerate(zip(symbols, sample.onsite, strict=True)):
        layout.check_size(symbol, np.size(values))
        rows[0, index, : np.size(values)] = np.ravel(values)
        rows[1, index, : np.size(values)] = 0.0
        if sample.onsite_spin is not None:
            rows[1, index, : np.size(values)] = np.ravel(sample.onsite_spin[index])
    return rows


class TrainingBatches(Dataset[Batch]):
    """The batch of every step: item n is a pure function of the seed, n and the rank."""

    def __init__(
        self, builder: BatchBuilder, config: TrainingConfig, rank: int, world_size: int
    ) -> None:
        self._builder = builder
        self._config = config
        self._rank = rank
        self._world_size = world_size

    def __getitem__(self, step: int) -> Batch:
        data, seed = self._config.data, self._config.seed
        rng = point_generator(seed, step, self._rank)
        structures = structures_of_step(
            seed,
            step,
            len(self._builder.sources),
            data.structures_per_batch,
            self._rank,
            self._world_size,
        )
        return concatenate(
            [
                self._builder.drawn(index, data.points_per_structure, data.sampling, rng)
                for index in structures
            ]
        )


class ValidationBatches(Dataset[Batch]):
    """Blocks of all left-out structures, the same at every validation.

    Items beyond the last count nothing: processes that share the blocks must have equally many.
    """

    def __init__(self, builder: BatchBuilder, points: int | None, seed: int) -> None:
        self._builder = builder
        self._blocks: list[tuple[int, NDArray[np.int64] | None]] = []
        for index, source in enumerate(builder.sources):
            if not source.is_grid and source.n_points <= VALIDATION_BLOCK:
                self._blocks.append((index, None))
                continue
            chosen = np.arange(source.n_points)
            if source.is_grid and points is not None and points < source.n_points:
                rng = point_generator(seed, index)
                chosen = np.sort(rng.choice(source.n_points, points, replace=False))
            n_blocks = -(-len(chosen) // VALIDATION_BLOCK)
            self._blocks += [(index, block) for block in np.array_split(chosen, n_blocks)]

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, item: int) -> Batch:
        if item >= len(self._blocks):
            index, chosen = self._blocks[0]
            count = self._builder.sources[index].n_points if chosen is None else len(chosen)
            return self._builder.at_points(index, chosen, np.zeros(count), onsite=False)
        index, chosen = self._blocks[item]
        # On-site data belong to the structure: they count once, with its first block.
        first = item == 0 or self._blocks[item - 1][0] != index
        return self._builder.at_points(index, chosen, onsite=first)


class _StepsFrom(Sampler[int]):
    """Steps from the one a run resumes at; as long as the whole run, as Lightning counts."""

    def __init__(self, first: int, steps: int) -> None:
        self._first, self._steps = first, steps

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._first, self._steps))

    def __len__(self) -> int:
        return self._steps


class DensityData(pl.LightningDataModule):
    """Batches of every process of a run.

    Parameters
    ----------
    config
        Training run; its network is written out.
    train, validation
        Structures to learn from, and left-out ones.
    first_step
        Step the run starts or resumes at.
    """

    def __init__(
        self,
        config: TrainingConfig,
        train: Sequence[Source],
        validation: Sequence[Source],
        first_step: int = 0,
    ) -> None:
        super().__init__()
        self._config = config
        self._first_step = first_step
        dtype = torch.float64 if config.precision == "64" else torch.float32
        total = max(1, len(train) + len(validation))
        share = config.data.cache_megabytes * 1_000_000 // total
        self._train = BatchBuilder(train, config.network, dtype, share * len(train))
        self._validation = BatchBuilder(validation, config.network, dtype, share * len(validation))

    def train_dataloader(self) -> DataLoader[Batch]:
        """One batch for every step that is left."""
        assert self.trainer is not None
        dataset = TrainingBatches(
            self._train, self._config, self.trainer.global_rank, self.trainer.world_size
        )
        steps = _StepsFrom(self._first_step, self._config.optimisation.steps)
        return self._loader(dataset, steps)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Blocks of the left-out structures, shared out among the processes."""
        assert self.trainer is not None
        dataset = ValidationBatches(
            self._validation, self._config.data.validation_points, self._config.seed
        )
        rank, processes = self.trainer.global_rank, self.trainer.world_size
        each = math.ceil(len(dataset) / processes)
        return self._loader(dataset, range(rank, each * processes, processes))

    def _loader(
        self, dataset: Dataset[Batch], order: Sampler[int] | Sequence[int]
    ) -> DataLoader[Batch]:
        workers = self._config.data.workers
        return DataLoader(
            dataset,
            batch_size=None,
            sampler=order,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_ignore_interrupts if workers > 0 else None,
        )


def _ignore_interrupts(worker: int) -> None:
    """A terminal sends Ctrl-C to workers, too: the run itself ends them, behind its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def load_sources(config: TrainingConfig) -> tuple[list[Source], list[Source]]:
    """Structures to train on and structures left out.

    Raises
    ------
    ConfigurationError
        A pattern matches no file, nothing is left to train on, or full grids are to be used with
        all points at once.
    DensityFileError, StructureError
        A file cannot be used; the message names it.
    """
    data = config.data
    train_files = _expand(data.train, "data.train")
    validation_files: list[Path] = []
    if isinstance(data.validation, tuple):
        validation_files = _expand(data.validation, "data.validation")
        train_files = [file for file in train_files if file not in validation_files]
        for files, others in ((train_files, validation_files), (validation_files, train_files)):
            stores = set(others)
            for file in files:
                if inside := stores.intersection(file.parents):
                    raise ConfigurationError(
                        f"data.validation: {file} lies in the store {inside.pop()}: the same "
                        "structures would be trained on and left out. Give a number of structures "
                        "to leave out, or make stores of their own."
                    )
    spin = config.network.spin
    train, validation = _read_all(train_files, spin), _read_all(validation_files, spin)
    if validation_files and not validation:
        raise ConfigurationError(
            f"data.validation: there is no structure in {', '.join(map(str, validation_files))}."
        )
    if isinstance(data.validation, int | float) and data.validation > 0:
        share = data.validation
        count = share if isinstance(share, int) else max(1, round(share * len(train)))
        if count < len(train):
            out = left_out(config.seed, [set(s.atoms.symbols) for s in train], count)
            if len(out) < count:
                log.warning(
                    "data.validation: %d structures are left out instead of %d; the others hold "
                    "elements that no further structure has.",
                    len(out),
                    count,
                )
            validation = [train[index] for index in out]
            train = [source for index, source in enumerate(train) if index not in out]
        else:
            raise ConfigurationError(
                f"data.validation: {count} of {len(train)} structures cannot be left out; "
                "nothing would remain to train on. Add structures, or set it to 0."
            )
    # The same calculation may have come twice, as a file and in a store say.
    known = {_identity(source) for source in validation}
    different = [source for source in train if _identity(source) not in known]
    if len(different) < len(train):
        log.warning(
            "data.train: %d structures are left out of the training, too: they are the same as "
            "some that data.validation leaves out.",
            len(train) - len(different),
        )
    train = different
    if not train:
        raise ConfigurationError("data.train: no structure is left to train on.")
    if data.points_per_structure is None and any(source.is_grid for source in train):
        raise ConfigurationError(
            "data.points_per_structure: full grids need a number of points per step."
        )
    if not data.sampling.is_uniform and not all(source.is_grid for source in train):
        raise ConfigurationError(
            "data.sampling: sampled files can be drawn from uniformly only; the other strategies "
            "need full grids."
        )
    if config.network.spin and not any(source.has_spin for source in train):
        raise ConfigurationError(
            "network.spin: none of the training data has a spin density to learn from."
        )
    return train, validation


def _identity(source: Source) -> tuple[bytes, ...]:
    """Equal for the same structure with the same initial moments."""
    atoms = source.atoms
    # Files of text round.
    numbers = (atoms.positions, atoms.cell.array, atoms.get_initial_magnetic_moments())
    return (
        atoms.numbers.astype(np.int64).tobytes(),
        *((np.round(values, 5) + 0.0).tobytes() for values in numbers),
    )


def onsite_layout(sources: Sequence[Source]) -> OnsiteLayout:
    """The layout of GPAW's matrices D in the data.

    Raises
    ------
    ConfigurationError
        Nothing is known of the PAW data set of an element.
    """
    found: dict[str, PawDataset] = {}
    for source in sources:
        symbols = set(source.atoms.symbols)
        if symbols <= found.keys():
            continue
        found |= source.paw_datasets()
        if missing := symbols - found.keys():
            raise ConfigurationError(
                f"network.onsite: the data do not say which PAW data set {min(missing)} has. Only "
                "stores made by `eac data gpaw` do; for others write out code and channels."
            )
    return OnsiteLayout.of_gpaw(found)


def superposition_samples(train: Sequence[Source], seed: int) -> Iterator[DensitySample]:
    """Point samples to fit free-atom densities and scales to: up to 64 structures an element.

    Many structures need fewer points each; they share :data:`SUPERPOSITION_POINTS`.
    """
    chosen = covering(train, seed, 64)
    count = int(np.clip(SUPERPOSITION_POINTS // len(chosen), 1000, 5000))
    for index in with_progress(chosen, "sampling densities"):
        source = train[index]
        if source.n_points <= count:
            yield source.select(np.arange(source.n_points))
        else:
            rng = point_generator(seed, index)
            yield source.select(np.sort(rng.choice(source.n_points, count, replace=False)))


def with_progress(items: Sequence[Item], what: str) -> Iterable[Item]:
    """The items, with a bar that goes away at the end, and that only a terminal gets."""
    return tqdm(items, desc=what, leave=False, disable=None)


def covering(train: Sequence[Source], seed: int, count: int) -> list[int]:
    """Structures in an order drawn by the seed, but those whose elements all have ``count``."""
    seen: Counter[str] = Counter()
    chosen = []
    for index in point_generator(seed, len(train)).permutation(len(train)):
        symbols = set(train[index].atoms.symbols)
        if any(seen[symbol] < count for symbol in symbols):
            seen.update(symbols)
            chosen.append(int(index))
    return chosen


def onsite_examples(
    config: TrainingConfig, train: Sequence[Source]
) -> list[tuple[AtomGraph, Tensor]]:
    """Atoms and their on-site data, (2, n, width), for the fit of the readouts.

    Of every element those of :data:`EXAMPLE_STRUCTURES` structures, drawn by the seed.
    """
    layout = config.network.onsite
    if layout is None:
        return []
    assert isinstance(layout, OnsiteLayout)
    dtype = torch.float64 if config.precision == "64" else torch.float32
    nowhere = np.empty(0, dtype=np.int64)
    examples = []
    for index in with_progress(covering(train, config.seed, EXAMPLE_STRUCTURES), "on-site data"):
        sample = train[index].select(nowhere)
        rows = torch.as_tensor(onsite_rows(layout, sample), dtype=dtype)
        examples.append((atom_graph(sample.atoms, config.network.atom_cutoff, dtype), rows))
    return examples


def _expand(patterns: Sequence[str], key: str) -> list[Path]:
    files: dict[Path, None] = {}
    for pattern in patterns:
        name = str(Path(pattern).expanduser())
        # A name that is there is no pattern, whatever brackets it has.
        matches = [name] if Path(name).exists() else sorted(glob.glob(name, recursive=True))
        if not matches:
            raise ConfigurationError(f"{key}: there is no file {pattern!r}.")
        files.update(dict.fromkeys(Path(match).resolve() for match in matches))
    return list(files)


def _read_all(files: Sequence[Path], spin: bool) -> list[Source]:
    sources: list[Source] = []
    for file in with_progress(files, "reading"):
        for source in _open(file):
            try:
                check_structure(source.atoms, spin=spin)
            except EACError as error:
                raise type(error)(f"{file}: {error}") from error
            sources.append(source)
    return sources


def _open(path: Path) -> list[Source]:
    if not path.is_dir():
        return [LoadedSource(read_density(path))]
    store = DensityStore.open(path)
    indices = with_progress(range(len(store)), path.name)
    return [StoredSource(store, index) for index in indices]
