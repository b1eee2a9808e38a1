"""Taking the rotation out little by little: DroPE is linear scaling to infinity, and a run may walk there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from drope import models

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from drope.training.config import Fade


def fade_factors(pairs: int, progress: float, kind: Fade) -> Tensor:
    """What is left of each frequency, highest first, shape (pairs,): 1 at progress 0, 0 at progress 1.

    `linear` scales all of them down together. `lowest_first` lowers one after the other, the last pair (the lowest
    frequency) first, so that the fast rotations which hold nearby order stay longest.
    """
    left = 1 - min(max(progress, 0.0), 1.0)
    if kind == "linear":
        return torch.full((pairs,), left)
    return (pairs * left - torch.arange(pairs, dtype=torch.float64)).clamp(0, 1).float()


class FadeCallback(TrainerCallback):
    """Sets the rotation before each step from the step's number alone, so that a resumed run has the same."""

    def __init__(self, model: PreTrainedModel, kind: Fade, steps: int):
        self.model, self.kind, self.steps = model, kind, steps
        self.pairs = models.rope_shape(model.config).head_dim // 2

    def set(self, step: int) -> None:
        """The rotation of optimizer step `step`, counted from 0."""
        if step >= self.steps:
            models.drop(self.model)
        else:
            models.scale_frequencies(self.model, fade_factors(self.pairs, step / self.steps, self.kind))

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.set(state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.set(state.global_step)
