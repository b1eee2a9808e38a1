"""The figures of a report. Each returns None where its data is missing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from drope.quantities import format_count
from drope.report import scores
from drope.report.lines import Chart, Line, Point, Scale, draw, responsive
from drope.report.methods import Style, styles, task_label
from drope.report.scores import finite, percent, times
from drope.report.svg import Axis, drawing, path, tag, tip
from drope.results import Measurement, Results

PERCENT = Scale(0, 1, [(v / 4, [f"{25 * v}%"]) for v in range(5)])


@dataclass(frozen=True)
class Panel:
    """One figure of a row: its drawing, and the method that it is about, if it is about one."""

    title: str
    svg: Markup
    style: Style | None = None


def ranked(results: Results, length: int) -> Markup | None:
    """All methods at one length as bars with intervals, best first."""
    found, looks = scores.ranking(results, length), styles(results)
    if not found:
        return None
    width, row = 430.0, 34.0
    left = 20 + 6.4 * max(len(_short(looks[s.method].label)) for s in found)
    x = Axis(0, 1, left, width - 50)
    height = row * len(found) + 30
    parts = []
    for value, texts in PERCENT.ticks:
        parts.append(path([(x(value), 6), (x(value), height - 22)], class_="grid"))
        parts.append(tag("text", texts[0], x=x(value), y=height - 6, class_="tick mid"))
    for i, s in enumerate(found):
        style, y = looks[s.method], 6 + row * (i + 0.5)
        ours = style.kind == "drope"
        name = tag("text", _short(style.label), x=left - 10, y=y + 4, class_="name end" + (" ours" if ours else ""))
        bar = tag("rect", x=left, y=y - 8, width=max(1.5, x(s.value) - left), height=16, class_="bar")
        ends = [[(x(s.low), y), (x(s.high), y)], *([(x(v), y - 4), (x(v), y + 4)] for v in (s.low, s.high))]
        whisker = Markup("").join(path(points, class_="whisker") for points in ends)
        shown = tag("text", percent(s.value), x=x(s.high) + 8, y=y + 4, class_="value" + (" ours" if ours else ""))
        hit = tag("rect", x=0, y=y - row / 2, width=width, height=row, class_="hit",
                  **tip(style.label, [(style.slot, percent(s.value), scores.interval(s))]))  # fmt: skip
        parts.append(tag("g", name, bar, whisker, shown, hit, class_=f"series m-{style.slot}", data_m=style.name))
    said = "; ".join(f"{looks[s.method].label} {percent(s.value)}, {scores.interval(s)}" for s in found)
    return drawing(
        width, height, f"Mean needle success at {times(length, results.context)} the context: {said}.", *parts
    )


def success(results: Results, probes: bool = False) -> list[Panel]:
    """Success against length, one panel a task: of the tasks, or of the probes of order."""
    rows, looks = scores.probe_rows(results) if probes else scores.success_rows(results), styles(results)
    tasks = list(dict.fromkeys(m.task for m in rows))
    lengths = sorted({m.length for m in rows})
    if len(lengths) < 2:
        return []
    width = {1: 1080, 2: 530, 3: 360}.get(len(tasks), 280)
    ticks = [(float(n), [times(n, results.context), format_count(n)]) for n in _thin(lengths, width // 44)]
    scale = Scale(lengths[0] / 1.18, lengths[-1] * 1.18, ticks, log=True)
    out = []
    for task in tasks:
        lines = []
        for name, style in looks.items():
            mine = {m.length: m for m in reversed(rows) if m.task == task and m.method == name}
            points = [Point(n, m.value, m.low, m.high, _success_tip(m)) for n, m in sorted(mine.items())]
            if points:
                lines.append(Line(style, points))
        said = "; ".join(
            f"{line.style.label} " + ", ".join(f"{percent(p.y)} at {times(p.x, results.context)}" for p in line.points)
            for line in lines
        )
        chart = Chart(lines, scale, PERCENT, f"{task_label(task)}, success against length: {said}.",
                      lambda n: f"{times(n, results.context)} · {int(n)} tokens", context=results.context)  # fmt: skip
        svg = draw(chart, width, 230 if width < 300 else 260)
        if width > 500:
            svg = responsive(chart, (width, 300 if width < 600 else 380), (380, 280))
        out.append(Panel(task_label(task), svg))
    return out


def heat_maps(results: Results, axis: str = "depth") -> dict[str, list[Panel]]:
    """Success by depth (or another place of the answer) and length: one panel a method, by task."""
    out: dict[str, list[Panel]] = {}
    rows = [m for m in results.measurements if m.metric == "success" and finite(m.details.get(axis), m.value)]
    for task in dict.fromkeys(m.task for m in rows):
        cells = [m for m in rows if m.task == task]
        lengths, depths = sorted({m.length for m in cells}), sorted({m.details[axis] for m in cells})
        panels = [
            Panel(
                style.label,
                _heat([m for m in cells if m.method == name], lengths, depths, results.context, style, task, axis),
                style,
            )
            for name, style in styles(results, {m.method for m in cells}).items()
        ]
        out[task] = panels
    return out


def _heat(
    cells: Sequence[Measurement], lengths: list[int], depths: list[float], context: int, style: Style, task: str,
    axis: str,
) -> Markup:  # fmt: skip
    def name(place: float) -> str:
        return f"{100 * place:.0f}%" if axis == "depth" else f"{place:g}"

    width, left, top = 240.0, 34.0, 6.0
    high = max(11.0, min(22.0, 210 / len(depths)))
    step = (width - left - 2) / len(lengths)
    height = top + high * len(depths) + 36
    parts = []
    values = {(m.length, m.details[axis]): m for m in reversed(cells)}
    every = max(1, math.ceil(len(depths) / 6)) if high < 14 or len(depths) > 11 else 1
    for j, depth in enumerate(depths):
        y = top + high * j
        if j % every == 0 or j == len(depths) - 1:
            parts.append(tag("text", name(depth), x=left - 6, y=y + high / 2 + 4, class_="tick end"))
        for i, length in enumerate(lengths):
            if (m := values.get((length, depth))) is None:
                continue
            x = left + step * i
            shown = tip(
                f"{style.label} · {times(length, context)} · {axis} {name(depth)}",
                [("", "success", _success_tip(m))],
            )
            box = {"x": x + 0.75, "y": y + 0.75, "width": step - 1.5, "height": high - 1.5, "rx": 2}
            parts.append(tag("rect", class_="cell", **box))
            parts.append(tag("rect", class_="cell heat", fill_opacity=f"{m.value:.3f}", **box, **shown))
            if step >= 24 and high >= 13:
                side = "over" if m.value > 0.7 else "amid" if m.value > 0.57 else "under"  # by contrast, in each scheme
                parts.append(
                    tag("text", f"{100 * m.value:.0f}", x=x + step / 2, y=y + high / 2 + 3.6, class_=f"inside {side}")
                )
    base = top + high * len(depths)
    for i, length in enumerate(lengths):
        parts.append(tag("text", times(length, context), x=left + step * (i + 0.5), y=base + 15, class_="tick mid"))
        if step >= 30:
            parts.append(
                tag("text", format_count(length), x=left + step * (i + 0.5), y=base + 28, class_="tick mid sub")
            )
    worst = min(cells, key=lambda m: m.value)
    alt = (
        f"{style.label}, {task_label(task).lower()}: success by {axis} and length; lowest {percent(worst.value)} "
        f"at {axis} {name(worst.details[axis])} of {times(worst.length, context)}."
    )
    return drawing(width, height, alt, *parts)


def _success_tip(m: Measurement) -> str:
    digits = scores.decimals(m)
    bounds = f"  {100 * m.low:.{digits}f} to {100 * m.high:.{digits}f}" if finite(m.low, m.high) else ""
    return f"{percent(m.value)}{bounds}  n {m.n}"


def _short(label: str, most: int = 20) -> str:
    return label if len(label) <= most else label[: most - 1] + "…"


def _thin(values: Sequence[int], most: int) -> list[int]:
    return list(values[:: max(1, math.ceil(len(values) / max(1, most)))])
