"""Progress on long work: a bar on the terminal with rate and time left, nothing where nobody looks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_quiet = False


def set_quiet(quiet: bool) -> None:
    """Silence all bars (the command line does, under --json)."""
    global _quiet
    _quiet = quiet


class Bar:
    """What `track` yields. `advance(n, note)` moves it on; `note` is a short live figure, such as `loss 2.31`."""

    def __init__(self, advance=None):
        self._advance = advance

    def advance(self, n: float = 1, note: str = "") -> None:
        if self._advance:
            self._advance(n, note)


@contextmanager
def track(description: str, total: float | None = None, unit: str = "it") -> Iterator[Bar]:
    """A progress bar on stderr while the block runs; silent when quiet or when stderr is no terminal."""
    if _quiet or not sys.stderr.isatty():
        yield Bar()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=total, rate="", note="")

        def advance(n: float, note: str) -> None:
            progress.advance(task, n)
            speed = progress.tasks[0].finished_speed or progress.tasks[0].speed
            progress.update(
                task, rate=f"{speed:,.0f} {unit}/s" if speed else "", note=note or progress.tasks[0].fields["note"]
            )

        yield Bar(advance)
