"""Decoder layers through `torch.compile`, one by one: a graph for one layer serves them all, however deep the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from drope.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def compiled(model: PreTrainedModel) -> Iterator[None]:
    """Compile each decoder layer's forward pass, for as long as the block lasts.

    The methods are compiled, not the modules: hooks and gradient checkpointing stay around them and are not traced.
    """
    layers = list(model.base_model.layers)  # type: ignore[arg-type]
    for layer in layers:
        layer.forward = torch.compile(layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def check_compile(model: PreTrainedModel) -> None:
    """Raise InputError where layers cannot be compiled: on this machine, or of this model."""
    layers = list(getattr(model.base_model, "layers", None) or [])
    if not layers or any("forward" in vars(layer) for layer in layers):
        raise InputError("compile", True, f"false: the layers of {type(model).__name__} cannot be taken one by one")
    try:
        torch.compile(lambda x: x + 1)(torch.ones(2, device=model.device))
    except Exception as error:  # a missing compiler has as many names as there are backends
        reason = str(error).strip().splitlines()[0]
        hint = f"It needs a C++ compiler such as g++ on a CPU, and triton on a GPU ({type(error).__name__}: {reason})."
        raise InputError("compile", True, "false on this machine", hint) from None
