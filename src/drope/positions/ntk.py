"""NTK-aware scaling by a static change of base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from drope.positions.base import Method, Requirements, RopeShape, check_factor
from drope.positions.frequencies import pair_indices


@dataclass(frozen=True)
class NTK(Method):
    """NTK-aware scaling: the base becomes θ' = θ · s^(d/(d−2)), so γ_m = s^(−2m/(d−2)).

    The fastest pair keeps its frequency, the slowest is divided by s.
    Source: bloc97's NTK-aware RoPE; DroPE, arXiv 2512.12167, section 2.

    Parameters
    ----------
    factor : a fixed s; None takes s = max(1, length / C_train)
    """

    factor: float | None = None
    name: ClassVar[str] = "ntk"
    label: ClassVar[str] = "NTK"

    def __post_init__(self) -> None:
        check_factor("factor", self.factor)

    def _factor(self, shape: RopeShape, length: int) -> float:
        return self.factor or shape.factor(length)

    def requirements(self, shape: RopeShape, length: int) -> Requirements:
        s = self._factor(shape, length)
        return Requirements({"rope_type": "default", "rope_theta": scaled_base(shape, s)} if s > 1 else None)

    def scaling(self, shape: RopeShape, length: int) -> torch.Tensor:
        return ntk_scaling(shape, self._factor(shape, length))


def scaled_base(shape: RopeShape, factor: float) -> float:
    """θ · factor^(d/(d−2)); one pair has ω = 1 under any base."""
    return shape.theta if shape.head_dim == 2 else shape.theta * factor ** (shape.head_dim / (shape.head_dim - 2))


def ntk_scaling(shape: RopeShape, factor: float) -> torch.Tensor:
    """γ_m = factor^(−2m/(d−2)). Shape (pairs,)."""
    m = pair_indices(shape)
    return factor ** (-2 * m / (shape.head_dim - 2)) if shape.head_dim > 2 else torch.ones_like(m)
