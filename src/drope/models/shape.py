"""The rotary geometry of a model, read from its configuration alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from drope.errors import InputError, UnsupportedModelError
from drope.models.support import check_supported, family
from drope.positions import RopeShape

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_STOPPED = 1e15  # a factor that divides every frequency by this much leaves no rotation (drope writes 1e20)


def rope_shape(config: PreTrainedConfig) -> RopeShape:
    """θ, rotated width in channels and trained context C_train in tokens.

    C_train is `original_max_position_embeddings` where the configuration scales its own rotation (or was written by
    drope, which may also note it as `drope_context`), and `max_position_embeddings` otherwise. Where layer types have
    rotations of their own, the shape is that of the global attention.

    Raises
    ------
    UnsupportedModelError : the family has no rotation, by name and with the reason
    """
    check_supported(config)
    text = config.get_text_config(decoder=True)
    parameters = rope_parameters(text)
    if parameters is None or not parameters.get("rope_theta"):
        raise UnsupportedModelError(
            f"{family(config)} cannot be converted: its configuration has no rotary base (rope_parameters.rope_theta)."
        )
    context = text.max_position_embeddings
    if parameters.get("rope_type", "default") != "default":
        own = parameters.get("original_max_position_embeddings")
        context = own or getattr(text, "original_max_position_embeddings", None) or context
    context = getattr(text, "drope_context", None) or context
    width = head_width(text)
    rotated = int(width * float(parameters.get("partial_rotary_factor") or 1.0))
    theta = float(parameters["rope_theta"])
    if parameters.get("rope_type") == "proportional" and not _stopped(parameters):
        theta **= rotated / width  # exponents run over the whole head (Gemma 4): the same ω_m, written over the part
    layers = int(getattr(text, "num_hidden_layers", 0) or 0)
    return RopeShape(theta=theta, head_dim=rotated, context=int(context), layers=layers)


def declare_context(config: PreTrainedConfig, tokens: int | None) -> int | None:
    """Have a configuration count fewer tokens as C_train than it was trained at, and return the true number;
    None leaves it as it is, and returns None.

    For the mechanics: methods then scale from `tokens`, so that short texts show what they do. The weights know longer
    distances, so nothing that is measured beyond `tokens` compares methods fairly.

    Raises
    ------
    InputError : less than one token, or more than the trained context
    """
    if tokens is None:
        return None
    own = rope_shape(config).context
    if isinstance(tokens, bool) or not isinstance(tokens, int) or not 1 <= tokens <= own:
        raise InputError("context", tokens, f"1 to {own} tokens, the context that the model was trained at")
    text: Any = config.get_text_config(decoder=True)
    text.drope_context = tokens
    return own


def rope_parameters(config: PreTrainedConfig) -> dict[str, Any] | None:
    """The (global) `rope_parameters` of a text configuration as one flat dict; None where there are none."""
    text = config.get_text_config(decoder=True)
    parameters = getattr(text, "rope_parameters", None)
    if not parameters:
        return None
    nested = layer_type_keys(text)
    if nested:
        chosen = [parameters[key] for key in ("full_attention", *nested) if parameters.get(key)]
        return dict(chosen[0]) if chosen else None
    return dict(parameters)


def layer_type_keys(config: PreTrainedConfig) -> list[str]:
    """The layer types that a configuration nests its `rope_parameters` under (Gemma 3 and others), or []."""
    parameters = getattr(config, "rope_parameters", None) or {}
    return [key for key, value in parameters.items() if isinstance(value, dict) and "rope_type" in value]


def stops_rotation(config: PreTrainedConfig) -> bool:
    """Whether a configuration already says "no rotation", as those that drope writes do."""
    if skips_rotation(config):
        return True
    text = config.get_text_config(decoder=True)
    parameters = getattr(text, "rope_parameters", None)
    if not parameters:
        return False
    flat = [parameters[key] for key in layer_type_keys(text)] or [parameters]
    return all(_stopped(p) for p in flat)


def skips_rotation(config: PreTrainedConfig) -> bool:
    """Whether every layer skips its rotary module (SmolLM3, Llama 4), so that its frequencies do not count."""
    layers = getattr(config.get_text_config(decoder=True), "no_rope_layers", None)
    return bool(layers) and not any(layers or ())  # 1 = rotate, 0 = do not


def _stopped(parameters: dict[str, Any]) -> bool:
    if parameters.get("rope_type") == "proportional" and parameters.get("partial_rotary_factor") == 0:
        return True
    if parameters.get("rope_type") == "longrope":
        return min([*parameters["short_factor"], *parameters["long_factor"]]) >= _STOPPED
    if float(parameters.get("factor") or 1.0) < _STOPPED:
        return False
    kind = parameters.get("rope_type")
    if kind == "llama3":  # only wavelengths above original / low_freq_factor are divided; the shortest is 2π
        return parameters["original_max_position_embeddings"] / parameters["low_freq_factor"] < 6.28
    return kind in ("linear", "proportional")


def head_width(config: PreTrainedConfig) -> int:
    """Channels of a head that its rotary module is built for."""
    latent = getattr(config, "qk_rope_head_dim", None)  # DeepSeek: only this part of a head is rotated
    if latent:
        return int(latent)
    if getattr(config, "is_heterogeneous", False):  # Gemma 4: widths differ by layer type
        config = cast(Any, config).per_layer_config["full_attention"]
    width = getattr(config, "global_head_dim", None) or getattr(config, "head_dim", None)
    return int(width or config.hidden_size // config.num_attention_heads)
