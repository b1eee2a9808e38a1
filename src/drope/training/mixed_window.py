"""Mixed context window training of LongRoPE2 (arXiv 2502.20082, section 3.3), on blocks of the target length.

Some micro batches are short: each block is cut into windows of C_train tokens that do not see one another, under the
model's own rotation. The others are long: whole blocks under the rescaled rotation. So the model learns the rescaled
positions without forgetting its own, which serve inputs within C_train afterwards. The paper fills short windows with
short documents and long ones with long documents; here both are filled from the same packed text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from drope import models
from drope.errors import InputError
from drope.positions import Method

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from drope.positions import RopeShape


@dataclass(frozen=True)
class MixedWindow:
    """What a mixed-window run trains at.

    Parameters
    ----------
    method : rescales the rotation of long blocks, such as LongRoPE2 with searched factors
    target : tokens of a block, a multiple of the model's C_train
    short_share : share of the micro batches that are short (the paper: 3 of 10 billion tokens)
    """

    method: Method
    target: int
    short_share: float = 0.3

    def __post_init__(self) -> None:
        if not isinstance(self.method, Method):
            raise InputError("mixed_window.method", self.method, "a positional method, such as LongRoPE2")
        if isinstance(self.target, bool) or not isinstance(self.target, int) or self.target < 1:
            raise InputError("mixed_window.target", self.target, "a whole number of tokens")
        if not (math.isfinite(self.short_share) and 0 < self.short_share < 1):
            raise InputError("mixed_window.short_share", self.short_share, "a number above 0 and below 1")

    def check(self, shape: RopeShape, control: bool, distill: float, context: int | None) -> None:
        """Raise InputError where mixed windows make no sense."""
        if not control:
            raise InputError(
                "mixed_window", self.method.name, "none while the rotation is dropped",
                "It trains a model that keeps its rotation: pass control as well (--control).",
            )  # fmt: skip
        if distill:
            allowed = "0 with mixed windows: the original knows no positions beyond its context"
            raise InputError("distill", distill, allowed)
        if context is not None:
            raise InputError("context", context, "none with mixed windows: blocks have the target's length")
        if self.target <= shape.context or self.target % shape.context:
            raise InputError("mixed_window.target", self.target, f"a multiple of {shape.context} tokens, 2 or more")
        asked = self.method.requirements(shape, self.target)
        if asked.rope_parameters is None and asked.frequency_scale is None or asked.rotation == "none":
            allowed = "a method that rescales the rotation: longrope2, yarn, ntk, pi, llama3 and others"
            raise InputError("mixed_window.method", self.method.name, allowed)

    def to_dict(self) -> dict[str, Any]:
        """For the record of a run."""
        own = {"method": self.method.name, "settings": self.method.settings()}
        return own | {"target": self.target, "short_share": self.short_share}


def is_short(index: int, share: float) -> bool:
    """Whether micro batch `index` of a run is short: spread evenly, so that after n of them ⌊n · share⌋ were."""
    return math.floor((index + 1) * share + 1e-9) > math.floor(index * share + 1e-9)


class Windows(TrainerCallback):
    """Sets the rotation of each micro batch from its number in the run alone, so that a resumed run has the same.

    The rotation stays until the next micro batch: recomputed activations need it in the backward pass.
    """

    def __init__(self, model: PreTrainedModel, mixed: MixedWindow, micro_batches: int):
        self.model, self.mixed, self.micro_batches = model, mixed, micro_batches
        self.context = models.rope_shape(model.config).context
        self._next = 0
        self._long: ExitStack | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._next = state.global_step * self.micro_batches

    def turn(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The next micro batch as it is trained on: (B, L), or (B · L / C, C) if it is short."""
        short = is_short(self._next, self.mixed.short_share)
        self._next += 1
        self.rotate(rescaled=not short)
        if not short:
            return batch
        return {name: column.reshape(-1, self.context) for name, column in batch.items()}

    def rotate(self, rescaled: bool) -> None:
        """Give the model the rescaled rotation, or its own."""
        if rescaled and self._long is None:
            self._long = ExitStack()
            self._long.enter_context(models.apply(self.model, self.mixed.method, self.mixed.target))
        elif not rescaled and self._long is not None:
            stack, self._long = self._long, None
            stack.close()

    @contextmanager
    def until_done(self) -> Iterator[None]:
        """The model's own rotation is back on exit, also after an exception."""
        try:
            yield
        finally:
            self.rotate(rescaled=False)
