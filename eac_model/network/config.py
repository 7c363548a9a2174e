"""Configurations of networks: frozen objects, one class an architecture.

The field docstrings are the documentation.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from annotated_types import Len
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    model_validator,
)

from eac_model.onsite import OnsiteLayout

Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Hidden = tuple[Positive, ...]

Embedding = Literal["one-hot", "shell-filling", "both", "learned"]
Decoder = Literal["linear", "value-weight", "linear+value-weight"]
Weight = Literal["I", "S", "MLP+S", "MLPxS", "SoftmaxxS", "smooth"]
Concatenation = Literal["distance", "basis", "type"]


class RadialBasis(BaseModel):
    """Functions of one distance r in which every radial dependence is expanded."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["bessel", "gaussian", "signed-gaussian", "spline", "natural-spline"] = "bessel"
    """``bessel``: sin(kπr/r_c)/r; ``gaussian``: learned centres and widths; ``signed-gaussian``:
    the same with learned exponents of either sign, as published models have them; ``spline``:
    cubic B-splines on knots that crowd towards the nucleus, for functions that must follow a
    density through its core; ``natural-spline``: without a second derivative at the nucleus, where
    few points lie and a free coefficient follows the noise of these few."""
    size: Positive = 8
    """Number of basis functions."""
    core_radius: PositiveFloat = 0.7
    """Å. Splines only: knots are uniform in ln(1 + (r/core_radius)²), so functions are
    polynomials of r² well inside this radius. Take the radius below which a density has no
    structure of its own: pseudo-densities 0.5 … 0.8, all-electron densities much less."""
    cutoff_power: Annotated[int, Field(ge=2)] = 6
    """p of the polynomial cutoff 1 − (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) − p(p+1)/2 x^(p+2),
    x = r/r_c; value and two derivatives vanish at r_c."""

    @model_validator(mode="after")
    def _splines_are_cubic(self) -> Self:
        if self.kind.endswith("spline") and self.size < 4:
            raise ValueError(f"a cubic {self.kind} needs a size of 4 or more, not {self.size}")
        return self


