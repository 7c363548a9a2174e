"""The models that come with the package."""

from __future__ import annotations

from pathlib import Path

from eac_model.errors import ModelFileError

MODELS = Path(__file__).parent / "models"
SUFFIX = ".safetensors"


def bundled_models() -> list[str]:
    """Names of the bundled models, sorted."""
    return sorted(path.stem for path in MODELS.glob(f"*{SUFFIX}"))


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
