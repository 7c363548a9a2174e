"""One progress bar for everything that counts points."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Advance = Callable[[int], None]
"""Called with the number of points done since the last call."""

PATIENCE = 1.0
"""Work shorter than this many seconds shows no bar."""


@contextmanager
def progress_bar(label: str, total: int, show: bool | None = None) -> Iterator[Advance]:
    """Count points on stderr; the bar appears after a second and leaves no trace.

    Parameters
    ----------
    label
        What is going on.
    total
        Number of points (or steps) to come.
    show
        True or False, or None: only where stderr is a terminal.
    """
    console = Console(stderr=True)
    if not (console.is_terminal if show is None else show):
        yield lambda count: None
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    task = bar.add_task(label, total=total)
    began = monotonic()

    def advance(count: int) -> None:
        bar.update(task, advance=count)
        if not bar.live.is_started and monotonic() - began > PATIENCE:
            bar.start()

    try:
        yield advance
    finally:
        bar.stop()
