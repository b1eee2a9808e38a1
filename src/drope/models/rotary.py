"""Finding a model's rotary modules and stopping, scaling and restarting their rotation.

A rotary module is one that owns a buffer named `inv_freq` (or `…_inv_freq`, one per layer type). All that is changed
are these buffers and the plain attributes that steer them; what was there is kept on the module itself, so undoing is
exact and no other model is touched.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import nn

from drope.errors import DropeError, InputError, UnsupportedModelError
from drope.models.adapters import warn_of_adapter
from drope.models.shape import skips_rotation, stops_rotation
from drope.models.support import check_supported

Model = TypeVar("Model", bound=nn.Module)

_MEMORY = "_drope_original"  # attribute of a changed rotary module
_STILL = 1e-15  # radians a token: below float32's resolution of 1 at any length
_OTHER_TOWERS = ("vision", "visual", "audio", "speech", "image")


@dataclass
class _Original:
    """What a rotary module was before it was changed."""

    buffers: dict[str, torch.Tensor]
    attributes: dict[str, Any]


def rotary_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The rotary modules of a language model by name, each once.

    Raises
    ------
    UnsupportedModelError : the family has no rotation, or none that a module owns
    """
    config = getattr(model, "config", None)
    if config is not None and hasattr(config, "get_text_config"):
        check_supported(config)
    found = {
        name: module
        for name, module in model.named_modules()
        if frequencies(module) and not any(tower in name for tower in _OTHER_TOWERS)
    }
    if not found:
        name = f"{type(model).__name__} ({getattr(config, 'model_type', 'unknown type')})"
        raise UnsupportedModelError(
            f"{name} cannot be converted: none of its modules owns rotary frequencies (an `inv_freq` buffer), "
            "so it has no rotation, or one that is computed inside its layers."
        )
    return found


def frequencies(module: nn.Module) -> dict[str, torch.Tensor]:
    """A module's own frequency buffers by name; the untouched copies that stock modules keep are left out."""
    return {name: buffer for name, buffer in _buffers(module).items() if not name.endswith("original_inv_freq")}


def drop(model: Model) -> Model:
    """Stop the rotation of every layer, in place: frequencies to 0, the scaling of cos and sin to 1.

    A model that is already position free is left as it is. `restore` undoes it exactly.

    Raises
    ------
    UnsupportedModelError : the family has no rotation that can be dropped, by name and with the reason
    """
    modules = rotary_modules(model)
    free = is_position_free(model)
    if not free:
        warn_of_adapter(model)
    for module in modules.values():
        if not free or hasattr(module, _MEMORY):
            stop(module)
    return model


def scale_frequencies(model: nn.Module, factors: torch.Tensor | float) -> None:
    """Set every frequency to `factors` times the model's own, in place: 1 is RoPE, 0 no rotation.

    Absolute, not cumulative. The scaling of cos and sin stays the model's own. `restore` undoes it exactly.

    Parameters
    ----------
    factors : one number, or one for each rotated pair, shape (pairs,)
    """
    for module in rotary_modules(model).values():
        original = _remember(module)
        _freeze(module)
        for name in frequencies(module):
            own = original.buffers[name]
            factor = torch.as_tensor(factors, dtype=own.dtype, device=own.device)
            if factor.dim() and factor.shape != own.shape:
                raise InputError(
                    "factors", tuple(factor.shape), f"one number, or one for each of the {own.numel()} rotated pairs"
                )
            _write(module, name, own * factor)


def scale(module: nn.Module, factors: Sequence[float], attention_factor: float = 1.0) -> None:
    """Multiply the frequencies of one rotary module by γ_m and its cos and sin by `attention_factor`.

    Where layer types have rotations of their own, those of the global attention are meant: windows stay within C_train.
    """
    _remember(module)
    _freeze(module)
    whole = "full_attention_" if hasattr(module, "full_attention_inv_freq") else ""
    for name, own in frequencies(module).items():
        if name.startswith(whole):
            if len(factors) != own.numel():
                raise InputError("factors", len(factors), f"one for each of the {own.numel()} rotated pairs")
            _write(module, name, own * torch.tensor(factors, dtype=own.dtype, device=own.device))
    for name in list(_scaling_names(module)):
        if name.startswith(whole):
            setattr(module, name, getattr(module, name) * attention_factor)


