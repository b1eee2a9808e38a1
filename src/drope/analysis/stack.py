"""Transformers of known weights to hold the theory against, and what a statement about them is made of.

T tokens, d width, H heads of width d/H, x the normalised input of attention (‖x_j‖ = √d), r the residual
stream; all in float64.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from drope.errors import InputError

SLACK = 1e-9  # relative: rounding of float64, so that an equality does not count as a violation


@dataclass(frozen=True)
class Check:
    """A measured quantity and what the theory says it cannot exceed (or, for `at_least`, fall below)."""

    name: str
    measured: float
    bound: float
    at_least: bool = False

    @property
    def holds(self) -> bool:
        room = SLACK * max(abs(self.bound), abs(self.measured))
        return self.measured >= self.bound - room if self.at_least else self.measured <= self.bound + room + 1e-12

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"holds": self.holds}


@dataclass(frozen=True)
class Statement:
    """What was assumed, what was measured, and whether it held.

    premise : the sizes and settings that the measurement was made with
    layers : the checks of each layer, first layer first
    """

    name: str
    premise: dict[str, Any]
    layers: tuple[tuple[Check, ...], ...]
    notes: tuple[str, ...] = ()

    @property
    def checks(self) -> list[Check]:
        return [check for layer in self.layers for check in layer]

    @property
    def holds(self) -> bool:
        return all(check.holds for check in self.checks)

    def worst(self, name: str) -> Check:
        """The check of this name that comes nearest to its bound, or breaks it most."""
        found = [c for c in self.checks if c.name == name]
        sign = -1 if found[0].at_least else 1
        return max(found, key=lambda c: sign * (c.measured - c.bound))

    def to_dict(self) -> dict[str, Any]:
        layers = [[c.to_dict() for c in layer] for layer in self.layers]
        return {"name": self.name, "premise": self.premise, "layers": layers, "holds": self.holds,
                "notes": list(self.notes)}  # fmt: skip


@dataclass(frozen=True)
class Stack:
    """A pre-norm transformer without positions (or, as the control, with RoPE), of weights drawn once.

    Each layer: r += W_O · heads(x), x = √d r/‖r‖; then, with an MLP, r += W_2 gelu(W_1 x'), x' = √d r/‖r‖.

    Parameters
    ----------
    width, heads, depth : d, H and layers
    initial : standard deviation of every weight; None is 1/√(fan in), at which attention is far from trivial
    mlp : hidden width of the MLP over d; 0 leaves it out
    theta : base of RoPE; None rotates nothing
    """

    width: int
    heads: int
    depth: int
    initial: float | None = None
    mlp: int = 2
    theta: float | None = None
    seed: int = 0
    weights: list[dict[str, torch.Tensor]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if min(self.width, self.heads, self.depth) < 1 or self.width % self.heads:
            raise InputError("width", self.width, f"a multiple of the {self.heads} heads, and at least one layer")
        if self.theta is not None and (self.width // self.heads) % 2:
            raise InputError("width", self.width, "heads of an even width, for RoPE")
        generator = torch.Generator().manual_seed(self.seed)
        d, m = self.width, self.mlp * self.width

        def draw(rows: int, columns: int) -> torch.Tensor:
            scale = columns**-0.5 if self.initial is None else self.initial
            return scale * torch.randn(rows, columns, generator=generator, dtype=torch.float64)

        shapes = {"q": (d, d), "k": (d, d), "v": (d, d), "o": (d, d)} | ({"1": (m, d), "2": (d, m)} if m else {})
        drawn = [{name: draw(*shape) for name, shape in shapes.items()} for _ in range(self.depth)]
        object.__setattr__(self, "weights", drawn)

    def norm(self, r: torch.Tensor) -> torch.Tensor:
        """√d r/‖r‖: every row has norm √d."""
        return r * (math.sqrt(self.width) / r.norm(dim=-1, keepdim=True))

    def scores(self, x: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """s_ij of every head for normalised inputs x (T, d): (H, T, T), and −∞ above the diagonal."""
        queries, keys = (self.by_head(x @ w.T) for w in (q, k))  # (H, T, D)
        if self.theta is not None:
            queries, keys = self._rotate(queries), self._rotate(keys)
        s = queries @ keys.transpose(1, 2) / math.sqrt(self.width // self.heads)
        return s.masked_fill(torch.ones_like(s[0]).triu(1).bool(), -math.inf)

    def by_head(self, y: torch.Tensor) -> torch.Tensor:
        return y.unflatten(-1, (self.heads, -1)).transpose(0, 1)

    def _rotate(self, y: torch.Tensor) -> torch.Tensor:
        pairs = self.width // self.heads // 2
        omega = float(self.theta or 1) ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
        angle = torch.arange(y.shape[1], dtype=torch.float64)[:, None] * omega
        a, b = y[..., :pairs], y[..., pairs:]
        return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)


def uniform_embeddings(width: int, length: int, epsilon: float, seed: int = 0) -> torch.Tensor:
    """ε-uniform embeddings (T, d): a common vector of norm √d plus steps of length ε/2, so that Δ ≤ ε."""
    if not epsilon >= 0:
        raise InputError("epsilon", epsilon, "a number of at least 0")
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(width, generator=generator, dtype=torch.float64)
    steps = torch.randn(length, width, generator=generator, dtype=torch.float64)
    common = common * (math.sqrt(width) / common.norm())
    return common + steps * (epsilon / 2 / steps.norm(dim=-1, keepdim=True))


def spread(h: torch.Tensor, block: int = 512) -> float:
    """Δ = max_{j≤i} ‖h̄_i − h_j‖ of (T, d), h̄_i the mean of h_1 … h_i; computed in blocks of queries."""
    return float(max(part.max() for part in prefix_distances(h, block)))


def prefix_distances(h: torch.Tensor, block: int) -> list[torch.Tensor]:
    """‖h̄_i − h_j‖ for j ≤ i and 0 elsewhere, in blocks of `block` queries i: each (b, keys seen)."""
    counts = torch.arange(1, len(h) + 1, dtype=torch.float64, device=h.device)
    means = (h.double().cumsum(0) / counts[:, None]).to(h.dtype)
    out = []
    for start in range(0, len(h), block):
        stop = min(start + block, len(h))
        exact = "donot_use_mm_for_euclid_dist" if h.dtype == torch.float64 else "use_mm_for_euclid_dist"
        distances = torch.cdist(means[start:stop], h[:stop], compute_mode=exact)  # (b, stop)
        later = torch.ones_like(distances, dtype=torch.bool).triu(start + 1)
        out.append(distances.masked_fill(later, 0.0))
    return out
