"""Methods under `apply`, against models that were loaded with the same stock `rope_parameters`."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from families import CONTEXT, config, from_config, logits, model, tokens
from transformers import AutoModelForCausalLM

from drope import models, positions
from drope.errors import DropeError, UnsupportedModelError
from drope.positions import NTK, PI, Drope, DynamicNTK, Method, Nope, Requirements, Rope, Yarn

SCALING = [PI(), NTK(), DynamicNTK(), DynamicNTK(factor=3.0), Yarn(), Yarn(attention_factor=1.3)]
LENGTH = 2 * CONTEXT


def loaded_with(family: str, method: Method, length: int):
    """A model made from a configuration that has the method's rope_parameters, as any user would write it."""
    plain = config(family)
    parameters: Any = method.requirements(models.rope_shape(plain), length).rope_parameters
    own: Any = plain.rope_parameters
    if "full_attention" in own:
        parameters = {**own, "full_attention": parameters}
    elif own.get("partial_rotary_factor"):
        parameters = {**parameters, "partial_rotary_factor": own["partial_rotary_factor"]}
    return from_config(config(family, rope_parameters=copy.deepcopy(parameters)))


@pytest.mark.parametrize("family", ["Llama", "Qwen3", "GPT-NeoX", "Gemma3", "Granite", "DeepSeek-V2"])
@pytest.mark.parametrize("method", SCALING, ids=str)
def test_scaling_methods_equal_a_model_loaded_with_the_stock_parameters(family, method):
    made, ids = model(family), tokens(LENGTH)
    before = logits(made, ids)
    expected = logits(loaded_with(family, method, LENGTH), ids)
    with models.apply(made, method, LENGTH) as inside:
        assert inside is made
        assert torch.equal(logits(made, ids), expected)
    assert not torch.equal(before, expected)
    assert torch.equal(logits(made, ids), before)


@pytest.mark.parametrize("method", [*SCALING, Rope(), Nope()], ids=str)
def test_what_was_there_is_back_afterwards_object_for_object(method):
    made = model("Llama")
    modules = dict(made.named_modules())
    config_before = copy.deepcopy(made.config.to_dict())
    with models.apply(made, method, LENGTH):
        logits(made, tokens(LENGTH))
    assert all(module is modules[name] for name, module in made.named_modules())
    assert made.config.to_dict() == config_before


def test_it_is_back_after_an_exception_too():
    made = model("Llama")
    before = logits(made)
    with pytest.raises(ZeroDivisionError), models.apply(made, Yarn(), LENGTH):
        raise ZeroDivisionError
    assert torch.equal(logits(made), before)


def test_rope_and_what_stays_within_the_context_change_nothing():
    made = model("Llama")
    before = logits(made)
    for method in (Rope(), PI(), NTK(), DynamicNTK(), Yarn()):
        with models.apply(made, method, CONTEXT):
            assert torch.equal(logits(made), before)


def test_no_rotation_equals_drop():
    made = model("Qwen2")
    before = logits(made)
    dropped = logits(models.drop(model("Qwen2")))
    with models.apply(made, Nope(), LENGTH):
        assert models.is_position_free(made)
        assert torch.equal(logits(made), dropped)
    assert not models.is_position_free(made)
    assert torch.equal(logits(made), before)


@pytest.mark.parametrize("method", [Rope(), PI(), Yarn(), Drope()], ids=str)
def test_a_dropped_model_runs_any_method_and_stays_dropped(method):
    made, ids = models.drop(model("Llama")), tokens(LENGTH)
    dropped = logits(made, ids)
    with models.apply(model("Llama"), method, LENGTH) as plain:
        expected = logits(plain, ids)
    with models.apply(made, method, LENGTH):
        assert torch.equal(logits(made, ids), expected)
    assert torch.equal(logits(made, ids), dropped)
    assert torch.equal(logits(models.restore(made), ids), logits(model("Llama"), ids))


def test_methods_can_be_nested():
    made, ids = model("Llama"), tokens(LENGTH)
    before = logits(made, ids)
    with models.apply(made, PI(), LENGTH):
        pi = logits(made, ids)
        with models.apply(made, Nope(), LENGTH):
            assert models.is_position_free(made)
        assert torch.equal(logits(made, ids), pi)
    assert torch.equal(logits(made, ids), before)


def test_other_models_do_not_notice():
    first, second = model("Llama"), model("Llama")
    before = logits(second)
    with models.apply(first, Yarn(), LENGTH), models.apply(first, Nope(), LENGTH):
        assert torch.equal(logits(second), before)


