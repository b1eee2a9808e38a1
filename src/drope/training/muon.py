"""Muon for processors without bfloat16 arithmetic.

`torch.optim.Muon` orthogonalises in bfloat16, which processors without AVX-512 BF16 or AMX emulate: measured about 25
times slower than float32. This one keeps the matrices' dtype and batches all matrices of one shape.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

# Quintic Newton-Schulz coefficients of Keller Jordan's Muon (2024), the ones that torch.optim.Muon uses too.
_A, _B, _C = 3.4445, -4.7750, 2.0315


def orthogonalise(x: Tensor, steps: int = 5) -> Tensor:
    """Approximate U Vᵀ of the singular value decomposition of each matrix in `x` (..., m, n), in its own dtype."""
    transposed = x.size(-2) > x.size(-1)
    x = x.mT if transposed else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return x.mT if transposed else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, scaled to AdamW's update size: 0.2 sqrt(max(m, n)) (arXiv 2502.16982).

    Parameters
    ----------
    params : matrices (2-d parameters only)
    lr : learning rate; AdamW's rates carry over
    momentum : decay of the gradient average
    weight_decay : decoupled, per step times lr

    Raises
    ------
    ValueError : a parameter that is not a matrix
    """

    def __init__(self, params: Iterable, lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.1):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim != 2:
                    raise ValueError(f"Muon takes matrices only; got a parameter of shape {tuple(p.shape)}")

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape].append(p)
            for shape, same in by_shape.items():
                updates = []
                for p in same:
                    assert p.grad is not None
                    state = self.state[p]
                    if "momentum_buffer" not in state:
                        state["momentum_buffer"] = torch.zeros_like(p)
                    state["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
                    updates.append(p.grad.lerp(state["momentum_buffer"], group["momentum"]))
                scale = 0.2 * max(shape) ** 0.5
                for p, update in zip(same, orthogonalise(torch.stack(updates)), strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * scale)
        return loss
