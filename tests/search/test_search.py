"""The search against factors that were planted, its objective by hand, its constraint, and its cache."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from drope import models
from drope.errors import InputError
from drope.evaluation.samples import Samples
from drope.models import set_logit_scale
from drope.positions import NTK, PI, LongRoPE2, RopeShape
from drope.positions.longrope2 import compose
from drope.search import SearchConfig, SearchResult, longrope2_method, search_longrope2
from drope.search.evolve import Candidates, evolve
from drope.search.longrope2 import needle_documents, needle_loss

CONTEXT, TARGET = 128, 512
SMALL = SearchConfig(population=6, generations=2, documents=2)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    raw = Tokenizer(tokenizer_models.WordLevel({chr(i): i for i in range(128)}, unk_token="?"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="?")


@pytest.fixture
def model() -> LlamaForCausalLM:
    """Random weights, large enough that attention and its rotation matter."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=CONTEXT, initializer_range=0.5, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def planted(model, factors: list[float], length: int) -> Samples:
    """Documents whose second halves the model itself wrote, under these factors: no others explain them better."""
    generator = torch.Generator().manual_seed(1)
    half = length // 2
    ids = torch.randint(0, 128, (24, half), generator=generator)
    with models.apply(model, LongRoPE2({length: factors}), length), torch.no_grad():
        step = model(input_ids=ids, use_cache=True)
        for _ in range(half):
            ids = torch.cat([ids, torch.multinomial(step.logits[:, -1].softmax(-1), 1, generator=generator)], 1)
            step = model(input_ids=ids[:, -1:], past_key_values=step.past_key_values, use_cache=True)
    return Samples(((ids, half),))


def test_finds_planted_factors_where_pi_and_ntk_do_not(model):
    model.config.max_position_embeddings = 64
    shape, length = models.rope_shape(model.config), 128
    candidates = Candidates(shape, 2.0)
    true = compose(shape, candidates.theoretical - 1, [3.0] * (shape.pairs - candidates.theoretical + 1)).tolist()
    documents = planted(model, true, length)

    def loss(factors):
        return needle_loss(model, documents, LongRoPE2({length: factors}), length)

    found = evolve(loss, candidates, SearchConfig(population=10, generations=6))
    best = loss(tuple(true))
    pi, ntk = (needle_loss(model, documents, m, length) for m in (PI(), NTK()))
    start = found.history[0]
    assert found.loss < start < min(pi, ntk)
    assert found.loss - best < 0.25 * (min(pi, ntk) - best)
    assert found.loss == pytest.approx(loss(found.factors))
    assert found.history == sorted(found.history, reverse=True)
    assert len(found.history) == 7
    assert found.evaluations <= 10 * 7
    again = evolve(loss, candidates, SearchConfig(population=10, generations=2))
    assert again.history == found.history[:3]
    other = evolve(loss, candidates, SearchConfig(population=10, generations=2, seed=1))
    assert other.history != again.history


@pytest.mark.parametrize("below", ["ntk", "none"])
@pytest.mark.parametrize("shape", [RopeShape(1e4, 16, 64), RopeShape(5e5, 128, 8192), RopeShape(1e4, 4, 64)])
def test_no_candidate_ever_breaks_the_constraint(shape, below):
    candidates = Candidates(shape, 8.0, below=below)
    rng = np.random.default_rng(0)
    seen = []

    def loss(factors):
        seen.append(factors)
        return float(rng.random())

    evolve(loss, candidates, SearchConfig(population=20, generations=10, below=below))
    assert len(seen) > 60
    for factors in seen:
        array = np.asarray(factors)
        assert len(array) == shape.pairs
        assert (np.diff(array) >= 0).all()
        assert (array >= 1).all()
        assert array[-1] <= 16
        assert (array[candidates.theoretical :] >= 8 * (1 - 1e-12)).all()  # out-of-range pairs: at least s
        LongRoPE2({100 * shape.context: factors})  # accepts it
    wild = rng.normal(size=(200, 1 + shape.pairs)) * 3
    wild[:, 0] = rng.integers(candidates.earliest, candidates.theoretical + 1, 200)
    assert all((np.diff(candidates.factors(row)) >= 0).all() for row in wild)


def test_the_first_population_is_the_papers():
    shape = RopeShape(1e4, 96, 2048)
    candidates = Candidates(shape, 64.0)
    rows = candidates.first(64, np.random.default_rng(0))
    pairs = sorted({int(row[0]) for row in rows})
    assert pairs == list(range(candidates.earliest, candidates.theoretical + 1))
    for row in rows[: len(pairs)]:
        above = np.asarray(candidates.factors(row))[int(row[0]) :]
        assert np.ptp(above) < 1e-9
        assert 64 <= above[0] <= 128
    assert candidates.factors(rows[0])[31:] == (64.0,) * 17


