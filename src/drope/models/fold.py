"""Folding a constant softmax temperature into the weights: β·(q·k) = (βq)·k, so the last thing that scales q takes β.

That is the gain of the norm on q where there is one (Qwen3, OLMo 2, Gemma 3), else the query projection, weight and
bias: its own matrix, the query rows of a fused one, or the up-projection of a low-rank (MLA) query.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from drope.errors import UnsupportedModelError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

_NORMS = ("q_norm", "q_layernorm", "query_layernorm")
_FUSED = ("qkv_proj", "query_key_value", "Wqkv", "W_pack", "c_attn", "in_proj", "qkv")


def fold(model: PreTrainedModel, factors: Mapping[str, float]) -> dict[str, torch.Tensor]:
    """New tensors, by state-dict key, that multiply each attention module's logits by its factor.

    Computed in float32 and cast back to the parameter's dtype. The model is not changed.

    Parameters
    ----------
    factors : attention module's name -> factor on its q·k; modules with factor 1 are left out of the result

    Raises
    ------
    UnsupportedModelError : where the query is made in a way not known here; names the family and the module
    """
    modules = dict(model.named_modules())
    folded: dict[str, torch.Tensor] = {}
    for name, factor in factors.items():
        if factor != 1.0:
            changed = _fold_module(model, modules[name], name, factor)
            folded.update({f"{name}.{key}": value for key, value in changed.items()})
    return folded


def _fold_module(model: PreTrainedModel, attention: nn.Module, name: str, factor: float) -> dict[str, torch.Tensor]:
    kind, attribute, rows = fold_target(model, attention, name)
    module: nn.Module = getattr(attention, attribute)
    if kind == "norm":
        changed = _fold_norm(module, factor)
        if changed is None:
            raise _refusal(model, name, f"has a norm of an unknown kind on q ({type(module).__name__})")
        return {f"{attribute}.{key}": value for key, value in changed.items()}
    return {f"{attribute}.{key}": _scaled(value, factor, rows) for key, value in module.named_parameters()}


def _refusal(model: PreTrainedModel, name: str, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"The temperature cannot be folded into {model.config.model_type!r}: {name} {reason}. "
        "Save with beta=1 and apply it at run time with set_logit_scale."
    )


def fold_target(model: PreTrainedModel, attention: nn.Module, name: str) -> tuple[str, str, torch.Tensor | None]:
    """What takes the factor: `norm` or `projection`, the attribute's name, and which of its output rows make q.

    Looks at structure and shapes alone, so a model on the meta device will do.

    Raises
    ------
    UnsupportedModelError : no place for the factor is known; names the family and the module
    """
    if getattr(attention, "qk_norm", None) is not None and not any(hasattr(attention, n) for n in _NORMS):
        if sum(p.numel() for p in _submodule(attention, "qk_norm").parameters()) == 0:
            raise _refusal(model, name, "normalises q without a gain")
    for norm in _NORMS:
        if getattr(attention, norm, None) is not None:
            return "norm", norm, None
    for projection in ("q_b_proj", "q_proj", "wq_b"):
        if getattr(attention, projection, None) is not None:
            return "projection", projection, None
    for projection in _FUSED:
        if (module := getattr(attention, projection, None)) is not None:
            rows = _query_rows(model, attention, projection, module)
            if rows is None:
                raise _refusal(model, name, f"fuses q, k and v in an unknown layout ({projection})")
            return "projection", projection, rows
    raise _refusal(model, name, f"has no query projection by a known name ({type(attention).__name__})")


def _submodule(attention: nn.Module, name: str) -> nn.Module:
    from torch import nn

    module = getattr(attention, name)
    return module if isinstance(module, nn.Module) else nn.Module()


def _scaled(parameter: torch.Tensor, factor: float, rows: torch.Tensor | None = None) -> torch.Tensor:
    import torch

    scale = torch.full((parameter.shape[0],), factor, device=parameter.device)
    if rows is not None:
        scale = torch.where(rows.to(parameter.device), scale, torch.ones_like(scale))
    shape = (-1,) + (1,) * (parameter.ndim - 1)
    return (parameter.detach().float() * scale.view(shape)).to(parameter.dtype)


def _fold_norm(norm: nn.Module, factor: float) -> dict[str, torch.Tensor] | None:
    """Scaled gain and bias of a norm, or None where neither gain `w` nor gain `1 + w` scales its output."""
    import torch

    parameters = dict(norm.named_parameters())
    gains = [key for key in parameters if key.split(".")[-1] == "weight"]
    if not gains:
        return None
    for offset in (0.0, 1.0):  # Gemma's norms multiply by 1 + w
        changed = {}
        for key, value in parameters.items():
            shift = offset if key in gains else 0.0
            changed[key] = (factor * (value.detach().float() + shift) - shift).to(value.dtype)
        # Recognised by what it does, not by its class: try it on a probe.
        if _scales(norm, changed, factor, torch.finfo(parameters[gains[0]].dtype).eps):
            return changed
    return None


def _scales(norm: nn.Module, changed: dict[str, torch.Tensor], factor: float, eps: float) -> bool:
    import torch

    weight = norm.get_parameter(next(iter(changed)))
    generator = torch.Generator().manual_seed(0)
    for shape in _probe_shapes(norm, weight):
        probe = torch.randn(shape, generator=generator).to(weight.device, weight.dtype)
        try:
            with torch.no_grad():
                before = norm(probe).float()
                after = torch.func.functional_call(norm, changed, (probe,)).float()
        except Exception:  # a norm that wants another layout
            continue
        return bool(torch.allclose(after, factor * before, rtol=16 * eps, atol=16 * eps * float(before.abs().max())))
    return False


def _probe_shapes(norm: nn.Module, weight: torch.Tensor) -> list[tuple[int, ...]]:
    width, parts = weight.shape[-1], len(list(norm.parameters()))
    if weight.ndim == 2:  # one gain per head: (B, T, H, D)
        return [(1, 3, *weight.shape)]
    return [(1, 3, width), (1, parts, 3, width)]  # the second: a list of norms, one per head


def _query_rows(
    model: PreTrainedModel, attention: nn.Module, projection: str, module: nn.Module
) -> torch.Tensor | None:
    """Which output rows of a fused projection make q, as a bool vector; None where the layout is not known."""
    import torch

    config = model.config.get_text_config(decoder=True)
    heads = config.num_attention_heads
    width = getattr(attention, "head_dim", None) or getattr(attention, "head_size", None) or config.hidden_size // heads
    kv = getattr(config, "num_key_value_heads", None) or heads
    out = next(module.parameters()).shape[0]
    if projection == "qkv_proj" and out == (heads + 2 * kv) * width:  # Phi3: q, then k, then v
        rows = torch.zeros(out, dtype=torch.bool)
        rows[: heads * width] = True
        return rows
    if projection != "query_key_value":
        return None
    if config.model_type in ("gpt_neox", "persimmon") and out == 3 * heads * width:  # per head: q, k, v
        rows = torch.zeros(heads, 3, width, dtype=torch.bool)
        rows[:, 0] = True
        return rows.flatten()
    return None
