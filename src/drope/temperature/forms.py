"""Fitting any form of temperature for one target length (see `drope.positions.temperatures` for the forms)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drope.errors import InputError
from drope.positions import Drope, Method, Rope
from drope.positions.temperatures import (
    ConstantTemperature,
    PositionTemperature,
    Temperature,
    Tempered,
    get_temperature,
)
from drope.temperature.length import TemperatureFit
from drope.temperature.objective import EVALUATIONS, Objective, check, mean, minimise, samples_for

if TYPE_CHECKING:
    from drope.temperature.heads import Gradient

FORMS = ("constant", "per_position", "per_head", "per_head_log", "scalable_softmax")  # `log` is what `fit` fits
_STEP = 0.04  # in β, for the error of one number
_SHARE = 0.75  # of the samples is fitted where many numbers are, the rest judges


@dataclass(frozen=True)
class FormFit:
    """One form of temperature, fitted to one model for one target length.

    settings : of the temperature, as `get_temperature` takes them, its form among them
    length, context : target and C_train in tokens
    loss, loss_without : mean nats per token with it and without. Forms with a number for each head are judged on
        samples that were not fitted, if there are several batches of them
    gain_se : standard error of `loss_without - loss`, paired over samples
    value_se : standard error of the number of one-number forms; None elsewhere, or where it cannot be told
    samples : that judged it; evaluations: passes over the samples, or steps of the gradient fit
    at_bound : the number lies at an end of the interval that was searched
    history : loss of each step of a gradient fit
    """

    settings: dict[str, Any]
    length: int
    context: int
    loss: float
    loss_without: float
    gain_se: float
    samples: int
    evaluations: int
    objective: Objective = "perplexity"
    value_se: float | None = None
    at_bound: bool = False
    history: list[float] = field(default_factory=list)

    @property
    def form(self) -> str:
        return str(self.settings["form"])

    @property
    def temperature(self) -> Temperature:
        """The temperature itself, for `drope.positions.temperatures.Tempered`."""
        return get_temperature(**self.settings)

    def rows(self) -> list[dict[str, Any]]:
        """What `Results.temperature` holds. Where heads differ, β and a are the means over heads."""
        from drope.positions import RopeShape
        from drope.positions.temperatures import HeadLogTemperature, HeadTemperature

        row = {k: v for k, v in asdict(self).items() if k not in ("settings", "history")} | {"form": self.form}
        temperature, shape = self.temperature, RopeShape(theta=2.0, head_dim=2, context=self.context)
        if isinstance(temperature, HeadLogTemperature):
            row["a"] = mean([a for layer in temperature.a for a in layer])
            temperature = temperature.at(shape, self.length)
        if isinstance(temperature, HeadTemperature):
            row["beta"] = mean([v for layer in temperature.values for v in layer])
        elif self.form in ("constant", "log"):
            row["beta"] = temperature.beta(shape, self.length)
        return [row]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> FormFit:
        """What `to_dict` wrote.

        Raises
        ------
        InputError : fields are missing or unknown, or there is no such temperature
        """
        try:
            made = cls(**value)
            settings = made.temperature.settings()  # refuses what is no temperature
            return cls(**{**value, "settings": settings})
        except (TypeError, KeyError, AttributeError) as error:
            known = ", ".join(f.name for f in fields(cls))
            raise InputError("temperature", str(value)[:80], f"the fields {known}", str(error)) from error


def fit_form(
    model: Any,
    tokenizer: Any,
    form: str,
    length: int,
    *,
    text: str | Sequence[str],
    method: Method | None = None,
    max_tokens: int = 65536,
    bounds: tuple[float, float] = (0.7, 3.0),
    objective: Objective = "perplexity",
    tolerance: float = 0.02,
    batch_tokens: int = 16384,
    tasks: Sequence[str] = ("multi_query", "multi_key"),
    seed: int = 0,
    gradient: Gradient | None = None,
) -> FormFit:
    """Fit one form of temperature at one target length; the model comes back as it was.

    `constant` and `per_position` (a of 1 + a ln(n / C)) are searched; `per_head`, `per_head_log` (a of 1 + a ln s of
    each head) and `scalable_softmax` (s of each head) are fitted by gradient descent on these numbers alone, with the
    weights frozen (HeadScale, arXiv 2404.12224).

    Parameters
    ----------
    length : target in tokens, above the model's context for every form but `constant`
    text : held-out documents, or the spec of a source; for needles, the haystack
    method : positional method that the temperature is fitted for; by default the state that the model is in
    max_tokens : of the samples in all
    bounds : interval of factors that is searched: of β, and of the factor at the last position
    gradient : steps, learning rates and lower bound of the gradient fits

    Raises
    ------
    InputError : a form that is not fitted, a length that it cannot be fitted at, too little text
    """
    from drope.evaluation.losses import evaluating
    from drope.models import apply, is_position_free, rope_shape
    from drope.progress import track

    if form not in FORMS:
        hint = "The form `log` is fitted over several lengths: drope.temperature.fit." if form == "log" else ""
        raise InputError("form", form, ", ".join(FORMS), hint)
    shape = rope_shape(model.config)
    context = shape.context
    check([length], context, bounds, objective, max_tokens, tolerance)
    if form != "constant" and length <= context:
        raise InputError("length", length, f"a target above the context of {context} tokens for {form}")
    if method is None:
        method = Drope() if is_position_free(model) else Rope()
    samples = samples_for(
        objective, tokenizer, text, length, max(1, max_tokens // length), batch_tokens=batch_tokens, tasks=tasks,
        seed=seed,
    )  # fmt: skip

    def losses(temperature: Temperature | None, which=samples) -> list[float]:
        tempered = method if temperature is None else Tempered(method, temperature)
        with apply(model, tempered, length), evaluating(model):
            return which.losses(model)

    if form in ("per_head", "per_head_log", "scalable_softmax"):
        from drope.temperature.heads import Gradient, fit_heads

        fitted, judged = samples.split(_SHARE)
        rules = gradient or Gradient()
        with track(f"Temperature {form}", rules.steps, "steps") as bar:
            found = fit_heads(model, method, form, fitted, shape, length, rules, seed, bar)
        without, best = losses(None, judged), losses(found.temperature, judged)
        return FormFit(
            found.temperature.settings(), length, context, mean(best), mean(without), _gain_se(without, best),
            len(best), rules.steps, objective, history=found.history,
        )  # fmt: skip
    with track(f"Temperature {form}", EVALUATIONS + 3, "passes") as bar:
        make, limits, neutral, scale = _one_number(form, bounds, length, context)
        lowest = minimise(
            lambda x: losses(make(x)), limits, tolerance * scale, neutral=neutral, step=_STEP * scale,
            tick=lambda x, loss: bar.advance(1, f"{x:.3f}, loss {loss:.3f}"),
        )  # fmt: skip
    return FormFit(
        make(lowest.value).settings(), length, context, mean(lowest.at), mean(lowest.neutral), lowest.gain_se,
        len(lowest.at), lowest.evaluations, objective, lowest.value_se, lowest.at_bound,
    )  # fmt: skip


def read_fit(path: str | Path) -> TemperatureFit | FormFit:
    """A fit of either kind from the file that `drope temperature --out` wrote.

    Raises
    ------
    InputError : it cannot be read, or is no fit
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
        return FormFit.from_dict(value) if "settings" in value else TemperatureFit.from_dict(value)
    except (OSError, ValueError, KeyError, TypeError) as error:
        allowed = "a file that `drope temperature --out` wrote"
        raise InputError("--temperature", str(path), allowed, str(error)) from error


def _one_number(
    form: str, bounds: tuple[float, float], length: int, context: int
) -> tuple[Callable[[float], Temperature], tuple[float, float], float, float]:
    """Temperature of the number, interval of it, the number that changes nothing, and how much of it is one of β."""
    if form == "constant":
        return ConstantTemperature, bounds, 1.0, 1.0
    per_beta = 1 / math.log(length / context)
    return PositionTemperature, ((bounds[0] - 1) * per_beta, (bounds[1] - 1) * per_beta), 0.0, per_beta


def _gain_se(without: list[float], best: list[float]) -> float:
    from drope.results import mean_interval

    return mean_interval([w - x for w, x in zip(without, best, strict=True)])[3]
