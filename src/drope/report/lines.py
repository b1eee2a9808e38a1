"""Line charts with interval bands: one function draws them all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from drope.report.methods import Style
from drope.report.svg import Axis, drawing, marker, path, spread, tag, tip

_MANY = 9  # lines; beyond it only DroPE's keep their weight and their bands


@dataclass(frozen=True)
class Point:
    """A value with its interval, in data units; `tip` is how the tooltip prints it."""

    x: float
    y: float
    low: float
    high: float
    tip: str


def exact(x: float, y: float, tip: str = "") -> Point:
    """A point without an interval."""
    return Point(x, y, y, y, tip)


@dataclass(frozen=True)
class Line:
    """One method's points, in order of x."""

    style: Style
    points: list[Point]
    marks: bool = True
    line: bool = True
    label: str = ""


@dataclass(frozen=True)
class Scale:
    """One axis: its ends, its ticks with their texts (one text a line), and its name."""

    low: float
    high: float
    ticks: list[tuple[float, list[str]]]
    name: str = ""
    log: bool = False


@dataclass(frozen=True)
class Chart:
    """What to draw. `context`: the training context, shaded up to there; `head` words a tooltip's heading."""

    lines: list[Line]
    x: Scale
    y: Scale
    alt: str
    head: Callable[[float], str]
    context: float | None = None
    title: str = ""
    end_labels: bool = False


def draw(chart: Chart, width: float, height: float, class_: str = "") -> Markup:
    """The chart as SVG of that many units: about as many pixels, so that text keeps its size."""
    named = chart.end_labels and width >= 420
    widest = max((len(t) for _, texts in chart.y.ticks for t in texts), default=2)
    left, right = 12 + 6.2 * widest, width - (104 if named else 12)
    top = 26.0 if chart.title else 14.0
    if chart.y.name:
        top += 14
    deep = max((len(texts) for _, texts in chart.x.ticks), default=1)
    bottom = height - 10 - 13.5 * deep - (15 if chart.x.name else 0)
    x, y = (
        Axis(chart.x.low, chart.x.high, left, right, chart.x.log),
        Axis(chart.y.low, chart.y.high, bottom, top, chart.y.log),
    )
    parts = [_ground(chart, x, y, left, right, top, bottom)]
    many = len(chart.lines) > _MANY  # bands of many lines would hide one another
    inner = [_line(line, x, y, not many or line.style.kind == "drope") for line in reversed(chart.lines)]
    # a nested svg clips what leaves the axes, without an id that a second copy on the page would share
    pad = 6
    parts.append(
        tag("svg", *inner, class_="many" if many else "",
            x=left - pad, y=top - pad, width=right - left + 2 * pad, height=bottom - top + 2 * pad,
            viewBox=f"{left - pad:g} {top - pad:g} {right - left + 2 * pad:g} {bottom - top + 2 * pad:g}")
    )  # fmt: skip
    if named:
        parts.append(_end_labels(chart, x, y, right, top, bottom))
    parts.append(_hits(chart, x, y, left, right, top, bottom))
    return drawing(width, height, chart.alt, *parts, class_=class_)


def responsive(chart: Chart, wide: tuple[float, float], narrow: tuple[float, float]) -> Markup:
    """Two drawings, one of which the style sheet shows: text stays legible on a phone without shrinking."""
    return draw(chart, *wide, class_="wide") + draw(chart, *narrow, class_="narrow")


