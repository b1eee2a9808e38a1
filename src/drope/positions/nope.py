"""No rotation, on a model that was trained with one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from drope.positions.base import Method, Requirements, RopeShape


@dataclass(frozen=True)
class Nope(Method):
    """The rotation is switched off and nothing else: γ_m = 0. The control that shows what recalibration adds.

    Source: Kazemnejad et al., arXiv 2305.19466; DroPE, arXiv 2512.12167.
    """

    name: ClassVar[str] = "nope"
    label: ClassVar[str] = "NoPE (not recalibrated)"

    def requirements(self, shape: RopeShape, length: int) -> Requirements:
        return Requirements(rotation="none")

    def scaling(self, shape: RopeShape, length: int) -> torch.Tensor:
        return torch.zeros(shape.pairs, dtype=torch.float64)
