"""Folding and QKNorm as a stream over files: equal to what is done in memory, resumable, whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import sys
from typing import Any

import checkpoints
import families
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from drope.errors import DropeError, InputError, UnsupportedModelError
from drope.models import add_qk_norm, convert, drop, load, save, set_logit_scale, stream
from drope.models.stream import Edit
from drope.models.stream_norm import StreamedNorm

conversion = sys.modules[convert.__module__]
TARGET = 4 * families.CONTEXT
BETA = 1.37
FOLDABLE = ["Llama", "Qwen2", "Qwen3", "Gemma", "Gemma3", "Phi", "Phi3", "GPT-NeoX", "OLMo2", "Granite", "StableLM",
            "Mixtral", "DeepSeek-V3"]  # fmt: skip


@pytest.mark.parametrize("family", FOLDABLE)
def test_a_streamed_fold_equals_a_temperature_in_memory(family, tmp_path):
    model = drop(checkpoints.write(tmp_path / "base", family))
    out = convert(tmp_path / "base", tmp_path / "out", target_length=TARGET, beta=BETA)
    found = families.logits(AutoModelForCausalLM.from_pretrained(out))
    plain = families.logits(model)
    set_logit_scale(model, BETA)
    torch.testing.assert_close(found, families.logits(model), atol=2e-5, rtol=1e-4)
    assert (found - plain).abs().max() > 1e-3
    assert json.loads((out / "drope.json").read_text())["temperature"]["beta"] == BETA


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bytes_equal_those_that_save_writes(dtype, tmp_path):
    model = families.model("Llama", tie_word_embeddings=True).to(dtype)
    model.save_pretrained(tmp_path / "base", max_shard_size="6KB")
    streamed = convert(tmp_path / "base", tmp_path / "out", target_length=TARGET, beta=BETA)
    saved = save(drop(model), tmp_path / "saved", target_length=TARGET, beta=BETA)
    a, b = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (streamed, saved))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
    linked = [f.name for f in streamed.glob("*.safetensors") if f.samefile(tmp_path / "base" / f.name)]
    assert linked, "files without a change are linked"
    assert len(linked) < len(list(streamed.glob("*.safetensors")))


def test_a_temperature_replaces_the_one_that_is_folded_in(tmp_path):
    checkpoints.write(tmp_path / "base")
    first = convert(tmp_path / "base", tmp_path / "first", target_length=TARGET, beta=1.5)
    second = convert(first, tmp_path / "second", target_length=TARGET, beta=1.0)
    plain = convert(tmp_path / "base", tmp_path / "plain", target_length=TARGET)
    a, b = (AutoModelForCausalLM.from_pretrained(folder) for folder in (second, plain))
    torch.testing.assert_close(families.logits(a), families.logits(b), atol=1e-5, rtol=1e-5)
    assert json.loads((second / "drope.json").read_text())["temperature"] == {"beta": 1.0, "length": TARGET}


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2"])
@pytest.mark.parametrize(("init", "shard"), [("fitted", "1GB"), ("ones", "1GB"), ("fitted", "20KB")])
def test_streamed_gains_equal_those_in_memory(family, init, shard, tmp_path):
    families.model(family).save_pretrained(tmp_path / "base", max_shard_size=shard)
    batches = [families.tokens(40, seed) for seed in range(3)]
    expected, report = add_qk_norm(drop(load(tmp_path / "base").model), batches, init)
    norm = StreamedNorm(init, batches)
    out = convert(tmp_path / "base", tmp_path / "out", target_length=TARGET, qk_norm=norm, beta=BETA)
    loaded: Any = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    found, loading = loaded
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert all(file.name.startswith("model") for file in out.glob("*.safetensors")), "mlx-lm reads no others"
    assert type(found).__name__ == "Qwen3ForCausalLM"
    set_logit_scale(expected, BETA)
    torch.testing.assert_close(families.logits(found), families.logits(expected), atol=1e-4, rtol=1e-4)
    if init == "fitted":
        assert norm.report["tokens"] == 120
        assert norm.report["q_gain"] == pytest.approx(report.q_gain, rel=1e-4)
        assert norm.report["head_spread"] == pytest.approx(report.head_spread, rel=1e-4)


def test_a_stopped_conversion_goes_on_where_it_was(tmp_path, monkeypatch):
    base = tmp_path / "base"
    checkpoints.write(base, shard="20KB")
    real = conversion.patch
    written: list[str] = []

    def stop_at_the_second(source, target, edits):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(source.name)
        real(source, target, edits)

    monkeypatch.setattr(conversion, "patch", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        convert(base, tmp_path / "out", target_length=TARGET, beta=BETA)
    assert not (tmp_path / "out").exists()

    again: list[str] = []

    def go_on(source, target, edits):
        again.append(source.name)
        real(source, target, edits)

    monkeypatch.setattr(conversion, "patch", go_on)
    out = convert(base, tmp_path / "out", target_length=TARGET, beta=BETA)
    assert written[0] not in again
    assert again
    whole = convert(base, tmp_path / "whole", target_length=TARGET, beta=BETA)
    for file in whole.glob("*.safetensors"):
        assert file.read_bytes() == (out / file.name).read_bytes()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def stopped_before_the_end(tmp_path, monkeypatch):
    """A sharded checkpoint whose conversion to `out` was interrupted once its weights were written."""
    base = tmp_path / "base"
    checkpoints.write(base, shard="20KB")
    monkeypatch.setattr(conversion, "write_text", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        convert(base, tmp_path / "out", target_length=TARGET, beta=BETA)
    monkeypatch.undo()
    return base


def test_another_temperature_does_not_go_on_from_the_first(tmp_path, monkeypatch):
    base = stopped_before_the_end(tmp_path, monkeypatch)
    out = convert(base, tmp_path / "out", target_length=TARGET, beta=2.0)
    expected = convert(base, tmp_path / "expected", target_length=TARGET, beta=2.0)
    for file in expected.glob("*.safetensors"):
        assert file.read_bytes() == (out / file.name).read_bytes()


def test_the_command_streams(tmp_path):
    from drope.commands import main

    base = tmp_path / "base"
    families.model("Llama").save_pretrained(base)
    options = ["--to", "4x", "--beta", str(BETA), "--json"]
    assert main(["convert", str(base), *options, "--out", str(tmp_path / "a")]) == 0
    assert main(["convert", str(base), *options, "--out", str(tmp_path / "b"), "--qk-norm", "--stream",
                 "--qk-norm-init", "ones"]) == 0  # fmt: skip
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in "ab"]
    assert [config["model_type"] for config in configs] == ["llama", "qwen3"]


def test_an_overflow_is_refused_and_leaves_nothing(tmp_path):
    families.model("Llama").to(torch.float16).save_pretrained(tmp_path / "base")
    with pytest.raises(Exception, match="overflows"):
        convert(tmp_path / "base", tmp_path / "out", target_length=TARGET, beta=1e6)
    assert [p.name for p in tmp_path.iterdir()] == ["base"]


def test_what_cannot_be_streamed_is_refused_by_name(tmp_path):
    checkpoints.write(tmp_path / "base", "OLMo2")
    with pytest.raises(UnsupportedModelError, match="olmo2"):
        convert(tmp_path / "base", tmp_path / "out", target_length=TARGET, qk_norm=StreamedNorm("ones"))
    with pytest.raises(InputError, match="beta"):
        convert(tmp_path / "base", tmp_path / "out", target_length=TARGET, beta=-1.0)
    with pytest.raises(InputError, match="batches"):
        StreamedNorm("fitted")


def test_only_the_bytes_of_changed_tensors_differ(tmp_path, monkeypatch):
    """By hand: every byte outside q_proj is the source's; also where the kernel cannot copy between files."""
    path = tmp_path / "a.safetensors"
    tensors = {f"{i}.{name}": torch.randn(70, 3000) for i in range(2) for name in ("k_proj", "q_proj", "v_proj")}
    save_file(tensors, path)
    stream.patch(path, tmp_path / "b.safetensors", {key: Edit(BETA) for key in tensors if "q_proj" in key})
    old, new = path.read_bytes(), (tmp_path / "b.safetensors").read_bytes()
    header = int.from_bytes(old[:8], "little")
    allowed = np.zeros(len(old), bool)
    for key, entry in json.loads(old[8 : 8 + header]).items():
        if "q_proj" in key:
            first, last = (8 + header + offset for offset in entry["data_offsets"])
            allowed[first:last] = True
            found = torch.frombuffer(bytearray(new[first:last]), dtype=torch.float32).reshape(70, 3000)
            assert torch.equal(found, tensors[key] * BETA)
    assert (np.frombuffer(old, np.uint8) == np.frombuffer(new, np.uint8))[~allowed].all()

    monkeypatch.delattr(os, "copy_file_range", raising=False)
    stream.patch(path, tmp_path / "c.safetensors", {key: Edit(BETA) for key in tensors if "q_proj" in key})
    assert (tmp_path / "c.safetensors").read_bytes() == new
    monkeypatch.setattr(os, "copy_file_range", refuse_to_copy, raising=False)
    stream.patch(path, tmp_path / "d.safetensors", {key: Edit(BETA) for key in tensors if "q_proj" in key})
    assert (tmp_path / "d.safetensors").read_bytes() == new


