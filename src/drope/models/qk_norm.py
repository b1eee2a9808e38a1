"""Per-head QKNorm for Llama-shaped models, which makes them `Qwen3ForCausalLM` (DroPE, arXiv 2512.12167, section 5).

Qwen3 normalises each head's q and k to RMS 1 and multiplies by a gain of head width that a layer's heads share. No gain
restores the original function exactly where the heads of a layer differ in scale, so the gains are fitted on a few
batches and the distance that remains is reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from drope.errors import InputError, UnsupportedModelError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, Qwen3ForCausalLM

_SHAPES = ("llama", "mistral", "qwen2")
LLAMA_SETTINGS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
         "num_key_value_heads", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps",
         "use_cache", "tie_word_embeddings", "attention_dropout", "pad_token_id", "bos_token_id",
         "eos_token_id")  # fmt: skip


@dataclass(frozen=True)
class QKNormReport:
    """How far the converted model is from the original.

    Parameters
    ----------
    init : `fitted` or `ones`
    kl : mean KL divergence of the next-token distributions, original from converted, nats a token; None without batches
    loss_before, loss_after : next-token cross entropy on the batches, nats a token; None without batches
    tokens : how many tokens the gains were fitted and the distance measured on
    q_gain, k_gain : root mean square of each layer's gains
    head_spread : of each layer, standard deviation over heads of the RMS of q divided by its mean: what a shared gain
        cannot restore; empty without batches
    """

    init: str
    kl: float | None
    loss_before: float | None
    loss_after: float | None
    tokens: int
    q_gain: tuple[float, ...]
    k_gain: tuple[float, ...]
    head_spread: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def qk_norm_refusal(config: PretrainedConfig) -> str | None:
    """Why models of this config cannot be given QKNorm by becoming Qwen3, or None where they can."""
    kind = config.model_type
    if kind.startswith("qwen3"):
        return "it already has QKNorm"
    if kind not in _SHAPES:
        return f"only {', '.join(_SHAPES)} have Qwen3's shape; {kind!r} does not"
    if getattr(config, "mlp_bias", False):
        return "its MLP has biases, which Qwen3 has no place for"
    return None


def add_qk_norm(
    model: PreTrainedModel,
    batches: Iterable[Any] | None = None,
    init: Literal["fitted", "ones"] = "fitted",
) -> tuple[Qwen3ForCausalLM, QKNormReport]:
    """Turn a Llama, SmolLM, Mistral or Qwen2 model into Qwen3, which normalises q and k per head.

    The weights are shared, not copied: training the new model changes `model`, which is of no more use. A dropped model
    gives a dropped one. Sliding windows stay; a missing `o_proj` bias becomes zeros.

    Parameters
    ----------
    batches : token ids of shape (B, T), or mappings with `input_ids` (and `attention_mask`); needed for `fitted`, and
        for the distance in the report
    init : `fitted` minimises the squared distance of gain · normalised q from q (and of k) per channel; where the
        rotation is still on, the two channels of a pair share a gain, so that gain and rotation commute. `ones` is the
        paper's. Closest in q and k is not always closest in the output: where the product of their RMS is near 1
        anyway, `ones` can be as close; the report tells.

    Raises
    ------
    UnsupportedModelError : a family of another shape; the message says why
    InputError : `fitted` without batches, or an unknown `init`
    """
    import torch

    from drope.models.rotary import drop, is_position_free

    if init not in ("fitted", "ones"):
        raise InputError("qk_norm_init", init, "fitted, ones")
    reason = qk_norm_refusal(model.config)
    if reason is not None:
        name = f"{type(model).__name__} ({model.config.model_type})"
        raise UnsupportedModelError(f"{name} cannot be given QKNorm: {reason}.")
    inputs = [_inputs(batch, model.device) for batch in batches or ()]
    if init == "fitted" and not inputs:
        raise InputError("batches", "empty", "at least one batch of token ids to fit on", 'Or choose init="ones".')
    _refuse_changed(model)
    dropped = is_position_free(model)
    training = model.training
    model.eval()
    statistics = [Fit(model.config, paired=not dropped) for _ in _layers(model)]
    with torch.no_grad(), _watched(model, statistics):
        for batch in inputs:
            model(**batch, use_cache=False, logits_to_keep=1)
    new = _convert(model)
    if dropped:
        drop(new)
    for layer, fit in zip(_layers(new), statistics, strict=True):
        for norm, moments in ((layer.q_norm, fit.q), (layer.k_norm, fit.k)):
            gain = moments.gain() if init == "fitted" else torch.ones(norm.weight.shape)
            with torch.no_grad():
                norm.weight.copy_(gain.to(norm.weight))
    report = _report(model, new, inputs, statistics, init)
    return new.train(training), report


def head_dim(config: PretrainedConfig) -> int:
    """Channels of a head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


