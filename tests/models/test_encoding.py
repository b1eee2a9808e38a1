"""Configs that say "no rotation": what they hold, that stock code computes no rotation from them, and refusals."""

from __future__ import annotations

import json
import math

import families
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config

from drope.errors import InputError, UnsupportedModelError
from drope.models import is_position_free, rope_shape
from drope.models.encoding import config_json, encode
from drope.models.tiny import tiny_config, tiny_model

TARGET = 4 * families.CONTEXT


def llama3_frequencies(rope: dict, width: int) -> torch.Tensor:
    """The llama3 rope type as its authors define it, in float64: an independent formulation."""
    found = []
    for i in range(0, width, 2):
        frequency = rope["rope_theta"] ** (-i / width)
        wavelength = 2 * math.pi / frequency
        if wavelength > rope["original_max_position_embeddings"] / rope["low_freq_factor"]:
            frequency /= rope["factor"]
        found.append(frequency)
    return torch.tensor(found, dtype=torch.float64)


def test_llama3_encoding_turns_less_than_a_rounding_error_over_a_million_tokens():
    rope = encode(families.config("Llama"), TARGET).config.rope_parameters
    angles = 1e6 * llama3_frequencies(rope, 8)
    assert float(angles.max()) < 1e-12
    assert rope["low_freq_factor"] < rope["high_freq_factor"]


@pytest.mark.parametrize("family", families.FAMILIES)
def test_every_family_has_an_encoding_that_stock_code_reads_as_no_rotation(family):
    config = families.config(family)
    before = config.to_dict()
    encoded = encode(config, TARGET)
    text = json.loads(json.dumps(encoded.to_json()))
    read = type(config).from_dict(text)
    assert read.max_position_embeddings == TARGET
    assert is_position_free(AutoModelForCausalLM.from_config(read))
    assert config.to_dict() == before, "the source's config must not change"
    if encoded.name != "longrope":  # whose original length has to be the target
        assert rope_shape(read).context == families.CONTEXT


def test_phi3_falls_back_to_longrope_and_others_take_llama3():
    assert encode(families.config("Phi3"), TARGET).name == "longrope"
    assert encode(families.config("Llama"), TARGET).name == "llama3"
    assert encode(families.config("Gemma3"), TARGET).name == "llama3"


def test_layer_types_are_encoded_each():
    rope = encode(families.config("Gemma3"), TARGET).config.rope_parameters
    assert {kind["rope_type"] for kind in rope.values()} == {"llama3"}
    assert rope["full_attention"]["rope_theta"] != rope["sliding_attention"]["rope_theta"]


def test_legacy_keys_say_the_same():
    written = encode(
        families.config("Llama", rope_parameters={"rope_type": "default", "rope_theta": 5e5}), TARGET
    ).to_json()
    assert written["rope_theta"] == 5e5
    assert written["rope_scaling"]["rope_type"] == "llama3"
    assert written["rope_scaling"]["factor"] == written["rope_parameters"]["factor"]
    assert config_json(families.config("Llama"))["rope_scaling"]["rope_type"] == "default"


@pytest.mark.parametrize("name", ["linear", "proportional"])
def test_another_encoding_can_be_asked_for(name):
    encoded = encode(families.config("Qwen3"), TARGET, prefer=name)
    assert encoded.config.rope_parameters["rope_type"] == name
    assert rope_shape(encoded.config).context == families.CONTEXT or name == "proportional"


def test_a_candidate_that_does_not_work_is_refused_with_its_reason():
    with pytest.raises(UnsupportedModelError, match=r"phi3.*llama3"):
        encode(families.config("Phi3"), TARGET, prefer="llama3")


def test_what_a_yarn_source_did_to_the_softmax_is_known():
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
    rope |= {"mscale": 1.0, "mscale_all_dim": 1.0}
    encoded = encode(families.config("DeepSeek-V3", rope_parameters=rope), TARGET)
    assert encoded.fold == pytest.approx((0.1 * math.log(4.0) + 1) ** 2)


def test_too_short_a_target():
    with pytest.raises(InputError, match="--to is 64"):
        encode(families.config("Llama"), families.CONTEXT)
    with pytest.raises(InputError, match="llama3, linear"):
        encode(families.config("Llama"), TARGET, prefer="none")


def test_no_rotation_to_drop():
    with pytest.raises(UnsupportedModelError, match="gpt2"):
        encode(GPT2Config(n_layer=2, n_embd=32, n_head=2), 8192)


def test_tiny_models_keep_what_matters_and_positions_matter_to_them():
    config = families.config("Gemma3", num_hidden_layers=6, hidden_size=64, num_attention_heads=8, layer_types=None)
    small = tiny_config(config)
    assert (small.num_hidden_layers, small.head_dim) == (2, 8)
    assert set(small.layer_types) == {"sliding_attention", "full_attention"}
    model = tiny_model(config)
    ids = torch.arange(24)[None]
    plain = model(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    gapped = model(ids, attention_mask=torch.ones_like(ids), position_ids=7 * ids, use_cache=False).logits
    assert (plain - gapped).abs().max() > 1e-2, "a proof on such a model would prove nothing"


def test_widths_that_differ_by_layer_type(tmp_path):
    from transformers import Gemma4TextConfig

    config = Gemma4TextConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, global_head_dim=16, vocab_size_per_layer_input=96,
        hidden_size_per_layer_input=8, layer_types=["sliding_attention", "full_attention"], sliding_window=16,
        max_position_embeddings=families.CONTEXT, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    encoded = encode(config, TARGET)
    assert encoded.name == "proportional"
    assert is_position_free(AutoModelForCausalLM.from_config(type(config).from_dict(encoded.to_json())))


def test_the_global_rope_parameters_of_hybrids_are_proven_on_an_attention_layer():
    from transformers import BambaConfig

    config = BambaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, attn_layer_indices=[2], mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8,
        mamba_n_groups=1, max_position_embeddings=families.CONTEXT, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    assert tiny_config(config).attn_layer_indices == [1]
    assert encode(config, TARGET).name == "llama3"
