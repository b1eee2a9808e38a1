"""Dual Chunk Attention: positions start anew in every chunk (ChunkLlama, arXiv 2402.17463, section 3)."""

from __future__ import annotations

import torch

from drope.models.attention.mask import Mask
from drope.models.attention.pieces import Piece, attend_pieces
from drope.models.attention.rotation import Rotation
from drope.positions.schemes import DualChunk


def pieces(scheme: DualChunk) -> list[Piece]:
    """Keys of earlier chunks, of the chunk before the query's, and of its own; all keys at j mod chunk."""
    s, last = scheme.chunk, scheme.chunk + scheme.local - 1

    def key(j: torch.Tensor) -> torch.Tensor:
        return j % s

    def own(i: torch.Tensor) -> torch.Tensor:
        return i - i % s

    def before(i: torch.Tensor) -> torch.Tensor:
        return (own(i) - s).clamp(min=0)

    inter = Piece(torch.zeros_like, before, lambda i: torch.full_like(i, last), key)
    successive = Piece(before, own, lambda i: (i % s + s).clamp(max=last), key)
    intra = Piece(own, lambda i: i + 1, key, key)
    return [inter, successive, intra]


def attend(
    scheme: DualChunk,
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
