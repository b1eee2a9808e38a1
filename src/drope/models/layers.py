"""What methods ask of single layers and of the input, by hooks and attributes that are taken away again.

A hook looks at the plan of its module when it runs, so methods can be nested: the innermost one counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from drope.errors import DropeError
from drope.models.attention import NAME, PLAN, Plan, register
from drope.models.logit_scale import attention_modules
from drope.positions import Requirements

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from drope.models.attention import Rotation

_CROP = "_drope_crop"  # attribute of a model while a method hides the start of its input


@contextmanager
def planned(model: PreTrainedModel, requirements: Requirements, rotation: Rotation | None) -> Iterator[None]:
    """Give every attention module its plan; the model's attention function becomes `drope` where one needs it."""
    plain = requirements.layers is None and not requirements.own_attention
    config: Any = model.config.get_text_config(decoder=True)
    if plain and config._attn_implementation != NAME and not _plans(model):
        yield  # the usual case, also for families whose attention modules drope does not know
        return
    register()
    modules = attention_modules(model)
    implementation = config._attn_implementation
    stock = implementation
    if implementation == NAME:  # nested: a method outside changed it
        stock = next(iter(_plans(model))).stock
    with ExitStack() as stack:
        for module in modules.values():
            stack.callback(_set, module, PLAN, getattr(module, PLAN, None))
            plan = _plan(requirements, rotation, int(module.layer_idx), stock)  # type: ignore[arg-type]
            if plan.scheme is not None and plan.scheme.rotates and not getattr(module, "use_rope", True):
                plan = replace(plan, scheme=None)  # SmolLM3: a layer that never rotated has no distances to map
            setattr(module, PLAN, plan)
            if not plan.rotate:
                stack.callback(module.register_forward_pre_hook(_identity, with_kwargs=True).remove)
        # the attribute itself: its setter would look for configurations within this one
        stack.callback(setattr, config, "_attn_implementation_internal", implementation)
        config._attn_implementation_internal = NAME if requirements.own_attention else stock
        yield


@contextmanager
def cropped(model: PreTrainedModel, start: int | None) -> Iterator[None]:
    """Hide the first `start` tokens of every input (None: hide nothing), as if they were padding."""
    decoder: Any = model.get_decoder()  # which some call without the output layer
    before = getattr(decoder, _CROP, None)
    if start == before:
        yield
        return
    handle = decoder.register_forward_pre_hook(_hide, with_kwargs=True)
    setattr(decoder, _CROP, start)
    try:
        yield
    finally:
        handle.remove()
        _set(decoder, _CROP, before)


def _plan(requirements: Requirements, rotation: Rotation | None, layer: int, stock: str) -> Plan:
    scales = () if requirements.query_scale is None else (requirements.query_scale,)
    if requirements.layers is None:
        return Plan(requirements.attention, rotation, True, None, scales, layer, stock)
    own = requirements.layers[layer]
    scales = (*scales, own.query_scale) if own.query_scale else scales
    return Plan(requirements.attention, rotation, own.rotate, own.window, scales, layer, stock)


def _plans(model: nn.Module) -> list[Plan]:
    return [getattr(module, PLAN) for module in model.modules() if getattr(module, PLAN, None) is not None]


def _set(module: nn.Module, name: str, value: Any) -> None:
    if value is None:
        vars(module).pop(name, None)
    else:
        setattr(module, name, value)


def _identity(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    """Give an attention module cos 1 and sin 0 (or the complex number 1) instead of its position embeddings."""
    plan: Plan | None = getattr(module, PLAN, None)
    if plan is None or plan.rotate:
        return None
    embeddings = kwargs["position_embeddings"]
    if isinstance(embeddings, torch.Tensor):
        return args, {**kwargs, "position_embeddings": torch.ones_like(embeddings)}
    cos, sin = embeddings
    return args, {**kwargs, "position_embeddings": (torch.ones_like(cos), torch.zeros_like(sin))}


def _hide(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    """Mask the first tokens of an input and count positions from the first that is left."""
    start = getattr(model, _CROP, None)
    if not start:
        return None
    names = ("input_ids", "attention_mask", "position_ids", "past_key_values", "inputs_embeds")
    kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
    given = kwargs.get("input_ids") if kwargs.get("input_ids") is not None else kwargs.get("inputs_embeds")
    cache, mask, positions = (kwargs.get(name) for name in ("past_key_values", "attention_mask", "position_ids"))
    assert isinstance(given, torch.Tensor)
    past = cache.get_seq_length() if cache is not None else 0
    total = past + given.shape[1]
    if total <= start:
        return None
    if mask is None:
        mask = torch.ones(given.shape[0], total, dtype=torch.long, device=given.device)
    if mask.dim() != 2:
        raise DropeError("A crop needs an attention mask of shape (B, T), and generation a dynamic cache.")
    mask = mask.clone()
    mask[:, :start] = 0
    if positions is None:
        positions = torch.arange(past, total, device=given.device)[None]
    return (), {**kwargs, "attention_mask": mask, "position_ids": (positions - start).clamp(min=0)}
