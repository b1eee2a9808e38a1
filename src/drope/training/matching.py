"""Matching the original's hidden states in a first phase: the layers are put in place before the logits are judged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def layer_outputs(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Collect what each decoder layer returns, (B, T, D) each, in a forward pass within the block."""
    found: list[Tensor] = []

    def keep(module: object, args: object, output: object) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)  # type: ignore[arg-type]

    hooks = [layer.register_forward_hook(keep) for layer in model.base_model.layers]  # type: ignore[union-attr]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def mismatch(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """Squared distance of hidden states (B, T, D), relative to the teacher's size; mean over layers.

    Of all positions, also of those whose prediction is not trained: later ones attend to them.
    """
    ratios = []
    for ours, theirs in zip(student, teacher, strict=True):
        a, b = ours.float(), theirs.float()
        ratios.append((a - b).square().sum() / b.square().sum().clamp_min(1e-12))
    return torch.stack(ratios).mean()
