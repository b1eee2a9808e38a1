"""The sections with figures: what each says, shows and notes. A section whose data is missing is None."""

from __future__ import annotations

from dataclasses import dataclass, field

from drope.quantities import format_tokens
from drope.report import charts, losses, scores
from drope.report.charts import Panel
from drope.report.methods import Style, styles, task_label
from drope.report.scores import finite, percent, times
from drope.results import Results


@dataclass(frozen=True)
class Section:
    """One part of the page. `layout`: how many panels stand side by side where there is room."""

    id: str
    title: str
    lead: str
    caption: str
    panels: list[Panel] = field(default_factory=list)
    more: list[Panel] = field(default_factory=list)
    groups: dict[str, list[Panel]] = field(default_factory=dict)
    legend: list[Style] = field(default_factory=list)
    layout: int = 1
    scale: bool = False
    follow: bool = True
    trained: bool = False


def sections(results: Results) -> list[Section]:
    """All sections that have data, in order."""
    found = [
        _success(results),
        _heat(results),
        _order(results),
        _position(results),
        _recovery(results),
        _temperature(results),
    ]
    return [section for section in found if section]


def _success(results: Results) -> Section | None:
    panels = charts.success(results)
    if not panels:
        return None
    found = scores.pattern(results)
    counted = sum(len(v) for v in found.values())
    lead = (
        f"By 95% intervals of the mean, DroPE is ahead of every other method at {len(found['ahead'])} of {counted} "
        f"lengths, level at {len(found['level'])} and behind at {len(found['behind'])}."
        if counted
        else "How often each task is answered, as the text grows."
    )
    rows = scores.success_rows(results)
    return Section(
        "success", "Success against length", lead,
        "Share of trials answered, by length of the text. Bands: 95% intervals.",
        panels, legend=list(styles(results, {m.method for m in rows}).values()), layout=len(panels), trained=True,
    )  # fmt: skip


def _heat(results: Results) -> Section | None:
    groups = charts.heat_maps(results)
    if not groups:
        return None
    cells = [
        m
        for m in results.measurements
        if m.details.get("depth") is not None and m.metric == "success" and finite(m.value)
    ]
    mine = [m for m in cells if m.method == "drope"] or cells
    length = scores.headline_length(results)
    mine = [m for m in mine if m.length == length] or mine
    worst, best = min(mine, key=lambda m: m.value), max(mine, key=lambda m: m.value)
    lead = "Whether a needle is found, by where it lies."
    if (worst.method, worst.length) == (best.method, best.length):
        low, high = (f"{percent(m.value)} at depth {100 * m.details['depth']:.0f}%" for m in (worst, best))
        name = styles(results)[worst.method].label
        lead = f"At {times(worst.length, results.context)}, {name} goes from {low} to {high}."
    caption = (
        "Rows: how deep in the text the needle lies, 0% at its start. Columns: length. "
        "A cell gives the share of trials answered, in percent."
    )
    counts = sorted({m.n for m in cells})
    caption += f" Trials in each cell: {counts[0]}" + (f" to {counts[-1]}." if len(counts) > 1 else ".")
    return Section(
        "depth",
        "Where in the text",
        lead,
        caption,
        groups={task_label(k): v for k, v in groups.items()},
        layout=4,
        scale=True,
    )


def _order(results: Results) -> Section | None:
    """What needs the order of tokens: a position-free model's weak side, if it has one."""
    rows = scores.probe_rows(results)
    if not rows:
        return None
    panels = charts.success(results, probes=True)
    length = max(m.length for m in rows)
    weak = [
        f"{task_label(m.task).lower()} ({percent(m.value)}, by chance {percent(m.details['chance'])})"
        for m in rows
        if m.method == "drope" and m.length == length and m.low <= m.details.get("chance", 0.0)
    ]
    lead = "Tasks that need to know what came before what."
    if any(m.method == "drope" for m in rows):
        where = f"At {times(length, results.context)}, DroPE"
        lead = f"{where} is no better than chance in {'; '.join(weak)}." if weak else f"{where} beats chance in all."
    groups = charts.heat_maps(results, "distance")
    caption = "Share of trials answered. Bands: 95% intervals."
    if groups:
        caption += " Maps: rows are the tokens between a word and its repetition, columns the length of the text."
    return Section(
        "order", "Order", lead, caption, panels, groups={f"{task_label(k)} by distance": v for k, v in groups.items()},
        legend=list(styles(results, {m.method for m in rows}).values()), layout=min(4, max(1, len(panels))),
        scale=bool(groups), trained=True,
    )  # fmt: skip


