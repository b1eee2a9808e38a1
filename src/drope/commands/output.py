"""What a subcommand prints: a table for people or JSON for scripts on stdout, everything else on stderr."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from drope.training.processes import rank

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from drope.commands.options import General

_NOISY = (
    "transformers",
    "datasets",
    "accelerate",
    "huggingface_hub",
    "torch",
    "httpx",
    "filelock",
    "fsspec",
)


class Output:
    """Prints the result of a subcommand, once."""

    def __init__(self, general: General, stream: TextIO):
        self._general, self._stream = general, stream

    def result(self, value: dict[str, Any], *shown: RenderableType) -> None:
        """Print `value` as JSON under --json, else `shown` one after the other."""
        if rank():
            return  # the first process of a run speaks for all
        if self._general.json:
            print(json.dumps(_finite(value), indent=2, ensure_ascii=False, default=str), file=self._stream)
            return
        from rich.console import Console

        console = Console(file=self._stream, highlight=False, soft_wrap=not self._stream.isatty())
        for item in shown:
            console.print(item)

    def note(self, text: str) -> None:
        """A line of progress on stderr; silent under --json."""
        if not self._general.json and not rank():
            print(text, file=sys.stderr, flush=True)


@contextmanager
def resumable(out: Path | None) -> Iterator[None]:
    """Say on an interruption that the same command goes on from what is finished."""
    from drope.errors import Interrupted

    try:
        yield
    except (KeyboardInterrupt, Interrupted) as error:
        if out is None:
            raise
        raise Interrupted(
            f"Stopped. What is finished is kept in {out}; the same command goes on from there."
        ) from error


@contextmanager
def session(general: General) -> Iterator[Output]:
    """Set up logging, and keep stdout for the result: what libraries print meanwhile goes to stderr."""
    from drope.progress import set_quiet

    quiet = general.json and not general.verbose or rank() > 0
    _set_up_logging(general.verbose)
    set_quiet(quiet)
    stdout = sys.stdout
    try:
        with redirect_stdout(sys.stderr), warnings.catch_warnings():
            if not general.verbose and not sys.warnoptions:
                warnings.simplefilter("ignore")
            yield Output(general, stdout)
    finally:
        set_quiet(False)


def _set_up_logging(verbose: bool) -> None:
    """-v shows the log of drope and of the libraries; without it only drope's warnings and the libraries' errors."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("drope").setLevel(logging.INFO if verbose else logging.WARNING)
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.INFO if verbose else logging.ERROR)
    # The libraries read these when they are imported, which comes after this.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "info" if verbose else "error")
    if not verbose:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


def facts(title: str, rows: Iterable[tuple[str, Any]]) -> RenderableType:
    """A table of names and values under a title, without the rows that have none."""
    from rich import box
    from rich.table import Table

    body = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    body.add_column(style="cyan", no_wrap=True)
    body.add_column(overflow="fold")
    for name, value in rows:
        if value is not None and value != "":
            body.add_row(name, escape(str(value)))
    return _titled(title, body)


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[Any]], left: int = 1) -> RenderableType:
    """A table under a title; its first `left` columns are text, the others numbers."""
    from rich import box
    from rich.table import Table

    body = Table(box=box.SIMPLE_HEAD, header_style="cyan", pad_edge=False)
    for i, name in enumerate(head):
        body.add_column(name, justify="left" if i < left else "right", no_wrap=True)
    for row in rows:
        body.add_row(*(escape(str(cell)) for cell in row))
    return _titled(title, body)


def _titled(title: str, body: Table) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    return Group(Text(title, style="bold"), body)


def escape(text: str) -> str:
    """Text as it is, with brackets that are no markup."""
    from rich.markup import escape as escape_markup

    return escape_markup(text)


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def human(n: float) -> str:
    """135_000_000 -> `135M`: parameters, operations."""
    for unit, size in (("P", 1e15), ("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{n / size:.3g}{unit}"
    return f"{n:.3g}"


def gibibytes(n: float) -> str:
    """Bytes as people read them."""
    return f"{n / 2**30:.2f} GiB" if n >= 2**30 else f"{n / 2**20:.1f} MiB"
