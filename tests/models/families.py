"""Tiny random models of many families, sharp enough for positions to matter."""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig

CONTEXT = 64
_SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}
_WIDE = {"head_dim": 8, "query_pre_attn_scalar": 8}
_GEMMA_LAYERS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": CONTEXT}
_PLAIN = {"rope_type": "default", "rope_theta": 1e4}
_PROPORTIONAL = {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.5}
_LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2,
    "moe_intermediate_size": 16, "first_k_dense_replace": 1, "num_key_value_heads": 4,
}  # fmt: skip

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaConfig", {}),
    "Mistral": ("MistralConfig", {"sliding_window": 20}),
    "Qwen2": ("Qwen2Config", {}),
    "Qwen3": ("Qwen3Config", {"head_dim": 8}),
    "Gemma": ("GemmaConfig", {"head_dim": 8}),
    "Gemma2": ("Gemma2Config", _WIDE | {"sliding_window": 16}),
    "Gemma3": ("Gemma3TextConfig", _WIDE | _GEMMA_LAYERS),
    "Gemma4": (
        "Gemma4TextConfig",
        _GEMMA_LAYERS
        | {"head_dim": 8, "global_head_dim": 8, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0}
        | {"rope_parameters": {"sliding_attention": _PLAIN, "full_attention": _PROPORTIONAL}},
    ),
    "LFM2": ("Lfm2Config", {"layer_types": ["conv", "full_attention"]}),
    "Phi": ("PhiConfig", {}),
    "Phi3": ("Phi3Config", {"original_max_position_embeddings": CONTEXT}),
    "GPT-NeoX": (
        "GPTNeoXConfig",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    ),
    "StableLM": ("StableLmConfig", {}),
    "OLMo2": ("Olmo2Config", {}),
    "Olmo3": ("Olmo3Config", _GEMMA_LAYERS),
    "SmolLM3": ("SmolLM3Config", {"no_rope_layers": [1, 0]}),
    "Granite": ("GraniteConfig", {"attention_multiplier": 0.3}),
    "Cohere": ("CohereConfig", {}),
    "Cohere2": ("Cohere2Config", _GEMMA_LAYERS),
    "Mixtral": ("MixtralConfig", _MOE),
    "Qwen3-MoE": (
        "Qwen3MoeConfig",
        {
            "head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "norm_topk_prob": True,
        },
    ),
    "GPT-OSS": (
        "GptOssConfig",
        _MOE | _GEMMA_LAYERS | {"head_dim": 8, "max_position_embeddings": 4 * CONTEXT, "rope_parameters": _YARN},
    ),
    "DeepSeek-V2": ("DeepseekV2Config", _LATENT | {"topk_method": "greedy"}),
    "DeepSeek-V3": ("DeepseekV3Config", _LATENT),
}


def config(family: str, **changes: Any) -> Any:
    """A tiny configuration of a family."""
    name, extra = FAMILIES[family]
    return getattr(transformers, name)(**copy.deepcopy({**_SIZES, **extra, **changes}))


def model(family: str, seed: int = 0, **changes: Any) -> Any:
    """A random float32 model whose attention is far from uniform."""
    return from_config(config(family, **changes), seed)


def from_config(cfg: PreTrainedConfig, seed: int = 0) -> Any:
    made = transformers.AutoModelForCausalLM.from_config(cfg, dtype=torch.float32, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() >= 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * (1.5 / parameter.shape[-1] ** 0.5))
    return made


def tokens(count: int = 24, seed: int = 1) -> torch.Tensor:
    """Random ids, shape (1, count)."""
    return torch.randint(3, 96, (1, count), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(made: Any, ids: torch.Tensor | None = None) -> torch.Tensor:
    """Logits of the full forward, shape (1, T, V)."""
    return made(input_ids=tokens() if ids is None else ids, use_cache=False).logits
