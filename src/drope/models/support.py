"""Which model families can lose their rotation, and why the others cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from drope.errors import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_LEARNED = "it adds learned position embeddings to the token embeddings, and has no rotation to drop"
_SINUSOIDAL = "it adds sinusoidal position embeddings to the token embeddings, and has no rotation to drop"
_ALIBI = "it uses ALiBi, a bias on attention scores that grows with distance, and has no rotation to drop"
_NO_MODULE = "it rotates inside its attention layers, without a rotary module whose frequencies could be set"
_RECOMPUTED = "its rotary module makes its frequencies anew in every call, so they cannot be set"
_RECURRENT = "it mixes recurrent layers, which carry position of their own, with windowed attention"
_NO_ATTENTION = "it is recurrent: it has no attention layers with positions to drop"
_ENCODER_DECODER = "it is an encoder-decoder model; only decoder-only language models can be converted"

_REASONS: dict[str, str] = {
    **dict.fromkeys(("gpt2", "opt", "gpt_neo", "gpt_bigcode", "openai-gpt", "biogpt", "bert", "roberta"), _LEARNED),
    **dict.fromkeys(("xglm", "ctrl"), _SINUSOIDAL),
    **dict.fromkeys(("bloom", "mpt"), _ALIBI),
    **dict.fromkeys(("gptj", "codegen"), _NO_MODULE),
    "phimoe": _RECOMPUTED,
    "recurrent_gemma": _RECURRENT,
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm"), _NO_ATTENTION),
}


def unsupported_reason(config: PreTrainedConfig) -> str | None:
    """Why models of this configuration cannot be converted, or None where nothing in the configuration forbids it.

    Families that are not listed are judged by their modules, when the model is there (`models.drop`).
    """
    if getattr(config, "is_encoder_decoder", False):
        return _ENCODER_DECODER
    text = config.get_text_config(decoder=True)
    if text.model_type in _REASONS:
        return _REASONS[text.model_type]
    if getattr(text, "alibi", False):
        return _ALIBI
    return None


def check_supported(config: PreTrainedConfig) -> None:
    """Raise `UnsupportedModelError`, naming the family and the reason, for a family that cannot be converted."""
    reason = unsupported_reason(config)
    if reason is not None:
        raise UnsupportedModelError(f"{family(config)} cannot be converted: {reason}.")


def family(config: PreTrainedConfig) -> str:
    """The name of a model's family for messages: its class and type, such as `GPT2LMHeadModel (gpt2)`."""
    architectures = getattr(config, "architectures", None)
    kind = getattr(config, "model_type", "") or type(config).__name__
    return f"{architectures[0]} ({kind})" if architectures else kind
