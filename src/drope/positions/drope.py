"""DroPE: no rotation, on a model that was recalibrated without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from drope.positions.base import Method, Requirements, RopeShape


@dataclass(frozen=True)
class Drope(Method):
    """DroPE: the rotation is off, γ_m = 0, and the weights were recalibrated at C_train without it.

    It asks the same of a model as NoPE; what differs is the model. The softmax temperature β(s) is fitted
    to each model (`drope.temperature`) and is no setting of the method.
    Source: arXiv 2512.12167.
    """

    name: ClassVar[str] = "drope"
    label: ClassVar[str] = "DroPE"
    trained: ClassVar[bool] = True

    def requirements(self, shape: RopeShape, length: int) -> Requirements:
        return Requirements(rotation="none")

    def scaling(self, shape: RopeShape, length: int) -> torch.Tensor:
        return torch.zeros(shape.pairs, dtype=torch.float64)