def restore(model: Model, source: str | None = None) -> Model:
    """Undo `drop` and `scale_frequencies` exactly, in place; a model that was not changed is left as it is.

    A position-free checkpoint that drope wrote is given the rotation that its `drope.json` records (its weights stay as
    they are: recalibrated, with the temperature folded in).

    Parameters
    ----------
    source : where such a checkpoint's `drope.json` is; by default, where the model was loaded from

    Raises
    ------
    DropeError : the model was loaded position free and no record of its rotation can be found
    """
    modules = rotary_modules(model)
    changed = [module for module in modules.values() if hasattr(module, _MEMORY)]
    for module in changed:
        unstop(module)
    if not changed and is_position_free(model):
        from drope.models.rebuild import give_rotation_back  # it builds on this file

        give_rotation_back(model, source)
        if is_position_free(model):
            raise DropeError(
                f"{type(model).__name__} was loaded with layers that skip the rotation, which cannot be changed in a "
                "loaded model: load the original checkpoint instead."
            )
    return model


def is_position_free(model: nn.Module) -> bool:
    """Whether no layer rotates: after `drop`, or loaded from a checkpoint that drope wrote.

    Models without rotary modules are not position free: they hold positions elsewhere or cannot be judged.
    """
    config = getattr(model, "config", None)
    if config is not None and skips_rotation(config):
        return True
    try:
        modules = rotary_modules(model)
    except UnsupportedModelError:
        return False
    return all(is_still(module) for module in modules.values())


def is_still(module: nn.Module) -> bool:
    """Whether a rotary module rotates by nothing, now and whatever the length."""
    kinds = getattr(module, "rope_type", "default")
    kinds = list(kinds.values()) if isinstance(kinds, dict) else [kinds]
    if any("dynamic" in kind for kind in kinds):
        return False
    # the long factors of LongRoPE are not in the buffers: the configuration has to say that they stop it too
    if "longrope" in kinds and not stops_rotation(cast(Any, module.config)):
        return False
    return all(buffer.abs().max().item() <= _STILL for buffer in frequencies(module).values())


def stop(module: nn.Module) -> None:
    """Stop one rotary module."""
    _remember(module)
    _freeze(module)
    for name, buffer in frequencies(module).items():
        _write(module, name, torch.zeros_like(buffer))
    for name in _scaling_names(module):
        setattr(module, name, 1.0)


def unstop(module: nn.Module) -> None:
    """Put one rotary module back to what it was before `stop` or `scale_frequencies`."""
    original: _Original | None = getattr(module, _MEMORY, None)
    if original is None:
        return
    for name, buffer in original.buffers.items():
        current = module._buffers.get(name)
        setattr(module, name, buffer.clone() if current is None else buffer.to(current.device, copy=True))
    for name, value in original.attributes.items():
        setattr(module, name, value)
    delattr(module, _MEMORY)


def clone(module: nn.Module) -> nn.Module:
    """A copy of a rotary module that shares nothing with it but its configuration."""
    config = getattr(module, "config", None)
    return copy.deepcopy(module, {} if config is None else {id(config): config})


def _remember(module: nn.Module) -> _Original:
    """Keep what a module is, once."""
    original: _Original | None = getattr(module, _MEMORY, None)
    if original is None:
        buffers = {name: buffer.detach().clone() for name, buffer in _buffers(module).items()}
        attributes = {name: copy.copy(getattr(module, name)) for name in _steering_names(module)}
        original = _Original(buffers, attributes)
        setattr(module, _MEMORY, original)
    return original


def _freeze(module: nn.Module) -> None:
    """Keep a module from recomputing its frequencies as inputs grow (dynamic NTK, LongRoPE)."""
    kinds = getattr(module, "rope_type", None)
    if kinds is not None:
        setattr(module, "rope_type", dict.fromkeys(kinds, "default") if isinstance(kinds, dict) else "default")  # noqa: B010


def _buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    """All frequency buffers of a module, the untouched copies included."""
    return {k: v for k, v in module._buffers.items() if v is not None and k.endswith("inv_freq")}


def _write(module: nn.Module, name: str, value: torch.Tensor) -> None:
    """Set a frequency buffer and the untouched copy that a stock module keeps beside it."""
    setattr(module, name, value)
    twin = name.removesuffix("inv_freq") + "original_inv_freq"
    if isinstance(getattr(module, twin, None), torch.Tensor):
        setattr(module, twin, value.clone())


def _scaling_names(module: nn.Module) -> Iterator[str]:
    return (k for k, v in list(vars(module).items()) if k.endswith("attention_scaling") and isinstance(v, (int, float)))


def _steering_names(module: nn.Module) -> list[str]:
    """Plain attributes that dynamic updates read or write."""
    endings = ("attention_scaling", "rope_type", "max_seq_len_cached", "original_max_seq_len", "long_inv_freq")
    return [name for name in vars(module) if name.endswith(endings)]
