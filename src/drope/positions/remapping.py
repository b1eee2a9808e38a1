"""What the methods that map distances share: settings bounded by the context, and their mean scaling."""

from __future__ import annotations

from collections.abc import Callable

import torch

from drope.errors import InputError
from drope.positions.base import RopeShape


def inside_context(field: str, value: int | None, default: int, most: int, least: int = 1) -> int:
    """The value, or the default for None; refused where the trained context has no room for it."""
    chosen = default if value is None else value
    if not least <= chosen <= most:
        allowed = f"a whole number of tokens from {least} to {most}, within the trained context"
        raise InputError(field, chosen, allowed if most >= least else "none: the trained context is too short")
    return chosen


def farthest_scaling(shape: RopeShape, length: int, farthest: Callable[[], int]) -> torch.Tensor:
    """γ for every pair: the distance at which the last token sees the first over the true one; 1 within the context."""
    inside = shape.factor(length) == 1
    return torch.full((shape.pairs,), 1.0 if inside else farthest() / (length - 1), dtype=torch.float64)
