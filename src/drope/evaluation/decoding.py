"""Greedy decoding in batches: a shared beginning is prefilled once, and a right answer is recognised in one pass.

B rows of a batch, T tokens of the longest prompt, P tokens of a shared beginning, D tokens of the longest draft.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Prompt = Sequence[int] | np.ndarray
_STOCK_ATTENTION = {None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"}


@dataclass
class Trunk:
    """The beginning that prompts share, prefilled step by step as the prompts that share more of it come up.

    cache : keys and values of the first `done` tokens of `ids`, batch of one
    """

    ids: np.ndarray
    cache: Any = None
    done: int = 0

    def grow(self, model, tokens: int) -> None:
        """Prefill up to `tokens`; never shrinks."""
        if tokens <= self.done:
            return
        device = model.get_input_embeddings().weight.device
        part = torch.as_tensor(self.ids[self.done : tokens].astype(np.int64), device=device)[None]
        keep = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
        self.cache = model(input_ids=part, past_key_values=self.cache, use_cache=True, **keep).past_key_values
        self.done = tokens


def greedy(
    model,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    stop: frozenset[int] = frozenset(),
    done: Callable[[int, list[int]], bool] = lambda row, ids: False,
    drafts: Sequence[Sequence[int]] | None = None,
    trunk: Trunk | None = None,
) -> list[list[int]]:
    """Greedy continuation of each prompt, without its stop token.

    Prompts of one length run unmasked. Others are padded on the left, with a mask and with positions that start at each
    row's first token. Rows that are done leave the batch as soon as they are half of it.

    Parameters
    ----------
    drafts : a guess at each continuation, scored in the prefill by teacher forcing. A draft counts only as far as every
        one of its tokens is the argmax after those before it: then, by induction, it is what greedy decoding gives
        (up to the rounding of sums of another shape). A row whose accepted draft is `done` needs no decoding; any other
        is decoded from its prompt on as if it had had no draft.
    trunk : its first `trunk.done` tokens begin every prompt (which is longer than that), and are not prefilled again
    """
    device = model.get_input_embeddings().weight.device
    shared = trunk.done if trunk else 0
    rests = [np.asarray(p)[shared:] for p in prompts]
    longest = max(map(len, rests))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros(len(prompts), shared + longest, dtype=torch.long)
    mask[:, :shared] = 1
    for row, rest in enumerate(rests):
        ids[row, longest - len(rest) :] = torch.as_tensor(rest.astype(np.int64))
        mask[row, shared + longest - len(rest) :] = 1
    ids, mask = ids.to(device), mask.to(device)
    padded = not bool(mask.all())
    accepted = inspect.signature(model.forward).parameters
    can_keep = "logits_to_keep" in accepted
    cache: Any = None
    if trunk and shared:
        cache = copy.deepcopy(trunk.cache)
        cache.batch_repeat_interleave(len(prompts))

    def step(ids: torch.Tensor, keep: int) -> torch.Tensor:
        """Argmax after each of the last `keep` tokens: (B, keep)."""
        nonlocal cache
        extra: dict[str, Any] = {"logits_to_keep": keep} if can_keep else {}
        if padded:
            extra["attention_mask"] = mask
            if "position_ids" in accepted:
                extra["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        out = model(input_ids=ids, past_key_values=cache, use_cache=True, **extra)
        cache = out.past_key_values
        return out.logits[:, -keep:].argmax(-1)

    generated: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # prompt of each batch row
    active = set(rows)
    width = max(map(len, drafts)) if drafts else 0
    if width and drafts:
        tail = torch.tensor([[*d, *[0] * (width - len(d))] for d in drafts], device=device)
        before, mask = mask, torch.cat([mask, mask.new_ones(len(rows), width)], dim=1)
        best = step(torch.cat([ids, tail], dim=1), width + 1)
        for row, draft in enumerate(drafts):
            said = best[row].tolist()
            right = next((i for i, token in enumerate(draft) if said[i] != token or token in stop), len(draft))
            if right and done(row, list(draft[:right])):
                generated[row] = list(draft[:right])
                active.discard(row)
        mask, chosen = before, best[:, 0]
        cache.crop(-width)
    elif max_new_tokens > 0:
        chosen = step(ids, 1)[:, 0]
    for i in range(max_new_tokens):
        if i:
            chosen = step(ids, 1)[:, 0]
        for row, token in zip(rows, chosen.tolist(), strict=True):
            if row not in active:
                continue
            if token in stop:
                active.discard(row)
                continue
            generated[row].append(token)
            if done(row, generated[row]):
                active.discard(row)
        if not active:
            break
        ids, mask = chosen[:, None], torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        if 2 * len(active) <= len(rows) and hasattr(cache, "batch_select_indices"):
            kept = torch.tensor([i for i, row in enumerate(rows) if row in active], device=device)
            cache.batch_select_indices(kept)
            ids, mask = ids[kept], mask[kept]
            rows = [row for row in rows if row in active]
    return generated


def stop_ids(model, tokenizer) -> frozenset[int]:
    """Every id that ends a text, by the tokenizer and by the model's generation config.

    None at all is no error: every answer then ends at its budget, or where its score is settled.
    """
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    several = configured if isinstance(configured, list | tuple) else [configured]
    return frozenset(i for i in (tokenizer.eos_token_id, *several) if i is not None)


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
