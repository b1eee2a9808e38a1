"""Softmax temperatures: what multiplies q·k/√d, as settings that go with any method (`Tempered`).

s = length / C_train is the extension factor, i the position of a query from 0, n = i + 1 the tokens that it sees.
"""

from __future__ import annotations

import difflib
import math
from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch

from drope.errors import InputError
from drope.positions.base import Method, Requirements, RopeShape
from drope.positions.scales import LogPosition, PerHead, QueryScale
from drope.positions.scales import ScalableSoftmax as ScalableSoftmaxScale

Values = tuple[tuple[float, ...], ...]  # [layer][head]


@dataclass(frozen=True)
class Temperature(ABC):
    """A softmax temperature: one factor β for a length, a factor of each query, or both.

    Attributes
    ----------
    name : key in `TEMPERATURES`
    label : name for tables
    """

    name: ClassVar[str]
    label: ClassVar[str]

    def beta(self, shape: RopeShape, length: int) -> float:
        """The part that is one number for all of an input of up to `length` tokens."""
        return 1.0

    def query_scale(self, shape: RopeShape, length: int) -> QueryScale | None:
        """The part that depends on position or head, for inputs of up to `length` tokens; None where there is none."""
        return None

    def settings(self) -> dict[str, Any]:
        """Name and settings, as `get_temperature` takes them."""
        return {"form": self.name} | {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True)
class NoTemperature(Temperature):
    """β = 1."""

    name: ClassVar[str] = "none"
    label: ClassVar[str] = "none"


@dataclass(frozen=True)
class ConstantTemperature(Temperature):
    """One β at every length: UniformScale of arXiv 2404.12224."""

    value: float
    name: ClassVar[str] = "constant"
    label: ClassVar[str] = "β"

    def __post_init__(self) -> None:
        _positive("value", self.value)

    def beta(self, shape: RopeShape, length: int) -> float:
        return float(self.value)


@dataclass(frozen=True)
class LogTemperature(Temperature):
    """β(s) = 1 + a ln s beyond C_train, 1 within it (DroPE, arXiv 2512.12167)."""

    a: float
    name: ClassVar[str] = "log"
    label: ClassVar[str] = "1 + a ln s"

    def __post_init__(self) -> None:
        _finite("a", self.a)

    def beta(self, shape: RopeShape, length: int) -> float:
        beta = 1 + self.a * math.log(shape.factor(length))
        if beta <= 0:
            raise InputError("a", self.a, f"a number that leaves 1 + a ln s above 0 at {length} tokens")
        return beta


@dataclass(frozen=True)
class PositionTemperature(Temperature):
    """1 + a ln(n / C_train) for queries that see n > C_train tokens, 1 for the others (arXiv 2404.12224)."""

    a: float
    name: ClassVar[str] = "per_position"
    label: ClassVar[str] = "1 + a ln(i/C)"

    def __post_init__(self) -> None:
        _finite("a", self.a)

    def query_scale(self, shape: RopeShape, length: int) -> QueryScale | None:
        return LogPosition(self.a, shape.context) if self.a and shape.factor(length) > 1 else None


@dataclass(frozen=True)
class HeadTemperature(Temperature):
    """A factor of each head in each layer, `values[layer][head]`: HeadScale of arXiv 2404.12224.

    Fitted for one target length; within C_train the model is as it was.
    """

    values: Values
    name: ClassVar[str] = "per_head"
    label: ClassVar[str] = "HeadScale"

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", _heads("values", self.values))
        for row in self.values:
            for value in row:
                _positive("values", value)

    def query_scale(self, shape: RopeShape, length: int) -> QueryScale | None:
        if shape.layers and len(self.values) != shape.layers:
            raise InputError("values", f"{len(self.values)} layers", f"factors for {shape.layers} layers")
        return PerHead(self.values) if shape.factor(length) > 1 else None


@dataclass(frozen=True)
class HeadLogTemperature(Temperature):
    """1 + a_h ln s for head h beyond C_train, 1 within it: DroPE's β(s) with HeadScale's freedom, `a[layer][head]`.

    One fit serves every length, where HeadScale's factors are those of one.
    """

    a: Values
    name: ClassVar[str] = "per_head_log"
    label: ClassVar[str] = "1 + a_h ln s"

    def __post_init__(self) -> None:
        object.__setattr__(self, "a", _heads("a", self.a))
        for row in self.a:
            for value in row:
                _finite("a", value)

    @classmethod
    def through(cls, values: Values, s: float) -> HeadLogTemperature:
        """The one with HeadScale's factors `values` at the extension factor s > 1."""
        return cls(tuple(tuple((v - 1) / math.log(s) for v in row) for row in values))

    def at(self, shape: RopeShape, length: int) -> HeadTemperature:
        """HeadScale's factors at `length` tokens.

        Raises
        ------
        InputError : a factor is not above 0
        """
        growth = math.log(shape.factor(length))
        return HeadTemperature(tuple(tuple(1 + a * growth for a in row) for row in self.a))

    def query_scale(self, shape: RopeShape, length: int) -> QueryScale | None:
        return self.at(shape, length).query_scale(shape, length)


