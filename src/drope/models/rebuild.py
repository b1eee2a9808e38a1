"""Building a rotary module anew through its own stock class, from a changed copy of its configuration."""

from __future__ import annotations

import copy
import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from drope.errors import DropeError, UnsupportedModelError
from drope.models.rotary import frequencies, rotary_modules
from drope.models.shape import layer_type_keys
from drope.positions import Method, RopeShape
from drope.positions.frequencies import inverse_frequencies

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# keys that say how frequencies are made; others (partial_rotary_factor, mrope_section) belong to the architecture
_SCALING_KEYS = {
    *("rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings", "attention_factor"),
    *("beta_fast", "beta_slow", "short_factor", "long_factor", "low_freq_factor", "high_freq_factor"),
    *("mscale", "mscale_all_dim", "truncate"),
}


def rebuild(module: nn.Module, parameters: dict[str, Any], **settings: Any) -> nn.Module:
    """A new rotary module of the same class, for other `rope_parameters`. The given module is not touched.

    Parameters
    ----------
    parameters : stock `rope_parameters`, whole (nested by layer type where the configuration nests them)
    settings : further fields of the configuration, such as `max_position_embeddings`

    Raises
    ------
    UnsupportedModelError : the class cannot be built from a configuration, or does not know the rope type
    """
    kind = type(module)
    config = getattr(module, "config", None)
    accepted = inspect.signature(kind.__init__).parameters
    if config is None or "config" not in accepted:
        raise UnsupportedModelError(
            f"{kind.__name__} cannot be rebuilt with other frequencies: it is not made from a configuration. "
            "Dropping the rotation works; RoPE scaling methods do not."
        )
    changed = copy.deepcopy(config)
    changed.rope_parameters = copy.deepcopy(parameters)
    for name, value in settings.items():
        setattr(changed, name, value)
    device = next(iter(frequencies(module).values())).device
    try:
        with torch.device("cpu"):  # even where the model was laid out on the meta device
            new = kind(config=changed)
    except (KeyError, ValueError, TypeError) as error:
        message = f"{kind.__name__} does not carry out rope_parameters {parameters}: {error}."
        raise UnsupportedModelError(message) from error
    return new.to("cpu" if device.type == "meta" else device).train(module.training)


def method_parameters(config: PreTrainedConfig, parameters: dict[str, Any]) -> dict[str, Any]:
    """Whole `rope_parameters` for a configuration from a method's flat ones.

    Where layer types have rotations of their own, only the global attention is scaled: windows stay within C_train.
    """
    own = copy.deepcopy(config.rope_parameters)
    keys = layer_type_keys(config)
    if not keys:
        return {**_architecture(own), **parameters}
    for key in keys if "full_attention" not in keys else ["full_attention"]:
        own[key] = {**_architecture(own[key]), **parameters}
    return own


def rebuild_for(
    module: nn.Module, parameters: dict[str, Any], shape: RopeShape, method: Method, length: int
) -> nn.Module:
    """The rotary module that a RoPE-scaling method asks for; checked against the method's own frequencies."""
    config: Any = getattr(module, "config", None)
    if config is None:
        return rebuild(module, parameters)  # which refuses
    settings: dict[str, Any] = {}
    if parameters["rope_type"] == "dynamic":
        settings["max_position_embeddings"] = shape.context  # stock dynamic NTK grows the base from this length on
    if hasattr(config, "original_max_position_embeddings"):
        settings["original_max_position_embeddings"] = shape.context
    new = rebuild(module, method_parameters(config, parameters), **settings)
    buffers = frequencies(new)
    made = buffers.get("full_attention_inv_freq", next(iter(buffers.values()))).double().cpu()
    expected = inverse_frequencies(shape)
    if parameters["rope_type"] != "dynamic":  # which starts from plain RoPE and follows the input
        expected = expected * method.scaling(shape, length)
    same_layout = {k: v.shape for k, v in buffers.items()} == {k: v.shape for k, v in frequencies(module).items()}
    if not same_layout or made.shape != expected.shape or not torch.allclose(made, expected, rtol=1e-3):
        raise UnsupportedModelError(
            f"{type(module).__name__} does not carry out {method.label} (rope_type {parameters['rope_type']!r}): "
            "the frequencies that it makes are not the method's. Leave this method out for this model."
        )
    return new


def give_rotation_back(model: Any, source: str | None = None) -> None:
    """Give a checkpoint that drope wrote the rotation that its `drope.json` records: its modules and configuration."""
    recorded = recorded_rotation(model, source)
    for module in rotary_modules(model).values():
        new = rebuild(module, recorded)
        module.__dict__.update({k: v for k, v in vars(new).items() if not k.startswith("_") and k != "config"})
        for name, buffer in new._buffers.items():
            setattr(module, name, buffer)
    text = model.config.get_text_config(decoder=True)
    text.rope_parameters = copy.deepcopy(recorded)


def recorded_rotation(model: Any, source: str | None = None) -> dict[str, Any]:
    """The original `rope_parameters` of a checkpoint that drope wrote, from its `drope.json`.

    Raises
    ------
    DropeError : there is no such record where the model came from
    """
    place = source or getattr(model, "name_or_path", "") or ""
    try:
        text = _drope_json(place)
        parameters = json.loads(text)["original"]["rope_parameters"]
        if not parameters:
            raise KeyError("rope_parameters")
        return dict(parameters)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DropeError(
            "This model was loaded without rotation and its original one is not known: "
            f"no drope.json with original.rope_parameters at {place or '(unknown place)'}. "
            "Pass the folder or hub id of the checkpoint that drope wrote as `source`, or load the original model."
        ) from error


def _drope_json(place: str) -> str:
    folder = Path(place).expanduser()
    if not place or folder.exists() or folder.is_absolute():
        return ((folder if folder.is_dir() else folder.parent) / "drope.json").read_text(encoding="utf-8")
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(place, "drope.json")).read_text(encoding="utf-8")


def _architecture(parameters: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in parameters.items() if key not in _SCALING_KEYS}
