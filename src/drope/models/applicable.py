"""Whether a model can run a positional method, judged from its configuration: before any weights load."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from drope.errors import InputError, UnsupportedModelError
from drope.models.shape import rope_shape
from drope.models.support import family
from drope.positions import METHODS, Method, Requirements, RopeShape

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Llama-shaped: one rotary module for all layers, channel m rotates with m + d/2, attention through the interface of
# transformers with nothing but a scaling. Each is tested: `drope` attention equals the family's own.
ATTENTION_FAMILIES = (
    "llama", "mistral", "ministral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3", "olmo2",
    "granite", "gemma", "phi", "phi3", "stablelm", "starcoder2", "gpt_neox",
)  # fmt: skip
# Windows, temperatures and layers without rotation leave the rotation to the model, so that any layout of it will do.
WINDOW_FAMILIES = (*ATTENTION_FAMILIES, "olmo3", "cohere", "cohere2", "glm", "glm4", "olmo", "nemotron", "helium")
LAYER_FAMILIES = (*WINDOW_FAMILIES, "gemma2")
_REASONS = {
    "gpt_oss": "its attention has sinks",
    "gemma2": "its attention caps the scores",
    "olmo3": "its layer types have rotations of their own",
    "gemma3_text": "its layer types have rotations of their own",
    "gemma4_text": "its layer types have rotations of their own",
    "deepseek_v2": "its keys are latent",
    "deepseek_v3": "its keys are latent",
    "llama4_text": "its attention is chunked and its rotation complex",
    **dict.fromkeys(("cohere", "cohere2", "glm", "glm4", "helium"), "its rotation pairs neighbouring channels"),
    **dict.fromkeys(("lfm2", "qwen3_next", "bamba", "jamba"), "not all of its layers are softmax attention"),
}


def check_method(config: PreTrainedConfig, method: Method, length: int) -> Requirements:
    """What the method asks of models of this configuration at `length` tokens; raises where they cannot carry it out.

    Raises
    ------
    InputError : a setting that cannot be for this context, or weights that were not trained for the method
    UnsupportedModelError : a family that cannot carry it out, naming those that can
    """
    shape = rope_shape(config)
    if reason := untrained_reason(config, method):
        raise InputError("method", method.name, _untrained(), reason)
    requirements = method.requirements(shape, length)
    check_requirements(config, method, requirements, shape)
    return requirements


def check_requirements(config: Any, method: Method, requirements: Requirements, shape: RopeShape) -> None:
    """Raise `UnsupportedModelError` for a family that cannot carry out what a method asks for."""
    kind = config.get_text_config(decoder=True).model_type
    if requirements.attention is not None and requirements.attention.rotates and kind not in ATTENTION_FAMILIES:
        _refuse(config, method, "an attention function that rotates q and k itself", ATTENTION_FAMILIES)
    if requirements.own_attention and kind not in WINDOW_FAMILIES:
        _refuse(config, method, "its own attention function", WINDOW_FAMILIES)
    if any(not plan.rotate for plan in requirements.layers or ()) and kind not in LAYER_FAMILIES:
        _refuse(config, method, "layers without rotation", LAYER_FAMILIES)
    if requirements.layers is not None and len(requirements.layers) != shape.layers:
        raise InputError("layers", len(requirements.layers), f"one plan for each of the {shape.layers} layers")
    scale = requirements.frequency_scale
    if scale is not None and len(scale) != shape.pairs:
        raise InputError("frequency_scale", len(scale), f"one number for each of the {shape.pairs} rotated pairs")


def untrained_reason(config: PreTrainedConfig, method: Method) -> str | None:
    """Why weights of this configuration cannot be expected to run a from-scratch architecture; None where they can."""
    if not method.from_scratch or trained_for(config) == method.name:
        return None
    trained = trained_for(config) or "rope"
    return (
        f"{method.label} is an architecture to train from scratch; the weights of {family(config)} were trained "
        f"with {METHODS[trained].label if trained in METHODS else trained}."
    )


def trained_for(config: PreTrainedConfig) -> str | None:
    """The method that `mark_trained` noted: the architecture of the weights; None where the config says it all."""
    noted = getattr(config.get_text_config(decoder=True), "drope_method", None)
    return noted["method"] if isinstance(noted, dict) else None


def mark_trained(config: PreTrainedConfig, method: Method) -> None:
    """Note in a configuration that its weights are (to be) trained with a method; it is kept in config.json.

    Stock engines ignore the note. Training from scratch sets it before its first step.
    """
    text: Any = config.get_text_config(decoder=True)
    text.drope_method = {"method": method.name, "settings": method.settings()}


def _untrained() -> str:
    return ", ".join(name for name, cls in METHODS.items() if not cls.from_scratch)


def _refuse(config: Any, method: Method, what: str, families: tuple[str, ...]) -> None:
    reason = _REASONS.get(config.get_text_config(decoder=True).model_type)
    why = f": {reason}" if reason else ""
    raise UnsupportedModelError(
        f"{family(config)} cannot run {method.label}, which needs {what}{why}. "
        f"Families that can: {', '.join(sorted(families))}."
    )
