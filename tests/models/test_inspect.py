"""What `inspect` says, against the model itself and against arithmetic by hand."""

from __future__ import annotations

import json
import math

import checkpoints
import families
import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from drope.errors import InputError
from drope.models import convert, inspect


def test_llama_by_hand(tmp_path):
    model = checkpoints.write(tmp_path / "base", tie_word_embeddings=False)
    found = inspect(tmp_path / "base", (2, "4x", 1000))
    assert (found.context, found.rotated_width, found.pairs) == (64, 8, 4)
    # Wavelengths 2π·10000^(m/4) for m = 0..3: 6.3, 63, 628, 6283; two exceed 64 tokens.
    assert found.wavelengths == pytest.approx((2 * math.pi, 2 * math.pi * 1000))
    assert found.long_wavelengths == 2
    assert [(t.length, t.factor, t.out_of_range) for t in found.targets] == [
        (128, 2, 2),
        (256, 4, 2),
        (1000, 15.625, 2),
    ]
    assert found.parameters == sum(p.numel() for p in model.parameters())
    matrices = found.parameters - 96 * 32  # the input embedding is looked up, not multiplied
    # 2 layers, 4 heads, 8 + 8 channels, 2 operations, on average half of 64 tokens in sight
    assert found.forward_flops == 2 * matrices + 2 * 2 * 4 * 16 * 32
    assert found.training_flops == 3 * found.forward_flops
    assert found.memory["adamw_mixed"] == 16 * found.parameters
    assert (found.convertible, found.encoding, found.refusal) == (True, "llama3", None)
    assert found.qk_norm_refusal is None
    assert json.loads(json.dumps(found.to_dict()))["targets"][0]["length"] == 128


@pytest.mark.parametrize("family", families.FAMILIES)
def test_parameters_are_exact_and_everything_is_convertible(family, tmp_path):
    model = families.model(family)
    model.config.save_pretrained(tmp_path)
    found = inspect(tmp_path)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert 0 < found.active_parameters <= found.parameters
    assert found.convertible
    assert found.context == families.CONTEXT
    assert (found.qk_norm_refusal is None) == (family in ("Llama", "Mistral", "Qwen2"))


def test_experts_count_by_their_share(tmp_path):
    model = families.model("Mixtral")  # 2 of 4 experts
    model.config.save_pretrained(tmp_path)
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    found = inspect(tmp_path)
    assert found.active_parameters == found.parameters - 96 * 32 - experts // 2


def test_windows_are_told(tmp_path):
    families.config("Gemma3").save_pretrained(tmp_path)
    found = inspect(tmp_path)
    assert (found.sliding_layers, found.sliding_window) == (1, 16)
    assert "1 of 2 layers" in found.notes[-1]


def test_models_without_rotation_are_described_with_the_reason(tmp_path):
    config = GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=96, bos_token_id=1, eos_token_id=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    found = inspect(tmp_path)
    assert not found.convertible
    assert found.encoding is None
    assert "learned position" in found.refusal
    assert found.positions == "no rotary embeddings"
    assert found.parameters > 0
    assert found.targets == ()


def test_a_converted_checkpoint_says_so(tmp_path):
    checkpoints.write(tmp_path / "base")
    found = inspect(convert(tmp_path / "base", tmp_path / "out", target_length=256))
    assert found.positions.startswith("none")
    assert found.context == families.CONTEXT


def test_no_weights_are_read(tmp_path):
    checkpoints.write(tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").unlink()
    assert inspect(tmp_path / "base").convertible


def test_bad_targets(tmp_path):
    checkpoints.write(tmp_path / "base")
    for target in (0, -2, "long"):
        with pytest.raises(InputError, match="--to"):
            inspect(tmp_path / "base", (target,))