@dataclass(frozen=True)
class ScalableSoftmaxTemperature(Temperature):
    """Scalable softmax: s ln n for a query that sees n tokens (arXiv 2501.19399).

    Parameters
    ----------
    s : one number, one for each head of each layer, or None for 1 / ln C_train, which leaves the last position of the
        trained context as it was and is where a model that was trained with plain softmax starts
    """

    s: float | Values | None = None
    name: ClassVar[str] = "scalable_softmax"
    label: ClassVar[str] = "s ln n"

    def __post_init__(self) -> None:
        if isinstance(self.s, (int, float)):
            _positive("s", self.s)
        elif self.s is not None:
            object.__setattr__(self, "s", _heads("s", self.s))
            for value in (v for row in self.s for v in row):
                _positive("s", value)

    def query_scale(self, shape: RopeShape, length: int) -> QueryScale | None:
        if self.s is not None and not isinstance(self.s, (int, float)) and shape.layers not in (0, len(self.s)):
            raise InputError("s", f"{len(self.s)} layers", f"numbers for {shape.layers} layers")
        return ScalableSoftmaxScale(1 / math.log(max(2, shape.context)) if self.s is None else self.s)


TEMPERATURES: dict[str, type[Temperature]] = {
    cls.name: cls
    for cls in (
        NoTemperature, ConstantTemperature, LogTemperature, PositionTemperature, HeadTemperature, HeadLogTemperature,
        ScalableSoftmaxTemperature,
    )
}  # fmt: skip


def get_temperature(form: str, **settings: Any) -> Temperature:
    """The temperature of this form, with its settings.

    Raises
    ------
    InputError : an unknown form or setting, or a value that is refused
    """
    key = str(form).strip().lower().replace("-", "_").replace(" ", "_")
    if key not in TEMPERATURES:
        near = difflib.get_close_matches(key, TEMPERATURES, n=2, cutoff=0.5)
        hint = f"Did you mean {' or '.join(near)}?" if near else ""
        raise InputError("form", form, ", ".join(TEMPERATURES), hint)
    cls = TEMPERATURES[key]
    known = [f.name for f in fields(cls)]
    for name in settings:
        if name not in known:
            raise InputError(f"setting of {key}", name, ", ".join(known) or "none")
    try:
        return cls(**settings)
    except TypeError as error:
        raise InputError(f"settings of {key}", settings or "none", ", ".join(known)) from error


@dataclass(frozen=True)
class Tempered(Method):
    """A method with a softmax temperature, for `drope.models.apply`. It bears the method's name.

    An input within C_train is left as it is by the forms that are fitted to a longer one: log, per_position, per_head,
    per_head_log.
    """

    method: Method
    temperature: Temperature

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.method.name

    @property
    def label(self) -> str:  # type: ignore[override]
        return (
            f"{self.method.label}, {self.temperature.label}" if self.temperature.name != "none" else self.method.label
        )

    @property
    def trained(self) -> bool:  # type: ignore[override]
        return self.method.trained

    @property
    def from_scratch(self) -> bool:  # type: ignore[override]
        return self.method.from_scratch

    @property
    def served_by(self) -> str:  # type: ignore[override]
        return self.method.served_by

    def requirements(self, shape: RopeShape, length: int) -> Requirements:
        asked = self.method.requirements(shape, length)
        scale = self.temperature.query_scale(shape, length)
        if scale is not None and asked.query_scale is not None:
            scale = Product((asked.query_scale, scale))
        beta = self.temperature.beta(shape, length)
        return replace(asked, logit_scale=asked.logit_scale * beta, query_scale=scale or asked.query_scale)

    def scaling(self, shape: RopeShape, length: int) -> torch.Tensor:
        return self.method.scaling(shape, length)

    def settings(self) -> dict[str, Any]:
        return self.method.settings() | {"temperature": self.temperature.settings()}


@dataclass(frozen=True)
class Product(QueryScale):
    """Several factors at once."""

    scales: tuple[QueryScale, ...]

    def factors(self, positions: torch.Tensor, layer: int, heads: int) -> torch.Tensor:
        product = torch.ones(1, 1, 1, device=positions.device)
        for scale in self.scales:
            product = product * scale.factors(positions, layer, heads)
        return product


def _finite(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(name, value, "a finite number")


def _positive(name: str, value: Any) -> None:
    _finite(name, value)
    if value <= 0:
        raise InputError(name, value, "a number above 0")


def _heads(name: str, values: Sequence[Sequence[float]]) -> Values:
    try:
        rows = tuple(tuple(float(v) for v in row) for row in values)
    except (TypeError, ValueError) as error:
        raise InputError(name, str(values)[:80], "one number for each head of each layer", str(error)) from error
    if not rows or not all(rows):
        raise InputError(name, "empty", "one number for each head of each layer")
    return rows
