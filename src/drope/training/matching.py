"""Matching what the original computes on the way: each layer's part is given its aim, not the logits alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from drope.training.parts import attention_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from drope.training.config import States


@contextmanager
def outputs_of(model: PreTrainedModel, states: States) -> Iterator[list[Tensor]]:
    """Collect what decoder layers, or their attentions, return, (B, T, D) each, in a forward pass within the block."""
    modules: list[nn.Module] = []
    if states != "attention":
        modules += model.base_model.layers  # type: ignore[arg-type]
    if states != "layers":
        modules += [model.get_submodule(name) for name in attention_names(model)]
    found: list[Tensor] = []

    def keep(module: object, args: object, output: object) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)  # type: ignore[arg-type]

    hooks = [layer.register_forward_hook(keep) for layer in modules]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def mismatch(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """Squared distance of states (B, T, D), relative to the teacher's size; mean over those collected.

    Of all positions, also of those whose prediction is not trained: later ones attend to them.
    """
    ratios = []
    for ours, theirs in zip(student, teacher, strict=True):
        a, b = ours.float(), theirs.float()
        ratios.append((a - b).square().sum() / b.square().sum().clamp_min(1e-12))
    return torch.stack(ratios).mean()