def test_dynamic_modules_forget_what_they_saw():
    made = model("Llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    fresh = copy.deepcopy(made)
    with models.apply(made, Rope(), LENGTH):
        logits(made, tokens(200))
    ids = tokens(100)
    assert torch.equal(logits(made, ids), logits(fresh, ids))


def test_a_family_that_scales_its_own_rotation_is_scaled_from_its_trained_context():
    own = {
        "rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }  # fmt: skip
    made, ids = model("Llama", rope_parameters=own), tokens(64)
    parameters = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    with models.apply(made, PI(), 64):
        assert torch.equal(logits(made, ids), logits(model("Llama", rope_parameters=parameters), ids))


def test_generation_under_a_method_uses_its_cache():
    made = model("Llama")
    ids = tokens(100)
    with models.apply(made, Yarn(), LENGTH):
        cached = made.generate(ids, max_new_tokens=6, do_sample=False)
        assert torch.equal(cached, made.generate(ids, max_new_tokens=6, do_sample=False, use_cache=False))


def test_a_class_that_ignores_the_rope_type_is_found_out():
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    class Deaf(LlamaRotaryEmbedding):
        def __init__(self, config):
            super().__init__(config)
            self.inv_freq = torch.nn.Buffer(torch.ones_like(self.inv_freq), persistent=False)

    made = model("Llama")
    made.model.rotary_emb = Deaf(made.config)
    with (
        pytest.raises(UnsupportedModelError, match=r"Deaf does not carry out YaRN"),
        models.apply(made, Yarn(), LENGTH),
    ):
        pass


def test_a_rotation_that_a_method_would_lay_out_differently_is_refused():
    made = model("Gemma4")
    before = logits(made)
    with pytest.raises(UnsupportedModelError, match=r"Gemma4TextRotaryEmbedding does not carry out PI"):
        models.apply(made, PI(), LENGTH).__enter__()
    assert torch.equal(logits(made), before)


def test_a_rotary_module_without_a_configuration_cannot_be_scaled_but_can_be_dropped():
    class Own(torch.nn.Module):
        def __init__(self, inv_freq):
            super().__init__()
            self.inv_freq = torch.nn.Buffer(inv_freq, persistent=False)

        def forward(self, x, position_ids):
            angles = position_ids[..., None].float() * self.inv_freq
            angles = torch.cat((angles, angles), dim=-1)
            return angles.cos(), angles.sin()

    made = model("Llama")
    before = logits(made)
    made.model.rotary_emb = Own(made.model.rotary_emb.inv_freq.clone())
    with pytest.raises(UnsupportedModelError, match="not made from a configuration"), models.apply(made, PI(), LENGTH):
        pass
    assert models.verify(models.drop(made)).passed
    assert torch.equal(logits(models.restore(made)), before)


def test_rope_on_an_exported_checkpoint_needs_its_record(tmp_path):
    source = model("Llama")
    stopped = {
        "rope_type": "llama3", "rope_theta": 1e4, "factor": 1e20, "low_freq_factor": 64, "high_freq_factor": 128,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    made = from_config(config("Llama", rope_parameters=stopped, max_position_embeddings=256))
    made.save_pretrained(tmp_path)
    made = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    with pytest.raises(DropeError, match=r"drope\.json"), models.apply(made, Rope(), LENGTH):
        pass
    record = {"original": {"rope_parameters": dict(source.config.rope_parameters)}}
    (tmp_path / "drope.json").write_text(json.dumps(record))
    for method in (Rope(), Yarn()):
        with models.apply(made, method, LENGTH), models.apply(source, method, LENGTH):
            assert torch.equal(logits(made), logits(source))
            assert not models.is_position_free(made)
        assert models.is_position_free(made)


# temperature --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["Llama", "Gemma3", "GPT-NeoX", "Phi3", "DeepSeek-V3", "OLMo2"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_logit_scale_is_absolute_and_undone_by_one(family, attention):
    made = model(family)
    made.set_attn_implementation(attention)
    before = logits(made)
    models.set_logit_scale(made, 1.5)
    scaled = logits(made)
    assert (scaled - before).abs().max() > 1e-3
    models.set_logit_scale(made, 3.0)
    models.set_logit_scale(made, 1.5)
    assert torch.equal(logits(made), scaled)
    models.set_logit_scale(made, 1.0)
    assert torch.equal(logits(made), before)


def test_logit_scale_equals_scaled_queries():
    made, folded = model("Llama"), model("Llama")
    with torch.no_grad():
        for layer in folded.model.layers:
            layer.self_attn.q_proj.weight *= 1.7
    models.set_logit_scale(made, 1.7)
    torch.testing.assert_close(logits(made), logits(folded), rtol=1e-4, atol=1e-4)


def test_logit_scale_of_a_method_multiplies_the_one_that_is_set():
    class Sharper(Method):
        name, label = "sharper", "Sharper"

        def requirements(self, shape, length):
            return Requirements(logit_scale=2.0)

        def scaling(self, shape, length):
            return positions.get("rope").scaling(shape, length)

    made, reference = model("Llama"), model("Llama")
    models.set_logit_scale(made, 1.5)
    before = logits(made)
    models.set_logit_scale(reference, 3.0)
    with models.apply(made, Sharper(), LENGTH):
        assert torch.equal(logits(made), logits(reference))
    assert torch.equal(logits(made), before)


def test_families_without_a_scaling_attribute_are_named():
    made = from_config(falcon())
    with pytest.raises(UnsupportedModelError, match=r"falcon.*FalconAttention has no `scaling`"):
        models.set_logit_scale(made, 1.2)
    assert models.verify(models.drop(made)).passed  # the rotation can be dropped all the same


def falcon():
    from transformers import FalconConfig

    return FalconConfig(
        hidden_size=32, num_attention_heads=4, num_hidden_layers=2, vocab_size=96, alibi=False,
        new_decoder_architecture=True, num_kv_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
