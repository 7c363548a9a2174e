"""What decides a training run: one frozen object, read from YAML.

The field docstrings are the documentation of the keys.
"""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from eac_model.data.sample import DensityKind
from eac_model.data.sampling import SamplingMixture
from eac_model.errors import ConfigurationError, list_problems
from eac_model.files import read_mapping
from eac_model.network.config import (
    ARCHITECTURE,
    ARCHITECTURE_NAMES,
    ChargE3NetConfig,
    DeepChargeConfig,
    NetworkConfig,
    PositiveFloat,
)
from eac_model.onsite import OnsiteLayout

Count = Annotated[int, Field(ge=1)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str | Path) else value


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) else value


def _left_out(value: Any) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    share = isinstance(value, float) and 0 < value < 1
    if not (whole or share or isinstance(value, str | Path | list | tuple)):
        raise ValueError(f"files, a number of structures, or a fraction below 1; not {value!r}")
    return value


Files = Annotated[tuple[str, ...], BeforeValidator(_as_tuple), Field(min_length=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class NetworkSection(NetworkConfig):
    """EAC-Net; ``elements`` may be left out and is then read from the training data."""

    elements: tuple[Annotated[int, Field(ge=1, le=118)], ...] = ()
    """Atomic numbers the model is built for, ascending; empty: those of the training data."""
    superposition: bool = True
    """Add the superposed densities of free atoms, fitted to the training data before the first
    step, so that the network learns the difference only: about half the error after few steps."""
    onsite: OnsiteLayout | Literal["from-data"] | None = None  # type: ignore[assignment]
    """On-site PAW data that are predicted beside the density; ``from-data``: the matrices D of the
    GPAW calculations in the training data, whose PAW data sets lie beside the densities."""


class DeepChargeSection(DeepChargeConfig):
    """Deep Charge; ``elements`` may be left out and is then read from the training data."""

    elements: tuple[Annotated[int, Field(ge=1, le=118)], ...] = ()
    """Atomic numbers the model is built for, ascending; empty: those of the training data."""
    superposition: bool = True
    """Add the superposed densities of free atoms, fitted to the training data before the first
    step, so that the network learns the difference only: about half the error after few steps."""


class ChargE3NetSection(ChargE3NetConfig):
    """ChargE3Net; ``elements`` may be left out and is then read from the training data."""

    elements: tuple[Annotated[int, Field(ge=1, le=118)], ...] = ()
    """Atomic numbers the model is built for, ascending; empty: those of the training data."""
    superposition: bool = True
    """Add the superposed densities of free atoms, fitted to the training data before the first
    step, so that the network learns the difference only: about half the error after few steps."""


AnyNetworkSection = Annotated[
    Annotated[NetworkSection, Tag("eac-net")]
    | Annotated[DeepChargeSection, Tag("deep-charge")]
    | Annotated[ChargE3NetSection, Tag("charge3net")],
    ARCHITECTURE,
]
"""The network, by its ``architecture``; without that key EAC-Net."""

network_section: TypeAdapter[NetworkSection | DeepChargeSection | ChargE3NetSection] = TypeAdapter(
    AnyNetworkSection
)
"""Makes the section of any architecture."""


class DataSection(_Section):
    """Densities to learn from, and how points are drawn from them."""

    train: Files
    """Density files, stores and globs (``frames/*.h5``), relative to the configuration file."""
    validation: Annotated[Files | int | float, BeforeValidator(_left_out)] = 0
    """Left-out structures: files (taken out of ``train`` if it matches them too), a number of
    structures, or a fraction of them; the last two are chosen by ``seed`` such that of every
    element a structure remains to train on. 0: none."""
    points_per_structure: Count | None = 1500
    """Points drawn from a structure at every step; None takes all points of sampled structures
    (full grids need a number)."""
    structures_per_batch: Count = 1
    """Structures a step sees on every device."""
    sampling: SamplingMixture = SamplingMixture()
    """Mixture of the strategies that draw points from full grids, by proportions. Weights make the
    losses estimates of the grid average whatever the mixture. Sampled files allow ``uniform``
    only; their points are drawn without replacement."""
    validation_points: Count | None = 20000
    """Validation takes this many points of a full grid, uniformly and always the same; None takes
    the whole grid. Of sampled structures it takes all points."""
    cache_megabytes: Annotated[int, Field(ge=0)] = 2000
    """Memory, of every process, for what is kept between steps, MB: densities out of stores, and
    atom–point pairs of sampled structures that are taken with all their points."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that prepare batches beside the training process."""


class DecayStage(_Section):
    """One stretch of exponential decay of the learning rate."""

    final: PositiveFloat
    """Learning rate at the end of the stage."""
    steps: Count | None = None
    """Length of the stage; None, allowed for the last stage: to the end of the run."""


class OptimisationSection(_Section):
    """Optimiser, learning rate, averaging."""

    steps: Count = 10_000
    """Optimisation steps of the whole run."""
    optimizer: Literal["adam", "adamw", "lamb", "muon"] = "adam"
    """``muon`` makes the steps of matrices orthogonal (arXiv 2502.16982) and takes ``adamw`` for
    all else: for networks of dense layers, as Deep Charge. It and ``lamb`` need the package
    pytorch-optimizer (``pip install 'eac-density[optimizers]'``)."""
    learning_rate: PositiveFloat = 5e-3
    """Learning rate after the warm-up, where the decay starts."""
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    """The learning rate rises linearly over this many steps."""
    decay: tuple[DecayStage, ...] = (DecayStage(final=2e-5),)
    """Stages of exponential decay, one after the other, from the end of the warm-up; after the
    last one the learning rate stays. Empty: constant learning rate."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay (L2 penalty for ``adam``, decoupled for all others)."""
    gradient_clip: PositiveFloat | None = 1.0
    """Largest norm of the gradient; None does not clip."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = 0.999
    """Decay of the exponential moving average of the weights, which validation and the saved model
    use; early steps forget faster, (1 + n)/(10 + n). None uses the weights themselves."""

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        if any(stage.steps is None for stage in self.decay[:-1]):
            raise ValueError("decay: only the last stage may leave out steps")
        used = self.warmup_steps + sum(stage.steps or 0 for stage in self.decay)
        if used > self.steps:
            raise ValueError(
                f"warmup_steps and decay take {used} steps, the run has {self.steps} (steps)"
            )
        return self


class LossSection(_Section):
    """What is minimised; w are the sampling weights of the points."""

    kind: Literal["l1", "l2", "nmae"] = "nmae"
    """``l1``: Σ w|ρ−ρ̂| / Σ w; ``l2``: Σ w(ρ−ρ̂)² / Σ w; ``nmae``: Σ w|ρ−ρ̂| / Σ w|ρ|."""
    spin_weight: NonNegativeFloat = 1.0
    """Spin models: factor of the same expression for the spin density s = ρ↑ − ρ↓ (for ``nmae``
    divided by Σ w|ρ| as well, since s may vanish)."""
    onsite_weight: NonNegativeFloat = 0.01
    """Networks with on-site data (``network.onsite``): factor of their term, the mean over atoms
    and blocks of the root mean square deviation of a block in units of its spread; with spin, of
    the sum and of the difference of the spins. 0: descriptors learn from the density alone, which
    is then better; the readouts of on-site data are fitted to them all the same."""


class ProvenanceSection(_Section):
    """What the model file says of its densities where the data do not say it, or contradict."""

    code: str | None = None
    """Program that computed the densities."""
    functional: str | None = None
    """Exchange–correlation functional."""
    density_kind: DensityKind | None = None
    """What the densities count."""
    paw_datasets: tuple[str, ...] | None = None
    """Names of the PAW data sets."""


class CardSection(_Section):
    """Texts of the model card."""

    name: str = "untitled"
    """Name of the model."""
    summary: str = ""
    """What the model is for, in a sentence."""
    provenance: ProvenanceSection = ProvenanceSection()
    """Overrides of what the data say."""
    valence_electrons: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Electrons the density counts, by element symbol; empty: unknown."""
    licence: str = "unknown"
    """Licence of the weights."""
    citation: str = ""
    """What users of the model should cite."""


class TrainingConfig(_Section):
    """Everything that decides a training run."""

    data: DataSection
    """Densities to learn from."""
    network: AnyNetworkSection = NetworkSection()
    """Shape of the network; the key ``architecture`` says which it is."""
    optimisation: OptimisationSection = OptimisationSection()
    """Optimiser, learning rate, averaging."""
    loss: LossSection = LossSection()
    """What is minimised."""
    card: CardSection = CardSection()
    """Texts of the model card."""

    initialize_from: str | None = None
    """Fine-tuning: model file (or bundled name) whose weights the run starts from. Its network is
    used; keys given under ``network`` must agree with it, but for ``onsite``, which may differ. If
    its densities are of another code, functional or kind, free atoms are fitted anew."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides initial weights, left-out structures and every draw."""
    precision: Annotated[Literal["32", "64", "bf16-mixed"], BeforeValidator(_as_text)] = "32"
    """``bf16-mixed``: automatic mixed precision, meant for GPUs."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Device to train on; ``auto`` takes a GPU if there is one."""
    devices: Count = 1
    """Number of devices; several train with distributed data parallelism."""
    validate_every: Count = 500
    """Steps between validations; the last step is always validated."""
    checkpoint_every: Count = 500
    """Steps between checkpoints for resuming."""
    log_every: Count = 50
    """Steps between rows of metrics.csv."""

    @classmethod
    def from_yaml(cls, path: str | Path) -> TrainingConfig:
        """Read a configuration; relative paths in it are relative to its folder.

        Raises
        ------
        ConfigurationError
            The file cannot be read or is no YAML, or a key is unknown, missing or of a wrong
            value; the message names the file and the key.
        """
        path = Path(path)
        content = read_mapping(path)
        return cls.from_mapping(content, origin=path)

    @classmethod
    def from_mapping(cls, content: dict[str, Any], origin: Path | None = None) -> TrainingConfig:
        """Check a nested mapping; relative paths are made absolute against ``origin``'s folder.

        Raises
        ------
        ConfigurationError
            A key is unknown, missing or of a wrong value; the message names it.
        """
        try:
            config = cls.model_validate(content)
        except ValidationError as error:
            where = f"{origin}: " if origin else ""
            raise ConfigurationError(where + list_problems(error, _key)) from error
        return config if origin is None else config._relative_to(origin.absolute().parent)

    def to_yaml(self) -> str:
        """The configuration as YAML, every key written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def _relative_to(self, folder: Path) -> TrainingConfig:
        # Brackets in the folder's own name are no pattern.
        inside = Path(glob.escape(str(folder)))

        def absolute(files: Files) -> tuple[str, ...]:
            paths = [Path(file).expanduser() for file in files]
            return tuple(str((folder if (folder / p).exists() else inside) / p) for p in paths)

        data = self.data
        update: dict[str, Any] = {"train": absolute(data.train)}
        if isinstance(data.validation, tuple):
            update["validation"] = absolute(data.validation)
        start = self.initialize_from
        if start is not None and (folder / Path(start).expanduser()).is_file():
            start = str(folder / Path(start).expanduser())
        return self.model_copy(
            update={"data": data.model_copy(update=update), "initialize_from": start}
        )


def _key(location: tuple[int | str, ...]) -> str:
    # Pydantic names the member of a union it tried; keys of ours have no such parts.
    names = {"Files", "OnsiteLayout", "int", "float", "none", *ARCHITECTURE_NAMES}
    kinds = ("function-", "constrained-", "tuple[", "literal[")
    tried = map(str, location)
    parts = [part for part in tried if part not in names and not part.startswith(kinds)]
    return ".".join(parts) or "configuration"
