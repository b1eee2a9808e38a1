"""A factor for each head, by gradient descent on these factors alone (HeadScale, arXiv 2404.12224)."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from drope.errors import DropeError, InputError
from drope.evaluation.samples import Samples, batch_losses
from drope.positions import Method, RopeShape
from drope.positions.scales import QueryScale
from drope.positions.temperatures import (
    HeadLogTemperature,
    HeadTemperature,
    ScalableSoftmaxTemperature,
    Temperature,
    Tempered,
)


@dataclass(frozen=True)
class Gradient:
    """How factors are fitted: the defaults are HeadScale's.

    steps : of Adam, each on one batch
    learning_rate : at the first step and at the last, linear between them
    least : lower bound of every factor; under scalable softmax of s in units of 1 / ln C_train, where it is 0.1 at most
    """

    steps: int = 200
    learning_rate: tuple[float, float] = (1e-1, 5e-2)
    least: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise InputError("steps", self.steps, "a whole number of at least 1")
        rates = self.learning_rate
        if len(rates) != 2 or not all(math.isfinite(r) and r > 0 for r in rates):
            raise InputError("learning_rate", rates, "two numbers above 0: of the first and of the last step")
        if not (math.isfinite(self.least) and self.least > 0):
            raise InputError("least", self.least, "a number above 0")


@dataclass(frozen=True, eq=False)
class _Weights(QueryScale):
    """Factors that are being fitted: (layers, heads), times ln n / ln C under scalable softmax."""

    values: torch.Tensor
    context: int | None = None

    def factors(self, positions: torch.Tensor, layer: int, heads: int) -> torch.Tensor:
        own = self.values[layer][None, :, None]
        if self.context is None:
            return own
        return own * ((positions + 1).float().log() / math.log(self.context))[:, None]


@dataclass(frozen=True, eq=False)
class _Trial(Temperature):
    weights: _Weights
    name: ClassVar[str] = "trial"
    label: ClassVar[str] = "being fitted"

    def query_scale(self, shape: RopeShape, length: int) -> QueryScale | None:
        return self.weights


@dataclass(frozen=True)
class HeadFit:
    """The temperature that was found, and the loss of each step before it was taken."""

    temperature: Temperature
    history: list[float]


def fit_heads(
    model: Any,
    method: Method,
    form: str,
    samples: Samples,
    shape: RopeShape,
    length: int,
    gradient: Gradient,
    seed: int,
    bar: Any,
) -> HeadFit:
    """Minimise the loss of `samples` over one factor for each head, the weights frozen.

    form : `per_head`, `per_head_log` (the same, understood as 1 + a_h ln s) or `scalable_softmax`

    Raises
    ------
    DropeError : the loss is not finite
    """
    from drope.models import apply

    text = model.config.get_text_config(decoder=True)
    scalable = form == "scalable_softmax"
    device = model.get_input_embeddings().weight.device
    values = torch.ones(text.num_hidden_layers, text.num_attention_heads, device=device, requires_grad=True)
    least = min(gradient.least, 0.1) if scalable else gradient.least
    with torch.no_grad():
        values.clamp_(min=least)
    optimizer = torch.optim.Adam([values], lr=gradient.learning_rate[0])
    first, last = gradient.learning_rate
    context = max(2, shape.context)
    trial = Tempered(method, _Trial(_Weights(values, context if scalable else None)))
    history: list[float] = []
    with _frozen(model), apply(model, trial, length), torch.enable_grad():
        for step, batch in zip(range(gradient.steps), _forever(samples, seed), strict=False):
            for group in optimizer.param_groups:
                group["lr"] = first + (last - first) * step / max(1, gradient.steps - 1)
            loss = batch_losses(model, batch).mean()
            if not torch.isfinite(loss):
                raise DropeError(f"The loss is {loss.item()} after {step} steps. Lower the learning rate.")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                values.clamp_(min=least)
            history.append(loss.item())
            bar.advance(1, f"loss {history[-1]:.3f}")
    unit = math.log(context) if scalable else 1.0
    found = tuple(tuple(x / unit for x in row) for row in values.detach().double().cpu().tolist())
    if scalable:
        return HeadFit(ScalableSoftmaxTemperature(found), history)
    if form == "per_head_log":
        return HeadFit(HeadLogTemperature.through(found, shape.factor(length)), history)
    return HeadFit(HeadTemperature(found), history)


@contextmanager
def _frozen(model: Any) -> Iterator[None]:
    """Evaluation mode, and no gradients for the weights."""
    training, wanted = model.training, [p for p in model.parameters() if p.requires_grad]
    model.eval()
    for p in wanted:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in wanted:
            p.requires_grad_(True)
        model.train(training)


def _forever(samples: Samples, seed: int) -> Iterator[tuple[torch.Tensor, int]]:
    """All batches again and again, each time in a new order."""
    rng = random.Random(seed)
    batches = list(samples.batches)
    while True:
        rng.shuffle(batches)
        yield from batches