def _ground(chart: Chart, x: Axis, y: Axis, left: float, right: float, top: float, bottom: float) -> Markup:
    parts = []
    if chart.title:
        parts.append(tag("text", chart.title, x=0, y=14, class_="title"))
    if chart.y.name:
        parts.append(tag("text", chart.y.name, x=0, y=top - 10, class_="axis"))
    if chart.context is not None and chart.context >= chart.x.low:
        edge = min(right, x(chart.context))
        parts.append(tag("rect", x=left, y=top, width=max(0.0, edge - left), height=bottom - top, class_="trained"))
        parts.append(path([(edge, top), (edge, bottom)], class_="edge"))
    for value, texts in chart.y.ticks:
        at = y(value)
        parts.append(path([(left, at), (right, at)], class_="grid"))
        parts.append(tag("text", texts[0], x=left - 6, y=at + 4, class_="tick end"))
    parts.append(path([(left, bottom), (right, bottom)], class_="base"))
    for value, texts in chart.x.ticks:
        at = x(value)
        parts.append(path([(at, bottom), (at, bottom + 4)], class_="base"))
        for i, words in enumerate(texts):
            parts.append(tag("text", words, x=at, y=bottom + 17 + 13 * i, class_="tick mid" + (" sub" if i else "")))
    if chart.x.name:
        parts.append(
            tag(
                "text",
                chart.x.name,
                x=right,
                y=bottom + 17 + 13.5 * max(len(t) for _, t in chart.x.ticks),
                class_="axis end",
            )
        )
    return Markup("").join(parts)


def _line(line: Line, x: Axis, y: Axis, banded: bool = True) -> Markup:
    points, parts = line.points, []
    if any(p.high > p.low for p in points):
        upper, lower = [(x(p.x), y(p.high)) for p in points], [(x(p.x), y(p.low)) for p in reversed(points)]
        if line.line and len(points) > 1:
            parts += [path(upper + lower, class_="band")] if banded else []
        else:
            parts += [path([(x(p.x), y(p.low)), (x(p.x), y(p.high))], class_="whisker") for p in points]
    if line.line and len(points) > 1:
        parts.append(path([(x(p.x), y(p.y)) for p in points], class_="line", stroke_dasharray=line.style.dash))
    if line.marks or len(points) == 1:
        parts += [marker(line.style.marker, x(p.x), y(p.y)) for p in points]
    return tag("g", *parts, class_=f"series m-{line.style.slot}", data_m=line.style.name)


def _end_labels(chart: Chart, x: Axis, y: Axis, right: float, top: float, bottom: float) -> Markup:
    ends = [line for line in chart.lines if line.points and line.line]
    wanted = [min(bottom, max(top, y(line.points[-1].y))) for line in ends]
    parts = []
    for line, want, at in zip(ends, wanted, spread(wanted, 14, top + 2, bottom), strict=True):
        x0 = x(line.points[-1].x)
        leader = path([(x0 + 4, want), (right + 6, at), (right + 9, at)], class_="leader")
        text = tag("text", line.label or line.style.label, x=right + 12, y=at + 4, class_="name")
        parts.append(tag("g", leader, text, class_=f"series m-{line.style.slot}", data_m=line.style.name))
    return Markup("").join(parts)


def _hits(chart: Chart, x: Axis, y: Axis, left: float, right: float, top: float, bottom: float) -> Markup:
    """Invisible columns, one for each x, whose tooltip lists every line there from top to bottom."""
    xs = sorted({p.x for line in chart.lines for p in line.points if p.tip})
    parts = []
    for i, at in enumerate(xs):
        start = left if i == 0 else (x(xs[i - 1]) + x(at)) / 2
        end = right if i == len(xs) - 1 else (x(at) + x(xs[i + 1])) / 2
        found = [(p, line) for line in chart.lines for p in line.points if p.x == at and p.tip]
        found.sort(key=lambda r: y(r[0].y))
        tips = [(line.style.slot, line.label or line.style.label, p.tip) for p, line in found]
        parts.append(
            tag("rect", x=start, y=top, width=max(1.0, end - start), height=bottom - top, class_="hit",
                data_x=x(at), **tip(chart.head(at), tips))
        )  # fmt: skip
    return tag("g", *parts) if parts else Markup("")


def ends(values: Sequence[float], pad: float = 0.06) -> tuple[float, float]:
    """Axis ends around values, with room."""
    low, high = min(values), max(values)
    room = pad * ((high - low) or abs(high) or 1.0)
    return low - room, high + room
