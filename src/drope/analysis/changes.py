"""What recalibration changes: weights, and the sizes of queries and keys."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from drope.analysis.attention import Visitor
from drope.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# In order: the first whose words occur in a weight's name is its part.
_PARTS = (
    ("queries", ("q_proj", "q_a_proj", "q_b_proj", "query")),
    ("keys", ("k_proj", "kv_a_proj", "kv_b_proj")),
    ("values", ("v_proj",)),
    ("attention output", ("o_proj", "out_proj", "attention.dense")),
    ("fused projections", ("qkv",)),
    ("MLP", ("mlp", "feed_forward", "experts", "moe", "fc1", "fc2")),
)
_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")


@dataclass(frozen=True)
class Drift:
    """‖W' − W‖ / ‖W‖ (Frobenius) by layer and part; `other` holds what belongs to no layer, such as embeddings.

    only_one : weights that one of the two models lacks, which count nowhere
    """

    layers: list[int]
    parts: dict[str, list[float]]
    other: dict[str, float]
    only_one: list[str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def same_architecture(first: PreTrainedModel, second: PreTrainedModel) -> None:
    """Raise InputError unless the two models have the same layers, widths, heads and vocabulary."""
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size")
    a, b = (m.config.get_text_config(decoder=True) for m in (first, second))
    for name in names:
        one, other = (getattr(config, name, None) for config in (a, b))
        if one is not None and other is not None and one != other:
            raise InputError(
                "--against", f"a model with {name} {other}", f"one of the same architecture: {name} {one}",
                "Compare a model with a recalibration of itself.",
            )  # fmt: skip


def weight_drift(before: PreTrainedModel, after: PreTrainedModel) -> Drift:
    """How far every matrix moved, relative to its size.

    Raises
    ------
    InputError : the models differ in architecture
    """
    same_architecture(before, after)
    old, new = (dict(m.named_parameters()) for m in (before, after))
    shared = [n for n in old if n in new and old[n].shape == new[n].shape]
    sums: dict[tuple[int, str], list[float]] = {}
    other = {}
    for name in shared:
        w, moved = old[name].detach(), new[name].detach().to(old[name])
        size, distance = float(w.float().square().sum()), float((moved - w).float().square().sum())
        layer, part = _LAYER.search(f".{name}"), _part(name)
        if layer and part and w.dim() >= 2:
            total = sums.setdefault((int(layer[1]), part), [0.0, 0.0])
            total[0] += distance
            total[1] += size
        elif not layer and w.dim() >= 2:
            other[name] = (distance / size) ** 0.5 if size else 0.0
    layers = sorted({layer for layer, _ in sums})
    present = [part for part, _ in _PARTS if any(p == part for _, p in sums)]
    parts = {p: [_ratio(sums.get((layer, p))) for layer in layers] for p in present}
    return Drift(layers, parts, other, sorted(set(old) ^ set(new)))


def _ratio(sums: list[float] | None) -> float:
    return (sums[0] / sums[1]) ** 0.5 if sums and sums[1] else 0.0


def _part(name: str) -> str | None:
    return next((part for part, words in _PARTS if any(word in name for word in words)), None)


class NormVisitor(Visitor):
    """Norms ‖q‖ and ‖k‖ over tokens and heads, by layer, as they meet in the scores."""

    def __init__(self) -> None:
        self._found: dict[int, dict[str, float]] = {}

    def states(self, layer: int, query: torch.Tensor, key: torch.Tensor) -> None:
        row: dict[str, float] = {}
        for name, x in (("query", query), ("key", key)):
            norms = x.detach().float().norm(dim=-1)
            row[name], row[f"{name}_largest"] = float(norms.mean()), float(norms.max())
        self._found[layer] = row

    def to_dict(self) -> dict[str, Any]:
        """Lists over layers: mean and largest norm of queries and of keys."""
        layers = sorted(self._found)
        keys = ("query", "key", "query_largest", "key_largest")
        return {"layers": layers, **{k: [self._found[n][k] for n in layers] for k in keys}}


def outliers(norms: dict[str, Any], times: float = 5.0) -> list[int]:
    """Layers whose mean query or key norm is more than `times` the median layer's: what upsets quantisation."""
    found = set()
    for name in ("query", "key"):
        middle = sorted(norms[name])[len(norms[name]) // 2]
        found |= {n for n, v in zip(norms["layers"], norms[name], strict=True) if v > times * middle}
    return sorted(found)
