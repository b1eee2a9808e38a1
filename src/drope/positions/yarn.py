"""YaRN."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from drope.errors import InputError
from drope.positions.base import Method, Requirements, RopeShape, check_factor
from drope.positions.frequencies import pair_indices


@dataclass(frozen=True)
class Yarn(Method):
    """YaRN: γ_m = (1 − κ_m)/s + κ_m, and cos and sin are multiplied by 0.1·ln(s) + 1.

    κ is 1 for pairs that turn at least `beta_fast` times over C_train, 0 for those that turn at most `beta_slow` times,
    and falls between them. As in stock modules the ramp is linear in the pair's index m, from the floor of the index
    with `beta_fast` rotations to the ceiling of that with `beta_slow` (the paper's is linear in the rotations).
    Source: Peng et al., arXiv 2309.00071, sections 3.2 and 3.4; stock `rope_type` "yarn".

    Parameters
    ----------
    factor : a fixed s; None takes s = max(1, length / C_train)
    beta_fast, beta_slow : ends of the ramp, in rotations over C_train
    attention_factor : multiplies cos and sin; None is the stock 0.1·ln(s) + 1
    """

    factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    name: ClassVar[str] = "yarn"
    label: ClassVar[str] = "YaRN"

    def __post_init__(self) -> None:
        check_factor("factor", self.factor)
        if not 0 < self.beta_slow < self.beta_fast:
            raise InputError("beta_slow", self.beta_slow, f"a number above 0 and below beta_fast ({self.beta_fast})")
        if self.attention_factor is not None and self.attention_factor <= 0:
            raise InputError("attention_factor", self.attention_factor, "a number above 0, or none for 0.1·ln(s) + 1")

    def _factor(self, shape: RopeShape, length: int) -> float:
        return self.factor or shape.factor(length)

    def requirements(self, shape: RopeShape, length: int) -> Requirements:
        s = self._factor(shape, length)
        if s == 1:
            return Requirements()
        parameters: dict[str, Any] = {
            "rope_type": "yarn",
            "rope_theta": shape.theta,
            "factor": s,
            "original_max_position_embeddings": shape.context,
            "beta_fast": self.beta_fast,
            "beta_slow": self.beta_slow,
        }
        if self.attention_factor is not None:
            parameters["attention_factor"] = self.attention_factor
        return Requirements(parameters)

    def scaling(self, shape: RopeShape, length: int) -> torch.Tensor:
        s = self._factor(shape, length)
        low = max(math.floor(_pair_with(self.beta_fast, shape)), 0)
        high = min(math.ceil(_pair_with(self.beta_slow, shape)), shape.head_dim - 1)
        ramp = (pair_indices(shape) - low) / (high - low or 0.001)  # the stock guard against an empty ramp
        kappa = 1 - ramp.clamp(0, 1)
        return (1 - kappa) / s + kappa


def _pair_with(rotations: float, shape: RopeShape) -> float:
    """The (real) index m of the pair that turns `rotations` times over C_train: C·θ^(−2m/d) / 2π = rotations."""
    return shape.head_dim * math.log(shape.context / (rotations * 2 * math.pi)) / (2 * math.log(shape.theta))
