"""A conversion proves itself: positions must not matter, and decoding from the cache must not either."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from drope.errors import VerificationError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TOKENS = 24
_TEXT = "The quick brown fox jumps over the lazy dog while the cat, who saw it all, goes on sleeping in the warm sun."
# relative to the largest logit; half precision rounds differently for different batch shapes
_GAPPED = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}
_CACHED = {torch.float64: 1e-8, torch.float32: 1e-4, torch.bfloat16: 8e-2, torch.float16: 2e-2}


@dataclass(frozen=True)
class VerificationReport:
    """Measured distances, as the largest difference of a logit divided by the largest logit.

    Parameters
    ----------
    gapped : between positions 0 … T−1 and positions with random gaps
    cached : between the full forward and decoding token by token from the cache
    gapped_tolerance, cached_tolerance : what was allowed, by the model's precision
    tokens : T
    """

    gapped: float
    cached: float
    gapped_tolerance: float
    cached_tolerance: float
    tokens: int

    @property
    def passed(self) -> bool:
        # written so that NaN fails
        return self.gapped <= self.gapped_tolerance and self.cached <= self.cached_tolerance

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}


def verify(model: PreTrainedModel, tokenizer_or_ids: Any = None) -> VerificationReport:
    """Check that a model is position free and that it decodes with a cache; return the distances.

    Parameters
    ----------
    tokenizer_or_ids : a tokenizer (a fixed sentence is used), token ids of shape (1, T), or None for seeded random ids

    Raises
    ------
    VerificationError : either distance exceeds what the model's precision explains
    """
    report = measure(model, tokenizer_or_ids)
    if report.passed:
        return report
    problems = []
    if not report.gapped <= report.gapped_tolerance:
        problems.append(
            f"logits change by {report.gapped:.2e} of the largest (allowed: {report.gapped_tolerance:.0e}) "
            "when positions are given gaps, so something in it still depends on position"
        )
    if not report.cached <= report.cached_tolerance:
        problems.append(
            f"decoding from the cache differs from the full forward by {report.cached:.2e} of the largest logit "
            f"(allowed: {report.cached_tolerance:.0e})"
        )
    raise VerificationError(f"{type(model).__name__} did not pass verification: {'; '.join(problems)}.")


@torch.no_grad()
def measure(model: PreTrainedModel, tokenizer_or_ids: Any = None) -> VerificationReport:
    """The distances of `verify`, without judging them."""
    ids = _ids(model, tokenizer_or_ids).to(model.device)  # (1, T)
    tokens = ids.shape[1]
    # explicit, because gaps without a mask are read as the borders of packed documents
    mask = torch.ones_like(ids)
    plain = torch.arange(tokens, device=ids.device)[None]
    generator = torch.Generator().manual_seed(0)
    gaps = torch.randint(1, 50, (tokens,), generator=generator).cumsum(0)[None].to(ids.device)

    training = model.training
    model.eval()
    try:
        full = _logits(model, ids, mask, plain)
        gapped = _logits(model, ids, mask, gaps)
        cached = _cached_logits(model, ids, mask)
    finally:
        model.train(training)
    largest = full.abs().max().clamp_min(1e-30)
    dtype = model.dtype
    return VerificationReport(
        gapped=float((gapped - full).abs().max() / largest),
        cached=float((cached - full).abs().max() / largest),
        gapped_tolerance=_GAPPED.get(dtype, 1e-5),
        cached_tolerance=_CACHED.get(dtype, 1e-4),
        tokens=tokens,
    )


def _logits(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    out = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
    return out.logits.float()  # (1, T, V)


def _cached_logits(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Logits of decoding one token at a time, shape (1, T, V)."""
    cache, steps = None, []
    for i in range(ids.shape[1]):
        out = model(
            input_ids=ids[:, i : i + 1],
            attention_mask=mask[:, : i + 1],
            position_ids=torch.full_like(ids[:, :1], i),
            past_key_values=cache,
            use_cache=True,
        )
        cache = out.past_key_values
        steps.append(out.logits.float())
    return torch.cat(steps, dim=1)


def _ids(model: PreTrainedModel, tokenizer_or_ids: Any) -> torch.Tensor:
    if isinstance(tokenizer_or_ids, torch.Tensor):
        return tokenizer_or_ids if tokenizer_or_ids.dim() == 2 else tokenizer_or_ids[None]
    if tokenizer_or_ids is not None:
        ids = tokenizer_or_ids(_TEXT, return_tensors="pt").input_ids[:, : 2 * _TOKENS]
        if ids.shape[1] >= 4:
            return ids
    vocabulary = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[index]
    return torch.randint(0, vocabulary, (1, _TOKENS), generator=torch.Generator().manual_seed(0))
