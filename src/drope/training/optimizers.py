"""Muon and AdamW as one optimizer, which is what a Trainer takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from drope.training.muon import Muon


class MuonAdamW(torch.optim.Optimizer):
    """Muon for `matrices`, AdamW for `rest`. Both share their groups with this object, so a schedule moves both.

    Parameters
    ----------
    matrices : 2-d parameters of the blocks
    rest : AdamW's parameter groups: embeddings, output layer, norms, biases
    """

    def __init__(
        self,
        matrices: Sequence[Tensor],
        rest: list[dict[str, Any]],
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float,
    ):
        self.parts: list[torch.optim.Optimizer] = [Muon(matrices, lr=lr, weight_decay=weight_decay)]
        self.parts.append(torch.optim.AdamW(rest, lr=lr, betas=betas, eps=eps))
        super().__init__([group for part in self.parts for group in part.param_groups], {"lr": lr})

    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        # Loading gives a part new groups; ours must stay the same objects.
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def muon_adamw(
    model: Any, lr: float, weight_decay: float, betas: tuple[float, float], eps: float, decayed: set[str]
) -> MuonAdamW:
    """Split a model's parameters: matrices go to Muon, except the embeddings and the output layer.

    Parameters
    ----------
    decayed : names of the parameters that AdamW decays
    """
    outer = {
        id(p)
        for module in (model.get_input_embeddings(), model.get_output_embeddings())
        if module is not None
        for p in module.parameters()
    }
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    matrices = [p for _, p in named if p.ndim == 2 and id(p) not in outer]
    rest = [(n, p) for n, p in named if p.ndim != 2 or id(p) in outer]
    groups = [
        {"params": [p for n, p in rest if (n in decayed) == decays], "weight_decay": weight_decay if decays else 0.0}
        for decays in (True, False)
    ]
    return MuonAdamW(matrices, [g for g in groups if g["params"]], lr, weight_decay, betas, eps)
