"""p-RoPE: only the highest frequencies rotate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from drope.errors import InputError
from drope.positions.base import Method, Requirements, RopeShape


@dataclass(frozen=True)
class PRope(Method):
    """p-RoPE: the highest fraction p of the frequencies rotates as ever, the lowest are stopped: γ_m = 1 for m < p·d/2.

    p = 1 is RoPE and p = 0 NoPE. It was meant for training; here it acts on trained weights, at every length.
    Source: Barbero et al., arXiv 2410.06205, section 5.

    Parameters
    ----------
    p : fraction of the frequencies that are kept, 0 to 1; rounded down to whole pairs
    """

    p: float = 0.75
    name: ClassVar[str] = "p_rope"
    label: ClassVar[str] = "p-RoPE"

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise InputError("p", self.p, "a fraction from 0 (NoPE) to 1 (RoPE)")

    def requirements(self, shape: RopeShape, length: int) -> Requirements:
        return stopping(shape, shape.pairs - int(self.p * shape.pairs))

    def scaling(self, shape: RopeShape, length: int) -> torch.Tensor:
        return without_lowest(shape, shape.pairs - int(self.p * shape.pairs))


def without_lowest(shape: RopeShape, count: int) -> torch.Tensor:
    """γ_m = 0 for the `count` lowest frequencies, 1 for the others. Shape (pairs,), float64."""
    gamma = torch.ones(shape.pairs, dtype=torch.float64)
    gamma[shape.pairs - count :] = 0
    return gamma


def stopping(shape: RopeShape, count: int) -> Requirements:
    """What a model needs to lose its `count` lowest frequencies."""
    if count == shape.pairs:
        return Requirements(rotation="none")
    return Requirements(frequency_scale=tuple(without_lowest(shape, count).tolist())) if count else Requirements()