def refuse_to_copy(*_args):
    raise OSError(errno.EXDEV, "another file system")


def test_a_full_disk_is_told_and_the_next_try_goes_on(tmp_path, monkeypatch):
    checkpoints.write(tmp_path / "base", shard="20KB")

    def full(*_args):
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "copy_file_range", full, raising=False)
    with pytest.raises(DropeError, match="disk is full"):
        convert(tmp_path / "base", tmp_path / "out", target_length=TARGET, beta=BETA)
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    out = convert(tmp_path / "base", tmp_path / "out", target_length=TARGET, beta=BETA)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    assert not list(out.glob(".*"))


def test_a_finished_file_that_was_cut_off_since_is_written_again(tmp_path, monkeypatch):
    base = stopped_before_the_end(tmp_path, monkeypatch)
    partial = next(p for p in tmp_path.iterdir() if p.name.startswith("."))
    for file in partial.glob("*.safetensors"):
        if not any(file.samefile(other) for other in base.glob("*.safetensors")):
            file.write_bytes(file.read_bytes()[:100])
    out = convert(base, tmp_path / "out", target_length=TARGET, beta=BETA)
    whole = convert(base, tmp_path / "whole", target_length=TARGET, beta=BETA)
    for file in whole.glob("*.safetensors"):
        assert file.read_bytes() == (out / file.name).read_bytes()
