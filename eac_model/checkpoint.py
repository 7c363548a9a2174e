"""Model files: one safetensors file with the weights, and JSON with everything else, in its header.

Nothing is pickled and nothing pickled is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
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
from eac_model.network import EACNet, NetworkConfig

FORMAT = "eac-model"
FORMAT_VERSION = 1


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


def save_model(network: EACNet, card: ModelCard, path: str | Path) -> None:
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


def load_model(
    path: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> tuple[EACNet, ModelCard]:
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
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(f"There is no model file {path}.")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelFileError(
            f"{path} is damaged or no model file (a .safetensors file written by `eac train`): "
            f"{error}"
        ) from error
    if header.get("format") != FORMAT:
        raise ModelFileError(f"{path} is a safetensors file, but not a model of this program.")
    version = header.get("format_version", "")
    if version != str(FORMAT_VERSION):
        raise ModelFileError(
            f"{path} has model format {version or 'unknown'}; this version reads "
            f"{FORMAT_VERSION}. Update the program."
        )
    try:
        config = NetworkConfig.model_validate_json(header["network"])
        card = _read_card(json.loads(header["card"]))
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise ModelFileError(f"The header of {path} is damaged: {error}") from error
    network = EACNet(config)
    expected = dict(_weights(network))
    shapes = {name: value.shape for name, value in expected.items()}
    if shapes != {name: value.shape for name, value in tensors.items()}:
        raise ModelFileError(f"The weights in {path} do not fit the configuration in its header.")
    stored = tensors["embed.weight"].dtype
    # In the type of the file first, or float64 weights would be rounded on the way.
    network.to(dtype=stored).load_state_dict(tensors, strict=False)
    network.to(device=device, dtype=dtype or stored)
    return network.eval(), card


def _weights(network: EACNet) -> Iterator[tuple[str, Tensor]]:
    """What a model file holds: parameters and fitted tables, not constants a library rebuilds."""
    yield from ((name, value) for name, value in network.named_parameters() if value.numel())
    if network.superposition is not None:
        yield "superposition.table", network.superposition.get_buffer("table")
    if network.onsite is not None:
        yield from ((f"onsite.{name}", value) for name, value in network.onsite.fitted())


def _read_card(values: dict[str, Any]) -> ModelCard:
    provenance = values.pop("provenance")
    provenance["paw_datasets"] = tuple(provenance["paw_datasets"])
    values["elements"] = tuple(values["elements"])
    return ModelCard(provenance=Provenance(**provenance), **values)
