"""Softmax temperatures that depend on the position or on the head: factors on q.

Positions i count from 0, so a query at i sees i + 1 tokens.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from drope.errors import InputError


@dataclass(frozen=True)
class QueryScale(ABC):
    """Factors that multiply q, and so the logits."""

    @abstractmethod
    def factors(self, positions: torch.Tensor, layer: int, heads: int) -> torch.Tensor:
        """Factors for queries at `positions`, shape (B or 1, T), of one layer: (B or 1, H or 1, T or 1), float32."""


@dataclass(frozen=True)
class LogPosition(QueryScale):
    """1 + a ln((i + 1) / C) beyond the context C, 1 within it (arXiv 2404.12224; SWAN-GPT, arXiv 2504.08719)."""

    a: float
    context: int

    def __post_init__(self) -> None:
        if not math.isfinite(self.a):
            raise InputError("a", self.a, "a finite number")
        if self.context < 1:
            raise InputError("context", self.context, "at least 1 token")

    def factors(self, positions: torch.Tensor, layer: int, heads: int) -> torch.Tensor:
        seen = (positions + 1).float() / self.context
        return (1 + self.a * seen.clamp(min=1).log())[:, None]


@dataclass(frozen=True)
class PerHead(QueryScale):
    """A factor for each head of each layer: `values[layer][head]` (HeadScale, arXiv 2404.12224)."""

    values: tuple[tuple[float, ...], ...]

    def factors(self, positions: torch.Tensor, layer: int, heads: int) -> torch.Tensor:
        row = self.values[layer]
        if len(row) != heads:
            raise InputError("values", len(row), f"one factor for each of the {heads} heads of layer {layer}")
        return torch.tensor(row, dtype=torch.float32, device=positions.device)[None, :, None]


@dataclass(frozen=True)
class ScalableSoftmax(QueryScale):
    """s ln n for n = i + 1 visible tokens (arXiv 2501.19399); at least `least`, since ln 1 = 0 would end all sharpness.

    s is one number, or one for each head of each layer.
    """

    s: float | tuple[tuple[float, ...], ...]
    least: float = 0.0

    def factors(self, positions: torch.Tensor, layer: int, heads: int) -> torch.Tensor:
        own = self.s if isinstance(self.s, (int, float)) else self.s[layer]
        s = torch.tensor(own, dtype=torch.float32, device=positions.device).reshape(1, -1, 1)
        return (s * (positions + 1).float().log()[:, None]).clamp(min=self.least)
