"""Watching attention probabilities in blocks of queries, never T×T for all heads at once.

A registered attention function computes each block with the model family's own eager attention, so that whatever the
family adds (score caps, sinks, windows, grouped heads) is in the probabilities. The name it is registered under is used
by no model outside `watch`, and the model's own implementation comes back afterwards.

B batch, H heads, K key-value heads, T tokens, D head width, b queries of a block, n keys that the block sees.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from drope.errors import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ELEMENTS = 2**23  # probabilities held at once: 32 MB in float32
_NAME = "drope_watched"


class Rows(Protocol):
    """The family's own attention on queries [start, stop): output (B, b, H, D) and probabilities (B, H, b, n)."""

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, /, start: int, stop: int
    ) -> tuple[torch.Tensor, torch.Tensor]: ...


# (attention module, query (B, H, T, D), key (B, K, T, D), value (B, K, T, D), rows) -> output (B, T, H, D)
Watcher = Callable[[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor, Rows], torch.Tensor]
_WATCHER: ContextVar[Watcher | None] = ContextVar("drope_watcher", default=None)


@dataclass(frozen=True)
class Block:
    """Attention of one layer for the queries [start, stop).

    probs : (B, H, b, stop), rows sum to 1 (less where the family has sinks); keys after `stop` are not seen by any of
        these queries
    """

    layer: int
    start: int
    stop: int
    probs: torch.Tensor


class Visitor:
    """What looks at a forward pass. Override what is needed."""

    def states(self, layer: int, query: torch.Tensor, key: torch.Tensor) -> None:
        """Once a layer: query (B, H, T, D) and key (B, K, T, D) as they meet, after norms and rotation."""

    def block(self, block: Block) -> None:
        """Once a block of queries."""


def observe(
    model: PreTrainedModel,
    ids: torch.Tensor,
    *visitors: Visitor,
    elements: int = ELEMENTS,
    hidden: bool = False,
) -> tuple[torch.Tensor, ...]:
    """Run the model on `ids` (B, T) without gradients and show its attention to the visitors, layer by layer.

    Parameters
    ----------
    elements : bound on the probabilities held at once
    hidden : return the hidden states: the input of every layer and the output of the last, each (B, T, C)

    Raises
    ------
    UnsupportedModelError : the family's attention cannot be watched
    """

    def watcher(
        module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rows: Rows
    ) -> torch.Tensor:
        layer = layer_of(module)
        for visitor in visitors:
            visitor.states(layer, query, key)
        outputs = []
        for start, stop in blocks(query, elements):
            out, probs = rows(query, key, value, start, stop)
            for visitor in visitors:
                visitor.block(Block(layer, start, stop, probs))
            outputs.append(out)
        return torch.cat(outputs, dim=1)

    with torch.no_grad(), watch(model, watcher):
        out = model.get_decoder()(input_ids=ids.to(model.device), use_cache=False, output_hidden_states=hidden)
    return tuple(out.hidden_states) if hidden else ()


@contextmanager
def watch(model: PreTrainedModel, watcher: Watcher) -> Iterator[None]:
    """Let `watcher` compute the model's attention while the block runs; the model is in evaluation mode meanwhile.

    Raises
    ------
    UnsupportedModelError : no attention went through the watcher although the block ended well, or a method is applied
        that computes attention its own way
    """
    from drope.models.attention import NAME

    if model.config.get_text_config(decoder=True)._attn_implementation == NAME:
        raise UnsupportedModelError(
            "A method that computes its own attention is applied to this model; what it attends to cannot be watched."
        )
    _register()
    own, training = model.config._attn_implementation, model.training
    seen = False

    def counted(*arguments: Any) -> torch.Tensor:
        nonlocal seen
        seen = True
        return watcher(*arguments)

    token = _WATCHER.set(counted)
    try:
        model.eval()
        model.set_attn_implementation(_NAME)
        yield
    finally:
        _WATCHER.reset(token)
        model.set_attn_implementation(own or "eager")
        model.train(training)
    if not seen:
        raise UnsupportedModelError(
            f"{type(model).__name__} ({model.config.model_type}) cannot be analysed: its attention does not go "
            "through the attention interface of transformers, or it has none."
        )


def blocks(query: torch.Tensor, elements: int) -> Iterator[tuple[int, int]]:
    """Bounds of blocks of queries whose probabilities number at most `elements`."""
    batch, heads, length, _ = query.shape
    size = max(1, elements // (batch * heads * length))
    return ((start, min(start + size, length)) for start in range(0, length, size))


def layer_of(module: nn.Module) -> int:
    """The number of an attention module's layer."""
    return int(getattr(module, "layer_idx", 0) or 0)


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if _NAME not in AttentionInterface():
        AttentionInterface.register(_NAME, _attention)
        AttentionMaskInterface.register(_NAME, sdpa_mask)  # None where the mask is causal and nothing else


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    watcher = _WATCHER.get()
    if watcher is None:
        raise RuntimeError(f"{_NAME} serves inside drope.analysis.watch alone")
    eager = _eager(module)

    def rows(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, start: int, stop: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        mask = _mask(attention_mask, q, start, stop)
        return eager(module, q[:, :, start:stop], k[:, :, :stop], v[:, :, :stop], mask, dropout=0.0, **kwargs)

    return watcher(module, query, key, value, rows), None


def _mask(given: torch.Tensor | None, query: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """Additive mask of queries [start, stop), (B or 1, 1, b, stop), from a boolean, an additive or no mask."""
    least = torch.finfo(query.dtype).min
    if given is None:
        i = torch.arange(start, stop, device=query.device)[:, None]
        visible = (torch.arange(stop, device=query.device)[None] <= i)[None, None]
    else:
        visible = given[:, :, start:stop, :stop]
        if visible.dtype != torch.bool:
            return visible
    return torch.zeros(visible.shape, dtype=query.dtype, device=query.device).masked_fill(~visible, least)


def _eager(module: nn.Module) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """The eager attention that stands beside a family's attention class."""
    from transformers.models.llama.modeling_llama import eager_attention_forward

    return getattr(sys.modules[type(module).__module__], "eager_attention_forward", eager_attention_forward)
