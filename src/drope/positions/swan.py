"""SWAN-GPT."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from drope.errors import InputError
from drope.positions.base import Requirements, RopeShape
from drope.positions.layers import every, layout
from drope.positions.scales import LogPosition
from drope.positions.windows import STOCK, Windowed


@dataclass(frozen=True)
class SWAN(Windowed):
    """SWAN-GPT: one global layer without positions, then three with RoPE and a sliding window, and so on.

    Beyond C_train the logits of the global layers are multiplied by 1 + a ln(i / C_train), i the tokens a query sees.

    An architecture to train from scratch. Source: Puvvada et al., arXiv 2504.08719; the form of the scaling is that of
    arXiv 2404.12224.

    Parameters
    ----------
    window : tokens that a windowed layer sees, the query included; None for a quarter of C_train
    period : layers in a group, of which the first is global
    a : slope of the scaling; None for 1 / ln C_train, with which the factor is ln i / ln C_train
    """

    a: float | None = None
    name: ClassVar[str] = "swan"
    label: ClassVar[str] = "SWAN-GPT"
    trained: ClassVar[bool] = True
    from_scratch: ClassVar[bool] = True
    served_by: ClassVar[str] = STOCK + ", within the trained context, where no scaling acts"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.a is not None and not (math.isfinite(self.a) and self.a >= 0):
            raise InputError("a", self.a, "a number of 0 or more, or none for 1 / ln C_train")

    def requirements(self, shape: RopeShape, length: int) -> Requirements:
        a = 1 / math.log(max(shape.context, 2)) if self.a is None else self.a
        scale = LogPosition(a, shape.context) if a and length > shape.context else None
        free = every(shape.layers, self.period, 0)
        return Requirements(layers=layout(shape.layers, free, self.window_for(shape), scale))
