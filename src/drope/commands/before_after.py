"""Before and after, task by task: did the upgrade break the model?"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from drope.commands.output import table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from drope.results import Results

_METRICS = ("acc", "acc_norm", "perplexity", "exact_match", "f1", "score")


def before_after(results: Results, before: str, after: str) -> RenderableType:
    """The tasks of lm-evaluation-harness under two methods, with standard errors.

    The error of a change is that of the differences document by document where these are known (accuracies), else that
    of two independent numbers.
    """
    paired = {(r["task"], r["method"], r["reference"]): r for r in results.meta.get("paired", []) if "difference" in r}
    rows = []
    for m in results.measurements:
        other = [
            x for x in results.measurements
            if (x.task, x.metric, x.length, x.method) == (m.task, m.metric, m.length, after)
        ]  # fmt: skip
        if m.method != before or "harness" not in m.details or m.metric not in _METRICS or not other:
            continue
        found, se = other[0].value - m.value, math.hypot(m.details["se"], other[0].details["se"])
        row = paired.get((m.task if m.metric == "acc" else f"{m.task}/{m.metric}", after, before))
        if row is not None:
            se = row["se"]
        share = m.metric != "perplexity"
        verdict = ""
        if abs(found) > 2 * se:
            verdict = "worse" if (found < 0) == share else "better"
        values = [_pm(x.value, x.details["se"], share) for x in (m, other[0])]
        rows.append([m.task, m.metric, *values, _pm(found, se, share, "+"), verdict, str(m.n)])
    title = f"Before ({before}) and after ({after}), ± one standard error; worse, better: by more than two of these"
    return table(title, ["task", "metric", "before", "after", "change", "", "n"], rows, left=2)


def _pm(value: float, se: float, share: bool, sign: str = "") -> str:
    return f"{100 * value:{sign}.1f} ± {100 * se:.1f}" if share else f"{value:{sign}.4g} ± {se:.2g}"
