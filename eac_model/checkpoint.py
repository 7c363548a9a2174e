"""Model files: one safetensors file with the weights, and JSON with everything else, in its header.

Nothing is pickled and nothing pickled is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from eac_model.data.sample import Provenance
from eac_model.errors import ModelFileError
from eac_model.files import write_bytes
from eac_model.network import AnyNetworkConfig, DensityNetwork, build, network_config
from eac_model.network.expected_error import ExpectedError

FORMAT = "eac-model"
FORMAT_VERSION = 6

READABLE = ("2", "3", "4", "5", "6")
"""Format versions that can be read. Version 2 knew one architecture and did not name it, 3 no
expected errors, 4 no neighbours in them, and no products of two channels in the readouts of
on-site data, 5 no averages of the density there."""

_FITTED = ("superposition.", "onsite.shift_", "onsite.spread_", "scale_", "expected_error.")
"""Names of what a model file holds beside trained parameters begin like this."""


@dataclass(frozen=True)
class ModelCard:
    """What a user must know of a model: what it was trained on, and what its density counts."""

    name: str
    """Short name, as in ``EACDensity("water-scan")``."""
    summary: str = ""
    """One sentence: what the model is for."""
    elements: tuple[str, ...] = ()
    """Symbols of the elements seen in training."""
    provenance: Provenance = field(default_factory=Provenance)
    """Code, functional, density kind and PAW data sets of the training data."""
    valence_electrons: dict[str, float] = field(default_factory=dict)
    """Electrons of each neutral atom that the density counts; empty where unknown."""
    training: dict[str, Any] = field(default_factory=dict)
    """Summary of the training: structures, points, steps, ``validation_nmae_percent`` …"""
    licence: str = ""
    citation: str = ""


@dataclass(frozen=True)
class ModelHeader:
    """What a model file says without building its network."""

    config: AnyNetworkConfig
    """Shape of the network."""
    card: ModelCard
    """What it was trained on, and what its density counts."""
    parameters: int
    """Number of trained parameters."""


def save_model(network: DensityNetwork, card: ModelCard, path: str | Path) -> None:
    """Write a model file; an existing one is replaced only once the new one is whole.

    Raises
    ------
    OSError
        The file cannot be written (no such folder, disk full).
    """
    header = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "network": network.config.model_dump_json(),
        "card": json.dumps(asdict(card), ensure_ascii=False),
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in _weights(network)}
    write_bytes(path, save(tensors, metadata=header))


def read_header(path: str | Path) -> ModelHeader:
    """Read configuration and card of a model file.

    Raises
    ------
    ModelFileError
        The file is missing, damaged, something else, or of another format version.
    """
    with _opened(path) as file:
        return _read_header(path, file)


def load_model(
    path: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> tuple[DensityNetwork, ModelCard]:
    """Read a model file.

    Parameters
    ----------
    path
        A file written by :func:`save_model`.
    device
        Where to put the network.
    dtype
        Floating-point type; None keeps that of the file.

    Returns
    -------
    network, card
        The network is in evaluation mode.

    Raises
    ------
    ModelFileError
        The file is missing, damaged, something else, or of a newer format.
    """
    with _opened(path) as file:
        header = _read_header(path, file)
        version = file.metadata()["format_version"]
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    network = build(header.config, dtype or _floating_type(path, tensors))
    if (references := tensors.get("expected_error.references")) is not None:
        elements, _, features = references.shape
        network.expected_error = ExpectedError(elements, features).to(network.dtype)
    expected = dict(_weights(network))
    if version != str(FORMAT_VERSION):
        _complete_older_formats(tensors, expected)
    shapes = {name: value.shape for name, value in expected.items()}
    if shapes != {name: value.shape for name, value in tensors.items()}:
        raise ModelFileError(f"The weights in {path} do not fit the configuration in its header.")
    network.load_state_dict(tensors, strict=False)
    network.to(device)
    return network.eval(), header.card


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    if not Path(path).is_file():
        raise ModelFileError(f"There is no model file {path}.")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ModelFileError(
            f"{path} is damaged or no model file (a .safetensors file written by `eac train`): "
            f"{error}"
        ) from error


def _read_header(path: str | Path, file: Any) -> ModelHeader:
    header = file.metadata() or {}
    if header.get("format") != FORMAT:
        raise ModelFileError(f"{path} is a safetensors file, but not a model of this program.")
    version = header.get("format_version", "")
    if version not in READABLE:
        raise ModelFileError(
            f"{path} has model format {version or 'unknown'}; this version reads "
            f"{' and '.join(READABLE)}. {_remedy(version)}"
        )
    try:
        config = network_config(json.loads(header["network"]))
        card = _read_card(json.loads(header["card"]))
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise ModelFileError(f"The header of {path} is damaged: {error}") from error
    shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    trained = [shape for name, shape in shapes.items() if not name.startswith(_FITTED)]
    return ModelHeader(config, card, sum(math.prod(shape) for shape in trained))


def _remedy(version: str) -> str:
    newer = version.isdigit() and int(version) > FORMAT_VERSION
    return "Update the program." if newer else "Train the model again, or take a newer file of it."


def _complete_older_formats(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Complete weights of older formats (:data:`READABLE`) with values that make no difference.

    ``expected`` are those of a new network: what is fitted has no effect there.
    """
    for name, value in expected.items():
        if name.startswith("expected_error.") or name == "scale_contributions":
            tensors.setdefault(name, value.detach().clone())
    _complete_readouts(tensors, expected)


def _complete_readouts(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Complete on-site readouts of older formats: nothing comes from features they did not know.

    Products of channels stand behind those of format 4, averages of the density behind these.
    """
    for read, wanted in expected.items():
        head, _, key = read.partition("read.")
        if head != "onsite." or not key.endswith("_0e") or read not in tensors:
            continue
        directions = f"onsite.directions.{key.removesuffix('_0e')}"
        tensors.setdefault(directions, torch.zeros_like(expected[directions]))
        missing = len(wanted) - len(tensors[read])
        tensors[read] = torch.nn.functional.pad(tensors[read], (0, 0, 0, max(missing, 0)))


def _floating_type(path: str | Path, tensors: dict[str, Tensor]) -> torch.dtype:
    for tensor in tensors.values():
        if tensor.is_floating_point():
            return tensor.dtype
    raise ModelFileError(f"There are no weights in {path}.")


def _weights(network: DensityNetwork) -> Iterator[tuple[str, Tensor]]:
    """What a model file holds: parameters and fitted values, not constants a library rebuilds."""
    yield from ((name, value) for name, value in network.named_parameters() if value.numel())
    yield from network.fitted()


def _read_card(values: dict[str, Any]) -> ModelCard:
    provenance = values.pop("provenance")
    provenance["paw_datasets"] = tuple(provenance["paw_datasets"])
    values["elements"] = tuple(values["elements"])
    return ModelCard(provenance=Provenance(**provenance), **values)
