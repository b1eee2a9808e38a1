"""Loss per position with chunked logits: (B, T, V) is never held at once.

B sequences, T tokens, V vocabulary, C hidden width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.functional import cross_entropy

from drope.models.logit_scale import logit_scale, set_logit_scale

_LOGITS_AT_ONCE = 2**24  # elements: 64 MB in float32


@contextmanager
def evaluating(model) -> Iterator[None]:
    """Evaluation mode without gradients; the model's mode comes back afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():  # not inference_mode: rotary modules may renew buffers that training needs later
            yield
    finally:
        model.train(training)


@contextmanager
def temperature_at(model, beta: float) -> Iterator[None]:
    """The softmax temperature β while the block runs; what was set before comes back."""
    before = logit_scale(model)
    set_logit_scale(model, beta)
    try:
        yield
    finally:
        set_logit_scale(model, before)


def token_losses(
    model, ids: torch.Tensor, last: int | None = None, logits_at_once: int = _LOGITS_AT_ONCE
) -> torch.Tensor:
    """Negative log-likelihood in nats of each token given those before it.

    Parameters
    ----------
    ids : (B, T) on the model's device
    last : only the last so many predictions
    logits_at_once : bound on the logits held at once, in elements

    Returns
    -------
    float32 (B, last or T - 1); column j belongs to the token at position j + 1 (or T - last + j)
    """
    n = ids.shape[1] - 1 if last is None else last
    targets = ids[:, ids.shape[1] - n :]
    head = _head(model, ids)
    if head is None:
        logits = model(input_ids=ids, use_cache=False).logits[:, -n - 1 : -1]
        return cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")
    hidden = _hidden(model, ids)[:, -n - 1 : -1]  # (B, n, C)
    losses = []
    vocabulary = model.get_output_embeddings().weight.shape[0]
    step = max(1, logits_at_once // (ids.shape[0] * vocabulary))
    for i in range(0, n, step):
        logits = head(hidden[:, i : i + step]).float()
        losses.append(cross_entropy(logits.transpose(1, 2), targets[:, i : i + step], reduction="none"))
    return torch.cat(losses, dim=1)


def _hidden(model, ids: torch.Tensor) -> torch.Tensor:
    return model.get_decoder()(input_ids=ids, use_cache=False)[0]


def _head(model, ids: torch.Tensor):
    """Hidden states to logits as this family does it, or None if that cannot be told from outside.

    Families scale or cap their logits after the output layer. What the config says is applied, and the outcome is
    held against the model's own logits on a few tokens before it is trusted.
    """
    output = model.get_output_embeddings()
    if output is None or model.get_decoder() is model:
        return None
    config = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0  # Cohere
    scale /= getattr(config, "logits_scaling", None) or 1.0  # Granite
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma

    def head(hidden: torch.Tensor) -> torch.Tensor:
        logits = output(hidden.to(output.weight.dtype)) * scale
        return logits if cap is None else torch.tanh(logits / cap) * cap

    probe = ids[:1, :8]
    expected = model(input_ids=probe, use_cache=False).logits.float()
    got = head(_hidden(model, probe)).float()
    tolerance = 1e-3 * expected.abs().max().clamp(min=1.0)
    return head if got.shape == expected.shape and (got - expected).abs().max() <= tolerance else None
