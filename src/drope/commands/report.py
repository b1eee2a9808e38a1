"""`drope report`: results.json to HTML."""

from __future__ import annotations

from pathlib import Path

from cyclopts import App

from drope.commands.options import NO_GENERAL, GeneralFlags
from drope.commands.output import session

app = App(
    name="report",
    help_epilogue="""Examples:

  drope report out/demo/results.json
  drope report results.json --out page.html""",
)


@app.default
def report(results: Path, *, out: Path | None = None, general: GeneralFlags = NO_GENERAL) -> None:
    """Write the page.

    Parameters
    ----------
    results
        A results.json that evaluate, compare or extend wrote.
    out
        The page; report.html beside the results by default.
    """
    with session(general) as output:
        from drope.report import write
        from drope.results import Results

        page = write(Results.load(results), out or results.with_name("report.html"))
        output.result({"report": str(page)}, f"Wrote {page}")
