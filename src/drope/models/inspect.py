"""What a model is, whether and how its positions can be dropped, and what that will take. Loads no weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drope.errors import DropeError, InputError
from drope.quantities import parse_target

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# Bytes per parameter held during training, without activations: weights + gradients + AdamW's two moments.
MEMORY_FORMULAS = {
    "adamw_mixed": ("4 (fp32 weights) + 4 (fp32 gradients) + 8 (AdamW moments), computing in bf16", 16),
    "adamw_bf16": ("2 (bf16 weights) + 2 (bf16 gradients) + 4 (AdamW moments in bf16)", 8),
}
FLOPS_FORMULA = "2 · weights that multiply a token + layers · heads · (q + v width) · context; training: 3 times"


@dataclass(frozen=True)
class Target:
    """A target length in tokens, and how many rotated pairs meet phases there that training never showed."""

    length: int
    factor: float
    out_of_range: int


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found. Lengths are in tokens, memory in bytes, wavelengths in tokens.

    positions : positional scheme, such as `RoPE`, `RoPE, scaled (yarn)` or `no rotary embeddings`
    pairs : rotated pairs of channels per head; long_wavelengths : how many have a wavelength above the trained context
    encoding : rope type that will say "no rotation" in the config; None if it cannot be converted (see `refusal`)
    qk_norm_refusal : why per-head QKNorm cannot be added, None if it can
    parameters : exact, tied weights once; active_parameters : those that take part in one token (mixtures of experts)
    forward_flops, training_flops : per token, at the trained context
    memory : bytes to recalibrate, without activations, by the formulas in MEMORY_FORMULAS
    suggested_tokens : recalibration budget, with its reason in `suggestion`
    """

    source: str
    architecture: str
    model_type: str
    positions: str
    context: int | None
    theta: float | None
    rotated_width: int | None
    pairs: int | None
    long_wavelengths: int | None
    wavelengths: tuple[float, float] | None
    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    vocabulary: int
    sliding_layers: int
    sliding_window: int | None
    targets: tuple[Target, ...]
    convertible: bool
    encoding: str | None
    refusal: str | None
    qk_norm_refusal: str | None
    parameters: int
    active_parameters: int
    forward_flops: int
    training_flops: int
    memory: dict[str, int] = field(default_factory=dict)
    suggested_tokens: int | None = None
    suggestion: str = ""
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


_NO_ROTATION: dict[str, Any] = {
    "rotated_width": None, "pairs": None, "long_wavelengths": None, "wavelengths": None, "targets": (),
}  # fmt: skip


def inspect(
    source: str | Path, targets: Sequence[float | int | str] = (2, 4, 8), *, revision: str | None = None
) -> Inspection:
    """Describe a model from its config alone.

    Parameters
    ----------
    source : hub id, folder, `.gguf` file or `bundled`
    targets : factors of the trained context (numbers up to 64, "8x"), or lengths in tokens (larger numbers, "16k")

    Raises
    ------
    InputError, DropeError : the config cannot be read, or a target makes no sense
    """
    from drope.models.load import load_config
    from drope.models.shape import rope_shape

    config = load_config(source, revision=revision)
    text = config.get_text_config(decoder=True)
    model = _skeleton(config)
    shape, refusal = None, None
    try:
        shape = rope_shape(config)
    except DropeError as error:
        refusal = str(error)
    described: dict[str, Any] = {"context": getattr(text, "max_position_embeddings", None)}
    encoding = None
    if shape is not None:
        described = _rotary(shape, targets)
        encoding, refusal, notes = _encoding(config, shape.context)
        described["notes"] = notes
    parameters, active = _count(model, text)
    context = described["context"] or 2048
    forward = 2 * active + _attention_flops(text, context)
    tokens, why = _suggestion(parameters)
    types = list(getattr(text, "layer_types", None) or [])
    sliding = sum("sliding" in t or "chunked" in t for t in types)
    if not types and getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True):
        sliding = text.num_hidden_layers
    if sliding:
        window = getattr(text, "sliding_window", None) or getattr(text, "attention_chunk_size", None)
        described["notes"] = (
            *described.get("notes", ()),
            f"{sliding} of {text.num_hidden_layers} layers see only a window of {window} tokens; they stay as they "
            "are, so only the other layers reach beyond it.",
        )
    return Inspection(
        source=str(source),
        architecture=type(model).__name__,
        model_type=text.model_type,
        positions=_scheme(config, shape is not None),
        theta=shape.theta if shape else None,
        **(_NO_ROTATION | described),
        layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        heads=text.num_attention_heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
        vocabulary=text.vocab_size,
        sliding_layers=sliding,
        sliding_window=getattr(text, "sliding_window", None) if sliding else None,
        convertible=encoding is not None,
        encoding=encoding,
        refusal=refusal,
        qk_norm_refusal=_qk_norm(config),
        parameters=parameters,
        active_parameters=active,
        forward_flops=forward,
        training_flops=3 * forward,
        memory={name: parameters * size for name, (_, size) in MEMORY_FORMULAS.items()},
        suggested_tokens=tokens,
        suggestion=why,
    )


