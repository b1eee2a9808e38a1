"""NTK-aware scaling that follows the length of the input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from drope.positions.base import Method, Requirements, RopeShape, check_factor
from drope.positions.ntk import ntk_scaling


@dataclass(frozen=True)
class DynamicNTK(Method):
    """Dynamic NTK: at n > C_train tokens, θ' = θ · (f·n/C_train − (f − 1))^(d/(d−2)); up to C_train, plain RoPE.

    With f = 1 the base at n tokens is NTK's at s = n / C_train. While a cached sequence grows, stock modules rotate
    new tokens with the new base and leave the keys in the cache as they were.
    Source: emozilla's dynamic NTK; stock `rope_type` "dynamic", which calls f `factor`.

    Parameters
    ----------
    factor : f, how much faster than NTK the base grows
    """

    factor: float = 1.0
    name: ClassVar[str] = "dynamic_ntk"
    label: ClassVar[str] = "Dynamic NTK"

    def __post_init__(self) -> None:
        check_factor("factor", self.factor)

    def requirements(self, shape: RopeShape, length: int) -> Requirements:
        if shape.factor(length) == 1 or shape.pairs == 1:  # one pair has ω = 1 under any base
            return Requirements()
        return Requirements({"rope_type": "dynamic", "rope_theta": shape.theta, "factor": float(self.factor)})

    def scaling(self, shape: RopeShape, length: int) -> torch.Tensor:
        return ntk_scaling(shape, self.factor * shape.factor(length) - (self.factor - 1))
