"""Conversion without weights in memory: equal to saving, linked, and strict about damaged files."""

from __future__ import annotations

import json
import os

import checkpoints
import families
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from drope.errors import InputError, UnsupportedModelError
from drope.models import convert, drop, load, save

TARGET = 4 * families.CONTEXT


@pytest.mark.parametrize("family", ["Llama", "Gemma3", "Phi3", "Mixtral", "Qwen3"])
def test_convert_equals_save(family, tmp_path):
    model = checkpoints.write(tmp_path / "base", family)
    converted = convert(tmp_path / "base", tmp_path / "converted", target_length=TARGET)
    loaded = load(tmp_path / "base")
    saved = save(drop(loaded.model), tmp_path / "saved", loaded.tokenizer, target_length=TARGET)
    a, b = (AutoModelForCausalLM.from_pretrained(folder) for folder in (converted, saved))
    assert torch.equal(families.logits(a), families.logits(b))
    assert (families.logits(a) - families.logits(model)).abs().max() > 1e-3
    configs = [json.loads((folder / "config.json").read_text()) for folder in (converted, saved)]
    assert configs[0]["rope_parameters"] == configs[1]["rope_parameters"]
    records = [json.loads((folder / "drope.json").read_text()) for folder in (converted, saved)]
    assert records[0]["original"] == records[1]["original"]


def test_weights_are_linked_and_the_rest_comes_along(tmp_path):
    base = tmp_path / "base"
    checkpoints.write(base, shard="20KB")
    before = {f.name: f.read_bytes() for f in base.iterdir()}
    out = convert(base, tmp_path / "out", target_length=TARGET)
    shards = sorted(base.glob("*.safetensors"))
    assert len(shards) > 1
    assert all(os.path.samefile(shard, out / shard.name) for shard in shards)
    assert AutoTokenizer.from_pretrained(out).model_max_length == TARGET
    assert (out / "LICENSE").exists()
    assert (out / "README.source.md").read_text() == "the original card\n"
    assert "not been recalibrated" in (out / "README.md").read_text()
    assert {f.name: f.read_bytes() for f in base.iterdir()} == before, "the source was changed"
    copied = convert(base, tmp_path / "copied", target_length=TARGET, link=False)
    assert not any(os.path.samefile(shard, copied / shard.name) for shard in shards)


def test_weights_are_never_opened_beyond_their_header(tmp_path, monkeypatch):
    checkpoints.write(tmp_path / "base")
    import safetensors

    def refuse(*_args, **_kwargs):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(safetensors, "safe_open", refuse)
    convert(tmp_path / "base", tmp_path / "out", target_length=TARGET)


def test_damaged_files_are_named_and_nothing_is_written(tmp_path):
    base = tmp_path / "base"
    checkpoints.write(base, shard="20KB")
    shards = sorted(base.glob("*.safetensors"))
    whole = shards[1].read_bytes()
    for damage in (whole[: len(whole) // 2], whole[:4], b"\xff" * 64, b""):
        shards[1].write_bytes(damage)
        with pytest.raises(InputError, match=shards[1].name):
            convert(base, tmp_path / "out", target_length=TARGET)
    shards[1].unlink()
    with pytest.raises(InputError, match=shards[1].name):
        convert(base, tmp_path / "out", target_length=TARGET)
    assert [p.name for p in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize("change", ["overlap", "gap", "shape", "negative"])
def test_headers_that_do_not_add_up_are_refused(change, tmp_path):
    base = tmp_path / "base"
    checkpoints.write(base)
    path = base / "model.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    names = sorted((n for n in header if n != "__metadata__"), key=lambda name: header[name]["data_offsets"])
    one, other = header[names[1]], header[names[2]]
    if change == "overlap":
        other["data_offsets"] = one["data_offsets"]
    elif change == "gap":
        del header[names[1]]
    elif change == "shape":
        one["shape"] = [*one["shape"], 2]
    else:
        one["data_offsets"] = [-4, one["data_offsets"][1]]
    new = json.dumps(header).encode()
    path.write_bytes(len(new).to_bytes(8, "little") + new + raw[8 + length :])
    with pytest.raises(InputError, match="unreadable"):
        convert(base, tmp_path / "out", target_length=TARGET)


def test_bad_input(tmp_path):
    base = tmp_path / "base"
    checkpoints.write(base)
    with pytest.raises(InputError, match="--to"):
        convert(base, tmp_path / "out", target_length=families.CONTEXT)
    with pytest.raises(InputError, match="GGUF"):
        convert(tmp_path / "model.gguf", tmp_path / "out", target_length=TARGET)
    with pytest.raises(InputError, match="other than the source"):
        convert(base, base, target_length=TARGET, overwrite=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("kept")
    with pytest.raises(InputError, match="--out"):
        convert(base, tmp_path / "full", target_length=TARGET)
    assert (tmp_path / "full" / "precious").read_text() == "kept"
    assert (base / "model.safetensors").exists()


def test_pickled_weights_are_refused(tmp_path):
    base = tmp_path / "base"
    checkpoints.write(base)
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    with pytest.raises(InputError, match="pickle"):
        convert(base, tmp_path / "out", target_length=TARGET)


def test_models_without_rotation_are_refused(tmp_path):
    config = GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=96, bos_token_id=1, eos_token_id=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    with pytest.raises(UnsupportedModelError, match="gpt2"):
        convert(tmp_path / "base", tmp_path / "out", target_length=8192)


def test_a_converted_folder_can_be_converted_again(tmp_path):
    base = tmp_path / "base"
    checkpoints.write(base)
    first = convert(base, tmp_path / "first", target_length=TARGET)
    second = convert(first, tmp_path / "second", target_length=2 * TARGET)
    records = [json.loads((folder / "drope.json").read_text()) for folder in (first, second)]
    assert records[0]["original"] == records[1]["original"]
    assert (records[0]["source"], records[1]["source"]) == ("base", "base")
    assert records[1]["target_length"] == 2 * TARGET
    assert (second / "README.source.md").read_text() == "the original card\n"
