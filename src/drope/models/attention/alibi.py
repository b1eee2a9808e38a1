"""ALiBi: a bias on the logits that falls with distance, at a slope of each head's own (arXiv 2108.12409)."""

from __future__ import annotations

from typing import Any

import torch

from drope.models.attention.heads import sdpa
from drope.models.attention.mask import Mask
from drope.models.attention.rotation import Rotation
from drope.positions.alibi import slopes
from drope.positions.schemes import Alibi

BLOCK = 128  # queries: a block of the bias is H × BLOCK × keys


def attend(
    scheme: Alibi,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    mask: Mask,
    scaling: float,
    rotation: Rotation | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """softmax(q·k · scaling − m_h (i − j)) v: FlexAttention on a GPU, a bias in blocks of queries elsewhere."""
    queries, keys = q.shape[2], k.shape[2]
    m = slopes(q.shape[1]).to(q.device, torch.float32)  # (H,)
    first = mask.q_offset - mask.kv_offset
    if q.device.type == "cuda" and mask.plain and first == 0 and keys == queries >= 128 and dropout == 0:
        return flex(q, k, v, m, scaling)
    parts = []
    for start in range(0, queries, BLOCK):
        stop = min(start + BLOCK, queries)
        high = keys if mask.dense is not None else max(min(keys, stop + first), 1)
        # padding shifts queries and keys of a row alike, so indices give the distances
        i = torch.arange(start, stop, device=q.device)[:, None] + first
        distance = i - torch.arange(high, device=q.device)
        bias = -m[:, None, None] * distance.clamp(min=0)  # (H, q, k)
        pairs = mask.allowed(slice(start, stop), slice(0, high))  # (B or 1, 1, q, k)
        bias = bias.to(q.dtype)[None].masked_fill(~pairs, torch.finfo(q.dtype).min)
        parts.append(sdpa(q[:, :, start:stop], k[:, :, :high], v[:, :, :high], bias, scaling=scaling, dropout=dropout))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


_compiled: Any = None


def flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, m: torch.Tensor, scaling: float) -> torch.Tensor:
    """FlexAttention, compiled on a GPU; the bias is computed in the kernel."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    global _compiled
    if _compiled is None and q.device.type == "cuda":
        _compiled = torch.compile(flex_attention)
    kernel: Any = _compiled if q.device.type == "cuda" else flex_attention

    def bias(score, b, h, i, j):
        return score - m[h] * (i - j)

    tokens = q.shape[2]
    causal = create_block_mask(lambda b, h, i, j: i >= j, None, None, tokens, tokens, device=q.device)
    return kernel(q, k, v, score_mod=bias, block_mask=causal, scale=scaling, enable_gqa=q.shape[1] != k.shape[1])
