"""A model's rotation, taken out of the model: q and k can be turned to any positions."""

from __future__ import annotations

from dataclasses import dataclass

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

    def __call__(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """x, (B, H, T, D), turned to positions (B or 1, T) or (T,); channels beyond 2 · pairs stay as they are."""
        cos, sin = (part.to(x.dtype) for part in self.cos_sin(positions, x.device, x.dtype))
        pairs = self.inv_freq.numel()
        first, second, rest = x[..., :pairs], x[..., pairs : 2 * pairs], x[..., 2 * pairs :]
        return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)

    def cos_sin(
        self, positions: torch.Tensor, device: torch.device | str, dtype: torch.dtype = torch.float32
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin times the factor, each (B or 1, 1, T, pairs): float32, as in stock modules, or float64."""
        if positions.dim() == 1:
            positions = positions[None]
        wide = torch.promote_types(dtype, torch.float32)
        angles = positions.to(device)[:, None, :, None].to(wide) * self.inv_freq.to(device)
        return angles.cos() * self.factor, angles.sin() * self.factor
