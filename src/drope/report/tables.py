"""The numbers as tables: for the page, for terminals and for model cards."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drope.quantities import format_count
from drope.report import scores
from drope.report.losses import position_rows
from drope.report.methods import METRICS, Style, styles, task_label
from drope.report.scores import Score, finite, is_total, times
from drope.results import Measurement, Results


@dataclass(frozen=True)
class Cell:
    """A value as printed, with the small print under it."""

    main: str
    small: str = ""


@dataclass(frozen=True)
class Row:
    """One line of a table; `style` colours its name where it is a method's."""

    name: str
    cells: list[Cell]
    style: Style | None = None


@dataclass(frozen=True)
class Table:
    """A table with headers for rows and columns. `folded`: long, shown on demand."""

    title: str
    corner: str
    columns: list[str]
    rows: list[Row]
    note: str = ""
    folded: bool = False


def totals(results: Results) -> list[Table]:
    """One table for each task and metric, over methods and lengths; the mean over tasks first."""
    rows, out = [m for m in results.measurements if is_total(m)], []
    mean = _mean_table(results)
    if mean:
        out.append(mean)
    for task, metric in dict.fromkeys((m.task, m.metric) for m in rows):
        mine = [m for m in rows if (m.task, m.metric) == (task, metric)]
        title = metric.capitalize() if task == metric else f"{task_label(task)}, {METRICS.get(metric, metric)}"
        out.append(_grid(results, title, mine, lambda m: m.length, _times(results)))
    return out


def details(results: Results) -> list[Table]:
    """The finer rows: by depth and by position."""
    out = []
    deep = [m for m in results.measurements if m.details.get("depth") is not None]
    for task, length in dict.fromkeys((m.task, m.length) for m in sorted(deep, key=lambda m: m.length)):
        mine = [m for m in deep if (m.task, m.length) == (task, length)]
        title = f"{task_label(task)} by depth at {times(length, results.context)}, {length} tokens"
        out.append(
            _grid(
                results,
                title,
                mine,
                lambda m: m.details["depth"],
                lambda d: f"{100 * d:.0f}%" if finite(d) else str(d),
                True,
            )
        )
    placed = [m for m in results.measurements if m.details.get("position_start") is not None]
    for metric, length in dict.fromkeys((m.metric, m.length) for m in sorted(placed, key=lambda m: m.length)):
        mine = [m for m in placed if (m.metric, m.length) == (metric, length)]
        out.append(_by_position(results, f"{metric.capitalize()} by position, texts of {length} tokens", mine))
    return out


def bands(results: Results) -> Table | None:
    """Mean loss over stretches of the longest text: within the context, to 2x, to 4x, and on."""
    rows = position_rows(results)
    if not rows:
        return None
    length, metric = max(m.length for m in rows), rows[0].metric
    rows = [m for m in rows if m.length == length]
    edges = [0, results.context]
    while 0 < edges[-1] < length:
        edges.append(min(2 * edges[-1], length))
    marks = [times(edge, results.context) for edge in edges]
    names = [f"to {b}" if i == 0 else f"{a} to {b}" for i, (a, b) in enumerate(zip(marks, marks[1:], strict=False))]
    found = []
    for name, style in styles(results, {m.method for m in rows}).items():
        cells = []
        for a, b in zip(edges, edges[1:], strict=False):
            mine = [m for m in rows if m.method == name and a <= m.details["position_start"] < b]
            weights = [
                max(1, (m.details.get("position_end") or m.details["position_start"] + 1) - m.details["position_start"])
                for m in mine
            ]
            mean = sum(m.value * w for m, w in zip(mine, weights, strict=True)) / sum(weights) if mine else None
            cells.append(Cell(f"{mean:.3f}" if mean is not None else "–"))
        found.append(Row(style.label, cells, style))
    return Table(f"Mean {metric} by stretch of a text of {length} tokens", "Method", names, found)


def paired(results: Results) -> Table | None:
    """p-values of paired tests, however they were nested."""
    given = results.meta.get("paired") or {}
    if isinstance(given, list) and all(isinstance(row, Mapping) and {"method", "p"} <= set(row) for row in given):
        return _paired_rows(results, given) if given else None
    flat = list(_flatten(given))
    if not flat:
        return None
    rows = [Row(" · ".join(where), [Cell(_p(value))]) for where, value in flat]
    return Table("Paired tests (McNemar)", "Comparison", ["p"], rows, _PAIRED, folded=len(rows) > 12)


_PAIRED = "Methods saw the same trials, so a paired test can tell apart what overlapping intervals do not."


def _paired_rows(results: Results, given: Sequence[Mapping[str, Any]]) -> Table:
    """Rows {task, length, method, reference, n, method_only, reference_only, p}."""
    looks, rows = styles(results), []
    for row in given:
        names = [looks[n].label if n in looks else str(n) for n in (row.get("reference", "drope"), row["method"])]
        where = [task_label(str(row["task"]))] if "task" in row else []
        where += [times(row["length"], results.context)] if finite(row.get("length")) else []
        cells = [Cell(str(row.get(key, "–"))) for key in ("reference_only", "method_only", "n")]
        rows.append(Row(f"{' at '.join(where)}: {' and '.join(names)}", [*cells, Cell(_p(row["p"]))]))
    columns = ["only the first solved", "only the second", "trials", "p"]
    return Table("Paired tests (McNemar)", "Task, length, methods", columns, rows, _PAIRED, folded=len(rows) > 12)


