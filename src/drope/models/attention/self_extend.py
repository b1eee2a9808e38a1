"""Self-Extend: near keys as they are, far ones at positions divided by the group (arXiv 2401.01325)."""

from __future__ import annotations

import torch

from drope.models.attention.mask import Mask
from drope.models.attention.pieces import Piece, attend_pieces
from drope.models.attention.rotation import Rotation
from drope.positions.schemes import SelfExtend


def pieces(scheme: SelfExtend) -> list[Piece]:
    """Far keys at ⌊j/G⌋, their query at ⌊i/G⌋ + W - ⌊W/G⌋; near ones, i - j < W, rotated as ever."""
    w, g = scheme.window, scheme.group
    far = Piece(
        torch.zeros_like, lambda i: (i - w + 1).clamp(min=0), lambda i: i // g + (w - w // g), lambda j: j // g
    )  # fmt: skip
    near = Piece(lambda i: (i - w + 1).clamp(min=0), lambda i: i + 1, lambda i: i, lambda j: j)
    return [far, near]


def attend(
    scheme: SelfExtend,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    mask: Mask,
    rotation: Rotation,
    scaling: float,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Attention over the mapped distances. Shapes as in `drope.models.attention`."""
    return attend_pieces(pieces(scheme), q, k, v, mask=mask, rotation=rotation, scaling=scaling, dropout=dropout)
