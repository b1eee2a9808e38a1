"""The softmax of q·k, in a window or not."""

from __future__ import annotations

import torch

from drope.models.attention.heads import sdpa
from drope.models.attention.mask import Mask

BLOCK = 512  # queries: a block of the mask is BLOCK × keys


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    mask: Mask,
    scaling: float,
    window: int | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Attention of q, (B, H, Tq, D), on k and v, (B, K, Tk, D), as they are. Windows in blocks of queries."""
    queries, keys = q.shape[2], k.shape[2]
    first = mask.q_offset - mask.kv_offset  # index among the keys of the first query's own
    if mask.plain and keys == first + queries and (window is None or keys <= window):
        if queries == 1:
            return sdpa(q, k, v, scaling=scaling, dropout=dropout)
        if first == 0:
            return sdpa(q, k, v, scaling=scaling, is_causal=True, dropout=dropout)
    if mask.plain and queries == 1 and window is not None and keys == first + 1:
        return sdpa(q, k[:, :, -window:], v[:, :, -window:], scaling=scaling, dropout=dropout)
    step = BLOCK if window is None else max(64, min(BLOCK, window))
    out = torch.empty_like(q[..., : v.shape[-1]]) if not torch.is_grad_enabled() else None
    parts = []
    for start in range(0, queries, step):
        stop = min(start + step, queries)
        low = 0 if window is None else max(0, start + first - window + 1)
        high = keys if mask.dense is not None else max(min(keys, stop + first), low + 1)
        pairs = mask.allowed(slice(start, stop), slice(low, high), window)
        part = sdpa(q[:, :, start:stop], k[:, :, low:high], v[:, :, low:high], pairs, scaling=scaling, dropout=dropout)
        if out is None:
            parts.append(part)
        else:
            out[:, :, start:stop] = part
    return torch.cat(parts, dim=2) if out is None else out
