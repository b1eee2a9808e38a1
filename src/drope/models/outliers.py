"""Layers whose queries or keys are far larger than elsewhere: what rounding to few bits would hurt most.

Recalibrating without positions has been seen to leave such layers (norms near 6000 against 50 in Llama-2-7B).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TIMES = 8.0  # above the median layer


@dataclass(frozen=True)
class Outlier:
    """A projection that stands out.

    Parameters
    ----------
    weight : name of its weight in the checkpoint
    norm : its largest norm: of a head's q or k over tokens, or of a row of the matrix
    typical : median of that over layers
    """

    weight: str
    norm: float
    typical: float


def activation_outliers(model: PreTrainedModel, ids: Any, times: float = TIMES) -> list[Outlier]:
    """Layers whose largest q or k of a head is over `times` that of the median layer, on token ids of shape (B, T)."""
    import torch

    largest: dict[str, float] = {}
    width = getattr(model.config, "head_dim", None) or model.config.hidden_size // model.config.num_attention_heads
    handles = []

    def watch(name: str) -> Any:
        def hook(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
            heads = output.detach().float()
            heads = heads.unflatten(-1, (-1, width)) if heads.shape[-1] != width else heads
            largest[name] = max(largest.get(name, 0.0), float(heads.norm(dim=-1).max()))

        return hook

    for name, module in model.named_modules():
        if name.endswith(("q_proj", "k_proj")) and "attn" in name:
            handles.append(module.register_forward_hook(watch(name)))
    try:
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return _stand_out({f"{name}.weight": value for name, value in largest.items()}, times)


def weight_outliers(folder: Path, times: float = TIMES) -> list[Outlier]:
    """The same by the largest norm of a row of each q or k projection, read piece by piece from the files."""
    from contextlib import closing

    from drope.models.weights import Weights

    largest = {}
    with closing(Weights(folder)) as weights:
        for key in weights.names():
            if key.endswith(("q_proj.weight", "k_proj.weight")):
                largest[key] = max(float(piece.norm(dim=1).max()) for _, piece in weights.row_pieces(key))
    return _stand_out(largest, times)


def advice(outliers: Sequence[Outlier]) -> str:
    """One paragraph for people; empty where there are none."""
    if not outliers:
        return ""
    worst = max(outliers, key=lambda o: o.norm / o.typical)
    names = ", ".join(o.weight.removesuffix(".weight") for o in outliers)
    return (
        f"Outliers: {worst.weight} reaches {worst.norm:.3g} where the median layer has {worst.typical:.3g}. Keep these "
        "in high precision when quantising (llm_int8_skip_modules, modules_to_not_convert, drope export --keep): "
        + names
    )


def _stand_out(largest: dict[str, float], times: float) -> list[Outlier]:
    found = []
    for part in ("q_proj.weight", "k_proj.weight"):
        own = {name: value for name, value in largest.items() if name.endswith(part)}
        if len(own) < 3:
            continue  # no layers to compare with
        typical = statistics.median(own.values())
        found += [Outlier(name, value, typical) for name, value in own.items() if value > times * typical]
    return sorted(found, key=lambda o: o.weight)
