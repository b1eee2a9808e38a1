"""What a fit minimises, and the search for one number that minimises it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from drope.errors import InputError
from drope.evaluation.samples import Samples, answer_samples, text_samples
from drope.results import mean_interval

Objective = Literal["perplexity", "needles"]
OBJECTIVES = ("perplexity", "needles")
EVALUATIONS = 12  # at most, of one search
Losses = Callable[[float], list[float]]  # the number -> mean loss of each sample


def samples_for(
    objective: Objective,
    tokenizer: Any,
    text: str | Sequence[str],
    length: int,
    count: int,
    *,
    batch_tokens: int,
    tasks: Sequence[str] = ("multi_query", "multi_key"),
    seed: int = 0,
) -> Samples:
    """`count` windows of running text, or needle trials in it, whose negative seeds the evaluation never uses.

    Parameters
    ----------
    text : held-out documents, or the spec of a source
    """
    documents = _documents(text)
    if objective == "perplexity":
        return text_samples(tokenizer, documents, length, count, batch_tokens=batch_tokens)
    from drope.data.stdlib import sentences
    from drope.evaluation.tasks import get_task
    from drope.evaluation.trials import Trials

    trials = Trials(tokenizer, sentences(list(documents)), seed=-1 - abs(seed))
    chosen = [get_task(t) for t in tasks]
    return answer_samples(trials, chosen, length, max(count, len(chosen)), batch_tokens=batch_tokens)


@dataclass(frozen=True)
class Minimum:
    """Where the mean loss is lowest.

    value, value_se : the number and its standard error (None: too few samples, or no curvature to take it from)
    at, neutral : losses of the samples there and at the neutral number
    evaluations : passes over the samples
    at_bound : it lies at an end of the interval that was searched
    """

    value: float
    value_se: float | None
    at: list[float]
    neutral: list[float]
    evaluations: int
    at_bound: bool

    @property
    def gain_se(self) -> float:
        """Standard error of the gain over the neutral number, paired over samples."""
        return mean_interval([w - x for w, x in zip(self.neutral, self.at, strict=True)])[3]


def minimise(
    losses_at: Losses,
    bounds: tuple[float, float],
    tolerance: float,
    *,
    neutral: float,
    step: float,
    tick: Callable[[float, float], None],
) -> Minimum:
    """Bounded minimisation of the mean loss over one number, at most 15 evaluations.

    Parameters
    ----------
    neutral : the number that changes nothing; it is measured too
    step : distance of the two measurements around the optimum, for slope and curvature
    tick : called with every number and its loss
    """
    from scipy.optimize import minimize_scalar

    seen: dict[float, list[float]] = {}

    def loss(x: float) -> float:
        x = float(x)
        if x not in seen:
            seen[x] = losses_at(x)
            tick(x, mean(seen[x]))
        return mean(seen[x])

    loss(neutral)
    minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": tolerance, "maxiter": EVALUATIONS})
    best = min((x for x in seen if bounds[0] <= x <= bounds[1]), key=loss)
    for x in (best - step, best + step):
        loss(x)
    error = _error(seen[best - step], seen[best], seen[best + step], step)
    edge = best - bounds[0] < 2 * tolerance or bounds[1] - best < 2 * tolerance
    return Minimum(best, error, seen[best], seen[neutral], len(seen), edge)


def _error(below: list[float], at: list[float], above: list[float], step: float) -> float | None:
    """Standard error of a minimiser (sandwich form): spread of the samples' slopes over the curvature of their mean."""
    curvature = mean([(u - 2 * m + v) / step**2 for u, m, v in zip(below, at, above, strict=True)])
    if len(at) < 2 or curvature <= 0:
        return None
    slopes = [(v - u) / (2 * step) for u, v in zip(below, above, strict=True)]
    return mean_interval(slopes)[3] / curvature


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def check(
    lengths: Sequence[int],
    context: int,
    bounds: tuple[float, float],
    objective: str,
    max_tokens: int,
    tolerance: float,
) -> None:
    """Raise InputError for settings that no fit can use."""
    if not lengths or any(n < context for n in lengths):
        raise InputError("lengths", list(lengths), f"target lengths of at least the context, {context} tokens")
    if not 0 < bounds[0] < bounds[1] < math.inf:
        raise InputError("bounds", bounds, "two numbers above 0, the lower first, such as (0.7, 3.0)")
    if objective not in OBJECTIVES:
        raise InputError("objective", objective, " or ".join(OBJECTIVES))
    if max_tokens < 1 or not tolerance > 0:
        raise InputError("max_tokens", max_tokens, "a whole number of at least 1, and a tolerance above 0")


def _documents(text: str | Sequence[str]) -> Sequence[str]:
    if not isinstance(text, str):
        return text
    from drope.data.sources import open_source

    source = open_source(text)
    heldout = source.heldout_documents()
    return list(source.documents()) if heldout is None else heldout
