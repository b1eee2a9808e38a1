"""Timing functions against each other: in turns, so that what else the machine does falls on all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence


def interleaved(
    functions: Mapping[str, Callable[[], object]], rounds: int, warm_up: Callable[[], object] | None = None,
    after: Callable[[dict[str, list[float]]], object] = lambda seconds: None,
) -> dict[str, list[float]]:  # fmt: skip
    """CPU seconds of this process (all threads) for each function in each round, after one round that does not count.

    `warm_up` runs in place of that first round; `after` sees what there is after each round, so that it can be kept.

    CPU time, since it leaves out the time that other processes had the core; with one thread on a quiet machine it is
    the wall-clock time.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    if warm_up is not None:
        warm_up()
    for round_ in range(0 if warm_up is None else 1, rounds + 1):
        for name, function in functions.items():
            begin = time.process_time()
            function()
            spent = time.process_time() - begin
            if round_:
                seconds[name].append(spent)
        if round_:
            after(seconds)
    return seconds


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Median and its distribution-free 95% interval from order statistics (the range of the values below 6 of them)."""
    from scipy.stats import binom

    ordered = sorted(values)
    rank = max(0, int(binom.ppf(0.025, len(ordered), 0.5)) - 1)
    return statistics.median(ordered), ordered[rank], ordered[-1 - rank]
