"""Self-Extend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from drope.positions import schemes
from drope.positions.base import Method, Requirements, RopeShape
from drope.positions.remapping import farthest_scaling, inside_context
from drope.positions.schemes import check_whole


@dataclass(frozen=True)
class SelfExtend(Method):
    """Self-Extend: a far key's distance is counted in groups of tokens, so that it stays in the trained range.

    A query at i sees a key at j at distance i − j where that is below W, and at ⌊i/G⌋ − ⌊j/G⌋ + W − ⌊W/G⌋ beyond: exact
    near by, floored to G tokens far away, and without a gap at the window. Training-free. It acts at target lengths
    above C_train alone. `scaling` is the same for all pairs: the mapped distance of the last token to the first, over
    the true one.
    Source: Jin et al., arXiv 2401.01325, section 3.

    Parameters
    ----------
    group : G, in tokens; 1 is RoPE. None takes the smallest that keeps all distances at the target length below C_train
    window : W, in tokens, below C_train; None takes C_train / 4
    """

    group: int | None = None
    window: int | None = None
    name: ClassVar[str] = "self_extend"
    label: ClassVar[str] = "Self-Extend"
    served_by: ClassVar[str] = "versions of llama.cpp that have --grp-attn-n and --grp-attn-w"

    def __post_init__(self) -> None:
        check_whole("group", self.group)
        check_whole("window", self.window)

    def requirements(self, shape: RopeShape, length: int) -> Requirements:
        window = self._window(shape)
        if shape.factor(length) == 1:
            return Requirements()
        return Requirements(attention=schemes.SelfExtend(self._group(shape, length), window))

    def scaling(self, shape: RopeShape, length: int) -> torch.Tensor:
        window = self._window(shape)
        return farthest_scaling(shape, length, lambda: _farthest(length, self._group(shape, length), window))

    def _window(self, shape: RopeShape) -> int:
        return inside_context("window", self.window, max(1, shape.context // 4), shape.context - 1)

    def _group(self, shape: RopeShape, length: int) -> int:
        window = self._window(shape)
        group = self.group or 1
        while self.group is None and _farthest(length, group, window) >= shape.context:
            group += 1
        return group


def _farthest(length: int, group: int, window: int) -> int:
    """The distance at which the last of `length` tokens sees the first."""
    true = length - 1
    return true if true < window else true // group + window - window // group
