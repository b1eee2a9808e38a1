"""The softmax temperature β(s) = 1 + a·ln(s), s = length / C_train, fitted to one model on held-out text.

β multiplies q·k/√d. The paper minimises held-out perplexity at the target length and publishes a = 0.412 and 0.103
for two models; the constant is each model's own. What serves running text may not be what serves retrieval, so
the loss of needle answers can be minimised instead (`objective="needles"`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import groupby
from typing import Any, Literal

from drope.errors import InputError
from drope.results import mean_interval

Objective = Literal["perplexity", "needles"]
OBJECTIVES = ("perplexity", "needles")
_EVALUATIONS = 12  # at most, of one length's search
_STEP = 0.04  # in β: for slope and curvature around the optimum


@dataclass(frozen=True)
class TemperaturePoint:
    """The best β at one length.

    loss, loss_without : mean nats per token at β and at 1, each with its standard error over samples
    gain_se : standard error of `loss_without - loss`, paired over samples
    beta_se : standard error of β (None: too few samples, or no curvature to take it from)
    samples : windows of text or needle trials; evaluations: passes over them
    at_bound : β lies at an end of the interval that was searched, so the optimum may lie outside
    """

    length: int
    beta: float
    loss: float
    loss_without: float
    beta_se: float | None
    loss_se: float
    loss_without_se: float
    gain_se: float
    samples: int
    evaluations: int
    at_bound: bool


@dataclass(frozen=True)
class TemperatureFit:
    """β(s) = 1 + a·ln(s); `a_se` is its standard error (None where it cannot be told)."""

    a: float
    context: int
    points: list[TemperaturePoint] = field(default_factory=list)
    a_se: float | None = None
    objective: Objective = "perplexity"

    def beta(self, length: int) -> float:
        """β at `length` tokens; 1 up to the context."""
        return 1 + self.a * math.log(max(1.0, length / self.context))

    def rows(self) -> list[dict[str, Any]]:
        """One row per fitted length, with the fit's own `a` and `objective`: what `Results.temperature` holds."""
        return [asdict(p) | {"a": self.a, "objective": self.objective} for p in self.points]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> TemperatureFit:
        """What `to_dict` wrote.

        Raises
        ------
        InputError : fields are missing or unknown
        """
        try:
            return cls(**{**value, "points": [TemperaturePoint(**p) for p in value.get("points", [])]})
        except (TypeError, AttributeError) as error:
            known = ", ".join(f.name for f in fields(cls))
            raise InputError("temperature", str(value)[:80], f"the fields {known}", str(error)) from error


