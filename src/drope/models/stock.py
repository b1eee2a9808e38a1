"""The stock configuration that says what a positional method does, where there is one."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, NoReturn

from drope.errors import UnsupportedModelError
from drope.models.applicable import check_method
from drope.models.encoding import FACTOR
from drope.models.rebuild import method_parameters
from drope.models.shape import rope_parameters, rope_shape
from drope.models.support import family
from drope.positions import Method, Requirements

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_LLAMA_SHAPED = ("llama", "mistral", "smollm3")  # whose weights are those of SmolLM3, name for name
_LLAMA_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "hidden_act", "initializer_range", "rms_norm_eps", "use_cache", "pad_token_id", "bos_token_id", "eos_token_id",
    "attention_bias", "attention_dropout", "mlp_bias", "tie_word_embeddings", "head_dim", "dtype",
)  # fmt: skip


def stock_config(config: PreTrainedConfig, method: Method, length: int) -> PreTrainedConfig:
    """A stock configuration under which the same weights compute what `apply` does with `method` at `length` tokens.

    It may be of another class: layers without rotation or with windows make a Llama-shaped model a SmolLM3. A method
    that takes the rotation out of every layer is what `encoding.encode` is for.

    Raises
    ------
    UnsupportedModelError : no stock configuration says it; the message names the method and what can run it
    InputError, UnsupportedModelError : as `check_method`
    """
    requirements = check_method(config, method, length)
    shape = rope_shape(config)
    own = rope_parameters(config) or {}
    if requirements.own_attention and not _windows_only(requirements) or requirements.crop is not None:
        refuse(method, "it changes what the attention computes, which no stock configuration says")
    if requirements.layers is not None:
        return _smollm3(config, method, requirements, length)
    parameters = requirements.rope_parameters
    if hasattr(method, "stock_parameters") and parameters is not None:
        parameters = method.stock_parameters(shape, length)  # its own rotation within the trained context
    if requirements.frequency_scale is not None:
        if own.get("rope_type", "default") != "default":
            refuse(method, f"this model scales its own frequencies already ({own['rope_type']})")
        factors = [1 / gamma if gamma > 1 / FACTOR else FACTOR for gamma in requirements.frequency_scale]
        parameters = {
            "rope_type": "longrope", "rope_theta": float(own["rope_theta"]), "short_factor": factors,
            "long_factor": list(factors), "factor": 1.0, "attention_factor": float(requirements.attention_factor),
            "original_max_position_embeddings": length,
        }  # fmt: skip
    new = copy.deepcopy(config)
    text: Any = new.get_text_config(decoder=True)
    text.drope_context = shape.context  # for `rope_shape`: not every rope type has a place for it
    if parameters is None:
        text.max_position_embeddings = max(length, text.max_position_embeddings)
        return new
    text.rope_parameters = method_parameters(text, parameters)
    dynamic = parameters["rope_type"] == "dynamic"  # grows its base from max_position_embeddings on
    text.max_position_embeddings = shape.context if dynamic else length
    key = "original_max_position_embeddings"
    if hasattr(text, key) or key not in parameters:
        setattr(text, key, parameters.get(key, shape.context))
    return new


def refuse(method: Method, reason: str) -> NoReturn:
    """Say that a method cannot be saved, and what can run it."""
    others = f" Elsewhere it is served by {method.served_by}." if method.served_by else ""
    raise UnsupportedModelError(
        f"{method.label} cannot be saved as a stock checkpoint: {reason}. In this library it runs under "
        f"drope.apply(model, method, length), on the checkpoint as it is.{others}"
    )


def _windows_only(requirements: Requirements) -> bool:
    scaled = any(plan.query_scale for plan in requirements.layers or ())
    return requirements.attention is None and requirements.query_scale is None and not scaled


def _smollm3(config: Any, method: Method, requirements: Requirements, length: int) -> Any:
    """SmolLM3 with layers without rotation and, where there are windows, layers that slide."""
    from transformers import SmolLM3Config

    if config.model_type not in _LLAMA_SHAPED:
        refuse(method, f"{family(config)} has no stock class with such layers")
    if getattr(config, "sliding_window", None) and config.model_type != "smollm3":
        refuse(method, f"{family(config)} has a sliding window of its own")
    if getattr(config, "use_sliding_window", False) and config.model_type == "smollm3":
        refuse(method, f"{family(config)} has a sliding window of its own")
    plans = requirements.layers or ()
    windows = {plan.window for plan in plans if plan.window}
    if len(windows) > 1:
        refuse(method, f"stock configurations have one window, and this has {len(windows)}")
    rotates = getattr(config, "no_rope_layers", None) or [1] * len(plans)  # 1 = rotate
    values = {name: getattr(config, name) for name in _LLAMA_FIELDS if getattr(config, name, None) is not None}
    values |= {"pad_token_id": config.pad_token_id}  # SmolLM3's default lies beyond small vocabularies
    new = SmolLM3Config(
        **values,
        rope_parameters=copy.deepcopy(config.rope_parameters),
        max_position_embeddings=length,
        no_rope_layers=[int(plan.rotate and own) for plan, own in zip(plans, rotates, strict=True)],
        layer_types=["sliding_attention" if plan.window else "full_attention" for plan in plans],
        use_sliding_window=bool(windows),
        sliding_window=windows.pop() if windows else None,
    )
    new.drope_context = rope_shape(config).context
    if note := getattr(config, "drope_method", None):
        new.drope_method = note
    return new
