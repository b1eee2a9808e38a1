"""Every method of the catalogue under the same conditions: decoding, batches, undoing, saving, refusals."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from catalogue import EVERY, GROWS_WITH_INPUT, INSTANCES, LENGTH, SHAPE, hidden, llama
from families import CONTEXT, FAMILIES, logits, model, tokens
from transformers import AutoModelForCausalLM

from drope import models, positions
from drope.errors import DropeError, InputError, UnsupportedModelError
from drope.models.applicable import ATTENTION_FAMILIES, LAYER_FAMILIES, WINDOW_FAMILIES
from drope.models.attention import PLAN
from drope.positions import METHODS, Crop, DropLayers, Method, Nope, Requirements, ReRope, Rope
from drope.positions.layers import LayerPlan

each = pytest.mark.parametrize("name", INSTANCES)
every = pytest.mark.parametrize("name", EVERY)
OWN_ATTENTION = [name for name, method in EVERY.items() if method.requirements(SHAPE, LENGTH).own_attention]


@each
def test_settings_describe_the_method(name):
    method = INSTANCES[name]
    again = positions.get(method.name, **method.settings())
    assert again == method
    assert hash(again) == hash(method)
    assert method.label
    assert "Source:" in (type(method).__doc__ or "") or "arXiv" in (type(method).__doc__ or "")


@each
@torch.no_grad()
def test_decoding_from_the_cache_equals_one_pass(name):
    method = INSTANCES[name]
    made = llama(method)
    total = CONTEXT if name in GROWS_WITH_INPUT else LENGTH
    ids = tokens(total)
    # a prompt, single tokens across the context and the borders of windows and chunks, pieces of several tokens
    edges = [0, 40, *range(41, 71), *range(77, total, 7), total] if total == LENGTH else [0, 20, *range(21, total + 1)]
    with models.apply(made, method, total):
        whole = made(input_ids=ids, use_cache=False).logits
        parts, cache = [], None
        for start, end in pairwise(edges):
            out = made(input_ids=ids[:, start:end], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            parts.append(out.logits)
    seen = slice(hidden(method, total), None)
    torch.testing.assert_close(torch.cat(parts, 1)[:, seen], whole[:, seen], rtol=1e-4, atol=2e-4)


@every
def test_generation_uses_its_cache(name):
    method = EVERY[name]
    made = llama(method)
    prompt = tokens(40 if name in GROWS_WITH_INPUT else 100)
    with models.apply(made, method, LENGTH):
        settings = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 6, "do_sample": False}
        cached = made.generate(prompt, **settings)
        assert torch.equal(cached, made.generate(prompt, **settings, use_cache=False))
        if method.name in OWN_ATTENTION or hidden(method):
            with pytest.raises(DropeError, match="dynamic cache"):
                made.generate(prompt, **settings, cache_implementation="static")
        elif name not in GROWS_WITH_INPUT:
            assert torch.equal(cached, made.generate(prompt, **settings, cache_implementation="static"))


@each
@torch.no_grad()
def test_rows_of_a_padded_batch_are_those_of_single_inputs(name):
    method = INSTANCES[name]
    if name in GROWS_WITH_INPUT or hidden(method):
        pytest.skip("the longest row, or the column, decides: see the method's docstring")
    made = llama(method)
    rows = [tokens(110, seed=1), tokens(81, seed=2)]
    batch, mask = torch.zeros(2, 110, dtype=torch.long), torch.zeros(2, 110, dtype=torch.long)
    for row, ids in enumerate(rows):
        batch[row, 110 - ids.shape[1] :] = ids
        mask[row, 110 - ids.shape[1] :] = 1
    place = (mask.cumsum(1) - 1).clamp(min=0)
    with models.apply(made, method, LENGTH):
        alone = [made(input_ids=ids, use_cache=False).logits[0] for ids in rows]
        together = made(input_ids=batch, attention_mask=mask, position_ids=place, use_cache=False).logits
        front = made(
            input_ids=batch[:, :100], attention_mask=mask[:, :100], position_ids=place[:, :100], use_cache=True
        )
        back = made(
            input_ids=batch[:, 100:], attention_mask=mask, position_ids=place[:, 100:], use_cache=True,
            past_key_values=front.past_key_values,
        ).logits  # fmt: skip
    for row, expected in enumerate(alone):
        torch.testing.assert_close(together[row, 110 - len(expected) :], expected, rtol=1e-4, atol=2e-4)
        torch.testing.assert_close(back[row], expected[-10:], rtol=1e-4, atol=2e-4)


@each
def test_the_model_is_exactly_as_before_and_no_other_notices(name):
    method = INSTANCES[name]
    made, other = llama(method), llama(seed=3)
    ids = tokens(LENGTH)
    before, elsewhere = logits(made, ids), logits(other, ids)
    modules, config = dict(made.named_modules()), copy.deepcopy(made.config.to_dict())
    implementation = made.config._attn_implementation
    with models.apply(made, method, LENGTH):
        under = logits(made, ids)
        assert torch.equal(logits(other, ids), elsewhere)
        with models.apply(other, EVERY["self_extend"], LENGTH):
            assert torch.equal(logits(made, ids), under)
    with pytest.raises(ZeroDivisionError), models.apply(made, method, LENGTH):
        raise ZeroDivisionError
    assert torch.equal(logits(made, ids), before)
    assert torch.equal(under, before) == (name == "rope")
    assert made.config.to_dict() == config
    assert made.config._attn_implementation == implementation
    assert all(module is modules[key] for key, module in made.named_modules())
    assert not any(module._forward_pre_hooks for module in modules.values())
    assert not any(hasattr(module, PLAN) for module in modules.values())


@every
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_methods_do_not_depend_on_the_models_own_attention(name, attention):
    method = EVERY[name]
    made, ids = llama(method), tokens(LENGTH)
    with models.apply(made, method, LENGTH):
        expected = logits(made, ids)
    made.set_attn_implementation(attention)
    with models.apply(made, method, LENGTH):
        seen = slice(hidden(method), None)
        torch.testing.assert_close(logits(made, ids)[:, seen], expected[:, seen], rtol=1e-4, atol=2e-4)
    assert made.config._attn_implementation == attention


@every
def test_the_innermost_method_counts(name):
    method, ids = EVERY[name], tokens(LENGTH)
    made = llama(method)
    plain = logits(made, ids)
    with models.apply(made, method, LENGTH):
        alone = logits(made, ids)
    for outside in (EVERY["drope_swan"], EVERY["rerope"], EVERY["crop"], EVERY["p_rope"]):
        with models.apply(made, outside, LENGTH):
            with models.apply(made, method, LENGTH):
                inside = logits(made, ids)
            if outside.name != "p_rope":  # its frequencies are the model's own for a method inside
                assert torch.equal(inside, alone)
    assert torch.equal(logits(made, ids), plain)


@every
def test_a_temperature_multiplies_what_a_method_computes(name):
    method, ids = EVERY[name], tokens(LENGTH)
    sharp, folded = llama(method), llama(method)
    models.set_logit_scale(sharp, 1.7)
    with torch.no_grad():
        for layer in folded.model.layers:
            layer.self_attn.q_proj.weight *= 1.7
    seen = slice(hidden(method), None)
    with models.apply(sharp, method, LENGTH), models.apply(folded, method, LENGTH):
        torch.testing.assert_close(logits(sharp, ids)[:, seen], logits(folded, ids)[:, seen], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", [*OWN_ATTENTION, "drop_layers", "p_rope"])
def test_gradients_reach_every_parameter(name):
    method = EVERY[name]
    made = llama(method, num_hidden_layers=2)
    made.train()
    with models.apply(made, method, LENGTH):
        ids = tokens(LENGTH)
        made(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in made.parameters())


@pytest.mark.parametrize("name", OWN_ATTENTION)
@torch.no_grad()
def test_packed_documents_do_not_see_each_other(name):
    method = EVERY[name]
    made = llama(method)
    parts = [tokens(30, seed=4), tokens(25, seed=5)]
    place = torch.cat([torch.arange(30), torch.arange(25)])[None]
    with models.apply(made, method, CONTEXT):
        packed = made(input_ids=torch.cat(parts, 1), position_ids=place, use_cache=False).logits
        second = made(input_ids=parts[1], use_cache=False).logits
        first = made(input_ids=parts[0], use_cache=False).logits
    torch.testing.assert_close(packed[:, :30], first, rtol=1e-4, atol=2e-4)
    torch.testing.assert_close(packed[:, 30:], second, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("name", OWN_ATTENTION)
@torch.no_grad()
def test_a_ready_mask_is_taken(name):
    method = EVERY[name]
    made, ids = llama(method), tokens(50)
    causal = torch.ones(50, 50, dtype=torch.bool).tril()[None, None]
    with models.apply(made, method, LENGTH):
        expected = made(input_ids=ids, use_cache=False).logits
        for mask in (causal, torch.where(causal, 0.0, torch.finfo(torch.float32).min)):
            found = made(input_ids=ids, attention_mask=mask, use_cache=False).logits
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-4)


# families -----------------------------------------------------------------------------------------------------------

_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MORE_FAMILIES = {
    "Ministral": ("MinistralConfig", {"head_dim": 8, "sliding_window": 20}),
    "Qwen2-MoE": ("Qwen2MoeConfig", _EXPERTS | {"shared_expert_intermediate_size": 16}),
    "Qwen3-MoE": ("Qwen3MoeConfig", _EXPERTS | {"head_dim": 8}),
    "Starcoder2": ("Starcoder2Config", {}),
    "GLM": ("GlmConfig", {"head_dim": 8}),
    "GLM4": ("Glm4Config", {"head_dim": 8}),
    "OLMo": ("OlmoConfig", {}),
    "Nemotron": ("NemotronConfig", {}),
    "Helium": ("HeliumConfig", {"head_dim": 8}),
}


@pytest.fixture(autouse=True)
def _more_families(monkeypatch):
    for name, value in MORE_FAMILIES.items():
        monkeypatch.setitem(FAMILIES, name, value)


class Asks(Method):
    """A method that asks for what a test gives it."""

    name, label = "asks", "Asks"

    def __init__(self, needs: Requirements):
        self.__dict__["needs"] = needs

    def requirements(self, shape, length):
        return self.needs

    def scaling(self, shape, length):
        return Rope().scaling(shape, length)


@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES])
def test_families_that_are_named_compute_what_they_do_by_themselves(family):
    made = model(family)
    kind, ids = made.config.model_type, tokens(40)
    expected = logits(made, ids)

    def under(method: Method) -> torch.Tensor:
        with models.apply(made, method, LENGTH):
            return logits(made, ids)

    cases = [
        (ATTENTION_FAMILIES, ReRope(window=CONTEXT - 1), expected),  # no distance reaches the window
        (WINDOW_FAMILIES, Asks(Requirements(layers=(LayerPlan(window=CONTEXT),) * 2)), expected),
        (LAYER_FAMILIES, DropLayers(layers=(0, 1)), None),
    ]
    for allowed, method, same in cases:
        if kind in allowed:
            same = under(Nope()) if same is None else same
            torch.testing.assert_close(under(method), same, rtol=1e-4, atol=1e-4)
        else:
            with pytest.raises(UnsupportedModelError, match=rf"{kind}.* cannot run .*Families that can: .*llama"):
                models.check_method(made.config, method, LENGTH)


def test_every_family_that_is_named_is_tested():
    tested = {model(family).config.model_type for family in [*FAMILIES, *MORE_FAMILIES]}
    assert set(LAYER_FAMILIES) <= tested


# saving -------------------------------------------------------------------------------------------------------------

NOT_STOCK = {"self_extend", "dual_chunk", "rerope", "crop", "alibi", "swan"}


@each
def test_saved_checkpoints_compute_what_the_method_does(name, tmp_path):
    method = INSTANCES[name]
    made = llama(method)
    before = logits(made)
    if method.name in NOT_STOCK:
        with pytest.raises(UnsupportedModelError, match=rf"{method.label}.*cannot be saved.*drope\.apply.*Elsewhere"):
            models.save(made, tmp_path / "out", method=method, target_length=LENGTH)
        assert not (tmp_path / "out").exists()
        return
    models.save(made, tmp_path / "out", method=method, target_length=LENGTH)
    assert torch.equal(logits(made), before)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = tokens(LENGTH)
    with models.apply(made, method, LENGTH):
        torch.testing.assert_close(logits(loaded, ids), logits(made, ids), rtol=1e-4, atol=2e-4)
    assert models.rope_shape(loaded.config).context == CONTEXT


def test_a_temperature_is_folded_into_a_saved_method(tmp_path):
    made, method = llama(), EVERY["yarn"]
    models.save(made, tmp_path / "out", method=method, target_length=LENGTH, beta=1.4)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = tokens(LENGTH)
    models.set_logit_scale(made, 1.4)
    with models.apply(made, method, LENGTH):
        torch.testing.assert_close(logits(loaded, ids), logits(made, ids), rtol=1e-3, atol=1e-3)


def test_families_without_a_stock_class_for_a_layout_say_so(tmp_path):
    made = model("Qwen2")
    with pytest.raises(UnsupportedModelError, match=r"qwen2.*no stock class.*SmolLM3"):
        models.save(made, tmp_path / "out", method=DropLayers(layers=(0,)), target_length=LENGTH)


# refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: positions.get("self_extend", group=0), r"group.*0.*1 or more"),
        (lambda: positions.get("rerope", window=0), r"window.*0"),
        (lambda: positions.get("llama3", factor=0.5), r"factor.*0\.5.*at least 1"),
        (lambda: positions.get("llama3", low_freq_factor=8.0), r"low_freq_factor.*8.*below high_freq_factor"),
        (lambda: positions.get("p_rope", p=1.5), r"p.*1\.5.*from 0.*to 1"),
        (lambda: positions.get("partial_drop", pairs=0), r"pairs.*0.*1 or more"),
        (lambda: positions.get("drop_layers", layers=()), r"layers.*layer numbers"),
        (lambda: positions.get("drop_layers", layers=(-1,)), r"layers.*layer numbers"),
        (lambda: positions.get("rnope_swa", period=1), r"period.*1.*2 or more"),
        (lambda: positions.get("drope_swan", window=0), r"window.*0.*1 or more"),
        (lambda: positions.get("swan", a=-1.0), r"a.*-1"),
        (lambda: positions.get("crop", tokens=0), r"tokens.*0.*1 or more"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (positions.get("drope_swan", window=CONTEXT + 1), rf"window.*{CONTEXT + 1}.*1 to {CONTEXT}"),
        (positions.get("rerope", window=CONTEXT + 1), rf"window.*{CONTEXT + 1}.* to {CONTEXT - 1}"),
        (positions.get("self_extend", window=CONTEXT + 1), rf"window.*{CONTEXT + 1}.* to {CONTEXT - 1}"),
        (Crop(tokens=CONTEXT + 1), rf"tokens.*{CONTEXT + 1}.*1 to {CONTEXT}"),
        (positions.get("partial_drop", pairs=5), r"pairs.*5.*1 to 4"),
        (DropLayers(layers=(1, 4)), r"layers.*4.*0 to 3"),
        (positions.get("alibi"), r"alibi.*allowed: rope, pi.*ALiBi is an architecture.*trained with RoPE"),
        (positions.get("swan"), r"swan.*trained with RoPE"),
    ],
    ids=str,
)
def test_what_cannot_be_for_this_model_is_refused_from_its_configuration(method, message):
    made = llama()
    for attempt in (lambda: models.check_method(made.config, method, LENGTH), lambda: enter(made, method)):
        with pytest.raises(InputError, match=message):
            attempt()


def enter(made: Any, method: Method) -> None:
    with models.apply(made, method, LENGTH):
        pass


def test_alibi_is_refused_on_a_recalibrated_model():
    made = models.drop(llama())
    with pytest.raises(InputError, match=r"ALiBi is an architecture to train from scratch"):
        enter(made, EVERY["alibi"])


def test_a_note_of_training_is_kept_on_disk(tmp_path):
    made = llama(EVERY["alibi"])
    ids = tokens(LENGTH)
    with models.apply(made, EVERY["alibi"], LENGTH):
        expected = logits(made, ids)
    made.save_pretrained(tmp_path)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert models.trained_for(loaded.config) == "alibi"
    with models.apply(loaded, EVERY["alibi"], LENGTH):
        torch.testing.assert_close(logits(loaded, ids), expected, rtol=1e-4, atol=2e-4)


def test_the_catalogue_has_every_method_of_the_field():
    assert set(METHODS) >= {
        "rope", "pi", "ntk", "dynamic_ntk", "yarn", "llama3", "p_rope", "longrope2", "self_extend", "dual_chunk",
        "rerope", "nope", "alibi", "rnope_swa", "swan", "drope", "drop_layers", "partial_drop", "drope_swan", "crop",
    }  # fmt: skip
