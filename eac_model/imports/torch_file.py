"""Checkpoints of other programs: tensors and plain values of a ``.pt`` file, nothing executed."""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.serialization import (
    add_safe_globals,
    clear_safe_globals,
    get_safe_globals,
    get_unsafe_globals_in_checkpoint,
    safe_globals,
)

from eac_model.errors import ModelFileError

_OF_VALUES = (TypeError, ValueError, RuntimeError)
"""What torch and pydantic raise where numbers or shapes are not what they should be."""

_WRAPPERS = re.compile(r"^((module|_orig_mod|network|model)\.)+")


class Unread:
    """Takes the place of every class and function of a file that is no plain container.

    A checkpoint may hold optimisers, schedulers or configuration objects beside its weights. What
    they are is never looked up, let alone imported or called; they become this.
    """

    def __new__(cls, *_arguments: object) -> Unread:
        """Anything may be passed; nothing is kept."""
        return super().__new__(cls)

    def __init__(self, *_arguments: object) -> None:
        pass

    def __setstate__(self, _state: object) -> None:
        pass


class UnreadMapping:
    """The same for classes that are filled like dictionaries; those come out as plain ones."""

    def __new__(cls, *_arguments: object) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        """An empty dictionary, whatever is passed."""
        return OrderedDict()


def read_torch_file(path: str | Path) -> dict[str, Any]:
    """Read a file of ``torch.save`` that holds a dictionary.

    PyTorch's restricted reader (``weights_only=True``) makes tensors, numbers, strings and plain
    containers, and refuses everything else; names it does not know are given stand-ins
    (:class:`Unread`), so that a file which holds more than weights can be read without running any
    of it.

    Raises
    ------
    ModelFileError
        The file is missing, damaged, no such file, or needs more than the restricted reader does.
    """
    if not Path(path).is_file():
        raise ModelFileError(f"There is no checkpoint {path}.")
    try:
        with (
            _without_allowances(),
            safe_globals([(_stand_in(name), name) for name in _unknown_names(path)]),
        ):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, OSError, LookupError, *_OF_VALUES) as e:
        raise ModelFileError(
            f"{path} is no checkpoint that can be read without executing what is in it "
            f"({_reason(e)}). Nothing was executed. If the file is whole, load it with the program "
            "that wrote it and save its weights again as a plain state dictionary."
        ) from e
    if not isinstance(content, dict):
        raise ModelFileError(
            f"{path} holds {type(content).__name__}, not a dictionary: this is no checkpoint of a "
            "program known here."
        )
    return content


def unwrapped(state: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors by name, without what wrappers of networks put before the names.

    DistributedDataParallel writes ``module.``, torch.compile ``_orig_mod.``, trainers the name they
    give the network.
    """
    return {_WRAPPERS.sub("", str(name)): value for name, value in state.items()}


@contextmanager
def told_as(what: str) -> Iterator[None]:
    """Whatever goes wrong with weights of unexpected names or shapes, as a :class:`ModelFileError`.

    Files of other programs may hold anything, and what is built of them complains in its own ways.
    """
    try:
        yield
    except ModelFileError:
        raise
    except (LookupError, AttributeError, *_OF_VALUES) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelFileError(f"{what} ({type(error).__name__}: {reason}).") from error


@contextmanager
def _without_allowances() -> Iterator[None]:
    """Suspend what other libraries of this process have declared harmless to unpickle."""
    others = get_safe_globals()
    clear_safe_globals()
    try:
        yield
    finally:
        add_safe_globals(others)


def _unknown_names(path: str | Path) -> list[str]:
    """Classes and functions the file names and the restricted reader does not know."""
    with open(path, "rb") as file:
        zipped = file.read(2) == b"PK"
    # Files older than PyTorch 1.6 cannot be looked through; the reader refuses unknown names.
    return get_unsafe_globals_in_checkpoint(path) if zipped else []


def _reason(error: Exception) -> str:
    """What PyTorch complains of, without its advice to switch the restriction off."""
    _, found, detail = str(error).partition("WeightsUnpickler error:")
    text = detail if found else str(error)
    return text.strip().split("\n")[0].split(". ")[0].removesuffix(".")


def _stand_in(name: str) -> type:
    return UnreadMapping if name.lower().endswith("dict") else Unread
