"""RNoPE-SWA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from drope.positions.base import Requirements, RopeShape
from drope.positions.layers import every, layout
from drope.positions.windows import STOCK, Windowed


@dataclass(frozen=True)
class RNoPESWA(Windowed):
    """RNoPE-SWA: three layers with RoPE and a sliding window, then one global layer without positions, and so on.

    An architecture to train from scratch. Source: Yang et al., arXiv 2501.18795; Cohere 2 has its layout.

    Parameters
    ----------
    window : tokens that a windowed layer sees, the query included; None for a quarter of C_train
    period : layers in a group, of which the last is global
    """

    name: ClassVar[str] = "rnope_swa"
    label: ClassVar[str] = "RNoPE-SWA"
    trained: ClassVar[bool] = True
    from_scratch: ClassVar[bool] = True
    served_by: ClassVar[str] = STOCK

    def requirements(self, shape: RopeShape, length: int) -> Requirements:
        free = every(shape.layers, self.period, self.period - 1)
        return Requirements(layers=layout(shape.layers, free, self.window_for(shape)))
