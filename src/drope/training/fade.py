"""Taking the rotation out little by little: DroPE is linear scaling to infinity, and a run may walk there."""

from __future__ import annotations

import inspect
import math
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from drope import models
from drope.errors import InputError

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
    """Sets the rotation before each step from the step's number alone, so that a resumed run has the same.

    Over layers, a hook gives the attention of a layer whose turn has come cos 1 and sin 0; `close` takes the hooks off.

    Raises
    ------
    InputError : a fade over layers of a model whose layers are not given their rotation
    """

    def __init__(self, model: PreTrainedModel, kind: Fade, steps: int):
        self.model, self.kind, self.steps = model, kind, steps
        self.pairs = models.rope_shape(model.config).head_dim // 2
        self.rotating: list[bool] = []  # by layer, bottom first
        self.hooks: list[Any] = []
        if kind.startswith("layers"):
            self._watch_layers()

    def set(self, step: int) -> None:
        """The rotation of optimizer step `step`, counted from 0."""
        if step >= self.steps:
            models.drop(self.model)
        elif self.rotating:
            models.restore(self.model)
            self.rotating[:] = rotating_layers(len(self.rotating), step / self.steps, self.kind)
        else:
            models.scale_frequencies(self.model, fade_factors(self.pairs, step / self.steps, self.kind))

    def close(self) -> None:
        """Take the hooks off."""
        for hook in self.hooks:
            hook.remove()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.set(state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.set(state.global_step)

    def _watch_layers(self) -> None:
        layers = list(getattr(self.model.base_model, "layers", []))
        attention = [getattr(layer, "self_attn", None) for layer in layers]
        if not layers or any(
            a is None or "position_embeddings" not in inspect.signature(a.forward).parameters for a in attention
        ):
            name = type(self.model).__name__
            raise InputError("fade", self.kind, f"lowest_first, linear for {name}", "Its rotation is not by layer.")
        self.rotating = [True] * len(layers)
        for number, module in enumerate(attention):
            assert module is not None
            hook = partial(self._still, number)
            self.hooks.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def _still(self, number: int, module: Any, args: Any, given: dict[str, Any]) -> Any:
        if self.rotating[number] or given.get("position_embeddings") is None:
            return None
        cos, sin = given["position_embeddings"]
        return args, given | {"position_embeddings": (torch.ones_like(cos), torch.zeros_like(sin))}


def rotating_layers(layers: int, progress: float, kind: Fade) -> list[bool]:
    """Whether each layer still rotates, bottom first: all at progress 0, none at 1; one after the other in between."""
    left = math.ceil(layers * (1 - min(max(progress, 0.0), 1.0)))
    turn = range(layers) if kind == "layers_top_first" else range(layers - 1, -1, -1)
    return [at < left for at in turn]
