"""β(s) = 1 + a·ln(s), s = length / C_train: the best β at each length, and the constant a through them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from drope.errors import InputError
from drope.results import mean_interval
from drope.temperature.objective import EVALUATIONS, Objective, check, mean, minimise, samples_for

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
    check(lengths, context, bounds, objective, max_tokens, tolerance)
    from drope.evaluation.losses import evaluating, temperature_at
    from drope.progress import track

    points = []
    with track("Temperature", total=len(set(lengths)) * (EVALUATIONS + 3), unit="passes") as bar, evaluating(model):
        for length in sorted(set(lengths)):
            samples = samples_for(
                objective, tokenizer, text, length, max(1, max_tokens // length), batch_tokens=batch_tokens,
                tasks=tasks, seed=seed,
            )  # fmt: skip

            def losses_at(beta: float, samples=samples) -> list[float]:
                with temperature_at(model, beta):
                    return samples.losses(model)

            def tick(beta: float, loss: float, length: int = length) -> None:
                bar.advance(1, f"{length} tokens, β {beta:.2f}, loss {loss:.3f}")

            best = minimise(losses_at, bounds, tolerance, neutral=1.0, step=_STEP, tick=tick)
            points.append(
                TemperaturePoint(
                    length, best.value, mean(best.at), mean(best.neutral), best.value_se, mean_interval(best.at)[3],
                    mean_interval(best.neutral)[3], best.gain_se, len(best.at), best.evaluations, best.at_bound,
                )
            )  # fmt: skip
    a, a_se = _least_squares(points, context, tolerance)
    return TemperatureFit(a, context, points, a_se, objective)


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
