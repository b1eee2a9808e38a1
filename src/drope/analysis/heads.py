"""Which heads attend by position and which by meaning, and where methods move their attention (Figures 7 and 8).

T tokens, L layers, H heads, E edges of distance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from drope.analysis.attention import ELEMENTS, Block, Visitor, observe
from drope.analysis.functional import PositionalBias
from drope.analysis.text import Probe

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Head:
    """A head by layer and number (from 0), with the score that it was found by."""

    layer: int
    head: int
    score: float
    what: str = ""

    @property
    def label(self) -> str:
        return f"layer {self.layer}, head {self.head}"


def positional_heads(bias: PositionalBias, count: int = 5) -> list[Head]:
    """The heads of the largest A^c over the patterns measured; `what` names the pattern."""
    found = [
        Head(layer, h, float(value), bias.patterns[int(p)])
        for layer, values in zip(bias.layers, bias.values, strict=True)
        for h, (value, p) in enumerate(zip(*values.max(0), strict=True))
    ]
    return sorted(found, key=lambda x: -x.score)[:count]


def distance_edges(length: int) -> list[int]:
    """Edges of bins of distance in tokens: 0, 1, 2, 3, 4, then half octaves, up to `length`."""
    edges, width = [0, 1, 2, 3, 4], 6.0
    while width < length:
        edges.append(round(width))
        width *= 2**0.5
    return [*(e for e in dict.fromkeys(edges) if e < length), length]


class DistanceVisitor(Visitor):
    """Mean attention mass by distance i − j, of every head, over the queries from `first` on.

    Queries of the second half see at least half the text, so that the near half of all distances is there for each.
    """

    def __init__(self, edges: Sequence[int], first: int = 0, rows: Sequence[int] | None = None):
        self.edges, self.first = list(edges), first
        self.rows = None if rows is None else set(rows)
        self._sums: dict[int, torch.Tensor] = {}
        self._count: dict[int, int] = {}

    def block(self, block: Block) -> None:
        kept = [i for i in range(max(block.start, self.first), block.stop) if self.rows is None or i in self.rows]
        if not kept:
            return
        i = torch.tensor(kept, device=block.probs.device)
        probs = block.probs[:, :, i - block.start].double()
        below = torch.nn.functional.pad(probs.cumsum(-1), (1, 0))  # below[..., n]: mass on the first n keys
        edges = torch.tensor(self.edges, device=i.device)
        at = (i[:, None] + 1 - edges).clamp_min(0)  # keys at a distance of at least this edge
        far = below.gather(-1, at.expand(*probs.shape[:2], *at.shape))  # (B, H, b, E)
        mass = (far[..., :-1] - far[..., 1:]).mean(0).sum(1).cpu()
        self._sums[block.layer] = self._sums.get(block.layer, torch.zeros_like(mass)) + mass
        self._count[block.layer] = self._count.get(block.layer, 0) + len(kept)

    def profile(self, layer: int, head: int) -> list[float]:
        """Mass of each bin [edge, next edge); they sum to 1 where the edges reach the whole text."""
        return (self._sums[layer][head] / self._count[layer]).tolist()


class CopyVisitor(Visitor):
    """Attention of the places that predict a needle's value to the tokens that they should copy."""

    def __init__(self, probe: Probe):
        self._probe = probe
        self.copied: dict[int, torch.Tensor] = {}  # layer -> (H,), mean over the value's tokens
        self.needle: dict[int, torch.Tensor] = {}  # layer -> (H,), mass on the whole sentence

    def block(self, block: Block) -> None:
        n, (first, last) = len(self._probe.asking), self._probe.needle
        for place, source in zip(self._probe.asking, self._probe.copied, strict=True):
            if block.start <= place < block.stop:
                row = block.probs[0, :, place - block.start].double().cpu()
                for store, mass in ((self.copied, row[:, source]), (self.needle, row[:, first:last].sum(-1))):
                    store[block.layer] = store.get(block.layer, torch.zeros_like(mass)) + mass / n


@dataclass(frozen=True)
class NeedleAttention:
    """Copying attention at each probe: layer -> (probes, H); distances in tokens."""

    distances: list[int]
    depths: list[float]
    copied: dict[int, torch.Tensor]
    needle: dict[int, torch.Tensor]

    def at(self, head: Head) -> list[float]:
        return self.copied[head.layer][:, head.head].tolist()


def needle_attention(model: PreTrainedModel, probes: Sequence[Probe], *, elements: int = ELEMENTS) -> NeedleAttention:
    """Show each probe to the model, in the positional state that it is in."""
    seen = []
    for probe in probes:
        visitor = CopyVisitor(probe)
        observe(model, probe.ids, visitor, elements=elements)
        seen.append(visitor)
    layers = sorted(seen[0].copied)
    return NeedleAttention(
        [p.distance for p in probes], [p.depth for p in probes],
        {n: torch.stack([v.copied[n] for v in seen]) for n in layers},
        {n: torch.stack([v.needle[n] for v in seen]) for n in layers},
    )  # fmt: skip


def semantic_heads(attention: NeedleAttention, count: int = 5) -> list[Head]:
    """The heads that look most at the token to be copied, on average over the probes."""
    found = [
        Head(layer, h, float(value), "copies the needle")
        for layer, values in attention.copied.items()
        for h, value in enumerate(values.mean(0))
    ]
    return sorted(found, key=lambda x: -x.score)[:count]


def heads_to_dict(heads: Sequence[Head]) -> list[dict[str, Any]]:
    return [{"layer": h.layer, "head": h.head, "score": h.score, "what": h.what} for h in heads]
