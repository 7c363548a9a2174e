"""The models that come with the package."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from eac_model.errors import ModelFileError

MODELS = Path(__file__).parent / "models"
SUFFIX = ".safetensors"

GENERAL = "eac-pbe"
"""The model for many elements, where it is bundled."""

WATER = "water-scan"
"""VASP's valence density of water: the model of `eac demo`, and of `eac vasp` by default."""


def bundled_models() -> list[str]:
    """Names of the bundled models, sorted."""
    return sorted(path.stem for path in MODELS.glob(f"*{SUFFIX}"))


def default_model() -> str:
    """Name of the model that is taken where none is named: :data:`GENERAL`, or :data:`WATER`."""
    return GENERAL if GENERAL in bundled_models() else WATER


def models_knowing(symbols: Iterable[str]) -> list[str]:
    """Names of the bundled models that have seen all of these elements in training, sorted."""
    from eac_model.checkpoint import read_header

    wanted = set(symbols)
    cards = {name: read_header(find_model(name)).card for name in bundled_models()}
    return [name for name, card in cards.items() if wanted <= set(card.elements)]


def find_model(name_or_path: str | Path) -> Path:
    """The file of a model, given by the name of a bundled one or by a path.

    Raises
    ------
    ModelFileError
        There is neither a file nor a bundled model of that name; the message lists the latter.
    """
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    if str(name_or_path) in bundled_models():
        return MODELS / f"{name_or_path}{SUFFIX}"
    known = ", ".join(bundled_models()) or "none"
    raise ModelFileError(
        f"No model {str(name_or_path)!r}: there is no such file, and the bundled models are: "
        f"{known}."
    )
