"""The positional bias functional A^c(α) = (1/T) Σ_i Σ_{j≤i} c_ij α_ij, and its gradient (arXiv 2512.12167, section 3).

A large A^c says that a head attends by position: A^c is 1 for a head that always looks where c is 1, and 0 for one that
spreads its attention evenly. L layers, H heads, P patterns; shapes of activations as in `attention`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from drope.analysis.attention import ELEMENTS, Block, Rows, Visitor, blocks, layer_of, observe, watch
from drope.analysis.patterns import STANDARD, Pattern
from drope.errors import InputError, UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def functional(probs: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """A^c of attention probabilities (B, H, T, T), averaged over the batch. Shape (H,)."""
    return pattern.rows(probs, 0).mean(-1).mean(0)


class BiasVisitor(Visitor):
    """Collects A^c of every head during one pass."""

    def __init__(self, patterns: Sequence[Pattern] = STANDARD):
        if not patterns:
            raise InputError("patterns", "none", "at least one pattern")
        self.patterns = tuple(patterns)
        self._sums: dict[int, torch.Tensor] = {}  # layer -> (P, H), summed over queries and batch
        self._rows: dict[int, int] = {}

    def block(self, block: Block) -> None:
        total = block.probs.sum(-1)
        rows_of = (p.rows(block.probs, block.start, total) for p in self.patterns)
        found = torch.stack([rows.double().sum((0, -1)).cpu() for rows in rows_of])
        self._sums[block.layer] = self._sums.get(block.layer, torch.zeros_like(found)) + found
        rows = block.probs.shape[0] * block.probs.shape[2]
        self._rows[block.layer] = self._rows.get(block.layer, 0) + rows

    def result(self) -> PositionalBias:
        layers = sorted(self._sums)
        values = [self._sums[layer] / self._rows[layer] for layer in layers]
        return PositionalBias(tuple(layers), tuple(p.name for p in self.patterns), values)


@dataclass(frozen=True)
class PositionalBias:
    """A^c by layer, pattern and head.

    layers : numbers of the layers with softmax attention; patterns : their names; values : of each layer, (P, H)
    """

    layers: tuple[int, ...]
    patterns: tuple[str, ...]
    values: list[torch.Tensor]

    def strongest(self) -> list[torch.Tensor]:
        """Of each layer and head the largest A^c over the patterns: how positional it is. Shape (H,) each."""
        return [v.max(0).values for v in self.values]

    def to_dict(self) -> dict[str, Any]:
        return {
            "layers": list(self.layers),
            "patterns": list(self.patterns),
            "values": [v.tolist() for v in self.values],  # [layer][pattern][head]
        }


def positional_bias(
    model: PreTrainedModel, ids: torch.Tensor, patterns: Sequence[Pattern] = STANDARD, *, elements: int = ELEMENTS
) -> PositionalBias:
    """A^c of every head of a model on `ids` (B, T), in the positional state that the model is in."""
    visitor = BiasVisitor(patterns)
    observe(model, ids, visitor, elements=elements)
    return visitor.result()


@dataclass(frozen=True)
class GradientNorms:
    """‖∂A^c/∂W_Q‖ and ‖∂A^c/∂W_K‖ (Frobenius) of each layer, A^c being the mean over the layer's heads.

    query, key : [pattern][layer]
    """

    layers: tuple[int, ...]
    patterns: tuple[str, ...]
    query: list[list[float]]
    key: list[list[float]]

    def total(self, pattern: int) -> list[float]:
        """√(‖∂W_Q‖² + ‖∂W_K‖²) by layer."""
        return [(q * q + k * k) ** 0.5 for q, k in zip(self.query[pattern], self.key[pattern], strict=True)]

    def to_dict(self) -> dict[str, Any]:
        return {"layers": list(self.layers), "patterns": list(self.patterns), "query": self.query, "key": self.key,
                "total": [self.total(p) for p in range(len(self.patterns))]}  # fmt: skip


def gradient_norms(
    model: PreTrainedModel, ids: torch.Tensor, patterns: Sequence[Pattern] = STANDARD, *, elements: int = ELEMENTS
) -> GradientNorms:
    """Gradient norms of A^c by layer, with respect to the layer's own weights, on `ids` (B, T).

    W_Q stands for every weight matrix that the layer's queries pass through (one in most families, two behind a latent,
    the query rows of a fused one), W_K likewise for the keys. The layer's input is held as it is, so each layer's graph
    is built and freed on its own. Biases and norm gains do not count.

    Raises
    ------
    UnsupportedModelError : weights that have no gradients, such as quantised ones
    """
    if not patterns:
        raise InputError("patterns", "none", "at least one pattern")
    found: dict[int, tuple[list[float], list[float]]] = {}

    def watcher(
        module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rows: Rows
    ) -> torch.Tensor:
        weights = _matrices(module)
        if not (query.requires_grad and key.requires_grad):
            raise UnsupportedModelError(
                f"{type(module).__name__} has no gradients with respect to its weights (are they quantised?)."
            )
        q, k, v = query.detach().requires_grad_(), key.detach().requires_grad_(), value.detach()
        dq, dk = ([torch.zeros_like(x) for _ in patterns] for x in (q, k))
        outputs, scale = [], q.shape[0] * q.shape[1] * q.shape[2]  # means over batch, heads and queries
        for start, stop in blocks(query, elements):
            out, probs = rows(q, k, v, start, stop)
            outputs.append(out.detach())
            for p, pattern in enumerate(patterns):
                mean = pattern.rows(probs, start).sum() / scale
                gq, gk = torch.autograd.grad(mean, (q, k), retain_graph=p + 1 < len(patterns))
                dq[p] += gq
                dk[p] += gk
        found[layer_of(module)] = (
            [_norm(query, weights, g) for g in dq],
            [_norm(key, weights, g) for g in dk],
        )
        return torch.cat(outputs, dim=1)

    with _matrices_need_gradients(model), torch.enable_grad(), watch(model, watcher):
        model.get_decoder()(input_ids=ids.to(model.device), use_cache=False)
    layers = sorted(found)
    query, key = ([[found[layer][side][p] for layer in layers] for p in range(len(patterns))] for side in (0, 1))
    return GradientNorms(tuple(layers), tuple(p.name for p in patterns), query, key)


def _norm(states: torch.Tensor, weights: list[nn.Parameter], gradient: torch.Tensor) -> float:
    grads = torch.autograd.grad(states, weights, gradient, retain_graph=True, allow_unused=True)
    return float(sum(float(g.double().square().sum()) for g in grads if g is not None) ** 0.5)


def _matrices(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.dim() >= 2 and p.requires_grad]


@contextmanager
def _matrices_need_gradients(model: PreTrainedModel) -> Iterator[None]:
    """Only the weight matrices of attention modules require gradients while the block runs; the flags come back.

    Those between hidden states and queries are found by what the queries depend on, so all of the module's are offered.
    """
    flags = {p: p.requires_grad for p in model.parameters()}
    inside = {
        id(p)
        for m in model.modules()
        if hasattr(m, "layer_idx") and "Attention" in type(m).__name__
        for p in m.parameters()
    }
    try:
        for p in flags:
            p.requires_grad_(bool(id(p) in inside and p.dim() >= 2 and p.is_floating_point()))
        yield
    finally:
        for p, flag in flags.items():
            p.requires_grad_(flag)
