"""The objective, computed over chunks of positions: whole logits never exist, neither the student's nor the teacher's.

    loss = (1 - w) CE(labels) + w T² KL(teacher || student),  both softened by T in the divergence (Hinton et al. 2015)

Gradients are formed in the forward pass, chunk by chunk, while the logits are at hand. `torch` has the same for the
cross entropy alone (`linear_cross_entropy`, from 2.13), on a CPU no faster at its best and 3 times slower by default.

N rows (positions), D hidden width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CHUNK_ELEMENTS = 1 << 25  # logits of a chunk: 128 MiB in float32
_CHUNK_ELEMENTS_CPU = 1 << 20  # 4 MiB stay in the caches
_FEWEST_ROWS = 256  # below that, matrix products are no longer efficient


class Losses(NamedTuple):
    """Scalars in nats per token: what is minimised, and its two parts (the divergence is 0 without a teacher)."""

    loss: Tensor
    cross_entropy: Tensor
    divergence: Tensor


class Logits(NamedTuple):
    """Logits before they are computed: hidden (N, D) times weight (V, D)ᵀ plus bias (V,).

    Without a weight, `hidden` is the logits themselves, (N, V).
    """

    hidden: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None


def chunked_loss(
    student: Logits, targets: Tensor, teacher: Logits | None = None, distill: float = 0.0, temperature: float = 1.0
) -> Losses:
    """Cross entropy with `targets` (N,), mixed with the divergence from `teacher`, averaged over the N rows.

    Differentiable once with respect to the student's tensors. Under autocast the matrix products run in its dtype;
    softmax and sums are always float32.
    """
    if teacher is None or distill == 0:
        teacher, distill = None, 0.0
    device = student.hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else student.hidden.dtype
    settings = (distill, temperature, dtype, torch.is_grad_enabled())
    return Losses(*_Chunked.apply(*student, targets, teacher, settings))


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        targets: Tensor,
        teacher: Logits | None,
        settings: tuple[float, float, torch.dtype, bool],
    ) -> tuple[Tensor, Tensor, Tensor]:
        distill, temperature, dtype, differentiate = settings
        n, vocabulary = len(targets), (hidden if weight is None else weight).shape[-1 if weight is None else 0]
        ctx.grads = (None, None, None)
        with torch.autocast(hidden.device.type, enabled=False):
            cast = None if weight is None else weight.to(dtype)
            taught = None if teacher is None else teacher._replace(
                weight=None if teacher.weight is None else teacher.weight.to(dtype))  # fmt: skip
            if differentiate:
                grad_hidden = torch.empty_like(hidden)
                grad_weight = None
                if weight is not None and ctx.needs_input_grad[1]:
                    grad_weight = (torch.empty_like if n else torch.zeros_like)(weight, dtype=torch.float32)
                grad_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
            entropy = hidden.new_zeros((), dtype=torch.float32)
            divergence = torch.zeros_like(entropy)
            elements = _CHUNK_ELEMENTS_CPU if hidden.device.type == "cpu" else _CHUNK_ELEMENTS
            rows = max(_FEWEST_ROWS, elements // vocabulary)
            room = hidden.new_empty(3 if taught is not None else 2, min(rows, n), vocabulary, dtype=torch.float32)
            for start in range(0, n, rows):
                part = slice(start, start + rows)
                logits = _logits(Logits(hidden, cast, bias), part, dtype, room[0])
                target = targets[part, None]
                if taught is None:
                    # An exponential a chunk less than by log_softmax: log Σ exp is read off where p is largest.
                    p = torch.softmax(logits, -1, out=room[1, : len(logits)])
                    entropy += (logits.amax(-1) - p.amax(-1).log()).sub_(logits.gather(-1, target)[:, 0]).sum()
                else:
                    log_p = torch.log_softmax(logits, -1, out=room[1, : len(logits)])
                    entropy -= log_p.gather(-1, target).sum()
                    soft_p = log_p if temperature == 1 else (logits / temperature).log_softmax(-1)
                    # The student's logits are not needed any more: their room is the teacher's.
                    scaled = _logits(taught, part, dtype, room[0]).div_(temperature)
                    log_q = torch.log_softmax(scaled, -1, out=room[2, : len(logits)])
                    q = torch.exp(log_q, out=room[0, : len(logits)])
                    divergence += temperature**2 * torch.dot(q.view(-1), log_q.sub_(soft_p).view(-1))
                if not differentiate:
                    continue
                # d loss / d logits, times n: (1 - w) (p - onehot) + w T (softened p - q)
                if taught is None:
                    grad = p
                elif temperature == 1:
                    grad = log_p.exp_().sub_(q, alpha=distill)
                else:
                    soft = soft_p.exp_().sub_(q)
                    grad = log_p.exp_().mul_(1 - distill).add_(soft, alpha=distill * temperature)
                grad.scatter_add_(-1, target, grad.new_full((1, 1), distill - 1).expand_as(target))
                if cast is None:
                    grad_hidden[part] = grad
                    continue
                small = grad.to(dtype)
                grad_hidden[part] = small @ cast
                if grad_weight is not None:
                    if dtype == torch.float32:  # adds within the product: no second matrix of the weight's size
                        grad_weight.addmm_(small.mT, hidden[part].to(dtype), beta=float(start > 0))
                    elif start:
                        grad_weight += small.mT @ hidden[part].to(dtype)
                    else:
                        grad_weight.copy_(small.mT @ hidden[part].to(dtype))
                if grad_bias is not None:
                    grad_bias += grad.sum(0)
            if differentiate:
                ctx.grads = (
                    grad_hidden,
                    None if weight is None or grad_weight is None else grad_weight.to(weight.dtype),
                    None if bias is None or grad_bias is None else grad_bias.to(bias.dtype),
                )
        n = max(n, 1)  # a micro batch without tokens to predict has a loss of 0
        entropy, divergence = entropy / n, divergence / n
        loss = (1 - distill) * entropy + distill * divergence
        ctx.n = n
        ctx.mark_non_differentiable(entropy, divergence)
        return loss, entropy, divergence

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grads = tuple(
            g * (grad_output / ctx.n) if needed and g is not None else None
            for g, needed in zip(ctx.grads, ctx.needs_input_grad, strict=False)
        )
        return (*grads, None, None, None)


def _logits(of: Logits, part: slice, dtype: torch.dtype, room: Tensor) -> Tensor:
    """Float32 logits of some rows, (rows, V), in `room` (at least rows, V): fresh memory for each chunk costs time."""
    hidden = of.hidden[part]
    room = room[: len(hidden)]
    if of.weight is None:
        room.copy_(hidden)
    elif dtype == torch.float32:
        torch.mm(hidden.float(), of.weight.mT, out=room)
    else:
        room.copy_(hidden.to(dtype) @ of.weight.mT)
    return room if of.bias is None else room.add_(of.bias)


def linear_head(model: Any) -> nn.Linear | None:
    """The output layer if the model's logits are nothing but its product with the last hidden states; else None.

    None means soft-capped, scaled or otherwise special logits, or a sharded head: the model computes them itself then.
    """
    import inspect

    config = model.config.get_text_config(decoder=True)
    special = (getattr(config, name, None) for name in ("final_logit_softcapping", "logits_scaling", "logit_scale"))
    head = model.get_output_embeddings()
    if any(value not in (None, 1, 1.0) for value in special) or not isinstance(head, nn.Linear):
        return None
    if hasattr(head.weight, "device_mesh") or "logits_to_keep" not in inspect.signature(model.forward).parameters:
        return None
    was_training = model.training
    ids = torch.arange(16, device=head.weight.device).remainder(config.vocab_size).view(2, 8)
    with torch.no_grad():
        model.eval()
        whole = model(input_ids=ids, use_cache=False).logits
        ours = F.linear(model.base_model(input_ids=ids, use_cache=False)[0], head.weight, head.bias)
        model.train(was_training)
    tolerance = 50 * torch.finfo(whole.dtype).eps * whole.abs().max().item()
    return head if (whole - ours).abs().max().item() <= tolerance else None
