"""QKNorm as the paper's released code has it: one RMSNorm over all heads together, of q and k, or of one of them.

For experiments and baselines: no stock class holds these, so such a model trains and runs in memory but is not saved by
`drope.models.save`. What can be saved is per-head QKNorm (`drope.models.add_qk_norm`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from drope.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Which = Literal["qk", "q", "k"]


def add_joint_norm(model: PreTrainedModel, which: Which = "qk") -> PreTrainedModel:
    """Normalise the outputs of `q_proj` and `k_proj` over their whole width, in place, with gain 1.

    Raises
    ------
    InputError : no layers named q_proj and k_proj, or an unknown choice
    """
    import torch
    from torch import nn

    if which not in ("qk", "q", "k"):
        raise InputError("which", which, "qk, q, k")
    eps = getattr(model.config, "rms_norm_eps", 1e-6)
    wanted = tuple(f".{letter}_proj" for letter in which)
    found = [(name, m) for name, m in model.named_modules() if name.endswith(wanted) and isinstance(m, nn.Linear)]
    if not found:
        raise InputError("model", type(model).__name__, f"a model with layers named {' and '.join(wanted)}")
    for name, layer in found:
        norm = nn.RMSNorm(layer.out_features, eps=eps, device=layer.weight.device, dtype=torch.float32)
        # What follows the projection is reshaped into heads by the attention itself: a sequence is all it takes.
        model.set_submodule(name, nn.Sequential(layer, norm))
    return model
