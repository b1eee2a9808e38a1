"""Attention in which the rotation depends on which of a few ranges a key lies in, seen from its query.

Self-Extend, Dual Chunk Attention and ReRoPE map the distance of a query at position i and a key at position j to
another one. In each, the keys of a query fall into consecutive ranges, and within a range the mapped distance is the
difference of something of the query and something of the key. So q and k are turned once for each range, every logit
is computed once (twice in the few columns of a block that a border runs through), and one softmax runs over all ranges.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import dropout as drop_out

from drope.models.attention.mask import Mask
from drope.models.attention.rotation import Rotation

Positions = Callable[[torch.Tensor], torch.Tensor]
LOGITS = {"cpu": 2**21, "cuda": 2**26}  # in one block: what stays in a processor's cache, or fills a GPU
LEAST, MOST = 16, 128  # queries of a block; large ones waste what causality saves


@dataclass(frozen=True)
class Piece:
    """One range of keys. All functions take and give whole positions in tokens, of any shape.

    Parameters
    ----------
    low, high : the keys at positions low(i) <= j < high(i) are in this range for the query at i; high(i) <= i + 1
    query, key : what i and j are turned to: the mapped distance is query(i) - key(j)
    """

    low: Positions
    high: Positions
    query: Positions
    key: Positions


def attend_pieces(
    pieces: Sequence[Piece],
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    mask: Mask,
    rotation: Rotation,
    scaling: float,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Causal attention with the rotation of `pieces`, which cover all keys of a query and do not overlap.

    Works in blocks of queries: no more than `LOGITS` logits, or `LEAST` queries, are there at a time.

    Parameters
    ----------
    q : (B, H, Tq, D); k, v : (B, K, Tk, D); all raw, H a multiple of K

    Returns
    -------
    (B, H, Tq, D of v)
    """
    (batch, heads, queries, width), (kv, tokens) = q.shape, k.shape[1:3]
    i, j = (p.to(q.device) for p in mask.positions(queries, tokens))
    at, ranks = (p.to(q.device) for p in mask.counts(queries, tokens))
    begin = at - i  # where a query's own document starts; 0 but in packed rows
    # indices among the keys of each range's first key and of the first behind it, (B or 1, Tq)
    bounds = [(_search(ranks, begin + p.low(i)), _search(ranks, begin + p.high(i))) for p in pieces]
    turned = _turned_keys(pieces, bounds, k, j, rotation)
    v = v.reshape(batch * kv, tokens, -1)
    least, wide = torch.finfo(q.dtype).min, torch.promote_types(q.dtype, torch.float32)
    step = max(LEAST, min(MOST, LOGITS.get(q.device.type, 2**24) // (batch * heads * tokens)))
    room = None if torch.is_grad_enabled() else q.new_empty(2, batch * heads * min(step, queries) * tokens)
    parts = []
    for start in range(0, queries, step):
        stop = min(start + step, queries)
        ranges = [_Range(low[:, start:stop], high[:, start:stop]) for low, high in bounds]
        end = max(r.last for r in ranges)
        shape = (batch * kv, heads // kv * (stop - start), end)
        logits = q.new_empty(shape) if room is None else room[0, : math.prod(shape)].view(shape)
        pairs = logits.view(batch, heads, stop - start, end)
        done = 0
        for own in ranges:  # what all queries see in one range is written below
            pairs[..., done : own.core[0]] = least
            done = max(done, own.core[1])
        pairs[..., done:] = least
        for piece, own in zip(pieces, ranges, strict=True):
            if own.first == own.last:
                continue
            here = rotation(q[:, :, start:stop] * scaling, piece.query(i[:, start:stop])).reshape(*shape[:2], width)
            offset, keys = turned[piece.key]
            for first, last in own.spans():
                there = keys[:, first - offset : last - offset].transpose(1, 2)  # (B·K, D, columns)
                if (first, last) != own.core:
                    scores = (here @ there).view(batch, heads, stop - start, -1)
                    pairs[..., first:last] = torch.where(own.inside(first, last), scores, pairs[..., first:last])
                elif room is None:
                    logits[..., first:last] = here @ there
                else:
                    torch.bmm(here, there, out=logits[..., first:last])
        if not mask.plain:
            pairs.masked_fill_(~mask.allowed(slice(start, stop), slice(0, end)), least)
        if room is None or q.dtype != wide:
            weights = torch.softmax(logits, -1, dtype=wide).to(v.dtype)
        else:  # fresh memory for every block costs a tenth of the time on a CPU
            weights = torch.softmax(logits, -1, out=room[1, : math.prod(shape)].view(shape))
        out = drop_out(weights, dropout, training=dropout > 0) @ v[:, :end]
        parts.append(out.view(batch, heads, stop - start, -1))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _search(ranks: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """How many of ranks, (B or 1, Tk), are below each of values, (B or 1, Tq)."""
    rows = max(len(ranks), len(values))
    return torch.searchsorted(ranks.expand(rows, -1).contiguous(), values.expand(rows, -1).contiguous())


def _turned_keys(
    pieces: Sequence[Piece],
    bounds: Sequence[tuple[torch.Tensor, torch.Tensor]],
    k: torch.Tensor,
    j: torch.Tensor,
    rotation: Rotation,
) -> dict[Positions, tuple[int, torch.Tensor]]:
    """Keys turned as each piece needs them, (B·K, some, D), with the index of the first; once if pieces turn alike."""
    turned: dict[Positions, tuple[int, torch.Tensor]] = {}
    for piece in pieces:
        if piece.key not in turned:
            alike = [b for p, b in zip(pieces, bounds, strict=True) if p.key is piece.key]
            first = min(int(low.min()) for low, _ in alike)
            last = max(int(high.max()) for _, high in alike)
            turned[piece.key] = first, rotation(k[:, :, first:last], piece.key(j[:, first:last])).flatten(0, 1)
    return turned


class _Range:
    """One range of keys for a block of n queries.

    low, high : (B or 1, n)
    first, last : the columns that any query sees in it; core : those that all see, or (last, last)
    """

    def __init__(self, low: torch.Tensor, high: torch.Tensor):
        self.low, self.high = low, high
        some = high > low
        self.first = int(torch.where(some, low, high.max()).min())
        self.last = max(self.first, int(torch.where(some, high, 0).max()))
        core = max(int(low.max()), self.first), min(int(high.min()), self.last)
        self.core = core if core[0] < core[1] else (self.last, self.last)

    def spans(self) -> list[tuple[int, int]]:
        """The columns that any query sees, in pieces: before the core, the core, after it."""
        ends = (self.first, *self.core, self.last)
        return [(first, last) for first, last in zip(ends, ends[1:], strict=False) if first < last]

    def inside(self, first: int, last: int) -> torch.Tensor:
        """Which queries see which of the columns [first, last): (B or 1, 1, n, last - first)."""
        columns = torch.arange(first, last, device=self.low.device)
        return ((columns >= self.low[..., None]) & (columns < self.high[..., None]))[:, None]
