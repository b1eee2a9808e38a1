"""A run's results as one self-contained HTML page, as tables, and as one sentence."""

from __future__ import annotations

from pathlib import Path

from drope.results import Results

__all__ = ["headline", "table", "write"]


def write(results: Results, out_path: str | Path) -> Path:
    """Write the page: no network, no other file, the results themselves inside. The same results give the same bytes.

    Samples that the run logged in `samples` beside `out_path` are shown with it, the first of each kind.

    Raises
    ------
    InputError : `out_path` is a folder, or the results name no trained context
    """
    from drope.errors import InputError
    from drope.files import write_text
    from drope.report.build import render

    target = Path(out_path)
    if target.is_dir():
        raise InputError("--out", str(target), "a file name such as report.html")
    write_text(target, render(results, target.parent / "samples"))
    return target


def table(results: Results) -> str:
    """The main tables as aligned Markdown, for terminals and model cards."""
    from drope.report.tables import table as draw

    return draw(results)


def headline(results: Results) -> str:
    """The finding in one sentence, computed from the numbers."""
    from drope.report.findings import headline as find

    return find(results)
