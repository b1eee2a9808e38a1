"""Drift, norms, spread, crop and gradients along a run."""

from __future__ import annotations

import copy

import families
import pytest
import torch

from drope.analysis import NormVisitor, along, checkpoints, initial_gradients, observe, outliers, spread_by_layer
from drope.analysis import weight_drift as drift
from drope.analysis.crop import answers, binned, cropped_losses, losses
from drope.analysis.figure4 import initialised
from drope.analysis.text import Probe
from drope.errors import InputError
from drope.models import drop

T = 24


def test_drift_is_relative_and_finds_its_place() -> None:
    before = families.model("Llama")
    after = copy.deepcopy(before)
    with torch.no_grad():
        after.model.layers[1].self_attn.q_proj.weight.mul_(1.25)
        after.model.layers[0].mlp.up_proj.weight.mul_(-1)
    found = drift(before, after)
    assert found.layers == [0, 1]
    assert found.parts["queries"] == pytest.approx([0.0, 0.25])
    assert found.parts["keys"] == [0.0, 0.0]
    mlp = before.model.layers[0].mlp
    sizes = {n: w.norm().item() ** 2 for n, w in mlp.named_parameters()}
    expected = 2 * (sizes["up_proj.weight"] / sum(sizes.values())) ** 0.5
    assert found.parts["MLP"] == pytest.approx([expected, 0.0])
    assert found.only_one == []
    assert set(found.other) == {"model.embed_tokens.weight", "lm_head.weight"}


@pytest.mark.parametrize("family", ["GPT-NeoX", "Phi3", "DeepSeek-V3", "Mixtral"])
def test_every_matrix_of_other_families_counts(family: str) -> None:
    before = families.model(family)
    after = copy.deepcopy(before)
    with torch.no_grad():
        for parameter in after.parameters():
            parameter.mul_(1.5)
    found = drift(before, after)
    assert all(value == pytest.approx(0.5) for values in found.parts.values() for value in values if value)
    assert all(any(values[i] for values in found.parts.values()) for i in range(2))


def test_different_architectures_are_refused() -> None:
    with pytest.raises(InputError, match="hidden_size 32"):
        drift(families.model("Llama"), families.model("Llama", hidden_size=64))


def test_norms_of_queries_and_keys() -> None:
    model, ids = families.model("Qwen2"), families.tokens(T)
    visitor = NormVisitor()
    observe(model, ids, visitor)
    found = visitor.to_dict()
    layer = model.model.layers[0]
    x = layer.input_layernorm(model.model.embed_tokens(ids))
    for name, project in (("query", layer.self_attn.q_proj), ("key", layer.self_attn.k_proj)):
        norms = project(x).unflatten(-1, (-1, 8)).norm(dim=-1)  # the rotation keeps them
        assert found[name][0] == pytest.approx(norms.mean().item(), rel=1e-4)
        assert found[f"{name}_largest"][0] == pytest.approx(norms.max().item(), rel=1e-4)
    assert outliers(found) == []
    found["key"][1] *= 100
    assert outliers(
        {**found, "layers": [0, 1], "key": [1.0, 1.0, 50.0], "query": [1.0] * 3} | {"layers": [0, 1, 2]}
    ) == [2]


def test_spread_of_a_models_states() -> None:
    model, ids = families.model("Llama"), families.tokens(T)
    hidden = observe(model, ids, hidden=True)
    found = spread_by_layer(hidden)
    assert len(hidden) == len(found.spread) == 3
    h = hidden[1][0]
    distances = [[(h[: i + 1].mean(0) - h[j]).norm().item() for j in range(i + 1)] for i in range(T)]
    assert found.spread[1] == pytest.approx(max(max(row) for row in distances), rel=1e-4)
    middles = torch.tensor([sum(row) / len(row) for row in distances])
    assert found.typical[1] == pytest.approx(middles.median().item(), rel=1e-4)
    same = spread_by_layer([torch.ones(1, 9, 4)])
    assert same.spread[0] == pytest.approx(0, abs=1e-6)


