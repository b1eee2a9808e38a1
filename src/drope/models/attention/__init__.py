"""The attention function of methods that stock attention cannot carry out.

One function is registered with transformers under the name `drope`. It looks at what `drope.models.apply` put on the
attention module that calls it (a `Plan`), so two models in one process never affect each other, and modules without a
plan get plain attention.

A scheme of `drope.positions.schemes` called NAME is computed by `drope/models/attention/NAME.py`, which has

    def attend(scheme, q, k, v, *, mask, rotation, scaling, dropout=0.0) -> Tensor

    q (B, H, Tq, D), k (B, K, Tk, D), v (B, K, Tk, D), all raw: the model's rotation is neutralised, and the cache holds
    raw keys, so Tk counts every token so far. H is a multiple of K (grouped queries). Temperatures are in q already.
    mask        a `Mask`: `mask.positions(Tq, Tk)` gives the positions of queries (B or 1, Tq) and keys (B or 1, Tk);
                `mask.plain` says that causality is all there is (no padding or window), in which case the pairs are
                those with key index <= query index + mask.q_offset - mask.kv_offset; `mask.allowed(queries, keys)`
                gives any block of pairs
    rotation    a `Rotation`: `rotation(x, positions)` rotates q or k to any positions; None for schemes without
    scaling     multiplies q·k (1/√d and the temperature that is set)
    returns     (B, H, Tq, D)

`heads.sdpa` is the kernel with grouped queries that copies no keys. Work in blocks: at length 8C the full matrix of
logits does not fit.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from drope.models.attention.mask import Mask, mask_interface
from drope.models.attention.rotation import Rotation

if TYPE_CHECKING:
    from drope.positions.scales import QueryScale
    from drope.positions.schemes import Scheme

NAME = "drope"
PLAN = "_drope_plan"  # attribute of an attention module while a method is applied


@dataclass(frozen=True)
class Plan:
    """What one attention module does.

    scheme : computes the attention; None is the softmax of q·k as ever
    rotation : the model's own, for a scheme that uses it
    rotate : False gives q and k as they are, whatever the model's rotary module says
    window : tokens that a query sees, itself included
    query_scales : multiply q
    layer : number of the decoder layer
    stock : name of the attention implementation to go back to
    """

    scheme: Scheme | None = None
    rotation: Rotation | None = None
    rotate: bool = True
    window: int | None = None
    query_scales: tuple[QueryScale, ...] = ()
    layer: int = 0
    stock: str = "eager"


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Mask | torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function as transformers calls it. Returns (B, Tq, H, D), and no weights."""
    plan: Plan = getattr(module, PLAN, None) or Plan()
    mask = attention_mask if isinstance(attention_mask, Mask) else Mask.of(attention_mask, query, key)
    mask.pack(kwargs.get("position_ids"), query.shape[2], key.shape[2])
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    for scale in plan.query_scales:
        positions, _ = mask.positions(query.shape[2], key.shape[2])
        factors = scale.factors(positions.to(query.device), plan.layer, query.shape[1])
        query = query * factors[..., None].to(query.dtype)
    name = plan.scheme.name if plan.scheme else "plain"
    attend = importlib.import_module(f"drope.models.attention.{name}").attend
    extra = {"window": plan.window} if plan.scheme is None else {"scheme": plan.scheme, "rotation": plan.rotation}
    out = attend(q=query, k=key, v=value, mask=mask, scaling=scaling, dropout=dropout, **extra)
    return out.transpose(1, 2).contiguous(), None


def register() -> None:
    """Make the function known to transformers under a name of its own; nothing uses it until a config says so."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, mask_interface)


__all__ = ["NAME", "PLAN", "Mask", "Plan", "Rotation", "attention", "register"]
