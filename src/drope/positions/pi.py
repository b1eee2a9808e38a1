"""Position interpolation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from drope.positions.base import Method, Requirements, RopeShape, check_factor


@dataclass(frozen=True)
class PI(Method):
    """Position interpolation: every frequency is divided by the extension factor, γ_m = 1/s.

    Source: Chen et al., arXiv 2306.15595; stock `rope_type` "linear".

    Parameters
    ----------
    factor : a fixed s; None takes s = max(1, length / C_train)
    """

    factor: float | None = None
    name: ClassVar[str] = "pi"
    label: ClassVar[str] = "PI"

    def __post_init__(self) -> None:
        check_factor("factor", self.factor)

    def _factor(self, shape: RopeShape, length: int) -> float:
        return self.factor or shape.factor(length)

    def requirements(self, shape: RopeShape, length: int) -> Requirements:
        s = self._factor(shape, length)
        return Requirements({"rope_type": "linear", "rope_theta": shape.theta, "factor": s} if s > 1 else None)

    def scaling(self, shape: RopeShape, length: int) -> torch.Tensor:
        return torch.full((shape.pairs,), 1 / self._factor(shape, length), dtype=torch.float64)