def _position(results: Results) -> Section | None:
    panels = losses.by_position(results)
    if not panels:
        return None
    rows = losses.position_rows(results)
    length = max(m.length for m in rows)
    said = []
    for name, style in styles(results, {m.method for m in rows}).items():
        mine = sorted(
            (m for m in rows if m.method == name and m.length == length), key=lambda m: m.details["position_start"]
        )
        inside = [m for m in mine if m.details["position_start"] < results.context]
        if name in ("drope", "rope") and inside and mine[-1].details["position_start"] >= results.context:
            said.append(f"{style.label} goes from {inside[-1].value:.2f} to {mine[-1].value:.2f}")
    lead = (
        "From the end of the trained context to the end of the text, " + "; ".join(said) + "."
        if said
        else "How well each next token is predicted, as the text before it grows."
    )
    gone = losses.left_out(results)
    caption = (
        f"Mean {rows[0].metric} of the tokens around each position, over held-out documents; lower is better. "
        "Bands: 95% intervals."
    )
    if gone:
        caption += f" Leaving the top: {', '.join(gone)}."
    return Section(
        "position", f"{rows[0].metric.capitalize()} by position", lead, caption, panels[:1], panels[1:], trained=True,
        legend=list(styles(results, {m.method for m in rows}).values()), layout=1,
    )  # fmt: skip


def _recovery(results: Results) -> Section | None:
    figure = losses.recovery(results)
    if figure is None:
        return None
    looks, last = styles(results), scores.endings(results)
    kind = "Held-out" if all(end.held_out for end in last.values()) else "Training"
    lead = (
        f"{kind} loss: "
        + "; ".join(
            f"{looks[n].label} ends at {e.loss:.2f} after {format_tokens(e.tokens)} tokens" for n, e in last.items()
        )
        + "."
    )
    if scores.at_equal_tokens(last):
        gap = last["drope"].loss - last["control"].loss
        lead += f" DroPE minus its control, trained on as many tokens: {_signed(gap, 2)} nats per token."
    caption = "Loss within the original context, as training goes on; lower is better."
    if any(finite(r.get("eval_loss")) for r in results.recovery):
        caption += " Marks: held-out text."
    start = [r for r in scores.recovery_rows(results) if r["tokens"] == 0]
    if start:
        caption += (
            " Before the first token: " + ", ".join(f"{looks[r['run']].label} {r['loss']:.2f}" for r in start) + "."
        )
    return Section(
        "recovery", "Recovery during recalibration", lead, caption, [Panel("", figure)], legend=[looks[n] for n in last]
    )


def _temperature(results: Results) -> Section | None:
    panels = losses.temperature(results)
    if not panels:
        return None
    rows = [r for r in results.temperature if finite(r.get("length"), r.get("loss"), r.get("loss_without"))]
    a, lead = losses.coefficient(results), ""
    if a is not None:
        lead = f"β(s) = 1 + {a:.3f} ln s, where s is the length over the trained context."
    if rows:
        row = max(rows, key=lambda r: r["length"])
        change = row["loss"] - row["loss_without"]
        give = f" ± {1.96 * row['gain_se']:.3f}" if finite(row.get("gain_se")) else ""
        where = times(row["length"], results.context)
        lead += f" At {where} it changes the loss by {_signed(change, 3)}{give} nats per token."
    caption = (
        "β multiplies the attention logits at inference. It is fitted at each length; the curve is the fit to all."
    )
    bound = [times(r["length"], results.context) for r in results.temperature if r.get("at_bound") is True]
    if bound:
        caption += f" At {', '.join(bound)} it lies at an end of the searched interval: the best may lie outside."
    if len(panels) > 1:
        caption += " The loss is that of held-out text, with β and without."
    return Section(
        "temperature",
        "Softmax temperature",
        lead.strip(),
        caption,
        panels,
        legend=losses.temperature_styles(results),
        layout=2,
        follow=False,
        trained=True,
    )


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "\u2212")
