"""Entropy of attention against length, and the temperature that entropy alone would ask for.

Softmax over n keys of bounded scores spreads out as n grows: its entropy rises by up to ln(n'/n). A model that learned
at C_train tokens to act on attention of a certain sharpness meets blunter attention beyond. β multiplies the scores, so
probabilities become α^β/Σα^β; the β that brings the entropy at n tokens back to what it was at the reference length is
a prediction that looks at no loss at all. H heads, L layers, R sampled queries, G values of β.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from drope.analysis.attention import Block, Visitor
from drope.errors import InputError

BETAS = tuple(round(0.7 + 0.15 * i, 2) for i in range(16))  # 0.7 to 2.95, 1 among them
_ROWS = 4  # queries sampled at each length


def sampled_lengths(shortest: int, longest: int, count: int = 10) -> list[int]:
    """Lengths spread evenly by logarithm, both ends included."""
    if not 1 <= shortest <= longest:
        raise InputError("lengths", (shortest, longest), "two lengths, the shorter first, from 1 token")
    ratio = (longest / shortest) ** (1 / max(1, count - 1))
    return sorted({min(longest, round(shortest * ratio**i)) for i in range(count)} | {longest})


class EntropyVisitor(Visitor):
    """Mean entropy over heads, in nats, of queries that see about n keys, for each n of `lengths` and each β.

    With hidden states held as they are at the temperature of the pass: β = 1 here is that temperature. Exact for plain
    softmax attention; families that cap scores or have sinks are treated as if they did neither.
    """

    def __init__(self, lengths: Sequence[int], betas: Sequence[float] = BETAS):
        self.lengths, self.betas = list(lengths), list(betas)
        self._at = {n: list(range(max(0, n - _ROWS), n)) for n in self.lengths}
        self._sums: dict[int, torch.Tensor] = {}  # layer -> (lengths, G, H)

    def block(self, block: Block) -> None:
        heads = block.probs.shape[1]
        for place, n in enumerate(self.lengths):
            rows = [i - block.start for i in self._at[n] if block.start <= i < block.stop]
            if not rows:
                continue
            logs = block.probs[:, :, rows].double().clamp_min(1e-30).log()  # (B, H, R, n)
            visible = block.probs[:, :, rows] > 0
            store = self._sums.setdefault(
                block.layer, torch.zeros(len(self.lengths), len(self.betas), heads, dtype=torch.float64)
            )
            for g, beta in enumerate(self.betas):
                p = (beta * logs).masked_fill(~visible, -math.inf).log_softmax(-1)
                entropy = -(p.exp() * p.masked_fill(~visible, 0.0)).sum(-1)  # (B, H, R)
                weight = len(self._at[n]) * len(entropy)
                store[place, g] += (entropy.sum((0, 2)) / weight).cpu()

    def result(self) -> Entropy:
        layers = sorted(self._sums)
        values = torch.stack([self._sums[layer].mean(-1) for layer in layers])  # (L, lengths, G)
        return Entropy(tuple(self.lengths), tuple(self.betas), tuple(layers), values)


@dataclass(frozen=True)
class Entropy:
    """Mean entropy over heads. values : (L, lengths, G) in nats."""

    lengths: tuple[int, ...]
    betas: tuple[float, ...]
    layers: tuple[int, ...]
    values: torch.Tensor

    def mean(self, beta: float = 1.0) -> list[float]:
        """Over layers, at each length; between the values of β that were measured, linearly."""
        return [self._at(place, beta) for place in range(len(self.lengths))]

    def _at(self, place: int, beta: float) -> float:
        row = self.values.mean(0)[place].tolist()
        if beta <= self.betas[0]:
            return row[0]
        for a, b, low, high in zip(self.betas, self.betas[1:], row, row[1:], strict=False):
            if beta <= b:
                return low + (beta - a) / (b - a) * (high - low)
        return row[-1]

    def predicted_betas(self, reference: int) -> dict[int, float | None]:
        """For each length beyond `reference`, the β whose entropy equals that of β = 1 at `reference` tokens.

        None where no β of the grid reaches it. `reference` must be one of the lengths.
        """
        if reference not in self.lengths:
            raise InputError("reference", reference, ", ".join(map(str, self.lengths)))
        wanted = self._at(self.lengths.index(reference), 1.0)
        out: dict[int, float | None] = {}
        for place, n in enumerate(self.lengths):
            if n > reference:
                out[n] = self._solve(place, wanted)
        return out

    def _solve(self, place: int, wanted: float) -> float | None:
        row = self.values.mean(0)[place].tolist()  # falls with β
        for a, b, high, low in zip(self.betas, self.betas[1:], row, row[1:], strict=False):
            if low <= wanted <= high:
                return a + (high - wanted) / (high - low) * (b - a) if high > low else a
        return None

    def predicted_a(self, reference: int) -> float | None:
        """a of β(s) = 1 + a ln s, s = n / reference: least squares through β(1) = 1 over the predicted values."""
        found = [(math.log(n / reference), beta) for n, beta in self.predicted_betas(reference).items() if beta]
        weight = sum(x * x for x, _ in found)
        return sum(x * (beta - 1) for x, beta in found) / weight if weight else None

    def to_dict(self) -> dict[str, Any]:
        one = min(range(len(self.betas)), key=lambda g: abs(self.betas[g] - 1))
        return {
            "lengths": list(self.lengths),
            "layers": list(self.layers),
            "mean": self.mean(),
            "by_layer": self.values[:, :, one].tolist(),
        }
