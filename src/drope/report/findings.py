"""What the numbers say, in words: the headline, the sentences under it and the key figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from drope.quantities import format_tokens
from drope.report.methods import Style, styles
from drope.results import Measurement, Results


@dataclass(frozen=True)
class Score:
    """A method's mean success over `tasks` at one length, with its 95% interval; `n` is the fewest trials of a task."""

    method: str
    value: float
    low: float
    high: float
    n: int
    tasks: tuple[str, ...]


def finite(*values: Any) -> bool:
    """Whether every value is a number that can be drawn."""
    return all(isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in values)


def success_rows(results: Results) -> list[Measurement]:
    """Whole-task success: the rows that stand for no single depth or position."""
    return [m for m in results.measurements if m.metric == "success" and is_total(m) and finite(m.value, m.low, m.high)]


def is_total(m: Measurement) -> bool:
    """Whether a row is a total, and not one depth or one stretch of positions of it."""
    return m.details.get("depth") is None and m.details.get("position_start") is None


def score(results: Results, method: str, length: int, tasks: Sequence[str]) -> Score | None:
    """Unweighted mean over tasks; None unless all were measured.

    The interval of a mean of independent shares is recovered from their own (MOVER: Zou and Donner 2008), so it keeps
    the asymmetry of Wilson's intervals near 0 and 1.
    """
    first = {m.task: m for m in reversed(success_rows(results)) if m.method == method and m.length == length}
    if not tasks or not set(tasks) <= set(first):
        return None
    rows, k = [first[t] for t in tasks], len(tasks)
    value = math.fsum(m.value for m in rows) / k
    below = math.sqrt(math.fsum((m.value - m.low) ** 2 for m in rows)) / k
    above = math.sqrt(math.fsum((m.high - m.value) ** 2 for m in rows)) / k
    return Score(method, value, max(0.0, value - below), min(1.0, value + above), min(m.n for m in rows), tuple(tasks))


def lengths(results: Results) -> list[int]:
    """All lengths with whole-task success."""
    return sorted({m.length for m in success_rows(results)})


def ranking(results: Results, length: int) -> list[Score]:
    """Methods by mean success at `length`, best first.

    The mean is over the tasks that DroPE was measured on there (the most complete method, if DroPE was not); methods
    that lack one of these are left out, since their mean would be of something else.
    """
    tasks: dict[str, list[str]] = {}
    for m in success_rows(results):
        if m.length == length and m.task not in tasks.setdefault(m.method, []):
            tasks[m.method].append(m.task)
    if not tasks:
        return []
    chosen = tasks.get("drope") or max(tasks.values(), key=len)
    found = [s for name in styles(results, tasks) if (s := score(results, name, length, chosen))]
    return sorted(found, key=lambda s: -s.value)


def headline_length(results: Results) -> int | None:
    """The target length where it was measured, else the longest. A fixed rule, so that no length is picked for its result."""
    measured = lengths(results)
    if "drope" in {m.method for m in success_rows(results)}:
        measured = sorted({m.length for m in success_rows(results) if m.method == "drope"})
    target = results.meta.get("target_length")
    return target if target in measured else measured[-1] if measured else None


def verdict(scores: Sequence[Score]) -> str:
    """DroPE against all others at one length: `ahead` or `behind` by disjoint 95% intervals, else `level`; `` if alone."""
    mine = next((s for s in scores if s.method == "drope"), None)
    others = [s for s in scores if s.method != "drope"]
    if mine is None or not others:
        return ""
    if any(s.low > mine.high for s in others):
        return "behind"
    return "ahead" if all(s.high < mine.low for s in others) else "level"


