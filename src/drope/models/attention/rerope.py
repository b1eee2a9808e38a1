"""ReRoPE: distances as they are below the window, and the window beyond (Su 2023, kexue.fm/archives/9708)."""

from __future__ import annotations

import torch

from drope.models.attention.mask import Mask
from drope.models.attention.pieces import Piece, attend_pieces
from drope.models.attention.rotation import Rotation
from drope.positions.schemes import ReRope


def pieces(scheme: ReRope) -> list[Piece]:
    """Far keys stay at 0 and their query turns to the window; near ones are rotated as ever."""
    w = scheme.window
    far = Piece(torch.zeros_like, lambda i: (i - w + 1).clamp(min=0), lambda i: torch.full_like(i, w), torch.zeros_like)
    near = Piece(lambda i: (i - w + 1).clamp(min=0), lambda i: i + 1, lambda i: i, lambda j: j)
    return [far, near]


def attend(
    scheme: ReRope,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    mask: Mask,
    rotation: Rotation,
    scaling: float,
    dropout: float = 0.0,
) -> torch.Tensor:
    """softmax(q_i · R(min(i - j, window)) k_j) v. Shapes as in `drope.models.attention`."""
    return attend_pieces(pieces(scheme), q, k, v, mask=mask, rotation=rotation, scaling=scaling, dropout=dropout)
