"""Every family that the documentation names, through everything that is done to it: it passes or is refused by name."""

from __future__ import annotations

import families
import pytest
import torch
from transformers import AutoModelForCausalLM

from drope.errors import UnsupportedModelError
from drope.models import add_qk_norm, drop, is_position_free, restore, save, set_logit_scale, verify

TARGET = 4 * families.CONTEXT
BETA = 1.37
# Name in the documentation -> family of tests/models/families.py and changes; whether QKNorm can be added.
MATRIX = {
    "Llama": ("Llama", {}, True),
    "SmolLM": ("Llama", {"tie_word_embeddings": True, "num_attention_heads": 2, "num_key_value_heads": 1}, True),
    "Mistral": ("Mistral", {}, True),
    "Qwen2": ("Qwen2", {}, True),
    "Qwen3": ("Qwen3", {}, False),
    "Gemma": ("Gemma", {}, False),
    "Gemma 2": ("Gemma2", {}, False),
    "Gemma 3": ("Gemma3", {}, False),
    "Phi": ("Phi", {}, False),
    "GPT-NeoX / Pythia": ("GPT-NeoX", {}, False),
    "OLMo 2": ("OLMo2", {}, False),
    "Granite": ("Granite", {}, False),
    "StableLM": ("StableLM", {}, False),
    "DeepSeek V2 (MLA)": ("DeepSeek-V2", {}, False),
    "DeepSeek V3 (MLA)": ("DeepSeek-V3", {}, False),
    "Mixtral (MoE)": ("Mixtral", {}, False),
    "Qwen3-MoE": ("Qwen3-MoE", {}, False),
}


@pytest.mark.parametrize("name", MATRIX)
def test_family(name, tmp_path):
    family, changes, takes_norm = MATRIX[name]
    model = families.model(family, **changes)
    ids = families.tokens()
    rotating = families.logits(model, ids)

    drop(model)
    assert is_position_free(model)
    free = families.logits(model, ids)
    assert (free - rotating).abs().max() > 1e-3, "the rotation must matter, or nothing is shown"
    assert verify(model, ids).passed, "gapped positions, and decoding from the cache"

    restore(model)
    assert torch.equal(families.logits(model, ids), rotating)

    out = save(drop(model), tmp_path / "out", target_length=TARGET, beta=BETA)
    reloaded = AutoModelForCausalLM.from_pretrained(out)
    assert type(reloaded) is type(model)
    set_logit_scale(model, BETA)
    torch.testing.assert_close(families.logits(reloaded, ids), families.logits(model, ids), atol=2e-5, rtol=1e-4)
    set_logit_scale(model, 1.0)
    torch.testing.assert_close(families.logits(restore(reloaded), ids).shape, rotating.shape)
    assert not is_position_free(reloaded)

    if not takes_norm:
        with pytest.raises(UnsupportedModelError, match=model.config.model_type):
            add_qk_norm(model, [ids])
        return
    normed, report = add_qk_norm(model, [ids])
    assert verify(normed, ids).passed
    assert report.tokens == ids.numel()
    again = AutoModelForCausalLM.from_pretrained(save(normed, tmp_path / "normed", target_length=TARGET, beta=BETA))
    set_logit_scale(normed, BETA)
    torch.testing.assert_close(families.logits(again, ids), families.logits(normed, ids), atol=2e-5, rtol=1e-4)


REFUSED = {"gpt2": "learned position", "opt": "learned position", "bloom": "ALiBi", "mpt": "ALiBi",
           "gptj": "without a rotary module", "codegen": "without a rotary module", "phimoe": "anew in every call",
           "recurrent_gemma": "recurrent", "mamba": "recurrent", "xglm": "sinusoidal"}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_a_family_without_such_a_rotation_is_refused_with_the_reason(kind):
    from transformers import CONFIG_MAPPING

    from drope.models.support import check_supported

    with pytest.raises(UnsupportedModelError, match=f"(?s){kind}.*{REFUSED[kind]}"):
        check_supported(CONFIG_MAPPING[kind]())
