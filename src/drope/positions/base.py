"""What a positional method may know about a model, and what it may ask of one."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import torch

from drope.errors import InputError
from drope.positions.layers import LayerPlan
from drope.positions.scales import QueryScale
from drope.positions.schemes import Scheme


@dataclass(frozen=True)
class RopeShape:
    """The rotary geometry of a model.

    Parameters
    ----------
    theta : base of the inverse frequencies, ω_m = θ^(−2m/d)
    head_dim : rotated width d of a head, in channels (even; smaller than the head under partial rotary embeddings)
    context : C_train, the context that the rotation was trained at, in tokens
    layers : number of decoder layers, for methods that treat them differently; 0 where it is not known
    """

    theta: float
    head_dim: int
    context: int
    layers: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.theta) and self.theta > 1):
            raise InputError("theta", self.theta, "a rotary base above 1, such as 10000")
        if self.head_dim < 2 or self.head_dim % 2:
            raise InputError("head_dim", self.head_dim, "an even rotated width of at least 2")
        if self.context < 1:
            raise InputError("context", self.context, "a trained context of at least 1 token")
        if self.layers < 0:
            raise InputError("layers", self.layers, "a number of layers")

    @property
    def pairs(self) -> int:
        """Number of rotated channel pairs, d / 2."""
        return self.head_dim // 2

    def factor(self, length: int) -> float:
        """Extension factor s = max(1, length / C_train)."""
        if length < 1:
            raise InputError("length", length, "a target length of at least 1 token")
        return max(1.0, length / self.context)


@dataclass(frozen=True)
class Requirements:
    """What a method needs of a model; `drope.models.apply` carries it out.

    What is left at its default is left to the model. `rotation`, `rope_parameters` and `frequency_scale` say which
    frequencies rotate; the rest says what the attention does with q and k.

    Parameters
    ----------
    rope_parameters : stock `rope_parameters` to build the rotary modules with; None leaves the model's own
    rotation : `none` takes the rotation out of every layer
    logit_scale : multiplies q·k/√d in every softmax attention, on top of a temperature that is already set
    frequency_scale : γ_m, multiplies the model's own frequencies (0 stops a pair); not with rope_parameters
    attention_factor : multiplies cos and sin, beside `frequency_scale` (stock rope types bring their own)
    layers : one plan for each decoder layer: whether it rotates, its window, its scale of q; None: all alike
    attention : a scheme that is computed on raw q and k (the cache then holds raw keys) from the frequencies above
    query_scale : multiplies q by position, head or both, in every layer
    crop : the model sees the last `crop` tokens of an input of `length` tokens, and nothing before
    """

    rope_parameters: dict[str, Any] | None = None
    rotation: Literal["keep", "none"] = "keep"
    logit_scale: float = 1.0
    frequency_scale: tuple[float, ...] | None = None
    attention_factor: float = 1.0
    layers: tuple[LayerPlan, ...] | None = None
    attention: Scheme | None = None
    query_scale: QueryScale | None = None
    crop: int | None = None

    @property
    def own_attention(self) -> bool:
        """Whether the attention itself has to be computed another way than the model's."""
        windows = any(plan.window or plan.query_scale for plan in self.layers or ())
        return self.attention is not None or self.query_scale is not None or windows


@dataclass(frozen=True)
class Method(ABC):
    """A positional method: a frozen, self-validating description that knows no model class.

    Attributes
    ----------
    name : key in `drope.positions.METHODS`
    label : name for tables and plots
    trained : whether the method needs a model that was trained for it
    from_scratch : whether that training has to be from the start, with this architecture (no RoPE model can run it)
    served_by : what else can run it, where a stock configuration cannot say it; shown when saving is refused
    """

    name: ClassVar[str]
    label: ClassVar[str]
    trained: ClassVar[bool] = False
    from_scratch: ClassVar[bool] = False
    served_by: ClassVar[str] = ""

    @abstractmethod
    def requirements(self, shape: RopeShape, length: int) -> Requirements:
        """What a model of this shape needs for inputs of up to `length` tokens."""

    @abstractmethod
    def scaling(self, shape: RopeShape, length: int) -> torch.Tensor:
        """Frequency scaling γ_m at `length`: the method rotates pair m by γ_m ω_m a token. Shape (pairs,), float64."""

    def settings(self) -> dict[str, Any]:
        """The settings of this instance, for records."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def check_factor(field: str, value: float | None) -> None:
    """Refuse an extension factor that is not a finite number of at least 1 (None means: from the length)."""
    if value is not None and not (math.isfinite(value) and value >= 1):
        raise InputError(field, value, "a finite number of at least 1")
