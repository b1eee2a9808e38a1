"""Scaled dot product attention with grouped queries, without copies of the keys."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention


def sdpa(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    scaling: float,
    is_causal: bool = False,
    dropout: float = 0.0,
) -> torch.Tensor:
    """softmax(q·k · scaling + mask) v.

    Parameters
    ----------
    q : (B, H, Tq, D); k, v : (B, K, Tk, D), H a multiple of K
    mask : bool, True where a pair counts, or a float bias; (B or 1, H or 1, Tq, Tk)

    Returns
    -------
    (B, H, Tq, D)
    """
    batch, heads, queries, _ = q.shape
    kv = k.shape[1]
    if heads == kv:
        return scaled_dot_product_attention(q, k, v, mask, dropout, is_causal, scale=scaling)
    groups = heads // kv
    if k.device.type == "cuda" and mask is None:
        return scaled_dot_product_attention(q, k, v, None, dropout, is_causal, scale=scaling, enable_gqa=True)
    if mask is not None:
        if mask.shape[1] > 1:  # (B·K or K, G, Tq, Tk)
            mask = mask.expand(batch, -1, -1, -1).reshape(batch * kv, groups, *mask.shape[2:])
        elif mask.shape[0] > 1:
            mask = mask.repeat_interleave(kv, dim=0)
    q = q.reshape(batch * kv, groups, queries, -1)
    k = k.reshape(batch * kv, 1, *k.shape[2:]).expand(-1, groups, -1, -1)  # a view: one stride is 0
    v = v.reshape(batch * kv, 1, *v.shape[2:]).expand(-1, groups, -1, -1)
    out = scaled_dot_product_attention(q, k, v, mask, dropout, is_causal, scale=scaling)
    return out.reshape(batch, heads, queries, -1)