def fit(
    model,
    tokenizer,
    lengths: Sequence[int],
    *,
    context: int,
    text: str | Sequence[str],
    max_tokens: int = 65536,
    bounds: tuple[float, float] = (0.7, 3.0),
    objective: Objective = "perplexity",
    tolerance: float = 0.02,
    batch_tokens: int = 16384,
    tasks: Sequence[str] = ("multi_query", "multi_key"),
    seed: int = 0,
) -> TemperatureFit:
    """Fit the temperature of a model in the positional state that it is in; the model comes back as it was.

    For each length, β minimises the mean loss over all positions of windows of that length: the paper's perplexity
    at the target length. Then `a` is fitted through β(1) = 1 by least squares, weighted by 1 / variance of β.

    Parameters
    ----------
    lengths : targets in tokens, at or above `context`. `context` itself may be among them as a check; it has no weight
    context : C_train in tokens
    text : held-out documents, or the spec of a source (`stdlib:heldout`, a file); for needles, the haystack
    max_tokens : per length and evaluation, at least one window: the cost is at most 15 passes over this
    bounds : interval of β searched
    objective : `perplexity` of text, or `needles`: the answers' mean loss over trials of `tasks`, drawn from seeds that
        the evaluation never uses
    tolerance : absolute accuracy of β
    batch_tokens : tokens held on the device at once

    Raises
    ------
    InputError : a length below the context, an empty interval, too little text
    """
    _check(lengths, context, bounds, objective, max_tokens, tolerance)
    from drope.evaluation.losses import evaluating
    from drope.progress import track

    documents = _documents(text)
    points = []
    with track("Temperature", total=len(set(lengths)) * (_EVALUATIONS + 3), unit="passes") as bar, evaluating(model):
        for length in sorted(set(lengths)):
            count = max(1, max_tokens // length)
            if objective == "perplexity":
                losses_at = _text_losses(model, tokenizer, documents, length, count, batch_tokens)
            else:
                losses_at = _needle_losses(model, tokenizer, documents, length, count, batch_tokens, tasks, seed)
            points.append(_minimise(losses_at, length, bounds, tolerance, bar))
    a, a_se = _least_squares(points, context, tolerance)
    return TemperatureFit(a, context, points, a_se, objective)


Losses = Callable[[float], list[float]]  # β -> mean loss of each sample


def _minimise(losses_at: Losses, length: int, bounds: tuple[float, float], tolerance: float, bar) -> TemperaturePoint:
    from scipy.optimize import minimize_scalar

    seen: dict[float, list[float]] = {}

    def loss(beta: float) -> float:
        beta = float(beta)
        if beta not in seen:
            seen[beta] = losses_at(beta)
            bar.advance(1, f"{length} tokens, β {beta:.2f}, loss {_mean(seen[beta]):.3f}")
        return _mean(seen[beta])

    loss(1.0)
    minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": tolerance, "maxiter": _EVALUATIONS})
    beta = min((b for b in seen if bounds[0] <= b <= bounds[1]), key=loss)
    for b in (beta - _STEP, beta + _STEP):
        loss(b)
    best, without = seen[beta], seen[1.0]
    _, _, _, gain_se = mean_interval([w - x for w, x in zip(without, best, strict=True)])
    edge = 2 * tolerance
    return TemperaturePoint(
        length, beta, _mean(best), _mean(without), _beta_error(seen[beta - _STEP], best, seen[beta + _STEP]),
        mean_interval(best)[3], mean_interval(without)[3], gain_se, len(best), len(seen),
        beta - bounds[0] < edge or bounds[1] - beta < edge,
    )  # fmt: skip


def _beta_error(below: list[float], at: list[float], above: list[float]) -> float | None:
    """Standard error of a minimiser (sandwich form): spread of the samples' slopes over the curvature of their mean."""
    curvature = _mean([(u - 2 * m + v) / _STEP**2 for u, m, v in zip(below, at, above, strict=True)])
    if len(at) < 2 or curvature <= 0:
        return None
    slopes = [(v - u) / (2 * _STEP) for u, v in zip(below, above, strict=True)]
    return mean_interval(slopes)[3] / curvature


def _least_squares(points: Sequence[TemperaturePoint], context: int, tolerance: float) -> tuple[float, float | None]:
    """Slope of β - 1 on ln(s) through the origin, and its standard error."""
    free = [p for p in points if p.length > context]
    if not free:
        return 0.0, None
    x = [math.log(p.length / context) for p in free]
    y = [p.beta - 1 for p in free]
    known = all(p.beta_se is not None for p in free)
    w = [1 / ((p.beta_se or 0.0) ** 2 + tolerance**2) if known else 1.0 for p in free]
    weight = sum(wi * xi * xi for wi, xi in zip(w, x, strict=True))
    a = sum(wi * xi * yi for wi, xi, yi in zip(w, x, y, strict=True)) / weight
    return a, weight**-0.5 if known else None


def _text_losses(model, tokenizer, documents: Iterable[str], length: int, count: int, batch_tokens: int) -> Losses:
    import torch

    from drope.evaluation.losses import temperature_at, token_losses
    from drope.evaluation.tokens import windows

    device = model.get_input_embeddings().weight.device
    rows = torch.from_numpy(windows(tokenizer, documents, length, count)).split(max(1, batch_tokens // length))

    def losses_at(beta: float) -> list[float]:
        with temperature_at(model, beta):
            return [x for part in rows for x in token_losses(model, part.to(device)).mean(1).tolist()]

    return losses_at


def _needle_losses(
    model,
    tokenizer,
    documents: Iterable[str],
    length: int,
    count: int,
    batch_tokens: int,
    tasks: Sequence[str],
    seed: int,
) -> Losses:
    """Mean loss of the answer's tokens. Trials come from negative seeds; the evaluation's never do."""
    import numpy as np
    import torch

    from drope.data.needles import join_words
    from drope.data.stdlib import sentences
    from drope.evaluation.losses import temperature_at, token_losses
    from drope.evaluation.tasks import get_task
    from drope.evaluation.trials import Trials

    trials = Trials(tokenizer, sentences(list(documents)), seed=-1 - abs(seed))
    chosen = [get_task(t) for t in tasks]
    samples: list[tuple[Any, int]] = []  # ids of prompt and answer, tokens of the answer
    for i in range(max(count, len(chosen))):
        trial = trials.make(chosen[i % len(chosen)], length, i)
        answer = trials.encode.plain([f" {join_words(trial.answers)}."])[0]
        samples.append((np.concatenate([trial.ids, answer]).astype(np.int64), len(answer)))
    samples.sort(key=lambda s: (len(s[0]), s[1]))
    device = model.get_input_embeddings().weight.device
    size = max(1, batch_tokens // length)
    batches = []
    for (_, n), group in groupby(samples, key=lambda s: (len(s[0]), s[1])):  # one shape a batch: nothing is padded
        ids = torch.from_numpy(np.stack([ids for ids, _ in group]))
        batches += [(part, n) for part in ids.split(size)]

    def losses_at(beta: float) -> list[float]:
        with temperature_at(model, beta):
            return [x for ids, n in batches for x in token_losses(model, ids.to(device), last=n).mean(1).tolist()]

    return losses_at


def _documents(text: str | Sequence[str]) -> Sequence[str]:
    if not isinstance(text, str):
        return text
    from drope.data.sources import open_source

    source = open_source(text)
    heldout = source.heldout_documents()
    return list(source.documents()) if heldout is None else heldout


def _check(lengths, context, bounds, objective, max_tokens, tolerance) -> None:
    if not lengths or any(n < context for n in lengths):
        raise InputError("lengths", list(lengths), f"target lengths of at least the context, {context} tokens")
    if not 0 < bounds[0] < bounds[1] < math.inf:
        raise InputError("bounds", bounds, "two numbers above 0, the lower first, such as (0.7, 3.0)")
    if objective not in OBJECTIVES:
        raise InputError("objective", objective, " or ".join(OBJECTIVES))
    if max_tokens < 1 or not tolerance > 0:
        raise InputError("max_tokens", max_tokens, "a whole number of at least 1, and a tolerance above 0")


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
