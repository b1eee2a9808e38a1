"""DroPE for the lowest frequencies alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from drope.errors import InputError
from drope.positions.base import Method, Requirements, RopeShape
from drope.positions.frequencies import rotations_in_context
from drope.positions.p_rope import stopping, without_lowest
from drope.positions.schemes import check_whole


@dataclass(frozen=True)
class PartialDrop(Method):
    """Partial drop: the k lowest frequencies are stopped (γ_m = 0), the others rotate; then recalibration at C_train.

    By default k counts the pairs that never complete a turn over C_train, the ones that meet new angles beyond it
    (`frequencies.out_of_range`): what is left has seen every angle at any length.
    Source: DroPE, arXiv 2512.12167, section 4, with the p-RoPE of arXiv 2410.06205.

    Parameters
    ----------
    pairs : k; None for those that turn less than once over C_train
    """

    pairs: int | None = None
    name: ClassVar[str] = "partial_drop"
    label: ClassVar[str] = "DroPE, lowest frequencies"
    trained: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_whole("pairs", self.pairs, what="pairs")

    def _count(self, shape: RopeShape) -> int:
        if self.pairs is None:
            return int((rotations_in_context(shape) < 1).sum())
        if self.pairs > shape.pairs:
            raise InputError("pairs", self.pairs, f"1 to {shape.pairs}, the rotated pairs of this model")
        return self.pairs

    def requirements(self, shape: RopeShape, length: int) -> Requirements:
        return stopping(shape, self._count(shape))

    def scaling(self, shape: RopeShape, length: int) -> torch.Tensor:
        return without_lowest(shape, self._count(shape))
