"""Running needle trials: greedy decoding with a KV cache, in batches, each finished sample on disk at once.

B rows of a batch, T tokens of the longest prompt.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from drope.errors import DropeError
from drope.evaluation.losses import evaluating
from drope.evaluation.records import append, read_lines
from drope.evaluation.tasks import found, is_success
from drope.evaluation.trials import Trial
from drope.progress import track
from drope.results import Measurement, wilson

_FIELDS = {"index", "digest", "depth", "found", "hit"}


@dataclass(frozen=True)
class Decoding:
    """How answers are decoded (always greedy).

    batch_tokens : rows x (prompt + answer) tokens held in one batch
    stop_at_newline : end a row at the first newline after text. Off, as models that answer in a list would lose values
    """

    batch_tokens: int = 16384
    stop_at_newline: bool = False


def run_trials(
    model, tokenizer, trials: Iterable[Trial], log: Path, decoding: Decoding = Decoding(), title: str = "Needles"
):
    """Decode every trial that `log` does not hold yet, append each batch to it, and return all records by index.

    `log` is JSON lines: index, prompt (folded), digest, depths, depth, expected, output, found, hit. A record counts as
    finished only if its digest is that of the trial's prompt, so a log of other prompts is never mistaken for this one.
    """
    trials = list(trials)
    digests = {t.index: t.digest for t in trials}
    records = {r["index"]: r for r in read_lines(log, _FIELDS) if digests.get(r["index"]) == r["digest"]}
    todo = sorted((t for t in trials if t.index not in records), key=lambda t: (-len(t.ids), t.index))
    with track(title, total=len(trials), unit="samples") as bar, evaluating(model):
        bar.advance(len(records))
        for batch in _batches(todo, decoding.batch_tokens):
            outputs = answer(model, tokenizer, batch, decoding)
            new = [_record(t, o) for t, o in zip(batch, outputs, strict=True)]
            append(log, new)
            records.update((r["index"], r) for r in new)
            bar.advance(len(batch), f"success {sum(r['hit'] for r in records.values()) / len(records):.0%}")
    return [records[t.index] for t in trials]


def answer(model, tokenizer, batch: Sequence[Trial], decoding: Decoding = Decoding()) -> list[str]:
    """Output texts. Rows stop at EOS, at their budget, or once all answers are out, which changes no score."""

    def text(ids: list[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def done(row: int, ids: list[int]) -> bool:
        out = text(ids)
        listed = decoding.stop_at_newline and "\n" in out.lstrip()
        return len(ids) >= batch[row].max_new_tokens or listed or is_success(batch[row].answers, out)

    prompts = [t.ids for t in batch]
    try:
        generated = greedy(model, prompts, max(t.max_new_tokens for t in batch), stop_ids(model, tokenizer), done)
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise DropeError(
                f"One prompt of {len(prompts[0])} tokens does not fit in the device's memory. "
                "Evaluate shorter lengths, or load the model in a smaller dtype."
            ) from None
        half = len(batch) // 2
        return answer(model, tokenizer, batch[:half], decoding) + answer(model, tokenizer, batch[half:], decoding)
    return [text(ids) for ids in generated]


def greedy(
    model,
    prompts: Sequence[Sequence[int] | np.ndarray],
    max_new_tokens: int,
    stop: frozenset[int] = frozenset(),
    done: Callable[[int, list[int]], bool] = lambda row, ids: False,
) -> list[list[int]]:
    """Greedy continuation of each prompt, without its stop token.

    Prompts of one length run unmasked. Others are padded on the left, with a mask and with positions that start at each
    row's first token. Rows that are done leave the batch as soon as they are half of it.
    """
    device = model.get_input_embeddings().weight.device
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros(len(prompts), longest, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.as_tensor(np.asarray(prompt), dtype=torch.long)
        mask[row, longest - len(prompt) :] = 1
    ids, mask = ids.to(device), mask.to(device)
    padded = not bool(mask.all())
    accepted = inspect.signature(model.forward).parameters
    keep = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}

    generated: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # prompt of each batch row
    active = set(rows)
    cache = None
    for _ in range(max_new_tokens):
        extra: dict[str, Any] = dict(keep)
        if padded:
            extra["attention_mask"] = mask
            if "position_ids" in accepted:
                extra["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        out = model(input_ids=ids, past_key_values=cache, use_cache=True, **extra)
        cache = out.past_key_values
        chosen = out.logits[:, -1].argmax(-1)
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
    """Every id that ends a text, by the tokenizer and by the model's generation config."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    several = configured if isinstance(configured, list | tuple) else [configured]
    return frozenset(i for i in (tokenizer.eos_token_id, *several) if i is not None)


def measurements(
    records: Sequence[dict], task: str, method: str, length: int, details: dict[str, Any]
) -> list[Measurement]:
    """Success over all records, then per grid depth (details["depth"]) where the task has one. Wilson 95% intervals."""

    def one(part: Sequence[dict], **more: Any) -> Measurement:
        hits, n = sum(r["hit"] for r in part), len(part)
        share = sum(r["found"] for r in part) / n
        low, high = wilson(hits, n)
        return Measurement(task, method, length, "success", hits / n, low, high, n, {**details, "found": share, **more})

    depths = sorted({r["depth"] for r in records if r["depth"] is not None})
    return [one(records), *(one([r for r in records if r["depth"] == d], depth=d) for d in depths)]


def _record(trial: Trial, output: str) -> dict[str, Any]:
    return {
        "index": trial.index, "prompt": trial.folded, "digest": trial.digest, "tokens": len(trial.ids),
        "depths": list(trial.depths), "depth": trial.depth, "expected": list(trial.answers), "output": output,
        "found": found(trial.answers, output), "hit": is_success(trial.answers, output),
    }  # fmt: skip


def _batches(trials: Sequence[Trial], batch_tokens: int) -> Iterator[list[Trial]]:
    """Sorted trials, longest first, in batches of rows x (longest prompt + answer) <= `batch_tokens`."""
    start = 0
    while start < len(trials):
        size = max(1, batch_tokens // (len(trials[start].ids) + trials[start].max_new_tokens))
        yield list(trials[start : start + size])
        start += size
