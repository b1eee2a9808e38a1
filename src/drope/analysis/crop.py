"""YaRN equals crop: a scaled model on a long text against the plain one that sees the last C_train tokens alone.

DroPE, arXiv 2512.12167, Figure 5: YaRN's perplexity beyond the trained context is as flat as that of a model whose
input is cropped, and it fails on needles as far away as those that the crop has cut off.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

from drope.analysis.text import Probe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_STRIDE = 4  # a cropped window moves on by a quarter of the context: its predictions see 3/4 to 4/4 of it
_LOGITS = 2**24  # logits held at once


@torch.no_grad()
def losses(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Loss of every token but the first given all before it, nats: (B, T) to (B, T − 1)."""
    hidden = model.get_decoder()(input_ids=ids.to(model.device), use_cache=False)[0]
    return _losses(model, ids, hidden)


@torch.no_grad()
def cropped_losses(model: PreTrainedModel, ids: torch.Tensor, context: int) -> torch.Tensor:
    """The same where each token is predicted from its last `context` tokens at most, and from 3/4 of them at least."""
    length = ids.shape[1]
    if length <= context:
        return losses(model, ids)
    stride = max(1, context // _STRIDE)
    out = [losses(model, ids[:, :context])]
    done = context  # tokens predicted so far, the first not counted
    while done < length:
        stop = min(length, done + stride)
        window = losses(model, ids[:, stop - context : stop])
        out.append(window[:, -(stop - done) :])
        done = stop
    return torch.cat(out, dim=1)


@torch.no_grad()
def answers(model: PreTrainedModel, probe: Probe, keep: int | None = None) -> tuple[float, bool]:
    """Loss of a needle's answer (nats per token) and whether greedy decoding would give it.

    Parameters
    ----------
    keep : crop the prompt to its last so many tokens
    """
    ids = probe.ids if keep is None else probe.ids[:, -keep:]
    hidden = model.get_decoder()(input_ids=ids.to(model.device), use_cache=False)[0]
    logits = _logits(model, ids, hidden[:, -len(probe.answer) :])[0]
    wanted = torch.tensor(probe.answer, device=logits.device)
    return float(cross_entropy(logits, wanted)), bool((logits.argmax(-1) == wanted).all())


def binned(values: torch.Tensor, edges: Sequence[int]) -> list[float]:
    """Mean of per-position losses (B, T − 1) over positions [edge, next edge); column j belongs to position j + 1."""
    return [float(values[:, max(a, 1) - 1 : b - 1].mean()) for a, b in zip(edges, edges[1:], strict=False)]


def _losses(model: PreTrainedModel, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    step = max(1, _LOGITS // (ids.shape[0] * model.config.get_text_config(decoder=True).vocab_size))
    out = []
    for start in range(0, ids.shape[1] - 1, step):
        stop = min(start + step, ids.shape[1] - 1)
        logits = _logits(model, ids, hidden[:, start:stop])
        targets = ids[:, start + 1 : stop + 1].to(logits.device)
        out.append(cross_entropy(logits.transpose(1, 2), targets, reduction="none").cpu())
    return torch.cat(out, dim=1)


def _logits(model: PreTrainedModel, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Logits of hidden states as the family scales and caps them."""
    head = model.get_output_embeddings()
    config = model.config.get_text_config(decoder=True)
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    logits = head(hidden).float() * scale
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap
