"""A slow Llama in float64 with full matrices: each pair of tokens is rotated by its own distance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def logits(
    model: Any,
    ids: torch.Tensor,
    *,
    gamma: Sequence[torch.Tensor],
    windows: Sequence[int | None] | None = None,
    bias: torch.Tensor | None = None,
    sharpness: Sequence[torch.Tensor | float] | None = None,
    start: int = 0,
    factor: float = 1.0,
) -> torch.Tensor:
    """Logits of one row of ids (T,), shape (T, V).

    Parameters
    ----------
    gamma : for each layer, what each pair's frequency θ^(−2m/d) is multiplied by, (pairs,)
    windows : for each layer, tokens that a query sees, itself included; None: all
    bias : added to the logits of each head, (H, T, T)
    sharpness : for each layer, what the logits of each query are multiplied by, (T,) or a number
    start : tokens that nobody sees
    factor : multiplies cos and sin
    """
    config, weights = model.config, {name: value.double() for name, value in model.state_dict().items()}
    tokens, heads, kv = len(ids), config.num_attention_heads, config.num_key_value_heads
    width = config.hidden_size // heads
    omega = config.rope_parameters["rope_theta"] ** (-torch.arange(0, width, 2).double() / width)
    apart = torch.arange(tokens)[:, None] - torch.arange(tokens)[None, :]  # i − j
    x = weights["model.embed_tokens.weight"][ids]
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}."
        h = _norm(x, weights[name + "input_layernorm.weight"], config.rms_norm_eps)
        q, k, v = (h @ weights[f"{name}self_attn.{p}_proj.weight"].T for p in "qkv")
        unseen = (apart < 0) | (torch.arange(tokens) < start)[None, :]
        if windows is not None and windows[layer] is not None:
            unseen = unseen | (apart >= windows[layer])
        turn = torch.exp(1j * apart[..., None] * (omega * gamma[layer]))  # (T, T, pairs)
        outs = []
        for head in range(heads):
            own = slice(head * width, (head + 1) * width)
            its = slice(head // (heads // kv) * width, (head // (heads // kv) + 1) * width)
            scores = torch.einsum("ip,jp,ijp->ij", _complex(q[:, own]), _complex(k[:, its]).conj(), turn).real
            scores = scores * factor**2 / width**0.5
            if sharpness is not None:
                scores = scores * torch.as_tensor(sharpness[layer]).double().reshape(-1, 1)
            if bias is not None:
                scores = scores + bias[head]
            weight = scores.masked_fill(unseen, float("-inf")).softmax(-1).nan_to_num()
            outs.append(weight @ v[:, its])
        x = x + torch.cat(outs, 1) @ weights[name + "self_attn.o_proj.weight"].T
        h = _norm(x, weights[name + "post_attention_layernorm.weight"], config.rms_norm_eps)
        gate, up = (h @ weights[f"{name}mlp.{p}_proj.weight"].T for p in ("gate", "up"))
        x = x + (gate * torch.sigmoid(gate) * up) @ weights[name + "mlp.down_proj.weight"].T
    return _norm(x, weights["model.norm.weight"], config.rms_norm_eps) @ weights["lm_head.weight"].T


def _complex(x: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return torch.complex(x[:, :half], x[:, half:])


def _norm(x: torch.Tensor, gain: torch.Tensor, eps: float) -> torch.Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * gain
