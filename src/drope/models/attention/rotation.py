"""A model's rotation, taken out of the model: q and k can be turned to any positions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Rotation:
    """Rotates by position, as stock Llama-shaped families do: channel m with channel m + pairs.

    Parameters
    ----------
    inv_freq : radians a token, shape (pairs,), float32
    factor : multiplies cos and sin (the attention factor of YaRN)
    """

    inv_freq: torch.Tensor
    factor: float = 1.0
    _tables: dict[Any, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict, compare=False, repr=False)

    def __call__(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """x, (B, H, T, D), turned to positions (B or 1, T) or (T,); channels beyond 2 · pairs stay as they are."""
        cos, sin = (part.to(x.dtype) for part in self.cos_sin(positions, x.device, x.dtype))
        pairs = self.inv_freq.numel()
        first, second, rest = x[..., :pairs], x[..., pairs : 2 * pairs], x[..., 2 * pairs :]
        return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)

    def cos_sin(
        self, positions: torch.Tensor, device: torch.device | str, dtype: torch.dtype = torch.float32
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin times the factor, each (B or 1, 1, T, pairs): float32, as in stock modules, or float64.

        Positions are whole and at least 0: the values come from a table, so that a model's layers share the work.
        """
        if positions.dim() == 1:
            positions = positions[None]
        wide = torch.promote_types(dtype, torch.float32)
        need = int(positions.max()) + 1 if positions.numel() else 1
        key = torch.device(device), wide
        if key not in self._tables or len(self._tables[key][0]) < need:
            angles = torch.arange(2 * need, device=device, dtype=wide)[:, None] * self.inv_freq.to(device)
            self._tables[key] = angles.cos() * self.factor, angles.sin() * self.factor
        cos, sin = self._tables[key]
        positions = positions.to(device)[:, None]
        return cos[positions], sin[positions]
