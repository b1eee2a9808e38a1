"""Figures of loss: by position, during recalibration, and with the softmax temperature."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from drope.quantities import format_count, format_tokens
from drope.report import scores
from drope.report.charts import Panel
from drope.report.lines import Chart, Line, Point, Scale, draw, ends, exact, responsive
from drope.report.methods import METRICS, Style, styles
from drope.report.scores import finite, times
from drope.report.svg import linear_ticks, log_ticks
from drope.results import Measurement, Results

_OURS = Style("drope", "with the fitted β", "drope", "drope", "circle")
_FIT = Style("fit", "1 + a ln s", "other", "fit", "none", "2 3")
_WITHOUT = Style("without", "without β", "other", "muted", "ring", "4 3")
WIDE, NARROW = (1080.0, 400.0), (380.0, 310.0)
HALF, HALF_NARROW = (530.0, 300.0), (380.0, 280.0)


def position_rows(results: Results) -> list[Measurement]:
    """Loss by position where there is any, else perplexity by position."""
    rows = [m for m in results.measurements if finite(m.details.get("position_start"), m.value)]
    losses = [m for m in rows if m.metric == "loss"]
    return losses or [m for m in rows if m.metric == "perplexity"]


def by_position(results: Results) -> list[Panel]:
    """Loss by position, one drawing for each evaluated length, the longest first."""
    rows = position_rows(results)
    evaluated = sorted({m.length for m in rows}, reverse=True)
    out = []
    for i, length in enumerate(evaluated):
        chart = _position_chart(results, [m for m in rows if m.length == length], length, labels=i == 0)
        title = f"Text of {times(length, results.context)} the context, {length} tokens"
        out.append(Panel(title, responsive(chart, WIDE, NARROW) if i == 0 else draw(chart, 360, 250)))
    return out


def left_out(results: Results) -> list[str]:
    """Methods whose loss leaves the top of the longest drawing, with how far they go."""
    rows = position_rows(results)
    if not rows:
        return []
    length = max(m.length for m in rows)
    rows = [m for m in rows if m.length == length]
    top, out = _ceiling(rows), []
    for name, style in styles(results, {m.method for m in rows}).items():
        worst = max(m.value for m in rows if m.method == name)
        if worst > top:
            out.append(f"{style.label} (up to {worst:.3g})")
    return out


def _position_chart(results: Results, rows: Sequence[Measurement], length: int, labels: bool) -> Chart:
    metric, lines = rows[0].metric, []
    for name, style in styles(results, {m.method for m in rows}).items():
        points = []
        for m in sorted((m for m in rows if m.method == name), key=lambda m: m.details["position_start"]):
            low, high = (m.low, m.high) if finite(m.low, m.high) else (m.value, m.value)
            bounds = f"  {low:.2f} to {high:.2f}" if high > low else ""
            points.append(Point(_middle(m), m.value, low, high, f"{m.value:.3f}{bounds}"))
        lines.append(Line(style, points, marks=len(points) <= 12))
    top = _ceiling(rows)
    low = min(m.value for m in rows)
    low, top = low - 0.06 * (top - low), top + 0.03 * (top - low)
    log = metric == "perplexity" and low > 0
    edges = [n for n in (results.context * 2**k for k in range(12)) if n <= length * 1.001] or [length]
    ticks = [(float(n), [times(n, results.context), format_count(n)]) for n in edges]
    said = "; ".join(f"{line.style.label} from {line.points[0].y:.2f} to {line.points[-1].y:.2f}" for line in lines)
    return Chart(
        lines,
        Scale(0, max(length, max(p.x for line in lines for p in line.points)), ticks, "position in the text, tokens"),
        Scale(low, top, _value_ticks(low, top, log), METRICS.get(metric, metric), log),
        f"{metric.capitalize()} by position in texts of {length} tokens, first to last: {said}.",
        lambda x: f"near position {x:.0f}",
        context=results.context,
        end_labels=labels,
    )


def _ceiling(rows: Sequence[Measurement]) -> float:
    """Top of the axis: methods that explode leave it, so that the others stay readable; DroPE and the best never do."""
    values: dict[str, list[float]] = {}
    for m in rows:
        values.setdefault(m.method, []).append(m.value)
    best = min(values, key=lambda name: max(values[name]))
    core = [v for name in {best, "drope"} & set(values) for v in values[name]]
    low, most = min(min(v) for v in values.values()), max(max(v) for v in values.values())
    if rows[0].metric == "perplexity":
        return most
    return min(most, low + 2.2 * (max(core) - low)) if max(core) > low else most


def _middle(m: Measurement) -> float:
    start, end = m.details["position_start"], m.details.get("position_end")
    return (start + end) / 2 if finite(end) else float(start)


def recovery(results: Results) -> Markup | None:
    """Loss against tokens of recalibration, DroPE and its control: lines for training, marks for held-out text."""
    rows, looks = scores.recovery_rows(results), styles(results)
    rows = [r for r in rows if r["loss"] > 0]
    if len({r["tokens"] for r in rows}) < 2:
        return None
    positive = [r["tokens"] for r in rows if r["tokens"] > 0]
    log = max(positive) / min(positive) >= 8
    last = scores.endings(results)
    lines: list[Line] = []
    for name, style in ((n, s) for n, s in looks.items() if any(r["run"] == n for r in rows)):
        mine = [r for r in rows if r["run"] == name and (r["tokens"] > 0 or not log)]
        if points := _binned(mine, log):
            lines.append(Line(style, points, marks=False, label=f"{style.label} {last[name].loss:.2f}"))
        held = [r for r in mine if finite(r.get("eval_loss")) and r["eval_loss"] > 0]
        if held:
            marks = [exact(r["tokens"], r["eval_loss"], f"{r['eval_loss']:.3f}") for r in held]
            lines.append(Line(style, marks, line=False, label=f"{style.label}, held out"))
    values = [p.y for line in lines for p in line.points]
    low, high = min(values) / 1.03, max(values) * 1.03
    x_low, x_high = (min(positive), max(positive)) if log else (0.0, float(max(positive)))
    ticks = log_ticks(x_low, x_high) if log else linear_ticks(x_low, x_high)
    said = "; ".join(
        f"{looks[name].label} ends at {end.loss:.3f} after {format_tokens(end.tokens)} tokens"
        for name, end in last.items()
    )
    chart = Chart(
        lines,
        Scale(x_low, x_high, [(v, [format_tokens(v)]) for v in ticks], "tokens of recalibration", log),
        Scale(low, high, _value_ticks(low, high, True), METRICS["loss"], True),
        f"Loss during recalibration: {said}.",
        lambda v: f"{format_tokens(v)} tokens",
        end_labels=True,
    )
    return responsive(chart, WIDE, NARROW)


def _binned(rows: Sequence[dict[str, Any]], log: bool, bins: int = 160) -> list[Point]:
    """At most `bins` points, each the mean of the rows in its stretch of the axis."""
    if not rows:
        return []
    scale = (lambda v: math.log(v)) if log else (lambda v: float(v))
    first, last = scale(rows[0]["tokens"]), scale(rows[-1]["tokens"])
    groups: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        share = (scale(row["tokens"]) - first) / (last - first) if last > first else 0.0
        groups.setdefault(min(bins - 1, int(bins * share)), []).append(row)
    out = []
    for group in groups.values():
        loss = math.fsum(r["loss"] for r in group) / len(group)
        many = f"  mean of {len(group)} steps" if len(group) > 1 else ""
        out.append(exact(group[-1]["tokens"], loss, f"{loss:.3f}{many}"))
    return out


def temperature(results: Results) -> list[Panel]:
    """β against length with its fit, and the loss with and without β."""
    rows = [r for r in results.temperature if finite(r.get("length"), r.get("beta"))]
    rows = sorted({r["length"]: r for r in rows}.values(), key=lambda r: r["length"])
    if not rows:
        return []
    spans = [float(r["length"]) for r in rows]
    x_low, x_high = min([*spans, results.context]) / 1.15, max([*spans, results.context]) * 1.15
    ticks = [(float(n), [times(n, results.context), format_count(int(n))]) for n in sorted({results.context, *spans})]
    across = Scale(x_low, x_high, ticks, "length", log=True)
    a = coefficient(results)
    betas = [_fitted(r) for r in rows]
    lines = [Line(_OURS, betas, line=a is None)]
    if a is not None:
        lengths = sorted({*(x_low * (x_high / x_low) ** (i / 60) for i in range(61)), float(results.context)})
        curve = [exact(n, 1 + a * math.log(max(1.0, n / results.context))) for n in lengths]
        lines.append(Line(_FIT, curve, marks=False))
    low, high = ends([v for line in lines for p in line.points for v in (p.low, p.high)] + [1.0])
    said = ", ".join(f"{r['beta']:.3f} at {times(r['length'], results.context)}" for r in rows)
    beta_chart = Chart(
        lines, across, Scale(low, high, _value_ticks(low, high, False), "softmax temperature β"),
        f"Fitted softmax temperature: {said}." + (f" The curve is 1 + {a:.3f} ln s." if a is not None else ""),
        lambda n: f"{times(n, results.context)} · {n:.0f} tokens", context=results.context,
    )  # fmt: skip
    out = [Panel("Fitted temperature", _pair(beta_chart))]
    pairs = [r for r in rows if finite(r.get("loss"), r.get("loss_without"))]
    if pairs:
        with_beta = [exact(r["length"], r["loss"], f"{r['loss']:.4f}") for r in pairs]
        at_one = [exact(r["length"], r["loss_without"], f"{r['loss_without']:.4f}") for r in pairs]
        low, high = ends([p.y for p in with_beta + at_one], 0.1)
        both = [(f"{r['loss']:.3f} and {r['loss_without']:.3f}", times(r["length"], results.context)) for r in pairs]
        said = "; ".join(f"{values} at {where}" for values, where in both)
        loss_chart = Chart(
            [Line(_OURS, with_beta, label="with β"), Line(_WITHOUT, at_one, label="without")],
            across, Scale(low, high, _value_ticks(low, high, False), METRICS["loss"]),
            f"Loss with and without the temperature: {said}.",
            lambda n: f"{times(n, results.context)} · {n:.0f} tokens", context=results.context, end_labels=True,
        )  # fmt: skip
        out.append(Panel("What it buys", _pair(loss_chart)))
    return out


def _fitted(row: dict[str, Any]) -> Point:
    """β with the 95% interval of its standard error, where one is known."""
    if not finite(row.get("beta_se")):
        return exact(row["length"], row["beta"], f"{row['beta']:.3f}")
    low, high = row["beta"] - 1.96 * row["beta_se"], row["beta"] + 1.96 * row["beta_se"]
    return Point(row["length"], row["beta"], low, high, f"{row['beta']:.3f}  {low:.3f} to {high:.3f}")


def temperature_styles(results: Results) -> list[Style]:
    """What the lines of the temperature figures are."""
    without = any(finite(r.get("loss"), r.get("loss_without")) for r in results.temperature)
    return [_OURS, *([_FIT] if coefficient(results) is not None else []), *([_WITHOUT] if without else [])]


def coefficient(results: Results) -> float | None:
    """a of β(s) = 1 + a ln s: as stored, else by least squares on the fitted points beyond the context."""
    for row in results.temperature:
        if finite(row.get("a")):
            return float(row["a"])
    rows = [
        r for r in results.temperature if finite(r.get("length"), r.get("beta")) and r["length"] > results.context > 0
    ]
    logs = [math.log(r["length"] / results.context) for r in rows]
    if not logs:
        return None
    return math.fsum(g * (r["beta"] - 1) for g, r in zip(logs, rows, strict=True)) / math.fsum(g * g for g in logs)


def _pair(chart: Chart) -> Markup:
    return responsive(chart, HALF, HALF_NARROW)


def _value_ticks(low: float, high: float, log: bool) -> list[tuple[float, list[str]]]:
    found = log_ticks(low, high, 5) if log and high / low > 3 else linear_ticks(low, high, 5)
    step = min((b - a for a, b in zip(found, found[1:], strict=False)), default=1.0)
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) if step < 1 else 0
    if any(abs(v - round(v, digits)) > 1e-9 for v in found):
        digits += 1
    return [(v, [f"{v:.{digits}f}"]) for v in found]
