"""Inline SVG, written by hand: axes, marks and text that take their colours from the page's style sheet.

Colours live in CSS, so one drawing serves the light scheme, the dark one and paper.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape


def tag(name: str, *children: str | Markup, **attributes: Any) -> Markup:
    """One element. Text and attribute values are escaped, `Markup` children are not; `a_b` becomes `a-b`."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-") if key != "viewBox" else key}="{escape(_text(value))}"'
        for key, value in attributes.items()
        if value is not None and value != ""
    )
    inner = Markup("").join(escape(child) for child in children)
    return Markup(f"<{name}{given}>{inner}</{name}>") if children else Markup(f"<{name}{given}/>")


def tip(head: str, rows: Sequence[tuple[str, str, str]]) -> dict[str, str]:
    """Attributes that make an element show a tooltip: a heading, and rows of (colour slot, name, value)."""
    return {"data_head": head, "data_tip": json.dumps(rows, ensure_ascii=False, separators=(",", ":"))}


@dataclass(frozen=True)
class Axis:
    """Data values `low` to `high` onto pixels `start` to `end`, linearly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self._scaled(self.low), self._scaled(self.high)
        share = (self._scaled(value) - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)

    def _scaled(self, value: float) -> float:
        return math.log(max(value, 1e-12)) if self.log else value

    def ticks(self, count: int = 5) -> list[float]:
        """Round values within the axis, about `count` of them."""
        return log_ticks(self.low, self.high, count) if self.log else linear_ticks(self.low, self.high, count)


def linear_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from `low` to `high`."""
    if not high > low:
        return [low]
    rough = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((m * power for m in (1, 2, 5, 10)), key=lambda s: abs(math.log(s / rough)))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values spread evenly by logarithm."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 6, 8)):
        found = [m * 10.0**d for d in decades for m in steps if low * 0.999 <= m * 10.0**d <= high * 1.001]
        if len(found) >= min(count, 4):
            return found
    return found if len(found) >= 2 else linear_ticks(low, high, count)


def path(points: Sequence[tuple[float, float]], **attributes: Any) -> Markup:
    """A broken line through pixel points."""
    return tag("path", d="M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points), **attributes)


def marker(shape: str, x: float, y: float, r: float = 3.2) -> Markup:
    """A mark that is told apart by its form as well as its colour."""
    shapes = {
        "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
        "triangle": [(0, -1.15), (1.05, 0.8), (-1.05, 0.8)],
        "down": [(0, 1.15), (1.05, -0.8), (-1.05, -0.8)],
        "diamond": [(0, -1.25), (1.1, 0), (0, 1.25), (-1.1, 0)],
    }
    if shape == "none":
        return Markup("")
    if shape in shapes:
        corners = "L".join(f"{x + r * dx:.1f} {y + r * dy:.1f}" for dx, dy in shapes[shape])
        return tag("path", d=f"M{corners}Z", class_="mark")
    if shape in ("plus", "cross"):
        k = r if shape == "plus" else 0.8 * r
        strokes = (
            [((-k, 0), (k, 0)), ((0, -k), (0, k))] if shape == "plus" else [((-k, -k), (k, k)), ((-k, k), (k, -k))]
        )
        d = "".join(f"M{x + a:.1f} {y + b:.1f}L{x + c:.1f} {y + e:.1f}" for (a, b), (c, e) in strokes)
        return tag("path", d=d, class_="mark open")
    return tag("circle", cx=x, cy=y, r=r, class_="mark hollow" if shape == "ring" else "mark")


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions moved as little as a sweep can so that none is closer than `gap` to the next; kept in order."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    placed = [positions[i] for i in order]
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap)
    if placed and placed[-1] > high:
        placed[-1] = high
        for i in range(len(placed) - 2, -1, -1):
            placed[i] = min(placed[i], placed[i + 1] - gap)
    out = [0.0] * len(placed)
    for i, at in zip(order, placed, strict=True):
        out[i] = max(low, at)
    return out


def drawing(width: float, height: float, alt: str, *children: Markup, class_: str = "") -> Markup:
    """The outer element: scales with its column, and reads as one image with `alt` for its text."""
    return tag("svg", *children, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=alt, class_=class_)


def _text(value: Any) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)
