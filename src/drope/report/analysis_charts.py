"""The charts of an analysis page: lines over layers, distances or lengths, and maps of layers by heads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from markupsafe import Markup

from drope.quantities import format_count
from drope.report.charts import Panel
from drope.report.lines import Chart, Line, Point, Scale, draw, exact, responsive
from drope.report.losses import _value_ticks
from drope.report.methods import _KNOWN, Style
from drope.report.scores import finite
from drope.report.svg import Axis, drawing, linear_ticks, log_ticks, path, tag, tip

_SIZES = {1: (1080.0, 360.0), 2: (530.0, 300.0), 3: (360.0, 260.0), 4: (280.0, 240.0)}
_NARROW = (380.0, 280.0)
_SLOTS = (("x0", "square"), ("x1", "triangle"), ("x2", "diamond"), ("x3", "down"), ("muted", "ring"))
_BY_NAME = {style.name: style for style in _KNOWN}

Series = tuple[Style, Sequence[float], Sequence[float]]  # style, x, y


def style(name: str, label: str = "", dash: str | None = None, place: int = 0) -> Style:
    """The look of a method, of the crop, or of any other series by its place."""
    if name in _BY_NAME:
        known = _BY_NAME[name]
        return replace(known, label=label or known.label, dash=known.dash if dash is None else dash)
    slot, marker = ("fit", "none") if name == "crop" else _SLOTS[place % len(_SLOTS)]
    return Style(name, label or name, "other", slot, marker, "2 3" if name == "crop" and dash is None else dash or "")


def number(value: float) -> str:
    """Three digits, as short as they go."""
    return f"{value:.3g}"


def lines(
    series: Sequence[Series],
    *,
    title: str,
    x: str,
    y: str,
    alt: str,
    columns: int = 1,
    log_x: bool = False,
    log_y: bool = False,
    floor: float = 1e-12,
    context: float | None = None,
    lengths: bool = False,
    low: float | None = None,
    high: float | None = None,
    head: Callable[[float], str] | None = None,
    marks: bool = True,
) -> Panel | None:
    """A panel of lines; None without points. `floor`: what a logarithmic axis shows in place of anything lower."""
    drawn = []
    for look, xs, ys in series:
        points = [
            exact(a, max(b, floor) if log_y else b, number(b)) for a, b in zip(xs, ys, strict=True)
            if finite(a, b) and (a > 0 or not log_x)
        ]  # fmt: skip
        if points:
            drawn.append(Line(look, sorted(points, key=lambda p: p.x), marks=marks and len(points) <= 40))
    if not drawn:
        return None
    every = [p for line in drawn for p in line.points]
    across = _across([p.x for p in every], x, log_x, lengths)
    up = _up([p.y for p in every], y, log_y, low, high)
    chart = Chart(drawn, across, up, alt, head or (lambda v: f"{x} {number(v)}"), context=context, end_labels=False)
    wide = _SIZES[min(4, columns)]
    svg = responsive(chart, wide, _NARROW) if columns <= 2 else draw(chart, *wide)
    return Panel(title, svg)


def _across(values: Sequence[float], name: str, log: bool, lengths: bool) -> Scale:
    low, high = min(values), max(values)
    if log:
        ticks = log_ticks(low, high, 5) if high > low else [low]
        if lengths:
            ticks = [float(2**k) for k in range(24) if low <= 2**k <= high] or [low]
            ticks = ticks[:: max(1, math.ceil(len(ticks) / 6))]
        return Scale(low, high, [(v, [format_count(int(v)) if lengths else number(v)]) for v in ticks], name, True)
    if high - low <= 12 and all(float(v).is_integer() for v in values):
        found = [float(v) for v in range(int(low), int(high) + 1)]
    else:
        found = linear_ticks(low, high, 6)
    if lengths:
        return Scale(low, high, [(v, [format_count(int(v))]) for v in found], name)
    whole = all(float(v).is_integer() for v in found)
    return Scale(low, high, [(v, [str(int(v))]) for v in found] if whole else _value_ticks(low, high, False), name)


def _up(values: Sequence[float], name: str, log: bool, low: float | None, high: float | None) -> Scale:
    least, most = min(values), max(values)
    if log:
        least, most = (least / 1.3, most * 1.3)
        ticks = log_ticks(least, most, 4)
        if len(ticks) > 8:
            ticks = ticks[:: math.ceil(len(ticks) / 8)]
        return Scale(least, most, [(v, [f"{v:.0e}" if v < 1e-3 or v >= 1e5 else number(v)]) for v in ticks], name, True)
    room = 0.06 * ((most - least) or abs(most) or 1.0)
    least = low if low is not None else least - room
    most = high if high is not None else most + room
    return Scale(least, most, _value_ticks(least, most, False), name)


def head_map(
    values: Sequence[Sequence[float]],
    layers: Sequence[int],
    look: Style,
    title: str,
    largest: float,
    width: float = 340.0,
) -> Panel:
    """Layers (rows) by heads (columns); the deeper the colour, the more positional."""
    heads = max(len(row) for row in values)
    left, top = 34.0, 6.0
    step = (width - left - 2) / heads
    high = max(6.0, min(24.0, 260 / len(layers)))
    height, parts = top + high * len(layers) + 34, []
    every = max(1, math.ceil(len(layers) / 12))
    for row, (layer, scores) in enumerate(zip(layers, values, strict=True)):
        y = top + high * row
        if row % every == 0 or row == len(layers) - 1 and (row % every) * high > 9:
            parts.append(tag("text", str(layer), x=left - 6, y=y + high / 2 + 4, class_="tick end"))
        for h, score in enumerate(scores):
            box = {"x": left + step * h + 0.5, "y": y + 0.5, "width": max(1.0, step - 1), "height": high - 1, "rx": 1.5}
            shade = min(1.0, max(0.0, score) / largest) if largest > 0 else 0.0
            shown = tip(f"{title} · layer {layer}, head {h}", [("", "Aᶜ", number(score))])
            parts.append(tag("rect", class_="cell", **box))
            parts.append(tag("rect", class_="cell heat", fill_opacity=f"{shade:.3f}", **box, **shown))
    base = top + high * len(layers)
    for h in range(0, heads, max(1, math.ceil(heads / 8))):
        parts.append(tag("text", str(h), x=left + step * (h + 0.5), y=base + 14, class_="tick mid"))
    parts.append(tag("text", "head", x=width - 2, y=base + 28, class_="axis end"))
    best = max((score, layer, h) for layer, row in zip(layers, values, strict=True) for h, score in enumerate(row))
    alt = f"{title}: largest Aᶜ of each head by layer; the highest is {best[0]:.2f}, layer {best[1]} head {best[2]}."
    return Panel(title, drawing(width, height, alt, *parts), look)


def pair_of_bars(rows: Sequence[tuple[str, float, Style]], title: str, unit: str) -> Panel:
    """A few numbers as bars, such as predicted and fitted constants."""
    width, row = 430.0, 34.0
    left = 20 + 6.4 * max(len(name) for name, _, _ in rows)
    top = max([v for _, v, _ in rows] + [1e-9])
    scale = Axis(0, top, left, width - 60)
    parts: list[Markup] = [path([(left, 4), (left, row * len(rows) + 8)], class_="base")]
    for i, (name, value, look) in enumerate(rows):
        y = 6 + row * (i + 0.5)
        parts.append(tag("text", name, x=left - 10, y=y + 4, class_="name end"))
        bar = tag("rect", x=left, y=y - 8, width=max(1.5, scale(max(0.0, value)) - left), height=16, class_="bar")
        parts.append(tag("g", bar, class_=f"series m-{look.slot}", data_m=look.name))
        parts.append(tag("text", number(value), x=scale(max(0.0, value)) + 8, y=y + 4, class_="value"))
    said = "; ".join(f"{name} {number(value)}" for name, value, _ in rows)
    return Panel(title, drawing(width, row * len(rows) + 14, f"{title} ({unit}): {said}.", *parts))


def point(x: float, y: float, text: str) -> Point:
    """A point with its own words."""
    return exact(x, y, text)


def middles(edges: Sequence[int]) -> list[float]:
    """Where a bin [a, b) of positions is drawn."""
    return [(a + b) / 2 for a, b in zip(edges, edges[1:], strict=False)]


def distance_places(edges: Sequence[int]) -> list[float]:
    """Where a bin [a, b) of distances is drawn on a logarithmic axis that begins at 1: the token itself is 1."""
    return [1 + (a + b - 1) / 2 for a, b in zip(edges, edges[1:], strict=False)]


def get(value: Any, *keys: Any) -> Any:
    """A nested value of JSON, or None."""
    for key in keys:
        if not isinstance(value, dict) or key not in value:
            return None
        value = value[key]
    return value
