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
