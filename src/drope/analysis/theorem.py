"""Theorem 3.4 as an executable statement: a transformer of known weights, every quantity of the chain, every bound.

The derivation, and where it differs from the paper's, is in `docs/theory.md`; names here follow it. T tokens, d width,
H heads of width d/H, x the normalised input of attention (‖x_j‖ ≤ √d), r the residual stream, all in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from drope.analysis.patterns import DIAGONAL, Pattern
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
        queries, keys = (self._heads(x @ w.T) for w in (q, k))  # (H, T, D)
        if self.theta is not None:
            queries, keys = self._rotate(queries), self._rotate(keys)
        s = queries @ keys.transpose(1, 2) / math.sqrt(self.width // self.heads)
        return s.masked_fill(torch.ones_like(s[0]).triu(1).bool(), -math.inf)

    def _heads(self, y: torch.Tensor) -> torch.Tensor:
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
    return float(max(part.max() for part in _distances(h, block)))


def _distances(h: torch.Tensor, block: int) -> list[torch.Tensor]:
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


def theorem_34(
    stack: Stack, length: int, epsilon: float, patterns: Sequence[Pattern] = (DIAGONAL,), seed: int = 1
) -> Statement:
    """Measure the chain of Theorem 3.4 on ε-uniform embeddings and hold every quantity against its bound.

    Two kinds of bounds. *Of the step*: from the measured spread of this layer's own input. *From ε*: what the premise
    alone promises, propagated through the layers (the names end in "from ε"). None of them depends on T.

    Raises
    ------
    InputError : a stack that rotates, or an ε below 0
    """
    if stack.theta is not None:
        raise InputError("theta", stack.theta, "none: the theorem speaks of a stack without positions")
    r = uniform_embeddings(stack.width, length, epsilon, seed)
    root_d, promised = math.sqrt(stack.width), float(epsilon)
    layers = []
    for weights in stack.weights:
        checks = [Check("Δ from ε", spread(r), promised)]
        floor = float(r.norm(dim=-1).min())  # the least norm that the residual stream has here
        x = stack.norm(r)
        delta_r, delta = spread(r), spread(x)
        checks.append(Check("Δ after the norm", delta, 2 * root_d / floor * delta_r))
        promised_x = min(2 * root_d / floor * promised, 2 * root_d)
        step, z = _attention_checks(stack, weights, x, delta, promised_x, patterns)
        checks += step
        r, promised = _through(stack, weights, r, z, promised, promised_x, checks)
        layers.append(tuple(checks))
    premise = {"width": stack.width, "heads": stack.heads, "depth": stack.depth, "length": length, "epsilon": epsilon,
               "mlp": stack.mlp, "patterns": [p.name for p in patterns]}  # fmt: skip
    return Statement("Theorem 3.4", premise, tuple(layers))


def _attention_checks(
    stack: Stack,
    weights: dict[str, torch.Tensor],
    x: torch.Tensor,
    delta: float,
    promised: float,
    patterns: Sequence[Pattern],
) -> tuple[list[Check], torch.Tensor]:
    """The checks inside attention, the worst head of each, and z (H, T, D)."""
    d, heads = stack.width, stack.heads
    q, k = (weights[n].clone().requires_grad_() for n in "qk")
    s = stack.scores(x, q, k)
    alpha = s.softmax(-1)
    counts = torch.arange(1, len(x) + 1, dtype=torch.float64)
    lower = torch.ones_like(s[0]).tril()
    v = stack._heads(x @ weights["v"].T)  # (H, T, D)
    z = alpha.detach() @ v
    means = v.cumsum(1) / counts[:, None]
    seen = s.detach().masked_fill(lower == 0, 0.0)
    centre = seen.sum(-1) / counts
    dev_s = ((seen - centre[..., None]) * lower).abs().amax((1, 2))
    dev_a = ((alpha.detach() - 1 / counts[:, None]) * lower).abs().sum(-1).amax(1)
    dev_z = (z - means).norm(dim=-1).amax(1)
    norms = {n: [float(torch.linalg.matrix_norm(w, 2)) for w in weights[n].unflatten(0, (heads, -1))] for n in "qkv"}
    root_d, width = math.sqrt(d), math.sqrt(d / heads)
    b = max(max(values) for values in norms.values())  # the paper's B, one for all
    paper = b * b * math.sqrt(heads) * delta  # B²√H Δ
    out: list[Check] = []
    worst: dict[str, Check] = {}

    def add(name: str, measured: float, bound: float) -> None:
        held = worst.get(name)
        if held is None or measured - bound > held.measured - held.bound:
            worst[name] = Check(name, measured, bound)

    slopes = {}  # a head's A^c depends on its own rows of W_Q and W_K alone, so one sum serves all heads
    for pattern in patterns:
        biases = pattern.rows(alpha[None], 0).mean(-1)[0]  # (H,)
        grads = torch.autograd.grad(biases.sum(), (q, k), retain_graph=True)
        slopes[pattern.name] = (biases.detach(), *(g.unflatten(0, (heads, -1)).norm(dim=(1, 2)) for g in grads))
    for h in range(heads):
        bq, bk, bv = (norms[n][h] for n in "qkv")
        near, far = (bq * bk * root_d * dx / width for dx in (delta, promised))  # B_Q B_K √H Δ
        add("|s − s̄|", float(dev_s[h]), near)
        add("‖α − u‖₁", float(dev_a[h]), min(near, 2.0))
        add("‖α − u‖₁ from ε", float(dev_a[h]), min(far, 2.0))
        add("‖z − v̄‖", float(dev_z[h]), min(near, 1.0) * bv * delta)
        add("Δ of z", spread(z[h]), 2 * bv * delta)
        add("‖z − v̄‖, paper", float(dev_z[h]), paper * b * delta)
        add("Δ of z, paper", spread(z[h]), 2 * b * delta + 2 * paper * b * delta)
        for pattern in patterns:
            bias, gq, gk = (float(x[h]) for x in slopes[pattern.name])
            c = pattern.largest
            add("|A^c|", abs(bias), c * min(near, 2.0))
            add("|A^c| from ε", abs(bias), c * min(far, 2.0))
            for name, g, other in (("∂W_Q", gq, bk), ("∂W_K", gk, bq)):
                add(f"‖{name}‖", g, c * other * root_d * delta / width)
                add(f"‖{name}‖, paper", g, paper / b * (paper + 1) * c)
                add(f"‖{name}‖ from ε", g, c * other * root_d * promised / width)
    out += worst.values()
    return out, z


def _through(
    stack: Stack,
    weights: dict[str, torch.Tensor],
    r: torch.Tensor,
    z: torch.Tensor,
    promised: float,
    promised_x: float,
    checks: list[Check],
) -> tuple[torch.Tensor, float]:
    """The residual stream after this layer, and the spread that is promised there."""
    root_d = math.sqrt(stack.width)
    op = {n: float(torch.linalg.matrix_norm(w, 2)) for n, w in weights.items()}
    by_head = math.sqrt(
        sum(float(torch.linalg.matrix_norm(w, 2)) ** 2 for w in weights["v"].unflatten(0, (stack.heads, -1)))
    )
    before = spread(r)
    dx = spread(stack.norm(r))
    r = r + z.transpose(0, 1).flatten(1) @ weights["o"].T
    checks.append(Check("Δ after attention", spread(r), before + 2 * op["o"] * by_head * dx))
    promised = promised + 2 * op["o"] * by_head * promised_x
    if "1" in weights:
        before, floor = spread(r), float(r.norm(dim=-1).min())
        rate = 2 * op["2"] * _GELU * op["1"] * root_d / floor
        r = r + torch.nn.functional.gelu(stack.norm(r) @ weights["1"].T) @ weights["2"].T
        checks.append(Check("Δ after the MLP", spread(r), (1 + rate) * before))
        promised = (1 + rate) * promised
    return r, promised


_GELU = 1.128905  # Lipschitz constant of gelu: its derivative at √2, rounded up


def gaussian_norm(rows: int, columns: int, deviation: float, failure: float = 1e-6) -> float:
    """B with high probability: a Gaussian (rows, columns) matrix has operator norm at most σ(√rows + √columns + t),
    t = √(2 ln(1/failure)), except with this probability (Davidson and Szarek 2001)."""
    return deviation * (math.sqrt(rows) + math.sqrt(columns) + math.sqrt(2 * math.log(1 / failure)))