class CommonConfig(BaseModel):
    """What every architecture is asked."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    architecture: str
    """Which network this is."""
    elements: Annotated[tuple[Annotated[int, Field(ge=1, le=118)], ...], Len(1)]
    """Atomic numbers the model is built for, ascending. Others are refused at prediction."""
    spin: bool = False
    """Predict ρ↑ and ρ↓. One network g is evaluated with the initial moments and with all of them
    flipped: ρ↑ = g(m), ρ↓ = g(−m), so that of any weights the spin density is odd and the
    density even."""
    superposition: bool = False
    """Add the superposed densities of free atoms (radial tables in the model file), so that the
    network learns the difference only."""

    @model_validator(mode="after")
    def _elements_ascend(self) -> Self:
        if list(self.elements) != sorted(set(self.elements)):
            raise ValueError("elements must be distinct and ascending")
        return self


class NetworkConfig(CommonConfig):
    """Everything that decides the shape of an :class:`~eac_model.network.EACNet`.

    Notation of arXiv 2508.04052; irreps of the descriptors are ``channels`` × (0e + 1o + 2e + …)
    up to ``l_max``.
    """

    architecture: Literal["eac-net"] = "eac-net"
    """Which network this is."""
    embedding: Embedding = "both"
    """How an element enters: ``one-hot``; ``shell-filling``, the occupations of 1s … 7p over their
    maxima, which lets elements learn from each other; ``both`` concatenated; or ``learned``, a
    table of its own."""
    embedding_size: Annotated[int, Field(ge=0)] = 0
    """Numbers an element has in the ``learned`` embedding; of use there only."""

    l_max: Annotated[int, Field(ge=0, le=8)] = 3
    """Highest angular momentum of descriptors and spherical harmonics."""
    channels: Positive = 32
    """Channels C of every angular momentum."""
    interactions: Annotated[int, Field(ge=0)] = 3
    """Number N of atom–atom interactions (convolution, species term, gate, residual)."""
    atom_cutoff: PositiveFloat = 4.0
    """Neighbours within this distance of an atom shape its descriptors, Å."""
    atom_basis: RadialBasis = RadialBasis(kind="bessel", size=8, cutoff_power=2)
    """Radial basis of the atom–atom interactions. The low cutoff power lets near neighbours count
    for more than the many distant ones, which little data need."""
    atom_radial_hidden: Hidden = (64,)
    """Hidden widths of the radial networks of the atom–atom interactions."""
    average_neighbors: PositiveFloat = 20.0
    """Messages are divided by the square root of this number. A larger number makes the network
    start, and with little data stay, closer to linear."""
    residual: bool = True
    """Interactions add to the features instead of replacing them. The published network replaces
    them."""
    biases: bool = False
    """Constants in the radial networks and in the linear layers of scalars, as in the published
    network. With them a neighbour's message ends with a step at the cutoff."""

    decoder: Decoder = "linear"
    """How descriptors become a density: ``linear`` in the descriptors with learned radial
    functions; ``value-weight``, the paper's v(G)·w(G, r) behind the atom–grid coupling; or the sum
    of the two."""
    point_cutoff: PositiveFloat = 4.0
    """An atom contributes to the density within this distance, Å. The paper takes 6 Å. Linear
    decoders learn liquid water better, and run faster, with 3 … 3.5 Å: what an atom adds far away
    can be said as well by the atoms near there. Keep it above the largest distance of a point
    from the nearest atom at which the density matters."""

    linear_functions: Positive = 16
    """Learned radial functions of the linear decoder for every element and angular momentum; they
    are to the network what an auxiliary basis set is to density fitting."""
    linear_basis: RadialBasis = RadialBasis(kind="natural-spline", size=40, cutoff_power=3)
    """Radial basis in which those functions are expanded."""

    point_basis: RadialBasis = RadialBasis(kind="gaussian", size=8, cutoff_power=3)
    """Radial basis B(r) of the atom–grid coupling (value-weight decoder)."""
    point_radial_hidden: Hidden = (64,)
    """Hidden widths of the radial networks of the coupling."""
    coupling_updates: Positive = 2
    """Edge updates of the coupling; the last keeps l = 0 only."""
    coupling_scalars: Positive = 100
    """Scalars that leave the last edge update."""
    bottleneck: Annotated[Hidden, Len(1)] = (64, 24)
    """Widths of the network that compresses those scalars; the last one is the size of G."""
    concatenate: tuple[Concatenation, ...] = ("distance", "basis", "type")
    """What is appended to G: any subset of the distance r, the basis B(r), the type embedding Z."""
    value_hidden: Hidden = (64,)
    """Hidden widths of the value network v."""
    weight: Weight = "S"
    """Weight w: ``I`` (1); ``S`` (the cutoff function); ``MLP+S`` and ``MLPxS`` (softmax over the
    atoms at a point of MLP + S, and of MLP multiplied by S); ``SoftmaxxS`` (softmax times S);
    ``smooth``: S exp(a)/(1 + Σ S exp(a)), twice continuously differentiable everywhere."""
    weight_hidden: Hidden = (64,)
    """Hidden widths of the weight network."""
    offset: tuple[float, ...] = ()
    """Constant density, e/Å³, where any atom is in reach; one number, or those of ρ↑ and ρ↓. For
    imported models, whose authors learned deviations from a mean; the value-weight decoder alone
    has it."""
    spin_from: Literal["moments", "outputs"] = "moments"
    """Where ρ↑ and ρ↓ of spin models come from: initial ``moments``, or two ``outputs`` of the
    value network, as in the published one, which knows no moments and one spin density for a
    structure."""

    onsite: OnsiteLayout | None = None
    """On-site PAW data that are predicted beside the density, from which VASP or GPAW can truly
    start; None: the density only. Elements without channels have none."""

    @property
    def value_outputs(self) -> int:
        """Numbers that leave the value network."""
        return 2 if self.spin_from == "outputs" else 1

    @property
    def superposition_basis(self) -> RadialBasis:
        """Radial basis of the free atoms, which ride along in the linear decoder."""
        return self.linear_basis

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if len(set(self.concatenate)) != len(self.concatenate):
            raise ValueError("concatenate lists an item twice")
        if (self.embedding == "learned") != (self.embedding_size > 0):
            raise ValueError('embedding "learned", and no other, needs an embedding_size')
        if self.spin_from == "outputs":
            if not self.spin or self.decoder != "value-weight":
                raise ValueError(
                    'spin_from "outputs" needs spin and the decoder "value-weight" alone'
                )
            if self.onsite is not None:
                raise ValueError('spin_from "outputs" knows no on-site data: set onsite to null')
        if self.offset and (
            "value-weight" not in self.decoder or len(self.offset) != self.value_outputs
        ):
            raise ValueError("offset is one number for each output of the value-weight decoder")
        return self


