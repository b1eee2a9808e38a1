"""The softmax temperature: one number that multiplies q·k/√d in every attention layer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import nn

from drope.errors import InputError, UnsupportedModelError
from drope.models.support import family

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MEMORY = "_drope_scaling"  # on a changed module: its own scaling and β
_NO_SOFTMAX = ("Lightning", "Linear", "DeltaNet", "Mamba", "ShortConv", "Recurrent")
_OTHER_TOWERS = ("vision", "visual", "audio", "speech", "image")


def attention_modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The softmax attention modules of a language model, by name.

    Raises
    ------
    UnsupportedModelError : they do not hold their softmax scaling in the `scaling` attribute that stock families use
    """
    found = {
        name: module
        for name, module in model.named_modules()
        if type(module).__name__.endswith("Attention")
        and hasattr(module, "layer_idx")
        and not any(word in type(module).__name__ for word in _NO_SOFTMAX)
        and not any(tower in name for tower in _OTHER_TOWERS)
    }
    numbers = (float, int)
    without = sorted({type(m).__name__ for m in found.values() if not isinstance(getattr(m, "scaling", None), numbers)})
    if without or not found:
        what = f"{', '.join(without)} has" if without else "its attention layers have"
        raise UnsupportedModelError(
            f"{family(model.config)} cannot be given a softmax temperature: {what} no `scaling` attribute to multiply."
        )
    return found


def set_logit_scale(model: PreTrainedModel, beta: float) -> None:
    """Multiply q·k/√d by β in every softmax attention, in place. Absolute, not cumulative: 1.0 undoes it exactly.

    Where a family caps its attention scores (Gemma 2), β acts before the cap.

    Raises
    ------
    InputError : β is not a finite number above 0
    UnsupportedModelError : a family whose attention has no such scaling
    """
    if not (math.isfinite(beta) and beta > 0):
        raise InputError("beta", beta, "a finite number above 0")
    module: Any  # `scaling` is a plain number on it, which the stubs of nn.Module deny
    for module in attention_modules(model).values():
        own, _ = getattr(module, _MEMORY, (module.scaling, 1.0))
        module.scaling = own if beta == 1 else own * beta
        setattr(module, _MEMORY, (own, float(beta)))


def logit_scale(model: PreTrainedModel) -> float:
    """The β that is set now; 1.0 where none was."""
    module = next(iter(attention_modules(model).values()))
    return getattr(module, _MEMORY, (None, 1.0))[1]
