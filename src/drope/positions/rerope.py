"""ReRoPE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from drope.positions import schemes
from drope.positions.base import Method, Requirements, RopeShape
from drope.positions.remapping import farthest_scaling, inside_context
from drope.positions.schemes import check_whole


@dataclass(frozen=True)
class ReRope(Method):
    """ReRoPE (rectified RoPE): distances are clamped, min(i − j, w), so that none leaves the trained range.

    Training-free; all keys beyond w look equally far. It acts at target lengths above C_train alone. `scaling` is the
    same for all pairs: the mapped distance of the last token to the first, over the true one.
    Source: Su, 2023, https://kexue.fm/archives/9708. (His code can also scale queries by log(i + 1) / log C; here that
    is a temperature, and a setting of its own.)

    Parameters
    ----------
    window : w, in tokens, below C_train; None takes C_train / 2
    """

    window: int | None = None
    name: ClassVar[str] = "rerope"
    label: ClassVar[str] = "ReRoPE"
    served_by: ClassVar[str] = "no stock engine that we know of"

    def __post_init__(self) -> None:
        check_whole("window", self.window)

    def requirements(self, shape: RopeShape, length: int) -> Requirements:
        window = self._window(shape)
        return Requirements() if shape.factor(length) == 1 else Requirements(attention=schemes.ReRope(window))

    def scaling(self, shape: RopeShape, length: int) -> torch.Tensor:
        window = self._window(shape)
        return farthest_scaling(shape, length, lambda: min(length - 1, window))

    def _window(self, shape: RopeShape) -> int:
        return inside_context("window", self.window, max(1, shape.context // 2), shape.context - 1)
