"""Attention of a position-free model without the multiplication by cos 1 and sin 0 that a stock forward pass does."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from drope.models.rotary import is_position_free

_ROTATES = "apply_rotary_pos_emb"  # what transformers' attention modules call, by a name of their file


@contextmanager
def unrotated(model: nn.Module) -> Iterator[int]:
    """Leave the rotation out of every attention module that would rotate by nothing; the number of those modules.

    Within the context, such a module runs its own stock forward pass, in which the name `apply_rotary_pos_emb` means
    a function that returns q and k. Outputs and gradients are the same to the bit. Neither the class nor its file is
    touched, so no other model is. A model that rotates, and attention that rotates in another way, is left as it is.
    """
    changed: list[nn.Module] = []
    if is_position_free(model):
        for module in model.modules():
            forward = _without_rotation(module)
            if forward is not None:
                module.forward = types.MethodType(forward, module)
                changed.append(module)
    try:
        yield len(changed)
    finally:
        for module in changed:
            del module.forward


def _without_rotation(module: nn.Module) -> types.FunctionType | None:
    """The module's forward with another meaning of one name; None where it does not use it as is expected."""
    forward = type(module).forward
    if "forward" in vars(module) or not isinstance(forward, types.FunctionType) or hasattr(forward, "__wrapped__"):
        return None
    rotates = forward.__globals__.get(_ROTATES)
    if _ROTATES not in forward.__code__.co_names or rotates is None:
        return None
    if list(inspect.signature(rotates).parameters)[:2] != ["q", "k"]:
        return None
    names = {**forward.__globals__, _ROTATES: _as_they_are}
    new = types.FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
    new.__kwdefaults__ = forward.__kwdefaults__
    return new


def _as_they_are(q: Tensor, k: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    return q, k
