"""How a config says "no rotation", so that stock engines load a position-free model as an ordinary checkpoint.

The first choice is the `llama3` rope type with every wavelength pushed past its low-frequency bound: each inverse
frequency is divided by 1e20, so cos = 1 and |sin| < 1e-13 at any length. Families that do not take it fall back to the
next candidate. Whichever is chosen is proven on a small random model of the same class before it is used.
"""

from __future__ import annotations

import copy
import itertools
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from drope.errors import DropeError, InputError, UnsupportedModelError, VerificationError
from drope.models.tiny import VOCABULARY, build, tiny_model

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

FACTOR = 1e20  # clear of float32 overflow, and 1e20 tokens before a phase reaches 1


@dataclass(frozen=True)
class Encoding:
    """A config that says "no rotation" and the name of the rope type (or types, by layer) that says it."""

    name: str
    config: PretrainedConfig
    fold: float = 1.0  # logit factor that the source's rope type put into the softmax scaling and the new config cannot

    def to_json(self) -> dict[str, Any]:
        """The contents of config.json: the config, with the legacy keys that some engines read."""
        return config_json(self.config)


def encode(config: PretrainedConfig, target_length: int, *, prefer: str | None = None) -> Encoding:
    """The config of the same class without rotation, for sequences up to `target_length` tokens.

    The candidates of `CANDIDATES` are tried in order (or only `prefer`), each proven on a small random model: its
    logits equal those of the original class with its rotation dropped, they do not change under gapped positions, and
    cached decoding equals the full forward.

    Raises
    ------
    InputError : `target_length` is not longer than the trained context, or `prefer` is unknown
    UnsupportedModelError : the family has no rotation to drop, or no candidate works; the message says why
    """
    from drope.models.shape import rope_shape

    shape = rope_shape(config)
    context = shape.context
    if target_length <= context:
        raise InputError("--to", target_length, f"a length above the model's {context} tokens, such as {2 * context}")
    if prefer is not None and prefer not in CANDIDATES:
        raise InputError("encoding", prefer, ", ".join(CANDIDATES))
    original = text_config(config).rope_parameters
    spec = _Spec(context, target_length, shape.head_dim // 2)
    reference = _Reference(config)
    reasons = []
    for name, parameters in _candidates(original, [prefer] if prefer else list(CANDIDATES), spec):
        try:
            candidate = _with_rope(config, parameters, spec)
            _read_back(candidate)
            return Encoding(name, candidate, reference.prove(parameters, spec))
        except Exception as error:  # config classes refuse in many ways
            reasons.append(f"{name}: {error if isinstance(error, DropeError) else repr(error)}")
    raise UnsupportedModelError(
        f"No rope type expresses 'no rotation' for {config.model_type!r}: " + "; ".join(reasons).replace("\n", " ")
    )


def text_config(config: PretrainedConfig) -> PretrainedConfig:
    """The part of a config that describes the language model."""
    text = config.get_text_config(decoder=True)
    if not getattr(text, "rope_parameters", None):
        raise UnsupportedModelError(f"{config.model_type!r} has no `rope_parameters` in its config to drop.")
    return text


def config_json(config: PretrainedConfig) -> dict[str, Any]:
    """config.json for `config`, with `rope_theta` and `rope_scaling` added for engines that read only those (mlx-lm).

    The legacy keys are left out where they would change what transformers reads back.
    """
    plain = json.loads(config.to_json_string())
    place = plain["text_config"] if config.get_text_config(decoder=True) is not config else plain
    parameters = config.get_text_config(decoder=True).rope_parameters
    kinds = nested(parameters)
    flat = (kinds.get("full_attention") or next(iter(kinds.values()))) if kinds else parameters
    added = copy.deepcopy(plain)
    target = added["text_config"] if place is not plain else added
    target["rope_theta"] = flat["rope_theta"]
    target["rope_scaling"] = {k: v for k, v in flat.items() if k != "rope_theta"}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # families that call these keys deprecated do without them
            read = type(config).from_dict(_decoded(copy.deepcopy(added))).get_text_config(decoder=True)
        return added if read.rope_parameters == parameters else plain
    except Exception:
        return plain


@dataclass(frozen=True)
class _Spec:
    context: int  # trained, tokens
    target: int  # tokens
    pairs: int  # rotated pairs of channels


def _llama3(spec: _Spec) -> dict[str, Any]:
    return {"rope_type": "llama3", "factor": FACTOR, "low_freq_factor": float(spec.context),
            "high_freq_factor": float(2 * spec.context), "original_max_position_embeddings": spec.context}  # fmt: skip


def _linear(spec: _Spec) -> dict[str, Any]:
    return {"rope_type": "linear", "factor": FACTOR}


def _proportional(spec: _Spec) -> dict[str, Any]:
    return {"rope_type": "proportional", "partial_rotary_factor": 0.0}


def _longrope(spec: _Spec) -> dict[str, Any]:
    # Original length = target: one set of factors at every length, and engines that derive an attention factor get 1.
    factors = [FACTOR] * spec.pairs
    return {"rope_type": "longrope", "short_factor": factors, "long_factor": list(factors), "factor": 1.0,
            "attention_factor": 1.0, "original_max_position_embeddings": spec.target}  # fmt: skip


CANDIDATES: dict[str, Callable[[_Spec], dict[str, Any]]] = {
    "llama3": _llama3,
    "linear": _linear,
    "proportional": _proportional,
    "longrope": _longrope,
}
# Settings of a rope type, which go with it; whatever else a family keeps among its rope parameters stays.
_TYPE_SETTINGS = {"rope_type", "type", "factor", "original_max_position_embeddings", "attention_factor", "beta_fast",
                  "beta_slow", "short_factor", "long_factor", "low_freq_factor", "high_freq_factor", "mscale",
                  "mscale_all_dim", "truncate"}  # fmt: skip


def _candidates(original: dict[str, Any], names: list[str], spec: _Spec) -> Iterator[tuple[str, dict[str, Any]]]:
    kinds = nested(original) or {"": original}
    for choice in sorted(itertools.product(names, repeat=len(kinds)), key=lambda types: len(set(types))):
        parameters = {
            kind: {k: v for k, v in old.items() if k not in _TYPE_SETTINGS} | CANDIDATES[name](spec)
            for (kind, old), name in zip(kinds.items(), choice, strict=True)
        }
        yield "+".join(dict.fromkeys(choice)), parameters.get("", parameters)


def nested(parameters: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The per-layer-type dicts of Gemma 3 and its like; empty where all layers share one."""
    return {k: v for k, v in parameters.items() if isinstance(v, dict)}


def _with_rope(config: PretrainedConfig, parameters: dict[str, Any], spec: _Spec) -> PretrainedConfig:
    new = copy.deepcopy(config)
    text = new.get_text_config(decoder=True)
    text.rope_parameters = copy.deepcopy(parameters)
    text.max_position_embeddings = spec.target
    kinds = list(nested(parameters).values()) or [parameters]
    key = "original_max_position_embeddings"
    if hasattr(text, key) or not all(key in kind for kind in kinds):
        # Phi3's own key, which overrides the one in the dict; and linear configs' only place for the trained context.
        setattr(text, key, kinds[0].get(key, spec.context))
    return new


def _decoded(value: Any) -> Any:
    """JSON as transformers reads it: `{"__float__": "Infinity"}` is a number."""
    if isinstance(value, dict):
        return float(value["__float__"]) if set(value) == {"__float__"} else {k: _decoded(v) for k, v in value.items()}
    return [_decoded(v) for v in value] if isinstance(value, list) else value


def _read_back(config: PretrainedConfig) -> PretrainedConfig:
    """What transformers makes of the written config.json; raises where that is not what was meant."""
    read = type(config).from_dict(_decoded(config_json(config)))
    if read.get_text_config(decoder=True).rope_parameters != config.get_text_config(decoder=True).rope_parameters:
        raise VerificationError(f"{config.model_type!r} rewrites its rope_parameters on reading")
    return read


class _Reference:
    """The source's class at small size: with its rotation, and with it dropped."""

    def __init__(self, config: PretrainedConfig):
        import torch

        from drope.models.rotary import drop

        self.base: PreTrainedModel = tiny_model(text_config(config))
        self.config = copy.deepcopy(self.base.config)
        self.ids = torch.randint(0, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(1))
        self.scalings = softmax_scalings(self.base)
        drop(self.base)
        self.logits = _logits(self.base, self.ids)

    def prove(self, parameters: dict[str, Any], spec: _Spec) -> float:
        """Check a candidate on the small model; returns the logit factor that only the source's rope type applied."""
        from drope.models.checks import verify
        from drope.models.logit_scale import set_logit_scale

        small = _read_back(_with_rope(self.config, parameters, spec))
        model = build(small)
        model.load_state_dict(self.base.state_dict())
        verify(model, self.ids)
        new = softmax_scalings(model)
        ratios = {round(old / new[name], 9) for name, old in self.scalings.items()} or {1.0}
        if len(ratios) > 1:
            raise VerificationError(f"the rope type changes the softmax scaling by layer ({sorted(ratios)})")
        fold = ratios.pop()
        if fold != 1.0:
            set_logit_scale(model, fold)
        difference = (_logits(model, self.ids) - self.logits).abs().max()
        if not difference <= 1e-4 * self.logits.abs().max().clamp_min(1):
            raise VerificationError(f"logits differ by {difference:.2g} from those of a dropped model")
        return fold


def softmax_scalings(model: PreTrainedModel) -> dict[str, float]:
    """Each softmax attention module's own factor on q·k, by module name; a set temperature is not in it.

    Empty where the family keeps it out of reach (Falcon).
    """
    from drope.models.logit_scale import attention_modules, logit_scale

    try:
        modules = attention_modules(model)
    except UnsupportedModelError:
        return {}
    beta = logit_scale(model)
    return {name: float(module.scaling) / beta for name, module in modules.items()}  # type: ignore[arg-type]


def _logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    import torch

    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits.float()
