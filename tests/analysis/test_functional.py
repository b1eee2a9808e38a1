"""A^c and its gradients on real families, against attention and autograd of the whole model."""

from __future__ import annotations

import families
import pytest
import torch

from drope.analysis import DIAGONAL, PREVIOUS, Visitor, gradient_norms, observe, offsets, positional_bias
from drope.errors import InputError, UnsupportedModelError
from drope.models import apply, drop
from drope.positions import SelfExtend, Yarn

T = 24
BLOCK = T * 4 * 5  # elements: five queries of four heads


@pytest.mark.parametrize("family", families.FAMILIES)
def test_blocks_agree_with_the_familys_eager_attention(family: str) -> None:
    model, ids = families.model(family), families.tokens(T)
    own = model.config._attn_implementation
    with torch.no_grad():
        attentions = [a for a in model(ids, use_cache=False, output_attentions=True).attentions if a is not None]
    found = positional_bias(model, ids, offsets(3), elements=BLOCK)
    assert len(found.layers) == len(attentions) > 0
    for dense, blocked in zip(attentions, found.values, strict=True):
        expected = torch.stack([(p.dense(T) * dense.double()).sum((-1, -2))[0] / T for p in offsets(3)])
        torch.testing.assert_close(blocked, expected, atol=1e-6, rtol=1e-5)
    assert model.config._attn_implementation == own


@pytest.mark.parametrize("family", ["Llama", "Qwen3", "GPT-NeoX", "Phi3", "Gemma2"])
@pytest.mark.parametrize("dropped", [False, True])
def test_gradients_agree_with_autograd_through_the_whole_model(family: str, dropped: bool) -> None:
    model, ids = families.model(family).double(), families.tokens(T)
    if dropped:
        drop(model)
    found = gradient_norms(model, ids, (DIAGONAL, PREVIOUS), elements=BLOCK)
    attentions = model(ids, use_cache=False, output_attentions=True).attentions
    modules = [m for m in model.modules() if type(m).__name__.endswith("Attention")]
    for p, pattern in enumerate((DIAGONAL, PREVIOUS)):
        for layer, module in enumerate(modules):
            mean = (pattern.dense(T) * attentions[layer]).sum() / (T * attentions[layer].shape[1])
            matrices = [w for w in module.parameters() if w.dim() >= 2]
            grads = torch.autograd.grad(mean, matrices, retain_graph=True, allow_unused=True)
            expected = sum(float(g.square().sum()) for g in grads if g is not None) ** 0.5
            assert found.total(p)[layer] == pytest.approx(expected, rel=1e-5)
            if hasattr(module, "q_proj"):
                by_query = torch.autograd.grad(mean, module.q_proj.weight, retain_graph=True)[0].norm().item()
                assert found.query[p][layer] == pytest.approx(by_query, rel=1e-5)


def test_the_model_comes_back_as_it_was() -> None:
    model, ids = families.model("Llama"), families.tokens(T)
    model.train()
    for parameter in list(model.parameters())[::2]:
        parameter.requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    before = families.logits(model.eval())
    model.train()
    gradient_norms(model, ids)
    positional_bias(model, ids)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert model.training
    assert model.config._attn_implementation == "eager"
    assert torch.equal(families.logits(model.eval()), before)


def test_watching_one_model_leaves_another_alone() -> None:
    a, b, ids = families.model("Llama"), families.model("Llama", seed=3), families.tokens(T)
    expected = families.logits(b)

    class Meanwhile(Visitor):
        seen = 0

        def states(self, layer, query, key) -> None:
            self.seen += 1
            assert b.config._attn_implementation == "eager"
            assert torch.equal(families.logits(b), expected)

    visitor = Meanwhile()
    observe(a, ids, visitor)
    assert visitor.seen == 2


def test_an_exception_inside_gives_the_model_back() -> None:
    model = families.model("Llama")

    class Fails(Visitor):
        def block(self, block) -> None:
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        observe(model, families.tokens(T), Fails())
    assert model.config._attn_implementation == "eager"


def test_never_all_heads_times_t_times_t() -> None:
    model, ids = families.model("Llama"), families.tokens(64)

    class Largest(Visitor):
        most = 0

        def block(self, block) -> None:
            self.most = max(self.most, block.probs.numel())

    visitor = Largest()
    observe(model, ids, visitor, elements=4 * 64 * 8)
    assert 0 < visitor.most <= 4 * 64 * 8


def test_methods_that_rotate_differently_are_seen() -> None:
    model, ids = families.model("Llama"), families.tokens(T)
    plain = positional_bias(model, ids)
    with apply(model, Yarn(), 4 * families.CONTEXT):
        scaled = positional_bias(model, ids)
    assert (plain.values[0] - scaled.values[0]).abs().max() > 1e-4


def test_refusals() -> None:
    model, ids = families.model("Llama"), families.tokens(T)
    with pytest.raises(InputError, match="patterns"):
        positional_bias(model, ids, ())
    with (
        apply(model, SelfExtend(), 4 * families.CONTEXT),
        pytest.raises(UnsupportedModelError, match="own attention"),
    ):
        positional_bias(model, ids)


def test_a_model_without_attention_is_refused() -> None:
    from transformers import AutoModelForCausalLM, MambaConfig

    config = MambaConfig(vocab_size=96, hidden_size=16, state_size=4, num_hidden_layers=1, pad_token_id=0)
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UnsupportedModelError, match="Mamba"):
        positional_bias(model, families.tokens(8))