class _Moments:
    """Running sums for the gain that brings normalised activations x̂ closest to x: Σ x̂·x / Σ x̂², per channel."""

    def __init__(self, width: int, eps: float, paired: bool):
        self.width, self.eps, self.paired, self.tokens = width, eps, paired, 0
        self.cross: Any = 0.0  # (D,)
        self.square: Any = 0.0  # (D,)
        self.by_head: Any = 0.0  # (H,)

    def add(self, x: torch.Tensor) -> None:
        x = x.detach().float().unflatten(-1, (-1, self.width)).flatten(0, -3)  # (tokens, H, D)
        unit = x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        self.cross = self.cross + (unit * x).sum((0, 1)).double().cpu()
        self.square = self.square + unit.square().sum((0, 1)).double().cpu()
        self.by_head = self.by_head + x.square().mean(-1).sum(0).double().cpu()
        self.tokens += x.shape[0]

    def gain(self) -> torch.Tensor:
        import torch

        cross, square = torch.as_tensor(self.cross), torch.as_tensor(self.square)
        if self.paired:  # rotate_half pairs channel i with i + D/2
            cross, square = (s + s.roll(self.width // 2) for s in (cross, square))
        return (cross / square.clamp_min(1e-12)).float()

    def head_spread(self) -> float:
        import torch

        rms = (torch.as_tensor(self.by_head) / self.tokens).sqrt()
        return float(rms.std(correction=0) / rms.mean().clamp_min(1e-12))


class Fit:
    """Moments of a layer's q and k."""

    def __init__(self, config: PretrainedConfig, paired: bool):
        self.q, self.k = (_Moments(head_dim(config), config.rms_norm_eps, paired) for _ in range(2))


@contextmanager
def _watched(model: PreTrainedModel, statistics: list[Fit]) -> Iterator[None]:
    """Collect the outputs of every q_proj and k_proj while the block runs."""
    handles = []
    for layer, fit in zip(_layers(model), statistics, strict=True):
        for projection, moments in ((layer.q_proj, fit.q), (layer.k_proj, fit.k)):
            handles.append(projection.register_forward_hook(lambda _m, _i, out, to=moments: to.add(out)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def qwen3_config(old: Any, biased: bool) -> PretrainedConfig:
    """The config of a Llama-shaped model as Qwen3's, with the same rotation."""
    import copy

    from transformers import Qwen3Config

    window, layers = getattr(old, "sliding_window", None), old.num_hidden_layers
    types = getattr(old, "layer_types", None) or (["sliding_attention" if window else "full_attention"] * layers)
    config = Qwen3Config(
        **{key: getattr(old, key) for key in LLAMA_SETTINGS if hasattr(old, key)},
        head_dim=head_dim(old), attention_bias=biased, rope_parameters=copy.deepcopy(old.rope_parameters),
        use_sliding_window="sliding_attention" in types, sliding_window=window, layer_types=list(types),
    )  # fmt: skip
    config.architectures, config.dtype = ["Qwen3ForCausalLM"], getattr(old, "dtype", None)
    return config


def _convert(model: PreTrainedModel) -> Qwen3ForCausalLM:
    import copy

    import torch
    from transformers import Qwen3ForCausalLM

    old = model.config
    state = dict(model.state_dict())
    biased = any(key.endswith("q_proj.bias") for key in state)
    width = head_dim(old)
    config: Any = qwen3_config(old, biased)
    config._attn_implementation = old._attn_implementation
    with torch.device("meta"):
        new: Any = Qwen3ForCausalLM(config)
    for i, layer in enumerate(_layers(model)):
        like = layer.q_proj.weight
        for norm in ("q_norm", "k_norm"):
            state[f"model.layers.{i}.self_attn.{norm}.weight"] = torch.ones(width, dtype=like.dtype, device=like.device)
        key = f"model.layers.{i}.self_attn.o_proj.bias"
        if biased and key not in state:  # Qwen2 has biases on q, k and v only
            state[key] = torch.zeros(old.hidden_size, dtype=like.dtype, device=like.device)
    new.load_state_dict(state, assign=True)
    new.tie_weights()
    with torch.device(model.device):  # frequencies are no weights: they are still on the meta device
        new.model.rotary_emb = type(new.model.rotary_emb)(config)
    new.generation_config = copy.deepcopy(model.generation_config)
    new.config.name_or_path = new.name_or_path = getattr(model, "name_or_path", "")
    return new.eval()


def _report(
    old: PreTrainedModel, new: PreTrainedModel, inputs: list[dict[str, torch.Tensor]], fits: list[Fit], init: str
) -> QKNormReport:
    import torch
    from torch.nn import functional

    divergence = before = after = 0.0
    tokens = targets = 0
    with torch.no_grad():
        for batch in inputs:
            for row in range(len(batch["input_ids"])):  # one at a time: logits over a large vocabulary are large
                one = {key: value[row : row + 1] for key, value in batch.items()}
                p, q = (m(**one, use_cache=False).logits[0].float().log_softmax(-1) for m in (old, new))  # (T, V)
                keep = one.get("attention_mask", torch.ones_like(one["input_ids"]))[0].bool()
                divergence += float(functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)[keep].sum())
                scored = keep[1:] & keep[:-1]
                gold = one["input_ids"][0, 1:, None]
                before -= float(p[:-1].gather(-1, gold)[scored].sum())
                after -= float(q[:-1].gather(-1, gold)[scored].sum())
                tokens, targets = tokens + int(keep.sum()), targets + int(scored.sum())
    layers = _layers(new)
    return QKNormReport(
        init=init,
        kl=divergence / tokens if tokens else None,
        loss_before=before / targets if targets else None,
        loss_after=after / targets if targets else None,
        tokens=tokens,
        q_gain=tuple(float(layer.q_norm.weight.detach().float().square().mean().sqrt()) for layer in layers),
        k_gain=tuple(float(layer.k_norm.weight.detach().float().square().mean().sqrt()) for layer in layers),
        head_spread=tuple(fit.q.head_spread() for fit in fits) if tokens else (),
    )


def _layers(model: Any) -> list[Any]:
    return [layer.self_attn for layer in model.model.layers]


def _inputs(batch: Any, device: torch.device) -> dict[str, torch.Tensor]:
    import torch

    values = dict(batch) if isinstance(batch, Mapping) else {"input_ids": batch}
    kept = {key: torch.as_tensor(values[key]).to(device) for key in ("input_ids", "attention_mask") if key in values}
    if "input_ids" not in kept or kept["input_ids"].ndim != 2:
        raise InputError("batches", type(batch).__name__, "token ids of shape (B, T), or mappings with `input_ids`")
    return kept


def _refuse_changed(model: PreTrainedModel) -> None:
    """Temperatures and faded rotations live in modules that Qwen3 makes anew: they would be lost in silence."""
    from drope.models.logit_scale import logit_scale
    from drope.models.rotary import is_position_free

    if logit_scale(model) != 1.0:
        raise InputError("model", "a temperature is set", "a model without one", "Call set_logit_scale(model, 1.0).")
    if not is_position_free(model) and any(hasattr(module, "_drope_original") for module in model.modules()):
        raise InputError("model", "its frequencies are scaled", "its own rotation, or none", "Call restore(model).")
