"""A small random model of a config's class and rotary settings, to prove the config on without its weights."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

from drope.errors import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

VOCABULARY = 128
MOST_PARAMETERS = 300_000_000  # 1.2 GB in float32: more is not a "tiny" model any more
_WIDTHS = ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "ffn_hidden_size",
           "intermediate_size_mlp", "shared_intermediate_size", "hidden_size_per_layer_input")  # fmt: skip
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def tiny_config(config: PretrainedConfig, *, narrow: bool = True) -> PretrainedConfig:
    """A copy of a text config with one layer of each kind and a small vocabulary; widths shrink too if `narrow`.

    Everything that the rotation depends on stays: head widths, `rope_parameters`, layer types, the trained context.
    """
    values: dict[str, Any] = copy.deepcopy(config.to_dict())
    layers = values["num_hidden_layers"]
    kept = _layers_of_each_kind(values, layers)
    for key, value in values.items():
        if isinstance(value, list) and len(value) == layers:
            values[key] = [value[i] for i in kept]
    if isinstance(attention := values.get("attn_layer_indices"), list):  # Bamba: which layers are not recurrent
        values["attn_layer_indices"] = [new for new, old in enumerate(kept) if old in attention]
    if isinstance(by_layer := values.get("per_layer_config"), dict):  # Gemma 4: settings by layer number
        own = {int(key): value for key, value in by_layer.items()}
        values["per_layer_config"] = {str(new): own[old] for new, old in enumerate(kept) if old in own}
    values["num_hidden_layers"] = len(kept)
    values["vocab_size"] = VOCABULARY
    if isinstance(values.get("vocab_size_per_layer_input"), int):
        values["vocab_size_per_layer_input"] = VOCABULARY
    if isinstance(values.get("num_kv_shared_layers"), int):
        values["num_kv_shared_layers"] = 0
    if isinstance(values.get("first_k_dense_replace"), int):
        values["first_k_dense_replace"] = min(values["first_k_dense_replace"], 1)
    for key in _TOKENS:
        if key in values:
            values[key] = None
    for key in _EXPERTS:
        if isinstance(values.get(key), int):
            groups = values.get("n_group") or 1
            values[key] = min(values[key], max(4, 2 * groups))
    for key in ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk"):
        if isinstance(values.get(key), int):
            values[key] = min(values[key], 2)
    if narrow:
        _narrow(values)
    values.pop("quantization_config", None)
    values.pop("dtype", None)
    return type(config).from_dict(values)


def tiny_model(config: PretrainedConfig, *, seed: int = 0) -> PreTrainedModel:
    """A float32 random model for a text config, of `tiny_config`'s shape, weights sharp enough for positions to matter.

    Raises
    ------
    UnsupportedModelError : no small model of this class could be built
    """
    reasons = []
    for narrow in (True, False):
        try:
            small = tiny_config(config, narrow=narrow)
            return build(small, seed=seed)
        except Exception as error:  # whatever a config class objects to
            reasons.append(f"{type(error).__name__}: {error}")
    why = "; ".join(dict.fromkeys(reasons))
    raise UnsupportedModelError(f"No small {config.model_type!r} could be built to prove the conversion on ({why}).")


def build(small: PretrainedConfig, *, seed: int = 0) -> PreTrainedModel:
    """Instantiate a config that is already small, in float32 and with seeded sharp weights."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(small, dtype=torch.float32).parameters())
    if size > MOST_PARAMETERS:
        raise UnsupportedModelError(f"even two layers of {small.model_type!r} have {size:,} parameters")
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(small, dtype=torch.float32, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if parameter.ndim >= 2:  # 1/sqrt(fan in) makes attention logits of order 1: far from uniform
            parameter.normal_(0, 1 / math.sqrt(parameter.shape[-1]), generator=generator)
    embeddings = model.get_input_embeddings().weight
    embeddings.normal_(0, 1, generator=generator)
    return model


def _layers_of_each_kind(values: dict[str, Any], layers: int) -> list[int]:
    lists = [v for v in values.values() if isinstance(v, list) and len(v) == layers]
    first = max(values.get("first_k_dense_replace") or 0, 0)
    seen: dict[str, int] = {}
    for i in range(layers):
        kind = ([v[i] for v in lists], i >= first, i in (values.get("attn_layer_indices") or ()))
        seen.setdefault(repr(kind), i)
    kept = sorted(seen.values())
    return kept if len(kept) > 1 or layers == 1 else [0, 1]


def _narrow(values: dict[str, Any]) -> None:
    heads, hidden = values["num_attention_heads"], values["hidden_size"]
    explicit = values.get("head_dim")
    width = explicit or hidden // heads
    kv = values.get("num_key_value_heads")
    values["num_attention_heads"] = 2 if heads > 1 else 1
    if isinstance(kv, int):
        values["num_key_value_heads"] = 1 if kv < heads else values["num_attention_heads"]
    if isinstance(values.get("num_global_key_value_heads"), int):
        values["num_global_key_value_heads"] = 1
    values["hidden_size"] = width * values["num_attention_heads"]
    for key in _WIDTHS:
        if isinstance(values.get(key), int) and values[key]:
            values[key] = 32
        elif isinstance(values.get(key), list):
            values[key] = [32] * len(values[key])
    expand, state = values.get("mamba_expand"), values.get("mamba_d_head")
    if isinstance(values.get("mamba_n_heads"), int) and expand and isinstance(state, int):
        values["mamba_n_heads"] = max(1, expand * values["hidden_size"] // state)
    for key in ("q_lora_rank", "kv_lora_rank"):
        if isinstance(values.get(key), int):
            values[key] = min(values[key], 32)
