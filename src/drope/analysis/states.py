"""The positional states that a model is looked at in: as it is, scaled, dropped; and another model beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from drope.analysis.attention import Visitor, observe
from drope.analysis.changes import NormVisitor
from drope.analysis.functional import BiasVisitor, PositionalBias
from drope.analysis.heads import DistanceVisitor
from drope.analysis.patterns import Pattern
from drope.analysis.uniformity import Spread, spread_by_layer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from drope.positions import Method


@dataclass(frozen=True)
class State:
    """A model under a method.

    key : name in the data, such as `rope`, `yarn`, `nope`, `drope`, `control`
    method : None leaves the model as it is; `target` is the length that a method is set to
    """

    key: str
    label: str
    model: PreTrainedModel
    method: Method | None = None
    target: int = 0

    @contextmanager
    def applied(self) -> Iterator[PreTrainedModel]:
        if self.method is None:
            yield self.model
            return
        from drope.models import apply

        with apply(self.model, self.method, self.target):
            yield self.model


def states(model: PreTrainedModel, against: PreTrainedModel | None, target: int) -> list[State]:
    """The states to compare: of a rotating model RoPE, PI, NTK, YaRN and none; then the other model as it is."""
    from drope.models import is_position_free
    from drope.positions import NTK, PI, Nope, Yarn

    if is_position_free(model):
        found = [State("drope", "DroPE", model)]
    else:
        found = [State("rope", "RoPE", model)]
        scaled: tuple[Method, ...] = (PI(), NTK(), Yarn())
        found += [State(m.name, m.label, model, m, target) for m in scaled]
        found.append(State("nope", "NoPE, untrained", model, Nope(), target))
    if against is not None:
        free = is_position_free(against)
        taken = {s.key for s in found}
        key, label = ("drope", "DroPE") if free else ("control", "RoPE, other model")
        if key in taken:
            key, label = "against", "other model"
        found.append(State(key, label, against))
    return found


@dataclass(frozen=True)
class Survey:
    """What one pass over a text shows."""

    bias: PositionalBias
    distances: DistanceVisitor
    norms: dict[str, Any]
    spread: Spread | None


def survey(
    model: PreTrainedModel,
    ids: torch.Tensor,
    patterns: tuple[Pattern, ...],
    edges: list[int],
    *others: Visitor,
    spread: bool = True,
) -> Survey:
    """Everything that one pass over `ids` (1, T) can collect, in the positional state that the model is in.

    `others` look on during the same pass.
    """
    bias, distances, norms = BiasVisitor(patterns), DistanceVisitor(edges, first=ids.shape[1] // 2), NormVisitor()
    hidden = observe(model, ids, bias, distances, norms, *others, hidden=spread)
    return Survey(bias.result(), distances, norms.to_dict(), spread_by_layer(hidden) if spread else None)
