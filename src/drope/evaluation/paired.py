"""Paired tests: every method met the same trials, so methods are compared trial by trial."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def mcnemar(first_only: int, second_only: int) -> float:
    """Exact two-sided McNemar p-value from the numbers of trials that only one of two methods solved (McNemar 1947)."""
    from scipy.stats import binomtest

    n = first_only + second_only
    return float(binomtest(first_only, n, 0.5).pvalue) if n else 1.0


def mcnemar_rows(
    hits: Mapping[tuple[str, int], Mapping[str, Mapping[str, bool]]], reference: str
) -> list[dict[str, Any]]:
    """One row per (task, length, other method), over the trials that both met.

    Parameters
    ----------
    hits : (task, length) -> method -> trial's prompt digest -> solved
    reference : cells without this method give no rows

    Returns
    -------
    rows {task, length, method, reference, n, method_only, reference_only, p}
    """
    rows = []
    for (task, length), methods in hits.items():
        mine = methods.get(reference)
        for name, other in methods.items():
            if mine is None or name == reference:
                continue
            both = mine.keys() & other.keys()
            if not both:
                continue
            method_only = sum(other[d] and not mine[d] for d in both)
            reference_only = sum(mine[d] and not other[d] for d in both)
            rows.append({
                "task": task, "length": length, "method": name, "reference": reference, "n": len(both),
                "method_only": method_only, "reference_only": reference_only, "p": mcnemar(reference_only, method_only),
            })  # fmt: skip
    return rows


def score_rows(
    scores: Mapping[tuple[str, int], Mapping[str, Mapping[str, float]]], reference: str
) -> list[dict[str, Any]]:
    """As `mcnemar_rows`, for scores that are no yes or no: paired t tests over the samples that both met.

    Returns
    -------
    rows {task, length, method, reference, n, difference (method minus reference), se, p}
    """
    from drope.results import mean_interval

    rows = []
    for (task, length), methods in scores.items():
        mine = methods.get(reference)
        for name, other in methods.items():
            if mine is None or name == reference:
                continue
            both = sorted(mine.keys() & other.keys())
            if len(both) < 2:
                continue
            mean, _, _, se = mean_interval([other[d] - mine[d] for d in both])
            rows.append({
                "task": task, "length": length, "method": name, "reference": reference, "n": len(both),
                "difference": mean, "se": se, "p": _t_test(mean, se, len(both)),
            })  # fmt: skip
    return rows


def _t_test(mean: float, se: float, n: int) -> float:
    from scipy.stats import t

    if se == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * t.sf(abs(mean) / se, n - 1))