def headline(results: Results) -> str:
    """The finding in one sentence, computed from the numbers: it says so when DroPE loses or when nothing is certain."""
    length = headline_length(results)
    if length is None:
        return _headline_without_needles(results)
    scores, looks = ranking(results, length), styles(results)
    where, best = f"At {times(length, results.context)} the context", scores[0]
    mine = next((s for s in scores if s.method == "drope"), None)
    rivals = [s for s in scores if s.method != "drope"]
    if mine is None or not rivals:
        only = f"{where}, {looks[best.method].label} answers {percent(best.value)} of the needle questions"
        return only + (f", the most of {len(scores)} methods." if len(scores) > 1 else ".")
    rival = rivals[0]
    named = _named(looks[rival.method])
    if best.high < 0.1:
        return f"{where}, no method works: the best, {looks[best.method].label}, answers {percent(best.value)}."
    state = verdict(scores)
    if state == "ahead":
        return f"{where}, DroPE answers {percent(mine.value)} of the needle questions; {named} {percent(rival.value)}."
    if state == "behind":
        return f"{where}, DroPE falls behind: it answers {percent(mine.value)} of the needle questions, {named} {percent(rival.value)}."
    return (
        f"{where}, DroPE and {named} cannot be told apart: {percent(mine.value)} and {percent(rival.value)} of the needle "
        "questions, with overlapping intervals."
    )


def standfirst(results: Results) -> list[str]:
    """The sentences under the headline: what is kept, the pattern over lengths, the cost in range, the training."""
    out, length, looks = [], headline_length(results), styles(results)
    if length is not None:
        scores = ranking(results, length)
        kept = {s.method: k for s in scores if (k := kept_share(results, s)) is not None}
        rival = next((s for s in scores if s.method != "drope"), None)
        if "drope" in kept and length > results.context:
            versus = (
                f"; {looks[rival.method].label} keeps {percent(kept[rival.method])} of its own" if rival and rival.method in kept else ""
            )
            out.append(f"That is {percent(kept['drope'])} of what DroPE answers within the trained context{versus}.")
        out += _pattern(results)
        out += _in_range(results)
        fewest = min(s.n for s in scores)
        if fewest < 100:
            out.append(f"Some tasks have only {fewest} trials: the intervals are wide.")
    last = final_losses(results)
    if "drope" in last and length is not None:
        tokens, loss = last["drope"]
        control = f"; the same model with RoPE kept reaches {last['control'][1]:.2f}" if "control" in last else ""
        out.append(f"After {format_tokens(tokens)} tokens of recalibration the loss is {loss:.2f}{control}.")
    return out


def kept_share(results: Results, at: Score) -> float | None:
    """Success at a length as a share of the same method's success within the trained context."""
    base = score(results, at.method, results.context, at.tasks)
    return at.value / base.value if base and base.value > 0 else None


def pattern(results: Results) -> dict[str, list[int]]:
    """Lengths at which DroPE is ahead, level and behind."""
    out: dict[str, list[int]] = {"ahead": [], "level": [], "behind": []}
    for length in lengths(results):
        if state := verdict(ranking(results, length)):
            out[state].append(length)
    return out


def final_losses(results: Results) -> dict[str, tuple[float, float]]:
    """Last tokens and loss of each recalibration run; the held-out loss where there is one."""
    out: dict[str, tuple[float, float]] = {}
    for row in recovery_rows(results):
        loss = row["eval_loss"] if finite(row.get("eval_loss")) else row["loss"]
        if row["run"] not in out or row["tokens"] >= out[row["run"]][0]:
            out[row["run"]] = (row["tokens"], loss)
    return out


def recovery_rows(results: Results) -> list[dict[str, Any]]:
    """Recovery rows that can be drawn, in order of tokens."""
    rows = [r for r in results.recovery if "run" in r and finite(r.get("tokens"), r.get("loss"))]
    return sorted(rows, key=lambda r: (str(r["run"]), r["tokens"]))


