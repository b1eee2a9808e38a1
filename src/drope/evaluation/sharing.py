"""Prompts that begin alike: what they share is prefilled once, and rows prefilled apart are decoded together."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

_STOCK_ATTENTION = {None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"}
_WORTH_A_PASS = 64  # tokens that a prefill of its own must spare a row


@dataclass
class Trunk:
    """The beginning that prompts share, prefilled step by step as the prompts that share more of it come up.

    cache : keys and values of the first `done` tokens of `ids`, batch of one
    """

    ids: np.ndarray
    cache: Any = None
    done: int = 0

    def part(self, model, tokens: int, rows: int) -> Any:
        """A cache of its own of the first `tokens` tokens, for so many rows. What is not prefilled yet is."""
        if tokens > self.done:
            device = model.get_input_embeddings().weight.device
            part = torch.as_tensor(self.ids[self.done : tokens].astype(np.int64), device=device)[None]
            keep = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
            self.cache = model(input_ids=part, past_key_values=self.cache, use_cache=True, **keep).past_key_values
            self.done = tokens

        def change(x: torch.Tensor) -> torch.Tensor:
            return x[..., :tokens, :].expand(rows, -1, -1, -1)  # a view: a cache grows into new tensors

        return _changed(self.cache, change)


def groups(shared: Sequence[int], longest: int) -> Iterator[slice]:
    """Neighbours to prefill in one pass. Rows that share more go apart where that spares each enough tokens."""
    worth = max(_WORTH_A_PASS, longest // 16)
    begin = 0
    for end in range(1, len(shared) + 1):
        if end == len(shared) or max(shared[begin : end + 1]) - min(shared[begin : end + 1]) > worth:
            yield slice(begin, end)
            begin = end


def joined(parts: Sequence[tuple[Any, torch.Tensor]]) -> tuple[Any, torch.Tensor]:
    """Caches with their masks (rows, tokens), padded on the left to one length and put below each other."""
    if len(parts) == 1:
        return parts[0]
    longest = max(mask.shape[1] for _, mask in parts)
    short = [longest - mask.shape[1] for _, mask in parts]
    pad = torch.nn.functional.pad
    mask = torch.cat([pad(mask, (n, 0)) for (_, mask), n in zip(parts, short, strict=True)])
    whole = _changed(parts[0][0], lambda x: x)
    for i, layer in enumerate(whole.layers):
        if layer.is_initialized:
            for name in ("keys", "values"):
                pieces = [getattr(cache.layers[i], name) for cache, _ in parts]
                pieces = [pad(piece, (0, 0, n, 0)) for piece, n in zip(pieces, short, strict=True)]
                setattr(layer, name, torch.cat(pieces))
    return whole, mask


def _changed(cache: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A cache of plain layers whose keys and values are `change` of those of another, which stays as it is."""
    made = copy.copy(cache)
    made.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in made.layers:
        if layer.is_initialized:
            layer.keys, layer.values = change(layer.keys), change(layer.values)
    return made


def can_reuse(model) -> bool:
    """Whether a cache may be cut and copied: plain layers alone, and rotation that does not depend on the input's end.

    Sliding windows forget what a cut would need, and the frequencies of `dynamic` and `longrope` change with the length
    of each call, so that a prompt in two parts is not the prompt in one. Attention that a method computes itself may
    count indices where padding now lies between the two parts.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {p.get("rope_type") for p in (rope, *(v for v in rope.values() if isinstance(v, dict)))}
    if getattr(config, "_attn_implementation", None) not in _STOCK_ATTENTION:
        return False
    if kinds & {"dynamic", "longrope"} or getattr(model.config, "is_encoder_decoder", False):
        return False
    try:
        layers = DynamicCache(config=config).layers
    except (AttributeError, TypeError, ValueError, KeyError):
        return False
    return all(type(layer) is DynamicLayer for layer in layers)


def common_beginning(prompts: Sequence[np.ndarray], candidates: int = 64) -> tuple[np.ndarray, list[int]]:
    """The prompt that shares most with the others, and how many tokens each shares with it (less than its own length).

    Of many prompts, `candidates` evenly spread ones are tried.
    """

    def shared(a: np.ndarray, b: np.ndarray) -> int:
        n = min(len(a), len(b))
        different = np.flatnonzero(a[:n] != b[:n])
        return min(int(different[0]) if len(different) else n, len(b) - 1)

    tried = [prompts[i] for i in range(0, len(prompts), max(1, len(prompts) // candidates))]
    several = [[shared(c, p) for p in prompts] for c in tried]
    best = max(range(len(tried)), key=lambda i: sum(several[i]))
    return tried[best], several[best]
