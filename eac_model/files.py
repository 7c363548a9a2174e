"""Writing files so that a reader never meets half of one, and reading configurations."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml
from filelock import FileLock, Timeout

from eac_model.errors import ConfigurationError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write to a temporary name in the same folder, then take the target's place.

    Leaving the block renames the temporary file to `path`. If the block fails, the temporary
    file is removed and an existing target stays as it was.

    Parameters
    ----------
    path
        Target of the write.

    Yields
    ------
    Path
        Temporary name to write to; ends with the target's suffixes.

    Raises
    ------
    FileNotFoundError
        There is no such folder.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"Cannot write {target}: there is no folder {target.parent}.")
    temporary = target.with_name(f".{uuid4().hex[:12]}.tmp.{target.name}")
    try:
        yield temporary
        # Else a power cut could leave the new name with nothing behind it.
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a whole file through :func:`replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def alone(lock: Path, busy: str) -> Iterator[None]:
    """Keep others out while the block runs; ConfigurationError with `busy` if one is in already."""
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise ConfigurationError(busy) from None
    try:
        yield
    finally:
        # While it is still held: whoever opened it meanwhile finds it gone, and tries again.
        with suppress(OSError):
            lock.unlink()
        held.release()


def digest(path: Path) -> str:
    """Twelve hexadecimal digits of the SHA-256 of a file, by which results remember models."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def append_line(path: Path, line: str) -> None:
    """Append a line to a file, closing one that a killed writer left open."""
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(line.encode() + b"\n")


def read_mapping(path: str | Path) -> dict[str, Any]:
    """Read a YAML file whose content is a mapping of keys to values.

    Raises
    ------
    ConfigurationError
        The file cannot be read, is something else, or says a key twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        content = yaml.load(text, Loader=_EveryKeyOnce)  # a safe loader
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot be read ({error}).") from error
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path}: this is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path}: this is no mapping of keys to values.")
    return content


class _EveryKeyOnce(yaml.SafeLoader):
    """YAML's loader takes the last of several equal keys, and drops the others in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.tag == "tag:yaml.org,2002:str" and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is there twice: merge them", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)
