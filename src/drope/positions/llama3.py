"""The frequency scaling of Llama 3."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from drope.errors import InputError
from drope.positions.base import Method, Requirements, RopeShape, check_factor
from drope.positions.frequencies import rotations_in_context


@dataclass(frozen=True)
class Llama3(Method):
    """Llama-3 scaling: γ_m = (1 − κ)/s + κ, where κ is linear in the turns of a pair over C_train.

    Pairs that turn more than `high_freq_factor` times keep their frequency (κ = 1), those that turn less than
    `low_freq_factor` times are divided by s (κ = 0).

    Source: Llama 3.1, arXiv 2407.21783, and its code; stock `rope_type` "llama3".

    Parameters
    ----------
    factor : a fixed s; None takes s = max(1, length / C_train)
    low_freq_factor, high_freq_factor : ends of the ramp, in turns over C_train
    """

    factor: float | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    name: ClassVar[str] = "llama3"
    label: ClassVar[str] = "Llama-3 scaling"

    def __post_init__(self) -> None:
        check_factor("factor", self.factor)
        if not 0 < self.low_freq_factor < self.high_freq_factor < math.inf:
            raise InputError(
                "low_freq_factor", self.low_freq_factor, f"above 0 and below high_freq_factor ({self.high_freq_factor})"
            )

    def requirements(self, shape: RopeShape, length: int) -> Requirements:
        s = self.factor or shape.factor(length)
        if s == 1:
            return Requirements()
        return Requirements(
            {
                "rope_type": "llama3",
                "rope_theta": shape.theta,
                "factor": s,
                "low_freq_factor": self.low_freq_factor,
                "high_freq_factor": self.high_freq_factor,
                "original_max_position_embeddings": shape.context,
            }
        )

    def scaling(self, shape: RopeShape, length: int) -> torch.Tensor:
        s = self.factor or shape.factor(length)
        low, high = self.low_freq_factor, self.high_freq_factor
        kappa = ((rotations_in_context(shape) - low) / (high - low)).clamp(0, 1)
        return (1 - kappa) / s + kappa
