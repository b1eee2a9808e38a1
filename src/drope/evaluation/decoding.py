"""Greedy decoding in batches: a shared beginning is prefilled once, and a right answer is recognised in one pass.

B rows of a batch, T tokens of the longest prompt, D tokens of the longest draft.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from drope.evaluation.sharing import Trunk, groups, joined

Prompt = Sequence[int] | np.ndarray


class _Forward:
    """Argmax after the last tokens of a batch, for models with or without `logits_to_keep` and `position_ids`."""

    def __init__(self, model):
        self.model, self.accepted = model, inspect.signature(model.forward).parameters

    def __call__(self, ids: torch.Tensor, mask: torch.Tensor, cache: Any, keep: int = 1) -> tuple[torch.Tensor, Any]:
        """ids (B, new tokens), mask (B, all tokens) -> argmax after each of the last `keep` tokens (B, keep), cache.

        Positions count from each row's first token.
        """
        extra: dict[str, Any] = {"logits_to_keep": keep} if "logits_to_keep" in self.accepted else {}
        if not bool(mask.all()):
            extra["attention_mask"] = mask
            if "position_ids" in self.accepted:
                extra["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        out = self.model(input_ids=ids, past_key_values=cache, use_cache=True, **extra)
        return out.logits[:, -keep:].argmax(-1), out.past_key_values


def greedy(
    model,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    stop: frozenset[int] = frozenset(),
    done: Callable[[int, list[int]], bool] = lambda row, ids: False,
    drafts: Sequence[Sequence[int]] | None = None,
    trunk: Trunk | None = None,
    shared: Sequence[int] = (),
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
    trunk, shared : each prompt begins with so many of the trunk's tokens, and is longer. These are not prefilled again:
        neighbours that share about as much take one pass from there on, and what is left is decoded in one batch
    """
    generated: list[list[int]] = [[] for _ in prompts]
    if max_new_tokens < 1:
        return generated
    forward, device = _Forward(model), model.get_input_embeddings().weight.device
    begun = list(shared) if trunk else [0] * len(prompts)
    rows: list[int] = []  # prompt of each batch row
    parts: list[tuple[Any, torch.Tensor]] = []
    first: list[torch.Tensor] = []
    for part in groups(begun, max(map(len, prompts))):
        start, members = min(begun[part]), list(range(len(prompts)))[part]
        cache = trunk.part(model, start, len(members)) if trunk and start else None
        ids, mask = _padded([prompts[i] for i in members], start, device)
        guesses = [drafts[i] for i in members] if drafts else []
        width = max(map(len, guesses), default=0)
        if width:
            tail = torch.tensor([[*d, *[0] * (width - len(d))] for d in guesses], device=device)
            longer = torch.cat([mask, mask.new_ones(len(members), width)], dim=1)
            best, cache = forward(torch.cat([ids, tail], dim=1), longer, cache, width + 1)
            cache.crop(-width)
        else:
            best, cache = forward(ids, mask, cache)
        left = []
        for at, (row, said) in enumerate(zip(members, best.tolist(), strict=True)):
            draft = guesses[at] if width else []
            right = next((i for i, token in enumerate(draft) if said[i] != token or token in stop), len(draft))
            if right and done(row, list(draft[:right])):
                generated[row] = list(draft[:right])
            else:
                left.append(at)
        if not left:
            continue
        if len(left) < len(members):
            kept = torch.tensor(left, device=device)
            cache.batch_select_indices(kept)
            mask, best = mask[kept], best[kept]
        rows += [members[at] for at in left]
        parts.append((cache, mask))
        first.append(best[:, 0])
    if not rows:
        return generated
    (cache, mask), chosen = joined(parts), torch.cat(first)
    parts.clear()  # the caches that were joined
    active = set(rows)
    for i in range(max_new_tokens):
        if i:
            best, cache = forward(chosen[:, None], mask, cache)
            chosen = best[:, 0]
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
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        if 2 * len(active) <= len(rows) and hasattr(cache, "batch_select_indices"):
            kept = torch.tensor([i for i, row in enumerate(rows) if row in active], device=device)
            cache.batch_select_indices(kept)
            chosen, mask = chosen[kept], mask[kept]
            rows = [row for row in rows if row in active]
    return generated


def _padded(prompts: Sequence[Prompt], start: int, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids after the first `start`, padded on the left (B, T - start); and the mask with these in front (B, T)."""
    rests = [np.asarray(p)[start:] for p in prompts]
    longest = max(map(len, rests))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros(len(prompts), start + longest, dtype=torch.long)
    mask[:, :start] = 1
    for row, rest in enumerate(rests):
        ids[row, longest - len(rest) :] = torch.as_tensor(rest.astype(np.int64))
        mask[row, start + longest - len(rest) :] = 1
    return ids.to(device), mask.to(device)


def stop_ids(model, tokenizer) -> frozenset[int]:
    """Every id that ends a text, by the tokenizer and by the model's generation config.

    None at all is no error: every answer then ends at its budget, or where its score is settled.
    """
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    several = configured if isinstance(configured, list | tuple) else [configured]
    return frozenset(i for i in (tokenizer.eos_token_id, *several) if i is not None)
