"""What RNoPE-SWA, SWAN-GPT and DroPE into SWAN share: windowed layers that rotate, global layers that do not."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from drope.errors import InputError
from drope.positions.base import Method, RopeShape
from drope.positions.schemes import check_whole

STOCK = "SmolLM3 (no_rope_layers, layer_types) or Cohere 2, for Llama-shaped weights without biases"


@dataclass(frozen=True)
class Windowed(Method):
    """One layer in `period` is global, without rotation; the others rotate and see `window` tokens."""

    window: int | None = None
    period: int = 4

    def __post_init__(self) -> None:
        check_whole("window", self.window)
        check_whole("period", self.period, least=2, what="layers")

    def window_for(self, shape: RopeShape) -> int:
        """The window in tokens; by default a quarter of C_train, since one of C_train would do nothing in training."""
        window = self.window or max(1, shape.context // 4)
        if window > shape.context:
            raise InputError("window", window, f"1 to {shape.context} tokens, the trained context")
        return window

    def scaling(self, shape: RopeShape, length: int) -> torch.Tensor:
        """γ_m of the layers that rotate."""
        return torch.ones(shape.pairs, dtype=torch.float64)
