"""Entropy against its definition, and the temperature that it predicts."""

from __future__ import annotations

import math

import families
import pytest
import torch

from drope.analysis import EntropyVisitor, observe, sampled_lengths
from drope.analysis.attention import Block
from drope.analysis.entropy import BETAS
from drope.errors import InputError


def feed(visitor: EntropyVisitor, probs: torch.Tensor, step: int = 7) -> None:
    """Show (1, H, T, T) attention in blocks."""
    length = probs.shape[-1]
    for start in range(0, length, step):
        stop = min(start + step, length)
        visitor.block(Block(0, start, stop, probs[:, :, start:stop, :stop]))


def causal(scores: torch.Tensor) -> torch.Tensor:
    return scores.masked_fill(torch.ones_like(scores[0, 0]).triu(1).bool(), -torch.inf).softmax(-1)


def test_uniform_attention_has_the_log_of_its_length() -> None:
    visitor = EntropyVisitor([1, 8, 32])
    feed(visitor, causal(torch.zeros(1, 2, 32, 32)))
    found = visitor.result()
    expected = [sum(math.log(k) for k in range(max(1, n - 3), n + 1)) / min(4, n) for n in (1, 8, 32)]
    assert found.mean() == pytest.approx(expected)
    assert found.mean(2.0) == pytest.approx(expected)  # a power of a uniform row is uniform


def test_one_hot_attention_has_none() -> None:
    visitor = EntropyVisitor([8, 16])
    feed(visitor, torch.eye(16)[None, None])
    assert visitor.result().mean() == pytest.approx([0.0, 0.0], abs=1e-12)


def test_each_beta_against_the_definition() -> None:
    scores = torch.randn(1, 3, 24, 24, dtype=torch.float64)
    visitor = EntropyVisitor([24])
    feed(visitor, causal(scores))
    values = visitor.result().values[0, 0]
    for g, beta in enumerate(BETAS):
        p = causal(beta * scores)[0, :, -4:]
        expected = -(p * p.clamp_min(1e-300).log()).sum(-1).mean()
        assert values[g].item() == pytest.approx(expected.item(), rel=1e-9)


def test_the_prediction_restores_the_entropy() -> None:
    """Scores of one distribution at every length: blunter with length, and sharpened back by the predicted β."""
    scores = 2 * torch.randn(1, 8, 256, 256, dtype=torch.float64)
    lengths = [32, 64, 128, 256]
    visitor = EntropyVisitor(lengths)
    feed(visitor, causal(scores), 64)
    found = visitor.result()
    assert found.mean() == sorted(found.mean())
    predicted = found.predicted_betas(32)
    assert list(predicted) == [64, 128, 256]
    betas = [b for b in predicted.values() if b is not None]
    assert betas == sorted(betas)
    assert betas[0] > 1
    again = EntropyVisitor([256])
    feed(again, causal(betas[-1] * scores), 64)
    assert again.result().mean()[0] == pytest.approx(found.mean()[0], abs=0.02)
    a = found.predicted_a(32)
    x, y = [math.log(2), math.log(4), math.log(8)], [b - 1 for b in betas]
    assert a == pytest.approx(sum(i * j for i, j in zip(x, y, strict=True)) / sum(i * i for i in x))


def test_no_beta_where_none_restores_it() -> None:
    visitor = EntropyVisitor([8, 64])
    feed(visitor, causal(torch.zeros(1, 1, 64, 64)), 64)
    found = visitor.result()
    assert found.predicted_betas(8) == {64: None}
    assert found.predicted_a(8) is None
    with pytest.raises(InputError, match="reference"):
        found.predicted_betas(9)


def test_on_a_model() -> None:
    visitor = EntropyVisitor([4, 24])
    model, ids = families.model("Llama"), families.tokens(24)
    observe(model, ids, visitor, elements=4 * 24 * 5)
    with torch.no_grad():
        attentions = model(ids, use_cache=False, output_attentions=True).attentions
    expected = torch.stack([-(a * a.clamp_min(1e-30).log()).sum(-1)[0, :, 20:].mean() for a in attentions]).mean()
    assert visitor.result().mean()[1] == pytest.approx(expected.item(), rel=1e-4)


def test_lengths() -> None:
    assert sampled_lengths(8, 128, 5) == [8, 16, 32, 64, 128]
    assert sampled_lengths(8, 8) == [8]
    with pytest.raises(InputError):
        sampled_lengths(9, 8)