def test_objective_is_the_loss_of_the_needle_alone(model, tokenizer):
    """By hand on the same text: the needle first, the question last, and only the digits count."""
    documents = needle_documents(tokenizer, TARGET, SMALL)
    method = LongRoPE2({TARGET: [1.0] * 4 + [4.0] * 4})
    losses = []
    for ids, n in documents.batches:
        assert n == 8  # a space and seven digits, one token each
        for row in ids:
            text = "".join(chr(i) for i in row.tolist())
            key, value = text.split("magic numbers for ", 1)[1].split(".", 1)[0].split(" is: ")
            assert text.startswith("One of the special magic numbers for ")
            assert text.endswith(f"The special magic number for {key} mentioned in the provided text is: {value}")
            assert TARGET - 48 < len(row) <= TARGET
            with models.apply(model, method, TARGET), torch.no_grad():
                logp = model(input_ids=row[None]).logits[0].double().log_softmax(-1)
            losses.append(-sum(logp[len(row) - 9 + j, row[len(row) - 8 + j]].item() for j in range(8)) / 8)
    assert len(losses) == 2
    assert needle_loss(model, documents, method, TARGET) == pytest.approx(np.mean(losses), rel=1e-5)


def test_search_keeps_the_best_and_leaves_the_model_alone(model, tokenizer, tmp_path):
    ids = torch.arange(100)[None]
    before = model(input_ids=ids).logits
    result = search_longrope2(model.train(), tokenizer, TARGET, SMALL, cache_dir=tmp_path)
    assert model.training
    assert torch.equal(model.eval()(input_ids=ids).logits, before)
    assert result.loss == min(result.history)
    assert set(result.baselines) == {"pi", "ntk", "yarn"}
    documents = needle_documents(tokenizer, TARGET, SMALL)
    assert result.loss == pytest.approx(needle_loss(model, documents, result.method(), TARGET))
    assert result.baselines["ntk"] == pytest.approx(needle_loss(model, documents, NTK(), TARGET))
    assert result.perplexity == pytest.approx(math.exp(result.loss))
    assert SearchResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_found_factors_are_taken_from_the_cache_without_running_the_model(model, tokenizer, tmp_path):
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    first = search_longrope2(model, tokenizer, TARGET, SMALL, cache_dir=tmp_path)
    assert passes
    passes.clear()
    assert search_longrope2(model, tokenizer, TARGET, SMALL, cache_dir=tmp_path) == first
    method = longrope2_method(model, tokenizer, (64, CONTEXT, TARGET), SMALL, cache_dir=tmp_path)
    assert method == LongRoPE2({TARGET: first.factors})
    assert not passes
    for changed in (
        SearchConfig(population=6, generations=1, documents=2),
        SearchConfig(population=6, generations=2, documents=2, seed=1),
    ):
        search_longrope2(model, tokenizer, TARGET, changed, cache_dir=tmp_path)
        assert passes
        passes.clear()
    thorough = SearchConfig(population=6, generations=3, documents=2)
    best = search_longrope2(model, tokenizer, TARGET, thorough, cache_dir=tmp_path)
    passes.clear()
    assert search_longrope2(model, tokenizer, TARGET, cache_dir=tmp_path) == best  # whatever is known serves
    assert longrope2_method(model, tokenizer, [TARGET], cache_dir=tmp_path, search=False) == best.method()
    with pytest.raises(InputError, match="searched before"):
        search_longrope2(model, tokenizer, TARGET, replace(SMALL, seed=5), cache_dir=tmp_path, search=False)
    assert not passes
    set_logit_scale(model, 1.5)
    with pytest.raises(InputError, match="searched before"):
        search_longrope2(model, tokenizer, TARGET, cache_dir=tmp_path, search=False)
    set_logit_scale(model, 1.0)
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    search_longrope2(model, tokenizer, TARGET, SMALL, cache_dir=tmp_path)
    assert passes  # other weights, other factors


def test_an_interrupted_search_goes_on_and_ends_the_same(model, tokenizer, tmp_path):
    whole = search_longrope2(model, tokenizer, TARGET, SMALL, cache_dir=tmp_path / "whole")
    passes = []

    def stop(*_):
        passes.append(1)
        if len(passes) == 40:
            raise KeyboardInterrupt

    hook = model.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        search_longrope2(model, tokenizer, TARGET, SMALL, cache_dir=tmp_path / "part")
    first, passes[:] = len(passes), [1] * 100
    assert search_longrope2(model, tokenizer, TARGET, SMALL, cache_dir=tmp_path / "part") == whole
    hook.remove()
    lines = next((tmp_path / "part").glob("*.jsonl")).read_text().splitlines()
    assert first == 40
    assert len(lines) == whole.evaluations  # nothing was measured twice
    kept = next((tmp_path / "part").glob("*.json"))
    kept.write_text("{")  # damaged: found anew from the log
    assert search_longrope2(model, tokenizer, TARGET, SMALL, cache_dir=tmp_path / "part") == whole


def test_bad_input(model, tokenizer, tmp_path):
    with pytest.raises(InputError, match="a target above the model's context of 128"):
        search_longrope2(model, tokenizer, CONTEXT, SMALL, cache_dir=tmp_path)
    with pytest.raises(InputError, match="a model that rotates"):
        search_longrope2(models.drop(model), tokenizer, TARGET, SMALL, cache_dir=tmp_path)
    for field, value in (
        ("population", 4), ("generations", -1), ("mutation", 0), ("mutation", 1.1), ("largest", 1.0), ("documents", 0),
        ("below", "pi"), ("attention_factor", -1.0), ("seed", -1), ("batch_tokens", 0), ("population", True),
    ):  # fmt: skip
        with pytest.raises(InputError, match=field):
            SearchConfig(**{field: value})
    broken: Any
    for broken in ({}, {"factors": [2.0, 1.0]}, [], {"factors": 3}):
        with pytest.raises(InputError, match="factors"):
            SearchResult.from_dict(broken)