def _skeleton(config: PretrainedConfig) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM

    from drope.errors import UnsupportedModelError

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        raise UnsupportedModelError(f"{config.model_type!r} is not a causal language model: {error}") from error


def _rotary(shape: Any, targets: Sequence[float | int | str]) -> dict[str, Any]:
    from drope.positions.frequencies import inverse_frequencies, out_of_range, rotations_in_context

    lengths = [_length(target, shape.context) for target in targets]
    waves = 2 * math.pi / inverse_frequencies(shape)
    return {
        "context": shape.context,
        "rotated_width": shape.head_dim,
        "pairs": shape.pairs,
        "long_wavelengths": int((rotations_in_context(shape) < 1).sum()),
        "wavelengths": (float(waves.min()), float(waves.max())),
        "targets": tuple(Target(n, n / shape.context, out_of_range(shape, n)) for n in lengths),
    }


def _length(target: float | int | str, context: int) -> int:
    if isinstance(target, str):
        return parse_target(target, context=context)
    if not target > 0:
        raise InputError("--to", target, "a factor such as 8x, or a length such as 16k")
    return round(target * context) if target <= 64 else int(target)


def _encoding(config: PretrainedConfig, context: int) -> tuple[str | None, str | None, tuple[str, ...]]:
    from drope.models.encoding import encode

    try:
        encoded = encode(config, 2 * context)
    except DropeError as error:
        return None, str(error), ()
    if encoded.fold != 1.0:
        note = f"Its rope type scales attention logits by {encoded.fold:.4g}; `save` folds that into the weights."
        return encoded.name, None, (note,)
    return encoded.name, None, ()


def _qk_norm(config: PretrainedConfig) -> str | None:
    from drope.models.qk_norm import qk_norm_refusal

    return qk_norm_refusal(config)


def _scheme(config: PretrainedConfig, rotates: bool) -> str:
    from drope.models.shape import rope_parameters, stops_rotation

    if not rotates:
        return "no rotary embeddings"
    if stops_rotation(config):
        return "none: the config says that nothing rotates"
    kind = (rope_parameters(config.get_text_config(decoder=True)) or {}).get("rope_type", "default")
    return "RoPE" if kind == "default" else f"RoPE, scaled ({kind})"


def _count(model: PreTrainedModel, text: PretrainedConfig) -> tuple[int, int]:
    """All parameters, and those that multiply one token: experts by their share, input embeddings only where tied."""
    total = sum(p.numel() for p in model.parameters())
    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    tied = head is not None and head.weight is embedding.weight
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    share = _expert_share(text)
    active = total - (0 if tied else embedding.weight.numel()) - experts + round(experts * share)
    return total, active


def _expert_share(text: PretrainedConfig) -> float:
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    total = next((getattr(text, n) for n in names if isinstance(getattr(text, n, None), int)), None)
    used = next(
        (getattr(text, n) for n in ("num_experts_per_tok", "top_k_experts", "moe_topk") if getattr(text, n, None)), None
    )
    return min(1.0, used / total) if total and used else 1.0


def _attention_flops(text: PretrainedConfig, context: int) -> int:
    """Scores and weighted sums for one token, averaged over a causal context (half of it is visible)."""
    from drope.models.shape import head_width

    heads = text.num_attention_heads
    width = getattr(text, "qk_head_dim", None) or head_width(text)
    value = getattr(text, "v_head_dim", None) or width
    types = list(getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers)
    window = getattr(text, "sliding_window", None) or context
    seen = 0.0
    for kind in types:
        if "linear" in kind or "conv" in kind or "mamba" in kind:
            continue
        seen += min(window, context / 2) if "sliding" in kind else context / 2
    return round(2 * heads * (width + value) * seen)


def _suggestion(parameters: int) -> tuple[int, str]:
    """Recalibration tokens by the paper's runs (arXiv 2512.12167, table of recipes)."""
    if parameters >= 1_000_000_000:
        return 20_000_000_000, "the paper's SmolLM-1.7B and Llama-2-7B were recalibrated on 20B tokens"
    if parameters >= 200_000_000:
        return 5_000_000_000, (
            "SmolLM-360M had 95% of its in-context score back within 5B tokens; "
            "the paper's 494M model, trained on 16.8B, took 2.1B"
        )
    tokens = max(20 * parameters, 1_000_000)
    return tokens, (
        "the paper has no model this small; this is 20 tokens a parameter, and small models recover slowly: "
        "plan for an eighth or more of the pretraining tokens, as the paper's 494M model from scratch took"
    )
