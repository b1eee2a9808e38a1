"""What each family's weights and settings are called in a GGUF file, as llama.cpp reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import gguf
    import torch
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Layout:
    """How a family is written.

    Parameters
    ----------
    arch : name of llama.cpp's architecture, a member of `gguf.MODEL_ARCH`
    interleaved : its rotation pairs neighbouring channels, so rows of q and k are reordered (as in every such file)
    norm_offset : added to the gains of norms (Gemma stores w for a gain of 1 + w)
    layer_norm : norms subtract the mean
    fused : name of a fused projection whose rows are q, k, v per head
    settings : metadata beyond what all share
    """

    arch: str
    interleaved: bool = False
    norm_offset: float = 0.0
    layer_norm: bool = False
    fused: str | None = None
    settings: Callable[[gguf.GGUFWriter, PretrainedConfig], None] | None = None


def _granite(writer: gguf.GGUFWriter, config: PretrainedConfig) -> None:
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_attention_scale(config.attention_multiplier)
    writer.add_logit_scale(config.logits_scaling)


def _parallel(writer: gguf.GGUFWriter, config: PretrainedConfig) -> None:
    writer.add_parallel_residual(getattr(config, "use_parallel_residual", True))


def _experts(writer: gguf.GGUFWriter, config: PretrainedConfig) -> None:
    writer.add_expert_count(getattr(config, "num_local_experts", None) or config.num_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    if width := getattr(config, "moe_intermediate_size", None):
        writer.add_expert_feed_forward_length(width)


LAYOUTS: dict[str, Layout] = {
    "llama": Layout("LLAMA", interleaved=True),
    "mistral": Layout("LLAMA", interleaved=True),
    "mixtral": Layout("LLAMA", interleaved=True, settings=_experts),
    "granite": Layout("GRANITE", interleaved=True, settings=_granite),
    "qwen2": Layout("QWEN2"),
    "qwen3": Layout("QWEN3"),
    "qwen3_moe": Layout("QWEN3MOE", settings=_experts),
    "olmo2": Layout("OLMO2"),
    "gemma": Layout("GEMMA", norm_offset=1.0),
    "phi": Layout("PHI2", layer_norm=True),
    "stablelm": Layout("STABLELM", layer_norm=True, settings=_parallel),
    "gpt_neox": Layout("GPTNEOX", layer_norm=True, fused="query_key_value", settings=_parallel),
}


def refusal(config: PretrainedConfig, target_length: int) -> str | None:
    """Why models of this config are not written to GGUF, or None where they are."""
    kind = config.model_type
    if kind not in LAYOUTS:
        return (
            f"{kind!r} is none of the families whose GGUF layout drope writes and checks against llama.cpp: "
            f"{', '.join(LAYOUTS)}"
        )
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    slides = "sliding_attention" in types if types else window and getattr(config, "use_sliding_window", True)
    if slides and window and window < target_length:
        return f"llama.cpp's {LAYOUTS[kind].arch.lower()} has no sliding windows ({window} tokens here)"
    if kind == "qwen3_moe" and (getattr(config, "mlp_only_layers", None) or config.decoder_sparse_step != 1):
        return "llama.cpp's qwen3moe has experts in every layer, this model does not"
    if kind == "qwen3_moe" and not config.norm_topk_prob:
        return "llama.cpp's qwen3moe normalises the weights of the chosen experts, this model does not"
    if kind == "phi" and getattr(config, "qk_layernorm", False):
        return "llama.cpp's phi2 has no norm on q and k"
    if kind == "stablelm" and getattr(config, "qk_layernorm", False):
        return "norms by head on q and k of stablelm are not written"
    if kind in ("gemma", "granite") and getattr(config, "attention_bias", False):
        return f"llama.cpp's {kind} has no attention biases"
    if kind == "qwen3" and getattr(config, "attention_bias", False):
        return "llama.cpp's qwen3 has no attention biases"
    activation = getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", None)
    expected = {"phi": ("gelu_new", "gelu_pytorch_tanh"), "gpt_neox": ("gelu",)}.get(kind, ("silu", "swish"))
    if kind != "gemma" and activation not in expected:
        return f"llama.cpp's {kind} computes {expected[0]!r}, this model {activation!r}"
    return None


def reorder(weight: torch.Tensor, heads: int, rotated: int) -> torch.Tensor:
    """Rows of q or k, from halves (i, i + D/2) to neighbours (2i, 2i + 1): the order of interleaved rotations."""
    width = weight.shape[0] // heads
    import torch

    split = weight.reshape(heads, width, -1)
    turned = split[:, :rotated].reshape(heads, 2, rotated // 2, -1).transpose(1, 2).reshape(heads, rotated, -1)
    parts = [turned] if rotated == width else [turned, split[:, rotated:]]
    return torch.cat(parts, 1).reshape(weight.shape)


def unfuse(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a fused projection from q, k, v per head to all q, all k, all v."""
    width = weight.shape[0] // (3 * heads)
    return weight.reshape(heads, 3, width, -1).transpose(0, 1).reshape(weight.shape)


def expert_of(name: str) -> tuple[str, int] | None:
    """`...experts.3.gate_proj.weight` -> (`...experts.gate_proj.weight`, 3)."""
    parts = name.split(".")
    if "experts" not in parts:
        return None
    at = parts.index("experts")
    if at + 1 < len(parts) and parts[at + 1].isdigit():
        return ".".join(parts[: at + 1] + parts[at + 2 :]), int(parts[at + 1])
    return None


def kv_heads(config: Any) -> int:
    """Heads of keys and values; GPT-NeoX has as many as query heads, whatever its config says."""
    if LAYOUTS[config.model_type].fused:
        return int(config.num_attention_heads)
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def rotated_width(config: Any, head_dim: int) -> int:
    """Channels of a head that the family rotates."""
    parameters = getattr(config, "rope_parameters", None) or {}
    return int(head_dim * float(parameters.get("partial_rotary_factor") or 1.0))
