"""What the numbers say, in words: the headline, the sentences under it and the key figures."""

from __future__ import annotations

from collections.abc import Sequence

from drope.quantities import format_tokens
from drope.report.methods import Style, styles
from drope.report.scores import (
    at_equal_tokens,
    endings,
    finite,
    headline_length,
    interval,
    kept_share,
    pattern,
    percent,
    ranking,
    recovery_rows,
    times,
    verdict,
)
from drope.results import Results


def headline(results: Results) -> str:
    """The finding in one sentence. It says so when DroPE loses, and when nothing is certain."""
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
    if best.high < 0.05:
        return f"{where}, no method works: the best, {looks[best.method].label}, answers {percent(best.value)}."
    state = verdict(scores)
    rival = next((s for s in rivals if state == "behind" and s.low > mine.high), rivals[0])
    named, ours, theirs = _named(looks[rival.method]), percent(mine.value), percent(rival.value)
    if state == "ahead":
        return f"{where}, DroPE answers {ours} of the needle questions; {named} {theirs}."
    if state == "behind":
        return f"{where}, DroPE falls behind: it answers {ours} of the needle questions, {named} {theirs}."
    return f"{where}, DroPE and {named} cannot be told apart: {ours} and {theirs} of the needle questions."


def standfirst(results: Results) -> list[str]:
    """The sentences under the headline: what is kept, the pattern over lengths, the cost in range, the training."""
    out, length, looks = [], headline_length(results), styles(results)
    if length is not None:
        scores = ranking(results, length)
        kept = {s.method: k for s in scores if (k := kept_share(results, s)) is not None}
        rival = next((s for s in scores if s.method != "drope"), None)
        if "drope" in kept and length > results.context:
            versus = (
                f"; {looks[rival.method].label} keeps {percent(kept[rival.method])} of its own"
                if rival and rival.method in kept
                else ""
            )
            out.append(f"That is {percent(kept['drope'])} of what DroPE answers within the trained context{versus}.")
        out += _pattern(results)
        out += _in_range(results)
        fewest = min((s.n for s in scores), default=100)
        if fewest < 100:
            out.append(f"Some tasks have only {fewest} trials: the intervals are wide.")
    last = endings(results)
    if "drope" in last and length is not None:
        end = last["drope"]
        control = f"; the same model with RoPE kept reaches {last['control'].loss:.2f}" if at_equal_tokens(last) else ""
        kind = "held-out" if end.held_out else "training"
        out.append(
            f"After {format_tokens(end.tokens)} tokens of recalibration the {kind} loss is {end.loss:.2f}{control}."
        )
    return out


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
            out.append(
                (percent(rival.value), f"best alternative at {at}: {looks[rival.method].label}", interval(rival))
            )
        if mine and length > results.context and (kept := kept_share(results, mine)) is not None:
            out.append((percent(kept), "of its in-range success kept", f"from {results.context} to {length} tokens"))
    if end := endings(results).get("drope"):
        out.append((format_tokens(end.tokens), "tokens of recalibration", f"final loss {end.loss:.3g} nats per token"))
    rows = [r for r in results.temperature if finite(r.get("length"), r.get("beta"))]
    if rows:
        row = next((r for r in rows if r["length"] == length), max(rows, key=lambda r: r["length"]))
        out.append(
            (
                f"{row['beta']:.2f}",
                f"softmax temperature β at {times(row['length'], results.context)}",
                "multiplies the attention logits",
            )
        )
    return out


def _named(style: Style) -> str:
    return {
        "scaling": f"the best RoPE scaling ({style.label})",
        "rope": "RoPE as it was",
        "control": "RoPE trained on the same tokens",
        "control-scaled": f"{style.label.removeprefix('Control + ')} on RoPE trained alike",
        "nope": "NoPE without recalibration",
    }.get(style.kind, style.label)


def _pattern(results: Results) -> list[str]:
    found = {k: [n for n in v if n > results.context] for k, v in pattern(results).items()}
    words = {"ahead": "ahead of every other method", "level": "level with the best", "behind": "behind the best"}
    parts = [f"{words[k]} at {_join([times(n, results.context) for n in v])}" for k, v in found.items() if v]
    return [f"Beyond that context, by 95% intervals, DroPE is {_join(parts, '; ')}."] if parts else []


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
    last = endings(results)
    if end := last.get("drope"):
        first = next(r["loss"] for r in recovery_rows(results) if r["run"] == "drope")
        control = f" RoPE trained alike: {last['control'].loss:.2f}." if at_equal_tokens(last) else ""
        amount = format_tokens(end.tokens)
        return f"{amount} tokens of recalibration take the loss from {first:.2f} to {end.loss:.2f}.{control}"
    rows = [m for m in results.measurements if m.details.get("position_start") is not None and finite(m.value)]
    if rows:
        name = "drope" if any(m.method == "drope" for m in rows) else rows[0].method
        tail = max((m for m in rows if m.method == name), key=lambda m: (m.length, m.details["position_start"]))
        said = f"the {tail.metric} of {styles(results)[name].label} is {tail.value:.2f}"
        return f"At the end of {times(tail.length, results.context)} the context, {said}."
    fitted = [r for r in results.temperature if finite(r.get("length"), r.get("beta"))]
    if fitted:
        row = max(fitted, key=lambda r: r["length"])
        return (
            f"At {times(row['length'], results.context)} the context the best softmax temperature is {row['beta']:.2f}."
        )
    return f"{len(results.measurements)} measurements." if results.measurements else "Nothing was measured."


def _join(words: Sequence[str], between: str = ", ") -> str:
    return (
        between.join(words[:-1]) + (" and " if between == ", " else between) + words[-1]
        if len(words) > 1
        else "".join(words)
    )
