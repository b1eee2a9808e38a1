"""Carrying out what a positional method needs, for as long as a `with` block lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

from drope.models import rotary
from drope.models.applicable import check_method
from drope.models.layers import cropped, planned
from drope.models.logit_scale import logit_scale, set_logit_scale
from drope.models.rebuild import rebuild, rebuild_for, recorded_rotation
from drope.models.shape import rope_shape
from drope.positions import Method, Requirements, RopeShape

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def apply(model: PreTrainedModel, method: Method, length: int) -> Iterator[PreTrainedModel]:
    """Run a model under a positional method: `with apply(model, Yarn(), 1024): ...`.

    The rotary modules are exchanged for ones that are built for the method, and where the attention itself differs the
    model's configuration points to `drope.models.attention`. All is put back on exit, also after an exception: the
    model is then exactly as before, dropped or not. A method that rotates does so on dropped models too.

    A cache that was filled under a method is of use under that method alone.

    Parameters
    ----------
    length : target length in tokens, from which the method takes its extension factor

    Raises
    ------
    UnsupportedModelError : the family has no rotation, or does not carry out the method
    InputError : settings that cannot be for this model, or weights that were not trained for the method
    """
    requirements = check_method(model.config, method, length)
    shape = rope_shape(model.config)
    free = rotary.is_position_free(model)
    exchange: dict[nn.Module, nn.Module | None] = {
        module: _replacement(model, module, requirements, shape, method, length, free)
        for module in rotary.rotary_modules(model).values()
    }
    rotation = None
    if requirements.attention is not None and requirements.attention.rotates:
        rotation = _take_out(exchange)
    scale = logit_scale(model) if requirements.logit_scale != 1 else None
    with ExitStack() as stack:
        stack.enter_context(_exchanged(model, exchange))
        if scale is not None:
            stack.callback(set_logit_scale, model, scale)
            set_logit_scale(model, scale * requirements.logit_scale)
        stack.enter_context(planned(model, requirements, rotation))
        stack.enter_context(cropped(model, None if requirements.crop is None else max(0, length - requirements.crop)))
        yield model


@contextmanager
def _exchanged(model: nn.Module, exchange: dict[nn.Module, nn.Module | None]) -> Iterator[None]:
    """Other modules in the places of some."""
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent._modules.items()  # named_children would skip a module that is held twice
        if child is not None and exchange.get(child) is not None
    ]
    try:
        for parent, name, child in places:
            setattr(parent, name, exchange[child])
        yield
    finally:
        for parent, name, child in places:
            setattr(parent, name, child)


def _take_out(exchange: dict[nn.Module, nn.Module | None]) -> Any:
    """The rotation that the modules of an exchange would carry out; the exchange is then to ones that stand still."""
    from drope.models.attention import Rotation

    module, new = next(iter(exchange.items()))
    source = new or module
    (inv_freq,) = rotary.frequencies(source).values()
    rotation = Rotation(inv_freq.detach().clone().float(), float(getattr(source, "attention_scaling", 1.0)))
    for place, other in list(exchange.items()):
        still = other or rotary.clone(place)
        rotary.stop(still)
        exchange[place] = still
    return rotation


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
        new = rebuild(module, recorded_rotation(model))
    if requirements.frequency_scale is not None or requirements.attention_factor != 1:
        rotary.scale(new, requirements.frequency_scale or (1.0,) * shape.pairs, requirements.attention_factor)
    return new
