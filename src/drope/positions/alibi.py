"""ALiBi."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from drope.positions import schemes
from drope.positions.base import Method, Requirements, RopeShape


@dataclass(frozen=True)
class Alibi(Method):
    """ALiBi: no rotation, and −m_h (i − j) on the logit of query i and key j, with slopes m_h of `slopes`.

    An architecture to train from scratch: a model that learned with a rotation cannot run it.
    Source: Press et al., arXiv 2108.12409, section 3.
    """

    name: ClassVar[str] = "alibi"
    label: ClassVar[str] = "ALiBi"
    trained: ClassVar[bool] = True
    from_scratch: ClassVar[bool] = True
    served_by: ClassVar[str] = "stock classes with an ALiBi of their own (Bloom, MPT, Falcon with alibi=true)"

    def requirements(self, shape: RopeShape, length: int) -> Requirements:
        return Requirements(rotation="none", attention=schemes.Alibi())

    def scaling(self, shape: RopeShape, length: int) -> torch.Tensor:
        return torch.zeros(shape.pairs, dtype=torch.float64)


def slopes(heads: int) -> torch.Tensor:
    """m_h = 2^(−8h/H), h = 1 … H, where H is a power of two. Shape (H,), float64.

    For other H, those of the power of two below, then every second one of the power above, as in the paper's code.
    """
    power = 2 ** math.floor(math.log2(heads))
    own = 2.0 ** (-8 * torch.arange(1, power + 1, dtype=torch.float64) / power)
    more = 2.0 ** (-8 * torch.arange(1, 2 * power + 1, 2, dtype=torch.float64) / (2 * power))
    return torch.cat([own, more[: heads - power]])
