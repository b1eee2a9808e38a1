"""Loss by position against a dense computation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
)

from drope.errors import InputError
from drope.evaluation import perplexity
from drope.evaluation.losses import evaluating, token_losses
from drope.evaluation.tokens import windows

_SIZES: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.3,
}  # fmt: skip


def dense(model, ids: torch.Tensor) -> torch.Tensor:
    """log p of every token by the definition, all logits at once, in float64."""
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits.double()
    p = logits.exp() / logits.exp().sum(-1, keepdim=True)
    return -torch.stack([p[:, t - 1].gather(1, ids[:, t : t + 1])[:, 0].log() for t in range(1, ids.shape[1])], dim=1)


def families():
    return [
        Gemma2ForCausalLM(Gemma2Config(**_SIZES, final_logit_softcapping=1.5, sliding_window=8)),
        CohereForCausalLM(CohereConfig(**_SIZES, logit_scale=0.25)),
        GraniteForCausalLM(GraniteConfig(**_SIZES, logits_scaling=3.0)),
    ]


def test_chunked_equals_dense(model):
    ids = torch.randint(0, model.config.vocab_size, (3, 41))
    with evaluating(model):
        for at_once in (1, 3 * 7 * model.config.vocab_size, 2**24):
            assert torch.allclose(
                token_losses(model, ids, logits_at_once=at_once).double(), dense(model, ids), atol=1e-4
            )
        assert torch.allclose(token_losses(model, ids, last=5).double(), dense(model, ids)[:, -5:], atol=1e-4)


@pytest.mark.parametrize("which", range(3))
def test_families_that_scale_or_cap_logits(which):
    model = families()[which].eval()
    ids = torch.randint(0, 50, (2, 20))
    with evaluating(model):
        assert torch.allclose(token_losses(model, ids, logits_at_once=200).double(), dense(model, ids), atol=1e-4)


def test_family_that_does_something_unknown_to_its_logits(model):
    """A stock model cannot tell us; the model's own logits are used when ours disagree with them."""

    class Odd(type(model)):  # type: ignore[misc]
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits = out.logits * 0.3
            return out

    odd = Odd(model.config).eval()
    ids = torch.randint(0, model.config.vocab_size, (2, 20))
    with evaluating(odd):
        assert torch.allclose(token_losses(odd, ids).double(), dense(odd, ids), atol=1e-4)


def test_logits_held_at_once_are_bounded(model):
    largest = []
    model.lm_head.register_forward_hook(lambda m, i, out: largest.append(out.numel()))
    bound = 2 * 10 * model.config.vocab_size
    with evaluating(model):
        token_losses(model, torch.randint(0, model.config.vocab_size, (2, 200)), logits_at_once=bound)
    assert max(largest) <= bound


def test_evaluating_gives_the_mode_back(model):
    model.train()
    with evaluating(model):
        assert not model.training
        assert not torch.is_grad_enabled()
    assert model.training
    assert torch.is_grad_enabled()


def test_bins_cover_every_predicted_position_once():
    for length, bins in [(2048, 32), (100, 7), (10, 32), (2, 1), (33, 32)]:
        edges = perplexity.bin_edges(length, bins)
        covered = [p for a, b in perplexity._spans(edges) for p in range(a, b)]
        assert covered == list(range(1, length))


def test_measured_rows_equal_dense_means(model, tokenizer, sentences, tmp_path):
    ids = windows(tokenizer, sentences, 64, 5)
    records = perplexity.run_documents(model, ids, tmp_path / "p.jsonl", bins=4, batch_tokens=130)
    total, *rows = perplexity.measurements(records, "rope", 64, 4, {"model": "m"})
    losses = dense(model, torch.from_numpy(ids)).numpy()
    assert total.metric == "perplexity"
    assert total.value == pytest.approx(math.exp(losses.mean()), rel=1e-4)
    assert total.low < total.value < total.high
    assert [(r.details["position_start"], r.details["position_end"]) for r in rows] == [
        (1, 16),
        (16, 32),
        (32, 48),
        (48, 64),
    ]
    for row in rows:
        part = losses[:, row.details["position_start"] - 1 : row.details["position_end"] - 1].mean(1)
        assert row.metric == "loss"
        assert row.n == 5
        assert row.value == pytest.approx(part.mean(), rel=1e-4)
        assert row.details["se"] == pytest.approx(part.std(ddof=1) / 5**0.5, rel=1e-3)


def test_cropped_losses_see_the_last_tokens_alone(model):
    ids = torch.randint(0, 90, (2, 75), generator=torch.Generator().manual_seed(0))
    found = perplexity.cropped_losses(model, ids, 20)
    assert found.shape == (2, 74)
    starts = [0] * 19 + [10] * 10 + [20] * 10 + [30] * 10 + [40] * 10 + [50] * 10 + [55] * 5  # what each sees
    for target, start in enumerate(starts, 1):
        alone = dense(model, ids[:, start : target + 1])[:, -1]
        torch.testing.assert_close(found[:, target - 1].float(), alone.float(), rtol=1e-4, atol=1e-4)


def test_documents_resume(model, tokenizer, sentences, tmp_path):
    ids, log = windows(tokenizer, sentences, 64, 5), tmp_path / "p.jsonl"
    whole = perplexity.run_documents(model, ids, tmp_path / "whole.jsonl", bins=4, batch_tokens=1)
    perplexity.run_documents(model, ids[:3], log, bins=4, batch_tokens=1)
    log.write_bytes(log.read_bytes()[:-10])
    rows = []
    model.register_forward_pre_hook(lambda m, a, k: rows.append(k["input_ids"].shape), with_kwargs=True)
    assert perplexity.run_documents(model, ids, log, bins=4, batch_tokens=1) == whole
    assert len(rows) == 3  # the torn one and the two new ones
    changed = ids.copy()
    changed[0, 5] += 1
    assert perplexity.run_documents(model, changed, log, bins=4, batch_tokens=1)[0]["losses"] != whole[0]["losses"]


@pytest.mark.parametrize("kind", ["digits", "bos"])
def test_windows(kind, tokenizers):
    tokenizer = tokenizers[kind]
    documents = [f"The {i}th text is about the number {i}." for i in range(30)]
    got = windows(tokenizer, documents, 50, 4)
    prefix = 1 if kind == "bos" else 0
    assert got.shape == (4, 50)
    assert (got[:, :prefix] == 0).all()
    body = np.concatenate(list(got[:, prefix:]))
    stream = [t for d in documents for t in [*tokenizer(d, add_special_tokens=False)["input_ids"], 1]]
    assert body.tolist() == stream[: len(body)]
    assert windows(tokenizer, documents, 50, 10**6).shape[0] == len(stream) // (50 - prefix)
    with pytest.raises(InputError, match="at least 5000 tokens"):
        windows(tokenizer, documents, 5000, 1)
