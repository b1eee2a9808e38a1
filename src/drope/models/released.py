"""The layout of the paper authors' own checkpoints (`llama_drope`, `qwen2_drope`), read without their code.

They are Llama or Qwen2 without rotation. The attention type `nope` is nothing else; `qk_norm`, `q_norm` and `k_norm`
add an RMSNorm over all heads of q or k jointly, between projection and head split. Here that norm sits in the
projection's place, so attention, cache and generation are the stock class's own, and decoding from the cache is right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from drope.errors import InputError, UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

TYPES = {"nope": "", "q_norm": "q", "k_norm": "k", "qk_norm": "qk"}
_BASES = {"llama_drope": "llama", "qwen2_drope": "qwen2"}
_PLAUSIBLE = (0.5, 4.0)  # softmax_scale · √d: temperatures in use lie between 1 and 2


class NormedProjection(nn.Module):
    """A projection followed by a norm over all its channels: (B, T, hidden) -> (B, T, heads · head_dim)."""

    def __init__(self, projection: nn.Module, norm: nn.Module):
        super().__init__()
        self.projection, self.norm = projection, norm

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.norm(self.projection(hidden))


def is_released(plain: dict[str, Any]) -> bool:
    """Whether a config.json is of that layout."""
    return plain.get("model_type") in _BASES


def stock_config(plain: dict[str, Any]) -> PretrainedConfig:
    """The stock config of such a checkpoint; its `drope_released` holds the attention type and the logit factor.

    `softmax_scale` is the factor on q·k in place of 1/√d, as flash attention means it.

    Raises
    ------
    UnsupportedModelError : an attention type or a `softmax_scale` that is not understood
    """
    from transformers import AutoConfig

    kind = plain["model_type"]
    named = {
        k: v
        for k, v in plain.items()
        if isinstance(v, str) and (v in TYPES or k.endswith(("attention_type", "attn_type")))
    }
    unknown = {k: v for k, v in named.items() if v not in TYPES}
    if unknown or len(set(named.values())) > 1:
        raise UnsupportedModelError(f"{kind!r}: attention types {named} are not understood; known: {', '.join(TYPES)}.")
    own = {
        k: v for k, v in plain.items() if k not in {"model_type", "auto_map", "architectures", "softmax_scale", *named}
    }
    config = AutoConfig.for_model(_BASES[kind], **own)
    config.architectures = ["LlamaForCausalLM" if kind == "llama_drope" else "Qwen2ForCausalLM"]
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    scale = plain.get("softmax_scale")
    beta = 1.0 if scale is None else float(scale) * width**0.5
    if not _PLAUSIBLE[0] <= beta <= _PLAUSIBLE[1]:
        raise UnsupportedModelError(
            f"{kind!r}: softmax_scale {scale} is {beta:.3g} times 1/√{width}. It is read as the factor on q·k in place "
            "of 1/√d, which that is not: set it to β/√d in config.json, or remove it."
        )
    config.drope_released = {"type": next(iter(named.values()), None), "beta": beta}
    return config


def facts(config: PretrainedConfig) -> dict[str, Any] | None:
    """What `stock_config` found; None for any other config."""
    return getattr(config, "drope_released", None)


def refuse_norms(config: PretrainedConfig, weights: Any, purpose: str) -> None:
    """Raise for the attention types that no stock class of this shape computes."""
    found = _type(config, weights)
    if found != "nope":
        raise UnsupportedModelError(
            f"A {config.model_type} checkpoint of attention type {found!r} cannot be {purpose}: no stock class of its "
            "shape normalises all heads jointly (Qwen3 does so head by head). It can be loaded and run with drope.load."
        )


def build(place: str, config: Any, **options: Any) -> PreTrainedModel:
    """The model, position free, with the norms and the softmax scale of its checkpoint.

    Raises
    ------
    InputError : the attention type says one thing and the weights another
    """
    import transformers

    from drope.models.convert import source_folder
    from drope.models.logit_scale import attention_modules
    from drope.models.rotary import drop
    from drope.models.weights import Weights

    known = facts(config) or {}
    folder = source_folder(place, options.pop("revision", None))
    options.pop("trust_remote_code", None)
    stock = getattr(transformers, config.architectures[0])
    weights = Weights(folder)
    try:
        found = _type(config, weights)
        del config.drope_released  # the config is a stock one from here on
        # Not stock where norms are added, and named so: what they save needs this module to be read again.
        extra = {"_keys_to_ignore_on_load_unexpected": [r"self_attn\.[qk]_norm\.weight$"]}
        family: Any = stock if found == "nope" else type(f"Normed{stock.__name__}", (stock,), extra)
        model: Any = drop(family.from_pretrained(str(folder), config=config, use_safetensors=True, **options))
        for i, layer in enumerate(model.model.layers):
            for part in TYPES[found]:
                attention = layer.self_attn
                gain = weights.rows(f"model.layers.{i}.self_attn.{part}_norm.weight")
                projection = getattr(attention, f"{part}_proj")
                if gain.shape[0] != projection.out_features:
                    raise InputError(
                        f"{part}_norm", f"{gain.shape[0]} gains", f"{projection.out_features}: one for each channel of "
                        "all heads",
                    )  # fmt: skip
                norm = type(layer.input_layernorm)(gain.shape[0], eps=config.rms_norm_eps)
                norm.weight = nn.Parameter(gain.to(projection.weight.dtype))
                setattr(attention, f"{part}_proj", NormedProjection(projection, norm.to(projection.weight.device)))
    finally:
        weights.close()
    for module in attention_modules(model).values():
        module.scaling = float(module.scaling) * known["beta"]  # type: ignore[arg-type]
    return model.eval()


def _type(config: PretrainedConfig, weights: Any) -> str:
    parts = "".join(p for p in "qk" if f"model.layers.0.self_attn.{p}_norm.weight" in weights)
    held = next(name for name, value in TYPES.items() if value == parts)
    said = (facts(config) or {}).get("type") or held
    if said != held:
        raise InputError(
            "attention type", said, held, f"The config says {said!r}, but the weights are those of {held!r}."
        )
    return held
