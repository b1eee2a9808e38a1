"""Loss by position: one pass per document, far beyond the trained context, with standard errors over documents."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from drope.evaluation.losses import evaluating, token_losses
from drope.evaluation.records import append, read_lines
from drope.progress import track
from drope.results import Measurement, mean_interval


def run_documents(
    model,
    ids: np.ndarray,
    log: Path,
    *,
    bins: int = 32,
    batch_tokens: int = 16384,
    title: str = "Perplexity",
    crop: int | None = None,
) -> list[dict[str, Any]]:
    """Loss of each document in equal stretches of positions; finished documents are read back from `log`.

    Parameters
    ----------
    ids : (documents, T), see `windows`
    log : JSON lines: index, digest of the document, mean loss of each of the `bins` stretches (nats per token)
    crop : no prediction sees more than the last `crop` tokens (see `cropped_losses`); None: each sees all before it
    """
    edges = bin_edges(ids.shape[1], bins)
    digests = [hashlib.sha256(row.astype("<i4").tobytes()).hexdigest()[:16] for row in ids]
    records = {
        r["index"]: r
        for r in read_lines(log, {"index", "digest", "losses"})
        if r["index"] in range(len(ids)) and r["digest"] == digests[r["index"]] and len(r["losses"]) == len(edges) - 1
    }
    todo = [i for i in range(len(ids)) if i not in records]
    rows = max(1, batch_tokens // (crop or ids.shape[1]))
    device = model.get_input_embeddings().weight.device
    with track(title, total=len(ids), unit="documents") as bar, evaluating(model):
        bar.advance(len(records))
        for start in range(0, len(todo), rows):
            part = todo[start : start + rows]
            chosen = torch.from_numpy(ids[part]).to(device)
            found = token_losses(model, chosen) if crop is None else cropped_losses(model, chosen, crop)
            losses = found.double().cpu().numpy()
            new = [
                {
                    "index": i,
                    "digest": digests[i],
                    "losses": [float(row[a - 1 : b - 1].mean()) for a, b in _spans(edges)],
                }
                for i, row in zip(part, losses, strict=True)
            ]
            append(log, new)
            records.update((r["index"], r) for r in new)
            bar.advance(len(part), f"loss {float(losses.mean()):.3f}")
    return [records[i] for i in range(len(ids))]


def cropped_losses(model, ids: torch.Tensor, crop: int) -> torch.Tensor:
    """Losses as `token_losses`, in windows of `crop` tokens: each prediction sees crop/2 to crop - 1 tokens before it.

    ids : (B, T); returns float32 (B, T - 1)
    """
    tokens = ids.shape[1]
    parts = [token_losses(model, ids[:, :crop])]
    done = min(crop, tokens)
    while done < tokens:
        end = min(done + max(1, crop // 2), tokens)
        parts.append(token_losses(model, ids[:, end - crop : end], last=end - done))
        done = end
    return torch.cat(parts, dim=1)


def bin_edges(length: int, bins: int) -> list[int]:
    """Positions of predicted tokens, 1 to `length` - 1, in stretches of equal width: edges, the last exclusive."""
    return sorted({1, length, *(round(i * length / bins) for i in range(1, bins))} - {0})


def measurements(
    records: Sequence[dict[str, Any]], method: str, length: int, bins: int, details: dict[str, Any]
) -> list[Measurement]:
    """Perplexity over all positions, then the loss of each stretch (details position_start, position_end, exclusive).

    Intervals are Student's t over documents; `se` in details is the standard error in nats.
    """
    edges = bin_edges(length, bins)
    widths = [b - a for a, b in _spans(edges)]
    whole = [math.fsum(w * x for w, x in zip(widths, r["losses"], strict=True)) / sum(widths) for r in records]
    n, (mean, low, high, se) = len(records), mean_interval(whole)
    total = {**details, "loss": mean, "se": se}
    out = [Measurement("perplexity", method, length, "perplexity", _exp(mean), _exp(low), _exp(high), n, total)]
    for (start, end), values in zip(_spans(edges), zip(*(r["losses"] for r in records), strict=True), strict=True):
        mean, low, high, se = mean_interval(values)
        place = {"position_start": start, "position_end": end, "se": se}
        out.append(Measurement("perplexity", method, length, "loss", mean, low, high, n, {**details, **place}))
    return out


def _spans(edges: Sequence[int]) -> list[tuple[int, int]]:
    return list(pairwise(edges))


def _exp(x: float) -> float:
    return math.exp(min(x, 700.0))
