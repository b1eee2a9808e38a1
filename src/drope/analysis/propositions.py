"""Propositions 3.2 and 3.3 as executable statements, on stacks of known weights and on real models.

Both speak of a constant sequence: every token the same. Without positions attention is then exactly uniform, nothing of
A^c or of its gradient is left, and no loss can teach W_Q or W_K anything (3.2). With RoPE a head whose scores vary with
distance has A^c > 0 and a gradient that is bounded below (3.3). Derivations: `docs/theory.md`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from drope.analysis.attention import Block, Visitor, observe
from drope.analysis.functional import BiasVisitor, gradient_norms
from drope.analysis.patterns import STANDARD, Pattern
from drope.analysis.stack import Check, Stack, Statement
from drope.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ZERO = 1e-10  # what counts as 0 in float64, after sums over a few hundred tokens


def constant_inputs(width: int, length: int, seed: int = 0) -> torch.Tensor:
    """The same vector of norm √d at every place, float64 (T, d)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(width, generator=generator, dtype=torch.float64)
    return (x * (math.sqrt(width) / x.norm())).expand(length, width).clone()


def proposition_32(stack: Stack, length: int, patterns: Sequence[Pattern] = STANDARD) -> Statement:
    """Without positions and on a constant sequence: α_ij = 1/i, ∂L/∂W_Q = ∂L/∂W_K = 0, A^c = 0 and ∇A^c = 0.

    L is here the squared distance of the layers' output from a random target: the statement holds for any loss.
    """
    if stack.theta is not None:
        raise InputError("theta", stack.theta, "none: Proposition 3.2 speaks of a stack without positions")
    counts = torch.arange(1, length + 1, dtype=torch.float64)
    uniform = (torch.ones(length, length, dtype=torch.float64) / counts[:, None]).tril()
    weights = [{n: w.clone().requires_grad_() for n, w in layer.items()} for layer in stack.weights]
    r, alphas = constant_inputs(stack.width, length, stack.seed), []
    for layer in weights:
        r, alpha = forward(stack, layer, r)
        alphas.append(alpha)
    target = torch.randn(r.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    loss = (r - target).square().mean()
    asked = [layer[n] for layer in weights for n in "qkv"]
    by_loss = torch.autograd.grad(loss, asked, retain_graph=True)
    layers = []
    for i, layer in enumerate(weights):
        gq, gk, gv = by_loss[3 * i : 3 * i + 3]
        checks = [
            Check("max |α − 1/i|", float((alphas[i].detach() - uniform).abs().max()), _ZERO),
            Check("‖∂L/∂W_Q‖", float(gq.norm()), _ZERO),
            Check("‖∂L/∂W_K‖", float(gk.norm()), _ZERO),
            Check("‖∂L/∂W_V‖", float(gv.norm()), 1e3 * _ZERO, at_least=True),  # the loss does teach something
        ]
        for pattern in patterns:
            value = pattern.rows(alphas[i][None], 0).mean()
            dq, dk = torch.autograd.grad(value, (layer["q"], layer["k"]), retain_graph=True)
            checks.append(Check(f"|A^c|, {pattern.name}", abs(float(value.detach())), _ZERO))
            checks.append(Check(f"‖∇A^c‖, {pattern.name}", float(torch.hypot(dq.norm(), dk.norm())), _ZERO))
        layers.append(tuple(checks))
    premise = {"width": stack.width, "heads": stack.heads, "depth": stack.depth, "length": length}
    return Statement("Proposition 3.2", premise, tuple(layers))


def proposition_33(stack: Stack, length: int) -> Statement:
    """With RoPE, on a constant sequence and for c_ij = α_ij − 1/i, held fixed: A^c = (1/T) Σ_i (Σ_j α_ij² − 1/i) > 0.

    The gradient is bounded below: scores are linear in W_Q, so ⟨W_Q, ∂A^c/∂W_Q⟩ = (1/T) Σ_i Cov_{α_i}(c_i, s_i), which
    is positive wherever scores vary in a row, and ‖∂A^c/∂W_Q‖ is at least that over ‖W_Q‖. Likewise for W_K.
    """
    if stack.theta is None:
        raise InputError("theta", None, "a base such as 10000: Proposition 3.3 speaks of RoPE")
    if length < 2:
        raise InputError("length", length, "at least 2 tokens: the first sees itself alone")
    counts = torch.arange(1, length + 1, dtype=torch.float64)
    uniform = (torch.ones(length, length, dtype=torch.float64) / counts[:, None]).tril()
    r = constant_inputs(stack.width, length, stack.seed)
    layers = []
    for weights in stack.weights:
        q, k = (weights[n].clone().requires_grad_() for n in "qk")
        s = stack.scores(stack.norm(r), q, k)
        alpha = s.softmax(-1)
        checks = []
        for h in range(stack.heads):
            a, scores = alpha[h].detach(), s[h].detach().masked_fill(uniform == 0, 0.0)
            c = a - uniform
            value = (c * alpha[h]).sum() / length
            gq, gk = torch.autograd.grad(value, (q, k), retain_graph=True)
            mean_c, mean_s = ((a * y).sum(-1, keepdim=True) for y in (c, scores))
            cov = float((a * (c - mean_c) * (scores - mean_s)).sum() / length)
            size = {n: float(weights[n].unflatten(0, (stack.heads, -1))[h].norm()) or 1.0 for n in "qk"}
            direct = float((a.square().sum(-1) - 1 / counts).mean())
            checks += [
                Check("A^c", float(value.detach()), 1e-12, at_least=True),
                Check("|A^c − (1/T) Σ (Σ α² − 1/i)|", abs(float(value.detach()) - direct), _ZERO),
                Check("|⟨W_Q, ∂W_Q⟩ − Cov|", abs(float((weights["q"] * gq).sum()) - cov), _ZERO),
                Check("|⟨W_K, ∂W_K⟩ − Cov|", abs(float((weights["k"] * gk).sum()) - cov), _ZERO),
                Check("‖∂W_Q‖", float(gq.norm()), cov / size["q"], at_least=True),
                Check("‖∂W_K‖", float(gk.norm()), cov / size["k"], at_least=True),
                Check("lower bound of the gradient", cov, 1e-12, at_least=True),
            ]
        layers.append(tuple(checks))
        r = forward(stack, weights, r)[0]
    premise = {"width": stack.width, "heads": stack.heads, "depth": stack.depth, "length": length, "theta": stack.theta}
    return Statement("Proposition 3.3", premise, tuple(layers))


def forward(stack: Stack, weights: dict[str, torch.Tensor], r: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One layer: the residual stream (T, d) after it, and its attention (H, T, T)."""
    x = stack.norm(r)
    alpha = stack.scores(x, weights["q"], weights["k"]).softmax(-1)
    z = alpha @ stack.by_head(x @ weights["v"].T)
    r = r + z.transpose(0, 1).flatten(1) @ weights["o"].T
    if "1" in weights:
        r = r + torch.nn.functional.gelu(stack.norm(r) @ weights["1"].T) @ weights["2"].T
    return r, alpha


@dataclass(frozen=True)
class ConstantInput:
    """What a real model does with a constant sequence, by layer.

    uniformity : max over heads and queries of |i·α_ij − 1|; 0 is uniform attention
    bias : mean over heads of (1/T) Σ_i (Σ_j α_ij² − 1/i), the A^c of Proposition 3.3
    positional : [pattern][layer], the largest |A^c| of a head
    gradient : [pattern][layer], ‖∇A^c‖
    """

    layers: tuple[int, ...]
    patterns: tuple[str, ...]
    uniformity: list[float]
    bias: list[float]
    positional: list[list[float]]
    gradient: list[list[float]]

    def to_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "layers": list(self.layers), "patterns": list(self.patterns)}


class _Uniformity(Visitor):
    def __init__(self) -> None:
        self.worst: dict[int, float] = {}
        self.excess: dict[int, float] = {}
        self.rows: dict[int, int] = {}

    def block(self, block: Block) -> None:
        probs = block.probs.double()
        counts = torch.arange(block.start + 1, block.stop + 1, dtype=torch.float64, device=probs.device)
        seen = torch.ones(probs.shape[-2:], dtype=torch.bool, device=probs.device).tril(block.start)
        off = ((probs * counts[:, None] - 1) * seen).abs().max()
        self.worst[block.layer] = max(self.worst.get(block.layer, 0.0), float(off))
        excess = (probs.square().sum(-1) - 1 / counts).sum()
        self.excess[block.layer] = self.excess.get(block.layer, 0.0) + float(excess)
        self.rows[block.layer] = self.rows.get(block.layer, 0) + probs[..., 0].numel()


def constant_input(
    model: PreTrainedModel, token: int, length: int, patterns: Sequence[Pattern] = STANDARD
) -> ConstantInput:
    """Measure both propositions on a model, in the positional state that it is in, with `length` times `token`."""
    if length < 2:
        raise InputError("length", length, "at least 2 tokens")
    ids = torch.full((1, length), token)
    bias, uniform = BiasVisitor(patterns), _Uniformity()
    observe(model, ids, bias, uniform)
    found, slopes = bias.result(), gradient_norms(model, ids, patterns)
    layers = found.layers
    return ConstantInput(
        layers, found.patterns,
        [uniform.worst[n] for n in layers],
        [uniform.excess[n] / uniform.rows[n] for n in layers],
        [[float(v[p].abs().max()) for v in found.values] for p in range(len(patterns))],
        [slopes.total(p) for p in range(len(patterns))],
    )  # fmt: skip
