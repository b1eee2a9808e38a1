"""Theorem 3.4 as an executable statement: every quantity of the chain, and every bound.

The derivation, and where it differs from the paper's, is in `docs/theory.md`; names here follow it and `stack`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from drope.analysis.patterns import DIAGONAL, Pattern
from drope.analysis.stack import Check, Stack, Statement, spread, uniform_embeddings
from drope.errors import InputError


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
    v = stack.by_head(x @ weights["v"].T)  # (H, T, D)
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
