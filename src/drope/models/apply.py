"""Carrying out what a positional method needs, for as long as a `with` block lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import nn

from drope.models import rotary
from drope.models.logit_scale import logit_scale, set_logit_scale
from drope.models.rebuild import rebuild, rebuild_for, recorded_rotation
from drope.models.shape import rope_shape
from drope.positions import Method, Requirements, RopeShape

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def apply(model: PreTrainedModel, method: Method, length: int) -> Iterator[PreTrainedModel]:
    """Run a model under a positional method: `with apply(model, Yarn(), 1024): ...`.

    The rotary modules are exchanged for ones that are built for the method and put back on exit, also after an
    exception: the model is then exactly as before, dropped or not. A method that rotates does so on dropped models too.

    Parameters
    ----------
    length : target length in tokens, from which the method takes its extension factor

    Raises
    ------
    UnsupportedModelError : the family has no rotation, or does not carry out the method
    """
    shape = rope_shape(model.config)
    requirements = method.requirements(shape, length)
    free = rotary.is_position_free(model)
    exchange = {
        module: _replacement(model, module, requirements, shape, method, length, free)
        for module in rotary.rotary_modules(model).values()
    }
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent._modules.items()  # named_children would skip a module that is held twice
        if child is not None and exchange.get(child) is not None
    ]
    scale = logit_scale(model) if requirements.logit_scale != 1 else None
    try:
        for parent, name, child in places:
            setattr(parent, name, exchange[child])
        if scale is not None:
            set_logit_scale(model, scale * requirements.logit_scale)
        yield model
    finally:
        for parent, name, child in places:
            setattr(parent, name, child)
        if scale is not None:
            set_logit_scale(model, scale)


def _replacement(
    model: PreTrainedModel,
    module: nn.Module,
    requirements: Requirements,
    shape: RopeShape,
    method: Method,
    length: int,
    free: bool,
) -> nn.Module | None:
    """The module to exchange for `module`; None keeps it."""
    if requirements.rotation == "none":
        if free:
            return None
        new = rotary.clone(module)
        rotary.stop(new)
        return new
    if requirements.rope_parameters is not None:
        return rebuild_for(module, requirements.rope_parameters, shape, method, length)
    new = rotary.clone(module)  # a copy, so that what dynamic modules remember of past inputs does not stay
    rotary.unstop(new)
    if rotary.is_still(new):  # loaded position free: its own rotation is on record only
        return rebuild(module, recorded_rotation(model))
    return new