def key_numbers(results: Results) -> list[tuple[str, str, str]]:
    """(figure, what it is, its interval or context) for the strip under the headline."""
    out, length, looks = [], headline_length(results), styles(results)
    if length is not None:
        at, scores = times(length, results.context), ranking(results, length)
        mine = next((s for s in scores if s.method == "drope"), None)
        rival = next((s for s in scores if s.method != "drope"), None)
        if mine:
            out.append((percent(mine.value), f"DroPE’s success at {at}", interval(mine)))
        if rival:
            out.append((percent(rival.value), f"best alternative at {at}: {looks[rival.method].label}", interval(rival)))
        if mine and length > results.context and (kept := kept_share(results, mine)) is not None:
            out.append((percent(kept), "of its in-range success kept", f"from {results.context} to {length} tokens"))
    last = final_losses(results)
    if "drope" in last:
        out.append((format_tokens(last["drope"][0]), "tokens of recalibration", f"final loss {last['drope'][1]:.3g} nats per token"))
    rows = [r for r in results.temperature if finite(r.get("length"), r.get("beta"))]
    if rows:
        row = next((r for r in rows if r["length"] == length), max(rows, key=lambda r: r["length"]))
        out.append((f"{row['beta']:.2f}", f"softmax temperature β at {times(row['length'], results.context)}", "multiplies the attention logits"))
    return out


def times(length: float, context: int) -> str:
    """`4×` for 1024 tokens of a context of 256."""
    return f"{length / context:.3g}×" if context else f"{length}"


def percent(share: float) -> str:
    """`61%`, with a decimal where rounding would say 0 or 100 of something that is neither."""
    whole = 100 * share
    return f"{whole:.1f}%" if 0 < whole < 1 or 99 < whole < 100 else f"{whole:.0f}%"


def interval(s: Score | Measurement) -> str:
    """`95% interval 54 to 62%`."""
    return f"95% interval {100 * s.low:.0f} to {100 * s.high:.0f}%"


def _named(style: Style) -> str:
    return {
        "scaling": f"the best RoPE scaling ({style.label})",
        "rope": "RoPE as it was",
        "control": "RoPE trained on the same tokens",
        "nope": "NoPE without recalibration",
    }.get(style.kind, style.label)


def _pattern(results: Results) -> list[str]:
    found = {k: [n for n in v if n > results.context] for k, v in pattern(results).items()}
    words = {"ahead": "ahead of every other method", "level": "level with the best", "behind": "behind the best"}
    parts = [f"{words[k]} at {_join([times(n, results.context) for n in v])}" for k, v in found.items() if v]
    return [f"Beyond that context, by 95% intervals, it is {_join(parts, '; ')}."] if parts else []


def _in_range(results: Results) -> list[str]:
    scores = {s.method: s for s in ranking(results, results.context)}
    if not {"drope", "rope"} <= set(scores):
        return []
    mine, theirs = scores["drope"], scores["rope"]
    said = f"{percent(mine.value)} against {percent(theirs.value)} for the original model"
    if mine.high < theirs.low:
        return [f"Within it, DroPE pays a price: {said}."]
    if mine.low > theirs.high:
        return [f"Within it, DroPE gains: {said}."]
    return [f"Within it, no loss can be told: {said}."]


def _headline_without_needles(results: Results) -> str:
    last = final_losses(results)
    if "drope" in last:
        tokens, loss = last["drope"]
        first = next(r["loss"] for r in recovery_rows(results) if r["run"] == "drope")
        control = f" RoPE trained alike: {last['control'][1]:.2f}." if "control" in last else ""
        return f"{format_tokens(tokens)} tokens of recalibration bring the loss from {first:.2f} to {loss:.2f}.{control}"
    rows = [m for m in results.measurements if m.details.get("position_start") is not None and finite(m.value)]
    if rows:
        name = "drope" if any(m.method == "drope" for m in rows) else rows[0].method
        end = max((m for m in rows if m.method == name), key=lambda m: (m.length, m.details["position_start"]))
        said = f"the {end.metric} of {styles(results)[name].label} is {end.value:.2f}"
        return f"At the end of {times(end.length, results.context)} the context, {said}."
    fitted = [r for r in results.temperature if finite(r.get("length"), r.get("beta"))]
    if fitted:
        row = max(fitted, key=lambda r: r["length"])
        return f"At {times(row['length'], results.context)} the context the best softmax temperature is {row['beta']:.2f}."
    return f"{len(results.measurements)} measurements." if results.measurements else "Nothing was measured."


def _join(words: Sequence[str], between: str = ", ") -> str:
    return between.join(words[:-1]) + (" and " if between == ", " else between) + words[-1] if len(words) > 1 else "".join(words)
