"""Loading, and what is said when it cannot be done."""

from __future__ import annotations

import importlib
import json
import struct

import pytest
import torch
from families import config, from_config, logits, model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from drope import models
from drope.errors import DropeError, InputError, UnsupportedModelError


def tokenizer(words: int) -> PreTrainedTokenizerFast:
    vocabulary = {f"w{i}": i for i in range(words)}
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="w0")), unk_token="w0")
    made.eos_token = "w2"
    return made


@pytest.fixture
def folder(tmp_path):
    made = model("Llama")
    made.config.dtype = torch.bfloat16
    made.save_pretrained(tmp_path)
    tokenizer(90).save_pretrained(tmp_path)
    return tmp_path


def test_a_folder_loads_in_float32_on_a_cpu_with_its_tokenizer(folder):
    loaded = models.load(folder, device="cpu")
    assert loaded.model.dtype == torch.float32
    assert not loaded.model.training
    assert len(loaded.tokenizer or []) == 90
    assert loaded.source == str(folder)
    torch.testing.assert_close(logits(loaded.model), logits(model("Llama")), rtol=1e-4, atol=1e-4)
    assert models.load(str(folder), dtype="bf16").model.dtype == torch.bfloat16


def test_the_architecture_loads_without_weights(folder):
    made = models.load(folder, weights=False).model
    assert all(p.device.type == "meta" for p in made.parameters())
    assert sum(p.numel() for p in made.parameters()) == sum(p.numel() for p in model("Llama").parameters())
    assert not models.is_position_free(made)  # so its frequencies are real
    (folder / "model.safetensors").unlink()
    models.load(folder, weights=False)
    assert models.load_config(folder).model_type == "llama"


def test_a_checkpoint_without_a_tokenizer_loads_without_one(tmp_path):
    model("Llama").save_pretrained(tmp_path)
    assert models.load(tmp_path).tokenizer is None


def test_sharded_checkpoints_load_and_a_missing_shard_is_named(tmp_path):
    made = model("Llama")
    made.save_pretrained(tmp_path, max_shard_size="10KB")
    assert torch.equal(logits(models.load(tmp_path).model), logits(models.load(tmp_path).model))
    first = min(tmp_path.glob("model-*.safetensors"))
    first.unlink()
    with pytest.raises(InputError, match=f"Missing: {first.name}"):
        models.load(tmp_path)


def test_a_truncated_file_is_named_with_its_sizes(folder):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(InputError, match=rf"model.safetensors.*{len(whole):,} bytes.*truncated: {len(whole) - 100:,}"):
        models.load(folder)
    file.write_bytes(whole[:5])
    with pytest.raises(InputError, match="header is cut off"):
        models.load(folder)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", struct.pack("<Q", 4) + b"{{{{"])
def test_a_corrupted_file_is_named(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors.*header"):
        models.load(folder)


def test_pickles_are_not_opened(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin, a pickle"):
        models.load(folder)


def test_a_tokenizer_of_another_model_is_refused(folder):
    tokenizer(120).save_pretrained(folder)
    with pytest.raises(InputError, match=r"all below 96.*24 of its tokens.*'w96', id 96"):
        models.load(folder)


def test_placeholder_tokens_beyond_the_vocabulary_are_allowed(folder):
    made = tokenizer(96)
    made.add_special_tokens({"additional_special_tokens": ["<image>"]})
    made.save_pretrained(folder)
    assert len(models.load(folder).tokenizer or []) == 97
    made.pad_token = "<image>"
    made.save_pretrained(folder)
    with pytest.raises(InputError, match="'<image>', id 96"):
        models.load(folder)


@pytest.mark.parametrize("name", ["./no/such", "/no/such/folder", "a/b/c", "model.gguf", "~/nothing-here"])
def test_a_missing_place_is_an_input_error(name):
    with pytest.raises(InputError, match="no such file or folder"):
        models.load(name)


def test_folders_and_files_that_are_no_checkpoints(tmp_path):
    with pytest.raises(InputError, match=r"no config\.json"):
        models.load(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(InputError, match="only if it is a GGUF"):
        models.load(tmp_path / "weights.bin")
    (tmp_path / "config.json").write_text("{ not json")
    with pytest.raises(InputError, match="cannot be read"):
        models.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no_such_family"}))
    with pytest.raises(UnsupportedModelError, match="no_such_family"):
        models.load(tmp_path)


def test_models_that_are_no_language_models(tmp_path):
    from transformers import ViTConfig

    ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16).save_pretrained(
        tmp_path
    )
    with pytest.raises(UnsupportedModelError, match="not a causal language model"):
        models.load(tmp_path, weights=False)


def test_an_unreachable_hub_says_what_to_do():
    with pytest.raises(DropeError, match=r"cannot be reached.*hf download nobody/nothing.*bundled"):
        models.load("nobody/nothing")


def test_settings_are_checked(folder):
    with pytest.raises(InputError, match="dtype is 'int3'; allowed: auto, float32"):
        models.load(folder, dtype="int3")
    with pytest.raises(InputError, match="device"):
        models.load(folder, device="abacus")


def test_the_shipped_state_goes_with_the_bundled_model():
    base, state = models.load("bundled"), models.load("bundled:recalibrating")
    assert models.is_position_free(state.model)
    assert state.model.dtype == torch.float32  # on a CPU
    assert state.tokenizer.get_vocab() == base.tokenizer.get_vocab()
    assert models.rope_shape(state.model.config).context == models.rope_shape(base.model.config).context
    shapes = [{name: p.shape for name, p in found.model.named_parameters()} for found in (base, state)]
    assert shapes[0] == shapes[1]


def test_bundled_is_found_or_missed_clearly(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.import_module("drope.models.load"), "__file__", str(tmp_path / "models" / "load.py"))
    with pytest.raises(InputError, match="no bundled model"):
        models.load("bundled")
    model("Llama").save_pretrained(tmp_path / "bundled")
    assert models.load("bundled").source == "bundled"


def test_gguf_loads(tmp_path):
    gguf = pytest.importorskip("gguf")
    made = from_config(config("Llama", rope_parameters={"rope_type": "default", "rope_theta": 1e4}))
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
    c = made.config
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(1e4)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(c.vocab_size)
    pieces = ["<unk>", "<s>", "</s>", *(f"▁w{i}" for i in range(93))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([0.0] * 96)
    writer.add_token_types([2, 3, 3] + [1] * 93)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "model.layers": "blk",
    }  # fmt: skip
    for name, tensor in made.state_dict().items():
        heads = {"q_proj": c.num_attention_heads, "k_proj": c.num_key_value_heads}.get(name.split(".")[-2])
        if heads:  # llama.cpp keeps the two halves of a rotated head interleaved
            tensor = tensor.view(heads, 2, -1, tensor.shape[-1]).transpose(1, 2).reshape(tensor.shape)
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        writer.add_tensor(name, tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    loaded = models.load(tmp_path / "tiny.gguf")
    torch.testing.assert_close(logits(loaded.model), logits(made), rtol=1e-4, atol=1e-4)
    assert models.verify(models.drop(loaded.model)).passed
    # nothing may take the dequantised weights for quantised ones: neither the trainer nor save
    assert not loaded.model.is_quantized
    saved = models.save(loaded.model, tmp_path / "out", target_length=128)
    assert "quantization_config" not in (saved / "config.json").read_text(encoding="utf-8")
    assert models.load_config(tmp_path / "tiny.gguf").max_position_embeddings == 64
