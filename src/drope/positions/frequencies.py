"""Frequencies, phases and what training never showed (DroPE, arXiv 2512.12167, sections 2 and 4).

Pairs are indexed m = 0 … d/2 − 1; ω_m = θ^(−2m/d) in radians a token; γ_m scales it; φ_m(Δ) = γ_m ω_m Δ.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from drope.positions.base import RopeShape

if TYPE_CHECKING:
    from drope.positions.base import Method


def pair_indices(shape: RopeShape) -> torch.Tensor:
    """m = 0 … d/2 − 1, shape (pairs,), float64."""
    return torch.arange(shape.pairs, dtype=torch.float64)


def inverse_frequencies(shape: RopeShape) -> torch.Tensor:
    """ω_m = θ^(−2m/d), in radians a token. Shape (pairs,), float64."""
    return shape.theta ** (-2 * pair_indices(shape) / shape.head_dim)


def scaling(shape: RopeShape, method: Method, length: int) -> torch.Tensor:
    """γ_m of a method at a target length in tokens: 1 leaves a pair alone, 0 stops it. Shape (pairs,), float64."""
    return method.scaling(shape, length)


def phases(
    shape: RopeShape, distances: torch.Tensor | list[int], method: Method | None = None, length: int | None = None
) -> torch.Tensor:
    """φ_m(Δ) = γ_m ω_m Δ in radians, for distances Δ in tokens. Shape (len(distances), pairs), float64.

    Without a method γ = 1. `length` is the target length of the method (default: the largest distance + 1).
    """
    delta = torch.as_tensor(distances, dtype=torch.float64)
    omega = inverse_frequencies(shape)
    if method is not None:
        omega = omega * method.scaling(shape, length or int(delta.max()) + 1)
    return delta[:, None] * omega


def rotations_in_context(shape: RopeShape) -> torch.Tensor:
    """How many full turns each pair makes over the trained context: C_train·ω_m / 2π. Shape (pairs,), float64."""
    return shape.context * inverse_frequencies(shape) / (2 * math.pi)


def out_of_range(shape: RopeShape, length: int) -> int:
    """Number of pairs that meet phases at `length` tokens which training at C_train never showed.

    These are the pairs whose wavelength 2π/ω_m exceeds C_train: they never completed a turn, so every distance
    beyond C_train is a new angle. None are out of range within the trained context.
    """
    if length <= shape.context:
        return 0
    return int((rotations_in_context(shape) < 1).sum())
