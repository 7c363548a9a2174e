"""The network's configuration: one frozen object; its field docstrings are the documentation."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from annotated_types import Len
from ase.data import chemical_symbols
from pydantic import BaseModel, ConfigDict, Field, model_validator

from eac_model.onsite import OnsiteLayout

Positive = Annotated[int, Field(ge=1)]
Hidden = tuple[Positive, ...]

Embedding = Literal["one-hot", "shell-filling", "both"]
Decoder = Literal["linear", "value-weight", "linear+value-weight"]
Weight = Literal["I", "S", "MLP+S", "MLPxS", "SoftmaxxS", "smooth"]
Concatenation = Literal["distance", "basis", "type"]


class RadialBasis(BaseModel):
    """Functions of one distance r in which every radial dependence is expanded."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["bessel", "gaussian", "spline"] = "bessel"
    """``bessel``: sin(kπr/r_c)/r; ``gaussian``: learned centres and widths; ``spline``: cubic
    B-splines on knots that crowd towards the nucleus, for functions that must follow a density
    through its core."""
    size: Positive = 8
    """Number of basis functions."""
    core_radius: Annotated[float, Field(gt=0)] = 0.7
    """Å. ``spline`` only: knots are uniform in ln(1 + (r/core_radius)²), so functions are
    polynomials of r² well inside this radius. Take the radius below which a density has no
    structure of its own: pseudo-densities 0.5 … 0.8, all-electron densities much less."""
    cutoff_power: Annotated[int, Field(ge=2)] = 6
    """p of the polynomial cutoff 1 − (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) − p(p+1)/2 x^(p+2),
    x = r/r_c; value and two derivatives vanish at r_c."""


class NetworkConfig(BaseModel):
    """Everything that decides the shape of an :class:`~eac_model.network.EACNet`.

    Notation of arXiv 2508.04052; irreps of the descriptors are ``channels`` × (0e + 1o + 2e + …)
    up to ``l_max``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    elements: Annotated[tuple[Annotated[int, Field(ge=1, le=118)], ...], Len(1)]
    """Atomic numbers the model is built for, ascending. Others are refused at prediction."""
    embedding: Embedding = "both"
    """How an element enters: ``one-hot``; ``shell-filling``, the occupations of 1s … 7p over their
    maxima, which lets elements learn from each other; or ``both`` concatenated."""

    l_max: Annotated[int, Field(ge=0, le=8)] = 3
    """Highest angular momentum of descriptors and spherical harmonics."""
    channels: Positive = 32
    """Channels C of every angular momentum."""
    interactions: Annotated[int, Field(ge=0)] = 3
    """Number N of atom–atom interactions (convolution, species term, gate, residual)."""
    atom_cutoff: Annotated[float, Field(gt=0)] = 4.0
    """Neighbours within this distance of an atom shape its descriptors, Å."""
    atom_basis: RadialBasis = RadialBasis(kind="bessel", size=8, cutoff_power=2)
    """Radial basis of the atom–atom interactions. The low cutoff power lets near neighbours count
    for more than the many distant ones, which little data need."""
    atom_radial_hidden: Hidden = (64,)
    """Hidden widths of the radial networks of the atom–atom interactions."""
    average_neighbors: Annotated[float, Field(gt=0)] = 20.0
    """Messages are divided by the square root of this number. A larger number makes the network
    start, and with little data stay, closer to linear."""

    decoder: Decoder = "linear"
    """How descriptors become a density: ``linear`` in the descriptors with learned radial
    functions; ``value-weight``, the paper's v(G)·w(G, r) behind the atom–grid coupling; or the sum
    of the two."""
    point_cutoff: Annotated[float, Field(gt=0)] = 4.0
    """An atom contributes to the density within this distance, Å. The paper takes 6 Å. Linear
    decoders learn liquid water better, and run faster, with 3 … 3.5 Å: what an atom adds far away
    can be said as well by the atoms near there. Keep it above the largest distance of a point
    from the nearest atom at which the density matters."""

    linear_functions: Positive = 16
    """Learned radial functions of the linear decoder for every element and angular momentum; they
    are to the network what an auxiliary basis set is to density fitting."""
    linear_basis: RadialBasis = RadialBasis(kind="spline", size=40, cutoff_power=3)
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

    spin: bool = False
    """Predict ρ↑ and ρ↓. One network g is evaluated with the initial moments and with all of them
    flipped: ρ↑ = g(m), ρ↓ = g(−m), so the spin density is odd and the density even, exactly."""
    superposition: bool = False
    """Add the superposed densities of free atoms (radial tables in the model file), so that the
    network learns the difference only."""

    onsite: OnsiteLayout | None = None
    """On-site PAW data that are predicted beside the density, from which VASP or GPAW can truly
    start; None: the density only."""

    @model_validator(mode="after")
    def _elements_ascend(self) -> Self:
        if list(self.elements) != sorted(set(self.elements)):
            raise ValueError("elements must be distinct and ascending")
        if len(set(self.concatenate)) != len(self.concatenate):
            raise ValueError("concatenate lists an item twice")
        if self.onsite is not None:
            for number in self.elements:
                if chemical_symbols[number] not in self.onsite.channels:
                    raise ValueError(f"onsite.channels lacks {chemical_symbols[number]}")
        return self
