"""Dropping the rotation, on a matrix of families: it proves itself, it can be undone exactly, it touches no other."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from families import FAMILIES, config, from_config, logits, model, tokens
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from drope import models
from drope.errors import DropeError, InputError, UnsupportedModelError, VerificationError


@pytest.mark.parametrize("family", FAMILIES)
def test_drop_proves_itself_and_restore_is_exact(family):
    made = model(family)
    before = logits(made)
    assert not models.is_position_free(made)

    assert models.drop(made) is made
    assert models.is_position_free(made)
    report = models.verify(made)
    assert report.passed
    assert report.gapped == 0
    dropped = logits(made)
    assert (dropped - before).abs().max() > 1e-3 * before.abs().max()
    out = made.generate(tokens(8), max_new_tokens=6, do_sample=False, use_cache=True)
    plain = made.generate(tokens(8), max_new_tokens=6, do_sample=False, use_cache=False)
    assert torch.equal(out, plain)

    models.restore(made)
    assert torch.equal(logits(made), before)
    assert not models.is_position_free(made)


@pytest.mark.parametrize("family", ["Llama", "Gemma3", "GPT-NeoX", "DeepSeek-V2"])
def test_verify_refuses_a_model_that_rotates(family):
    with pytest.raises(VerificationError, match="positions"):
        models.verify(model(family))


def test_verify_refuses_a_broken_cache():
    class Forgetful(LlamaForCausalLM):
        def forward(self, *args, past_key_values=None, **kwargs):
            return super().forward(*args, past_key_values=None, **kwargs)

    made = models.drop(Forgetful(config("Llama")).eval())
    made.load_state_dict(model("Llama").state_dict())
    with pytest.raises(VerificationError, match="cache"):
        models.verify(made)


def test_verify_accepts_ids_and_leaves_training_mode_alone():
    made = models.drop(model("Llama")).train()
    assert models.verify(made, tokens(10)).tokens == 10
    assert made.training


def test_a_dropped_model_equals_attention_without_rotation():
    """Independently: rotary modules that return cos = 1 and sin = 0."""

    class Still(torch.nn.Module):
        def forward(self, x, position_ids):
            ones = x.new_ones(*position_ids.shape, 8)
            return ones, torch.zeros_like(ones)

    made = model("Llama")
    reference = copy.deepcopy(made)
    reference.model.rotary_emb = Still()
    assert torch.equal(logits(models.drop(made)), logits(reference))


def test_two_models_in_one_process_do_not_affect_each_other():
    first, second = model("Llama"), model("Llama")
    before = logits(second)
    models.drop(first)
    assert torch.equal(logits(second), before)
    assert not models.is_position_free(second)
    third = model("Llama")
    assert torch.equal(logits(third), before)


def test_a_copy_of_a_dropped_model_can_be_restored_by_itself():
    made = model("Llama")
    before = logits(made)
    twin = copy.deepcopy(models.drop(made))
    models.restore(twin)
    assert torch.equal(logits(twin), before)
    assert models.is_position_free(made)


def test_drop_and_restore_twice_are_harmless():
    made = model("Llama")
    before = logits(made)
    models.drop(models.drop(made))
    models.restore(models.restore(made))
    assert torch.equal(logits(made), before)


@pytest.mark.parametrize(
    "parameters",
    [
        {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
        {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16},
        {
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "short_factor": [1.0] * 4,
            "long_factor": [1.0, 2.0, 3.0, 4.0],
        },
    ],
    ids=lambda p: p["rope_type"],
)
def test_models_that_scale_their_own_rotation_drop_and_restore(parameters):
    made = model("Llama", rope_parameters=parameters)
    ids = tokens(80)  # beyond both lengths, where dynamic modules change their frequencies
    fresh = copy.deepcopy(made)
    before = logits(fresh, ids)
    models.drop(made)
    assert models.verify(made, ids).passed
    assert models.is_position_free(made)
    models.restore(made)
    assert torch.equal(logits(made, ids), before)


def test_fading_goes_from_rope_to_none():
    made = model("Llama")
    rope = logits(made)
    models.scale_frequencies(made, 0.5)
    half = logits(made)
    models.scale_frequencies(made, torch.full((4,), 0.5))
    assert torch.equal(logits(made), half)  # absolute, not cumulative
    linear = model("Llama", rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0})
    assert torch.equal(half, logits(linear))
    models.scale_frequencies(made, 1.0)
    assert torch.equal(logits(made), rope)
    models.scale_frequencies(made, 0.0)
    assert models.is_position_free(made)
    assert torch.equal(logits(made), logits(models.drop(model("Llama"))))
    models.restore(made)
    assert torch.equal(logits(made), rope)
    with pytest.raises(InputError, match="4 rotated pairs"):
        models.scale_frequencies(made, torch.ones(3))


def test_restore_after_a_change_of_precision_keeps_the_frequencies():
    made = model("Llama")
    before = made.model.rotary_emb.inv_freq.clone()
    models.restore(models.drop(made).to(torch.float64))
    assert torch.equal(made.model.rotary_emb.inv_freq, before)


def test_layers_that_all_skip_the_rotation_are_position_free():
    made = model("SmolLM3", no_rope_layers=[0, 0])
    assert models.is_position_free(made)
    assert models.verify(made).passed
    with pytest.raises(DropeError):
        models.restore(made)


# a checkpoint as drope writes it ---------------------------------------------------------------------------------


def export(folder, family="Llama"):
    """A position-free checkpoint in the llama3 encoding, with the record of its rotation."""
    source = model(family)
    stopped = {
        "rope_type": "llama3", "rope_theta": 1e4, "factor": 1e20, "low_freq_factor": 64, "high_freq_factor": 128,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    made = from_config(config(family, rope_parameters=stopped, max_position_embeddings=256))
    made.load_state_dict(source.state_dict())
    made.save_pretrained(folder)
    record = {"original": {"rope_parameters": dict(source.config.rope_parameters)}}
    (folder / "drope.json").write_text(json.dumps(record))
    return source


def test_an_exported_checkpoint_counts_as_position_free(tmp_path):
    source = export(tmp_path)
    made = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert models.is_position_free(made)
    before = logits(made)
    assert torch.equal(logits(models.drop(made)), before)
    assert models.verify(made).passed
    shape = models.rope_shape(made.config)
    assert (shape.theta, shape.context) == (1e4, 64)

    models.restore(made)
    assert not models.is_position_free(made)
    assert torch.equal(logits(made), logits(source))
    assert torch.equal(logits(models.restore(models.drop(made))), logits(source))


def test_an_exported_checkpoint_without_its_record_cannot_be_restored(tmp_path):
    export(tmp_path)
    (tmp_path / "drope.json").unlink()
    made = AutoModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(DropeError, match=r"no drope.json with original.rope_parameters"):
        models.restore(made)
    assert models.is_position_free(made)


# refusals ----------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[str, str, dict]] = {
    "GPT2Config": ("gpt2", "learned", {"n_embd": 32, "n_head": 2, "n_layer": 1, "vocab_size": 96}),
    "OPTConfig": ("opt", "learned", {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 32,
                                     "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 96}),
    "GPTJConfig": ("gptj", "without a rotary module", {"n_embd": 32, "n_head": 2, "n_layer": 1, "vocab_size": 96,
                                                       "rotary_dim": 8}),
    "CodeGenConfig": ("codegen", "without a rotary module", {"n_embd": 32, "n_head": 4, "n_layer": 1, "vocab_size": 96,
                                                             "rotary_dim": 4}),
    "BloomConfig": ("bloom", "ALiBi", {"hidden_size": 32, "n_head": 2, "n_layer": 1, "vocab_size": 96}),
    "MptConfig": ("mpt", "ALiBi", {"d_model": 32, "n_heads": 2, "n_layers": 1, "vocab_size": 96}),
    "FalconConfig": ("falcon", "ALiBi", {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1,
                                         "vocab_size": 96, "alibi": True}),
    "RecurrentGemmaConfig": ("recurrent_gemma", "recurrent", {"hidden_size": 32, "num_attention_heads": 2,
                             "num_hidden_layers": 3, "vocab_size": 96, "intermediate_size": 32, "lru_width": 32}),
    "GPTNeoConfig": ("gpt_neo", "learned", {"hidden_size": 32, "num_heads": 2, "num_layers": 2, "vocab_size": 96,
                                            "attention_types": [[["global", "local"], 1]]}),
    "PhimoeConfig": ("phimoe", "anew in every call", {"hidden_size": 32, "num_attention_heads": 2, "vocab_size": 96,
                     "num_hidden_layers": 1, "num_key_value_heads": 2, "intermediate_size": 32}),
    "MambaConfig": ("mamba", "recurrent", {"hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 96}),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_families_without_a_rotation_to_drop_are_refused_by_name(name):
    import transformers

    kind, reason, sizes = REFUSED[name]
    cfg = getattr(transformers, name)(**sizes)
    made = AutoModelForCausalLM.from_config(cfg)
    with pytest.raises(UnsupportedModelError, match=rf"{kind}.*{reason}"):
        models.drop(made)
    with pytest.raises(UnsupportedModelError, match=kind):
        models.rope_shape(cfg)
    assert not models.is_position_free(made)


def test_encoder_decoders_are_refused():
    from transformers import T5Config, T5ForConditionalGeneration

    cfg = T5Config(d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8, vocab_size=96)
    with pytest.raises(UnsupportedModelError, match=r"t5.*encoder-decoder"):
        models.drop(T5ForConditionalGeneration(cfg))


def test_a_family_nobody_listed_is_refused_when_it_has_no_rotary_module():
    from transformers import BertConfig, BertLMHeadModel

    cfg = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=96,
                     is_decoder=True)  # fmt: skip
    vars(cfg)["model_type"] = "something_new"
    with pytest.raises(UnsupportedModelError, match=r"something_new.*inv_freq"):
        models.drop(BertLMHeadModel(cfg))
