"""Writing files so that a reader never meets half of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


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
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"Cannot write {target}: there is no folder {target.parent}.")
    temporary = target.with_name(f".{uuid4().hex[:12]}.tmp.{target.name}")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a whole file through :func:`replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
