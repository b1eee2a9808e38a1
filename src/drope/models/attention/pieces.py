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
LEAST, MOST = 16, 512  # queries of a block


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
    (batch, heads, queries, _), (kv, tokens) = q.shape, k.shape[1:3]
    groups = heads // kv
    i, j = (p.to(q.device) for p in mask.positions(queries, tokens))
    at, ranks = (p.to(q.device) for p in mask.counts(queries, tokens))
    begin = at - i  # where a query's own document starts; 0 but in packed rows
    # indices among the keys of each range's first key and of the first behind it, (B or 1, Tq)
    bounds = [(_search(ranks, begin + p.low(i)), _search(ranks, begin + p.high(i))) for p in pieces]
    turned = _turned_keys(pieces, bounds, k, j, rotation)
    v = v.contiguous()
    least, wide = torch.finfo(q.dtype).min, torch.promote_types(q.dtype, torch.float32)
    step = max(LEAST, min(MOST, LOGITS.get(q.device.type, 2**24) // (batch * heads * tokens)))
    room = None if torch.is_grad_enabled() else q.new_empty(2, batch * heads * min(step, queries) * tokens)
    parts = []
    for start in range(0, queries, step):
        stop = min(start + step, queries)
        inner = [_Edges(low[:, start:stop], high[:, start:stop]) for low, high in bounds]
        end = max(edges.last for edges in inner)
        shape = (batch, kv, groups, stop - start, end)
        logits = q.new_empty(shape) if room is None else room[0, : math.prod(shape)].view(shape)
        logits.fill_(least)
        for piece, edges in zip(pieces, inner, strict=True):
            if edges.first >= edges.last:
                continue
            here = rotation(q[:, :, start:stop] * scaling, piece.query(i[:, start:stop]))
            first, keys = turned[piece.key]
            keys = keys[:, :, edges.first - first : edges.last - first].transpose(2, 3)  # (B, K, D, keys)
            scores = (here.reshape(batch, kv, -1, here.shape[-1]) @ keys).view(batch, kv, groups, stop - start, -1)
            edges.write(logits, scores)
        if not mask.plain:
            pairs = mask.allowed(slice(start, stop), slice(0, end))
            logits.masked_fill_(~pairs[:, :, None], least)
        if room is None or q.dtype != wide:
            weights = torch.softmax(logits, -1, dtype=wide).to(v.dtype)
        else:  # fresh memory for every block costs a tenth of the time on a CPU
            weights = torch.softmax(logits, -1, out=room[1, : math.prod(shape)].view(shape))
        weights = drop_out(weights, dropout, training=dropout > 0)
        out = weights.view(batch, kv, -1, end) @ v[:, :, :end]
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
    """Keys turned as each piece needs them, and the index of the first: once for pieces that turn them alike."""
    turned: dict[Positions, tuple[int, torch.Tensor]] = {}
    for piece in pieces:
        if piece.key not in turned:
            alike = [b for p, b in zip(pieces, bounds, strict=True) if p.key is piece.key]
            first = min(int(low.min()) for low, _ in alike)
            last = max(int(high.max()) for _, high in alike)
            turned[piece.key] = first, rotation(k[:, :, first:last], piece.key(j[:, first:last]))
    return turned


class _Edges:
    """One range of keys for a block of n queries: low and high, (B or 1, n); the columns that some or all see."""

    def __init__(self, low: torch.Tensor, high: torch.Tensor):
        self.low, self.high = low, torch.maximum(low, high)
        some = self.high > low
        self.first = int(torch.where(some, low, high.max()).min())
        self.last = int(torch.where(some, high, 0).max())
        self.from_, self.to = int(low.max()), int(high.min())  # all queries see [from_, to)

    def write(self, logits: torch.Tensor, scores: torch.Tensor) -> None:
        """Put scores, of the columns [first, last), into the logits where they belong; only the edges are compared."""
        core = (max(self.from_, self.first), min(self.to, self.last))
        if core[0] >= core[1]:
            spans = [(self.first, self.last)]
        else:
            logits[..., core[0] : core[1]] = scores[..., core[0] - self.first : core[1] - self.first]
            spans = [(self.first, core[0]), (core[1], self.last)]
        for first, last in spans:
            if first < last:
                columns = torch.arange(first, last, device=logits.device)
                inside = (columns >= self.low[..., None]) & (columns < self.high[..., None])  # (B or 1, n, columns)
                own = scores[..., first - self.first : last - self.first]
                old = logits[..., first:last]
                logits[..., first:last] = torch.where(inside[:, None, None], own, old)
