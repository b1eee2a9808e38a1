"""RoPE as the model was trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from drope.positions.base import Method, Requirements, RopeShape


@dataclass(frozen=True)
class Rope(Method):
    """The model's own rotation, unchanged: γ_m = 1.

    A model whose configuration already scales its frequencies keeps that scaling.
    Source: Su et al., RoFormer, arXiv 2104.09864.
    """

    name: ClassVar[str] = "rope"
    label: ClassVar[str] = "RoPE"

    def requirements(self, shape: RopeShape, length: int) -> Requirements:
        return Requirements()

    def scaling(self, shape: RopeShape, length: int) -> torch.Tensor:
        return torch.ones(shape.pairs, dtype=torch.float64)