class DeepChargeConfig(CommonConfig):
    """Everything that decides the shape of a :class:`~eac_model.network.deepcharge.DeepCharge`.

    Notation of Phys. Rev. B 108, 235159 (arXiv 2309.14638) and of DeepPot-SE (arXiv 1805.09003).
    """

    architecture: Literal["deep-charge"]
    """Which network this is."""

    point_cutoff: PositiveFloat = 6.5
    """r_c, Å: atoms within this distance of a point are its environment."""
    switch_from: Annotated[float, Field(ge=0)] = 0.5
    """r_s, Å: where s(r) starts to fall below 1/r; it reaches zero, with two derivatives, at the
    cutoff."""
    core_radius: PositiveFloat = 0.1
    """a, Å: 1/r is 1/√(r² + a²), since points, unlike atoms, may lie on a nucleus."""
    embedding_widths: Annotated[Hidden, Len(1)] = (20, 40, 80)
    """Widths of the embedding network of each element; a layer as wide as, or twice as wide as,
    the one before adds its input (once or twice) to its output."""
    axis_neurons: Positive = 16
    """M_<: columns of the embedding matrix that the invariants are taken with."""
    fitting_widths: Annotated[Hidden, Len(1)] = (200, 200, 200)
    """Widths of the fitting network; layers of equal widths add their input."""
    superposition_basis: RadialBasis = RadialBasis(kind="natural-spline", size=40, cutoff_power=3)
    """Radial basis of the superposed free atoms."""

    @property
    def atom_cutoff(self) -> float:
        """Zero: atoms do not see each other, only points see atoms."""
        return 0.0

    @property
    def onsite(self) -> None:
        """No on-site data: there are no descriptors of atoms to read them from."""
        return None

    @model_validator(mode="after")
    def _switch_before_cutoff(self) -> Self:
        if self.switch_from >= self.point_cutoff:
            raise ValueError("switch_from must be smaller than point_cutoff")
        if self.core_radius >= self.point_cutoff:
            raise ValueError("core_radius must be smaller than point_cutoff")
        if self.axis_neurons > self.embedding_widths[-1]:
            raise ValueError("axis_neurons cannot exceed the last of embedding_widths")
        return self


class ChargE3NetConfig(CommonConfig):
    """Everything that decides the shape of a :class:`~eac_model.network.charge3net.ChargE3Net`.

    Notation of npj Comput. Mater. 10, 161 (arXiv 2312.05388).
    """

    architecture: Literal["charge3net"]
    """Which network this is."""

    l_max: Annotated[int, Field(ge=0, le=8)] = 4
    """Highest angular momentum of features and spherical harmonics."""
    channels: Positive = 500
    """Size of the features: every l has about channels/(l_max + 1) numbers of each parity."""
    interactions: Positive = 3
    """Layers of atoms, and of points."""
    atom_cutoff: PositiveFloat = 4.0
    """Neighbours within this distance send messages to an atom, Å."""
    point_cutoff: PositiveFloat = 4.0
    """Atoms within this distance send messages to a point, Å."""
    basis_size: Annotated[int, Field(ge=2)] = 20
    """Gaussians of the radial basis."""
    radial_hidden: Hidden = (100,)
    """Hidden widths of the radial networks."""
    average_neighbors: PositiveFloat = 20.0
    """Sums of messages are divided by the square root of this number."""
    cutoff_power: Annotated[int, Field(ge=2)] | None = 6
    """p of the polynomial by which messages fade at the cutoffs; null, as in the paper: they do not
    fade, and densities jump where an atom comes into reach."""
    core_radius: Annotated[float, Field(ge=0)] = 0.1
    """a, Å: points see r/√(r² + a²) instead of directions, so that the density is smooth at nuclei;
    0, as in the paper: it has kinks there."""
    spin_from: Literal["moments", "outputs"] = "moments"
    """Where ρ↑ and ρ↓ of spin models come from: initial ``moments``, or two ``outputs`` as in the
    published code (one of them odd under reflections)."""
    superposition_basis: RadialBasis = RadialBasis(kind="natural-spline", size=40, cutoff_power=3)
    """Radial basis of the superposed free atoms."""

    @property
    def onsite(self) -> None:
        """No on-site data."""
        return None

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.spin_from == "outputs" and not self.spin:
            raise ValueError('spin_from "outputs" needs spin')
        if round(self.channels / (self.l_max + 1)) < 1:
            raise ValueError(f"{self.channels} channels leave no scalars at l_max {self.l_max}")
        return self


ARCHITECTURE_NAMES = ("eac-net", "deep-charge", "charge3net")
"""What ``architecture`` may be."""


def _architecture_of(values: Any) -> str:
    """The architecture that a mapping or a configuration names; without a name EAC-Net."""
    if isinstance(values, dict):
        return str(values.get("architecture", "eac-net"))
    return str(getattr(values, "architecture", "eac-net"))


ARCHITECTURE = Discriminator(
    _architecture_of,
    custom_error_type="architecture",
    custom_error_message=f"architecture is one of {', '.join(ARCHITECTURE_NAMES)}",
)
"""Tells configurations of networks apart."""

AnyNetworkConfig = NetworkConfig | DeepChargeConfig | ChargE3NetConfig
"""Configuration of any architecture."""

_any_config: TypeAdapter[AnyNetworkConfig] = TypeAdapter(
    Annotated[
        Annotated[NetworkConfig, Tag("eac-net")]
        | Annotated[DeepChargeConfig, Tag("deep-charge")]
        | Annotated[ChargE3NetConfig, Tag("charge3net")],
        ARCHITECTURE,
    ]
)


def network_config(values: dict[str, Any]) -> AnyNetworkConfig:
    """The configuration that a mapping describes, of whatever architecture it names.

    Raises
    ------
    pydantic.ValidationError
        A key is unknown, missing or of a wrong value.
    """
    return _any_config.validate_python(values)