def test_losses_are_the_models_own() -> None:
    for family in ("Llama", "Gemma2", "Cohere", "Granite"):
        model, ids = families.model(family), families.tokens(T)
        with torch.no_grad():
            expected = model(ids, labels=ids, use_cache=False).loss
        assert losses(model, ids).mean().item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_crop_sees_the_last_tokens_alone() -> None:
    model, ids, context = families.model("Llama"), families.tokens(T), 8
    found = cropped_losses(model, ids, context)
    assert found.shape == (1, T - 1)
    stride, done = context // 4, context
    for place in range(1, T):  # the token at `place`, predicted from the window that ends with its stretch
        stop = context if place < context else done + stride * ((place - done) // stride + 1)
        window = ids[:, max(0, min(stop, T) - context) : min(stop, T)]
        at = place - max(0, min(stop, T) - context)
        assert found[0, place - 1].item() == pytest.approx(losses(model, window)[0, at - 1].item(), rel=1e-4)
    assert torch.equal(cropped_losses(model, ids, T), losses(model, ids))


def test_answers_and_bins() -> None:
    model, ids = families.model("Llama"), families.tokens(T)
    with torch.no_grad():
        last = model(ids, use_cache=False).logits[0, -2:].log_softmax(-1)
    answer = last.argmax(-1).tolist()
    probe = Probe(ids, 0.0, (0, 1), [0, 1], [T - 2, T - 1], answer)
    loss, right = answers(model, probe)
    assert right
    assert loss == pytest.approx(-last.max(-1).values.mean().item(), rel=1e-4)
    wrong = Probe(ids, 0.0, (0, 1), [0, 1], [T - 2, T - 1], [answer[0], (answer[1] + 1) % 96])
    assert not answers(model, wrong)[1]
    assert answers(model, probe, keep=6)[0] != pytest.approx(loss)
    assert binned(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), [0, 3, 5]) == [1.5, 3.5]


def test_gradients_at_initialisation_are_larger_with_rotation_and_the_gap_grows() -> None:
    config = families.config("Llama", num_hidden_layers=6, max_position_embeddings=128, hidden_size=64)
    ids = torch.randint(3, 96, (1, 96), generator=torch.Generator().manual_seed(5))
    found = initial_gradients(config, ids)
    for p in range(2):
        ratio = [a / b for a, b in zip(found.gradients["rope"].total(p), found.gradients["nope"].total(p), strict=True)]
        assert ratio[-1] > 1.2
        assert ratio[-1] > ratio[0]
    assert found.note == ""


def test_large_models_lose_layers_and_say_so() -> None:
    model, note = initialised(families.config("Llama", num_hidden_layers=8), largest=60_000)
    assert 2 <= model.config.num_hidden_layers < 8
    assert "of 8 layers" in note


def test_along_checkpoints(tmp_path) -> None:
    for step in (10, 2, 7):
        families.model("Llama", seed=step).save_pretrained(tmp_path / "run" / f"checkpoint-{step}")
    found = checkpoints(tmp_path)
    assert [name for name, _ in found] == ["checkpoint-2", "checkpoint-7", "checkpoint-10"]
    rows = along(found, families.tokens(T))
    assert [(r["checkpoint"], r["method"]) for r in rows[:2]] == [("checkpoint-2", "rope"), ("checkpoint-2", "nope")]
    assert len(rows) == 6
    assert rows[0]["gradients"]["total"][0] != rows[2]["gradients"]["total"][0]
    free = along([("dropped", None)], families.tokens(T), load=lambda _: drop(families.model("Llama")))
    assert {r["method"] for r in free} >= {"nope"}
    for bad in (tmp_path / "none", tmp_path / "run" / "checkpoint-2"):
        with pytest.raises(InputError, match="--along"):
            checkpoints(bad)
