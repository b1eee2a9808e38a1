"""Scores drawn from a run: means over tasks, who is ahead, how training ended, and how numbers are printed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drope.report.methods import styles
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
    """Whole-task success: the rows that stand for no single depth or position. Probes of order are no part of it."""
    return [m for m in _successes(results) if not m.details.get("probe")]


def probe_rows(results: Results) -> list[Measurement]:
    """Whole-task success of the probes of order."""
    return [m for m in _successes(results) if m.details.get("probe")]


def _successes(results: Results) -> list[Measurement]:
    return [m for m in results.measurements if m.metric == "success" and is_total(m) and finite(m.value, m.low, m.high)]


def is_total(m: Measurement) -> bool:
    """Whether a row is a total, and not one depth or one stretch of positions of it."""
    return all(m.details.get(part) is None for part in ("depth", "distance", "position_start"))


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
    """The target length where measured, else the longest: a fixed rule, so that no length is picked for its result."""
    measured = lengths(results)
    if "drope" in {m.method for m in success_rows(results)}:
        measured = sorted({m.length for m in success_rows(results) if m.method == "drope"})
    target = results.meta.get("target_length")
    return target if target in measured else measured[-1] if measured else None


def verdict(scores: Sequence[Score]) -> str:
    """DroPE against all others: `ahead` or `behind` by disjoint 95% intervals, else `level`; `` if alone."""
    mine = next((s for s in scores if s.method == "drope"), None)
    others = [s for s in scores if s.method != "drope"]
    if mine is None or not others:
        return ""
    if any(s.low > mine.high for s in others):
        return "behind"
    return "ahead" if all(s.high < mine.low for s in others) else "level"


def pattern(results: Results) -> dict[str, list[int]]:
    """Lengths at which DroPE is ahead, level and behind."""
    out: dict[str, list[int]] = {"ahead": [], "level": [], "behind": []}
    for length in lengths(results):
        if state := verdict(ranking(results, length)):
            out[state].append(length)
    return out


def kept_share(results: Results, at: Score) -> float | None:
    """Success at a length as a share of the same method's success within the trained context."""
    base = score(results, at.method, results.context, at.tasks)
    return at.value / base.value if base and base.value > 0 else None


def recovery_rows(results: Results) -> list[dict[str, Any]]:
    """Recovery rows that can be drawn, in order of tokens."""
    rows = [r for r in results.recovery if "run" in r and finite(r.get("tokens"), r.get("loss"))]
    return sorted(rows, key=lambda r: (str(r["run"]), r["tokens"]))


@dataclass(frozen=True)
class Ending:
    """Where a recalibration run ended: tokens in all, and its last loss in nats per token."""

    tokens: float
    loss: float
    held_out: bool


def endings(results: Results) -> dict[str, Ending]:
    """How each run ended, in the order of the legends.

    All by the last held-out loss where every run has one, else by the mean training loss of the last twentieth of the
    rows: one step alone is noise, and a held-out loss is no match for a training loss.
    """
    rows, out = recovery_rows(results), {}
    runs = {name: [r for r in rows if r["run"] == name] for name in styles(results)}
    runs = {name: mine for name, mine in runs.items() if mine}
    held = {name: [r["eval_loss"] for r in mine if finite(r.get("eval_loss"))] for name, mine in runs.items()}
    for name, mine in runs.items():
        tail = mine[-max(1, len(mine) // 20) :]
        loss = held[name][-1] if all(held.values()) else math.fsum(r["loss"] for r in tail) / len(tail)
        out[name] = Ending(mine[-1]["tokens"], loss, all(held.values()))
    return out


def at_equal_tokens(ends: Mapping[str, Ending]) -> bool:
    """Whether DroPE and its control were trained alike, so that their losses may be compared."""
    if not {"drope", "control"} <= set(ends):
        return False
    return math.isclose(ends["drope"].tokens, ends["control"].tokens, rel_tol=0.02)


def times(length: float, context: int) -> str:
    """`4×` for 1024 tokens of a context of 256."""
    return f"{length / context:.3g}×" if context else f"{length}"


def percent(share: float) -> str:
    """`61%`, with a decimal where rounding would say 0 or 100 of something that is neither."""
    whole = 100 * share
    return f"{whole:.1f}%" if 0 < whole < 1 or 99 < whole < 100 else f"{whole:.0f}%"


def interval(s: Score | Measurement) -> str:
    """`95% interval 54 to 62%`."""
    digits = decimals(s)
    return f"95% interval {100 * s.low:.{digits}f} to {100 * s.high:.{digits}f}%"


def decimals(s: Score | Measurement) -> int:
    """Decimals for an interval in percent: one where it lies so near 0 or 100 that none would blur it."""
    return 1 if s.high < 0.1 or s.low > 0.9 else 0
