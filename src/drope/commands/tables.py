"""Results as tables in a terminal: one per task, methods down, lengths across."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from drope.commands.output import table
from drope.quantities import format_count

if TYPE_CHECKING:
    from rich.console import RenderableType

    from drope.results import Measurement

_PARTS = {
    "depth",
    "distance",
    "position",
    "position_start",
    "start",
    "end",
}  # details that make a measurement a part of a whole, which has its own row


def result_tables(measurements: Sequence[Measurement], context: int) -> list[RenderableType]:
    """One table per task and metric, of what was measured over whole samples."""
    groups: dict[tuple[str, str], list[Measurement]] = {}
    for m in measurements:
        if not _PARTS & m.details.keys():
            groups.setdefault((m.task, m.metric), []).append(m)
    return [_one(task, metric, group, context) for (task, metric), group in groups.items()]


def _one(task: str, metric: str, group: Sequence[Measurement], context: int) -> RenderableType:
    lengths = sorted({m.length for m in group})
    methods = list(dict.fromkeys(m.method for m in group))
    cells = {(m.method, m.length): _cell(m) for m in group}
    counts = sorted({m.n for m in group})
    n = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    unit = ", %" if metric == "success" else ", nats per token" if metric == "loss" else ""
    title = f"{task.replace('_', '-')}: {metric}{unit} [95% interval], n = {n}"
    head = ["method", *(f"{format_count(x)} ({_factor(x, context)})" for x in lengths)]
    return table(title, head, ([method, *(cells.get((method, x), "–") for x in lengths)] for method in methods))


def _cell(m: Measurement) -> str:
    mark = "*" if "trained_context" in m.details else ""  # not fair, as a note under the tables says
    if m.metric == "success":
        return f"{100 * m.value:.1f}{mark} [{100 * m.low:.0f}–{100 * m.high:.0f}]"
    if m.value > 1e4:
        return f"{m.value:.1e}{mark}"
    form = ".3f" if m.metric == "loss" else ".3g"
    return f"{m.value:{form}}{mark} [{m.low:{form}}–{m.high:{form}}]"


def _factor(length: int, context: int) -> str:
    return f"{length / context:.3g}x"