def table(results: Results) -> str:
    """The main tables as aligned Markdown, for terminals and model cards; 95% intervals in brackets."""
    out = []
    for t in [*totals(results), bands(results)]:
        if t is None:
            continue
        head = [f"{t.title}", *t.columns]
        body = [[row.name, *(f"{c.main} {c.small}".strip() for c in row.cells)] for row in t.rows]
        out.append(_markdown([head, *body]))
    return "\n\n".join(out)


def _mean_table(results: Results) -> Table | None:
    lengths = scores.lengths(results)
    found: dict[tuple[str, int], Score] = {(s.method, n): s for n in lengths for s in scores.ranking(results, n)}
    tasks = {s.tasks for s in found.values()}
    if len(tasks) != 1 or len(next(iter(tasks))) < 2:
        return None
    rows = []
    for name, style in styles(results, {m for m, _ in found}).items():
        mine = [found.get((name, n)) for n in lengths]
        rows.append(
            Row(
                style.label,
                [Cell(scores.percent(s.value), _bounds(s, 100, scores.decimals(s))) if s else Cell("–") for s in mine],
                style,
            )
        )
    unfair = {m.length for m in results.measurements if m.details.get("trained_context")}
    named = ", ".join(task_label(t).lower() for t in next(iter(tasks)))
    return Table(
        "Mean over tasks, success",
        "Method",
        [_times(results)(n) + ("*" if n in unfair else "") for n in lengths],
        rows,
        f"Unweighted mean of {named}.",
    )


def _grid(
    results: Results, title: str, rows: Sequence[Measurement], key: Callable, name: Callable, folded: bool = False
) -> Table:
    columns = sorted({key(m) for m in rows}, key=lambda v: (not finite(v), v if finite(v) else str(v)))
    counts = sorted({m.n for m in rows})
    found = []
    for method, style in styles(results, {m.method for m in rows}).items():
        cells = []
        for column in columns:
            mine = [m for m in rows if m.method == method and key(m) == column]
            cells.append(
                Cell(
                    " / ".join(_value(m) for m in mine) or "–",
                    " / ".join(filter(None, (_small(m, counts) for m in mine))),
                )
            )
        found.append(Row(style.label, cells, style))
    note = f"n = {counts[0]} each." if len(counts) == 1 else "n = number of trials or documents."
    return Table(title, "Method", [name(c) for c in columns], found, note, folded)


def _by_position(results: Results, title: str, rows: Sequence[Measurement]) -> Table:
    looks = styles(results, {m.method for m in rows})
    found = []
    starts = sorted({(m.details["position_start"], m.details.get("position_end") or 0) for m in rows})
    values = {(m.method, m.details["position_start"]): m for m in rows}
    counts = sorted({m.n for m in rows})
    for start, end in starts:
        mine = [values.get((name, start)) for name in looks]
        found.append(
            Row(
                f"{start} to {end}" if end else f"{start}",
                [Cell(_value(m), _small(m, counts)) if m else Cell("–") for m in mine],
            )
        )
    note = f"n = {counts[0]} each." if len(counts) == 1 else "n = number of documents."
    return Table(title, "Position", [s.label for s in looks.values()], found, note, folded=True)


def _value(m: Measurement) -> str:
    if not finite(m.value):
        return "not finite"
    mark = "*" if m.details.get("trained_context") else ""  # not fair, as a note on the page says
    return (scores.percent(m.value) if m.metric == "success" else f"{m.value:.4g}") + mark


def _small(m: Measurement, counts: Sequence[int]) -> str:
    n = f", n {m.n}" if len(counts) > 1 else ""
    if not finite(m.low, m.high):
        return n.removeprefix(", ")
    return (_bounds(m, 100, scores.decimals(m)) if m.metric == "success" else _bounds(m, 1, 3)) + n


def _bounds(m: Measurement | Score, unit: float, digits: int) -> str:
    return f"[{unit * m.low:.{digits}f}, {unit * m.high:.{digits}f}]"


def _times(results: Results) -> Callable[[int], str]:
    return lambda n: f"{times(n, results.context)} ({format_count(n)})"


def _flatten(value: Any, where: tuple[str, ...] = ()) -> Any:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flatten(inner, (*where, str(key)))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _flatten(inner, (*where, str(i + 1)))
    elif value is not None:
        yield where, value


def _p(value: Any) -> str:
    if not finite(value):
        return str(value)
    return "< 0.001" if value < 0.001 and value >= 0 else f"{value:.3f}" if math.fabs(value) < 10 else f"{value:g}"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    safe = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in safe) for i in range(len(safe[0]))]
    lines = [
        "| "
        + " | ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        + " |"
        for row in safe
    ]
    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
