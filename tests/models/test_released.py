"""Checkpoints in the layout of the paper's authors, written here: read without their code, right with a cache."""

from __future__ import annotations

import json

import families
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoModelForCausalLM

from drope.errors import InputError, UnsupportedModelError
from drope.models import convert, drop, is_position_free, load, save, verify

TARGET = 4 * families.CONTEXT
PARTS = {"nope": "", "q_norm": "q", "k_norm": "k", "qk_norm": "qk"}
BASES = {"llama_drope": "Llama", "qwen2_drope": "Qwen2"}


def write(folder, kind="llama_drope", attention="nope", **changes):
    """A checkpoint as the authors' code writes it; returns the stock model that it was made from."""
    model = families.model(BASES[kind])
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(3)
    for i in range(2):
        for part in PARTS[attention]:
            width = tensors[f"model.layers.{i}.self_attn.{part}_proj.weight"].shape[0]
            tensors[f"model.layers.{i}.self_attn.{part}_norm.weight"] = torch.rand(width, generator=generator) + 0.5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    plain = json.loads((folder / "config.json").read_text())
    plain |= {"model_type": kind, "architectures": ["DropeForCausalLM"], "attention_type": attention,
              "softmax_scale": None, "auto_map": {"AutoModelForCausalLM": "modeling.DropeForCausalLM"}}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(plain | changes))
    return model


def by_hand(folder, ids, parts, beta=1.0):
    """Logits of the layout, from its tensors alone: (T, V)."""
    t = load_file(folder / "model.safetensors")
    plain = json.loads((folder / "config.json").read_text())
    heads, kv = plain["num_attention_heads"], plain["num_key_value_heads"]

    def norm(x, key):
        return x * (x.square().mean(-1, keepdim=True) + plain["rms_norm_eps"]).rsqrt() * t[key]

    x = t["model.embed_tokens.weight"][ids[0]]
    for i in range(2):
        at = f"model.layers.{i}."
        h = norm(x, f"{at}input_layernorm.weight")
        q, k, v = (functional.linear(h, t[f"{at}self_attn.{p}_proj.weight"], t.get(f"{at}self_attn.{p}_proj.bias"))
                   for p in "qkv")  # fmt: skip
        q = norm(q, f"{at}self_attn.q_norm.weight") if "q" in parts else q
        k = norm(k, f"{at}self_attn.k_norm.weight") if "k" in parts else k
        q, k, v = (y.unflatten(-1, (n, -1)).transpose(0, 1) for y, n in ((q, heads), (k, kv), (v, kv)))
        k, v = (y.repeat_interleave(heads // kv, 0) for y in (k, v))
        scores = beta * q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
        out = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
        x = x + out @ t[f"{at}self_attn.o_proj.weight"].T
        h = norm(x, f"{at}post_attention_layernorm.weight")
        gate, up = (h @ t[f"{at}mlp.{p}_proj.weight"].T for p in ("gate", "up"))
        x = x + (functional.silu(gate) * up) @ t[f"{at}mlp.down_proj.weight"].T
    return norm(x, "model.norm.weight") @ t.get("lm_head.weight", t["model.embed_tokens.weight"]).T


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("attention", PARTS)
def test_every_type_loads_and_decodes_from_its_cache(kind, attention, tmp_path):
    write(tmp_path / "m", kind, attention, softmax_scale=1.3 / 8**0.5)
    model = load(tmp_path / "m").model
    ids = families.tokens()
    torch.testing.assert_close(
        families.logits(model)[0], by_hand(tmp_path / "m", ids, PARTS[attention], 1.3), atol=2e-5, rtol=1e-4
    )
    assert is_position_free(model)
    assert verify(model, ids).passed
    assert {p.device.type for p in model.parameters()} == {"cpu"}


@pytest.mark.parametrize("kind", BASES)
def test_nope_becomes_stock(kind, tmp_path):
    model = drop(write(tmp_path / "m", kind, softmax_scale=1.3 / 8**0.5))
    del model
    out = convert(tmp_path / "m", tmp_path / "out", target_length=TARGET)
    stock = AutoModelForCausalLM.from_pretrained(out)
    assert type(stock).__name__ == {"llama_drope": "LlamaForCausalLM", "qwen2_drope": "Qwen2ForCausalLM"}[kind]
    expected = by_hand(tmp_path / "m", families.tokens(), "", 1.3)
    torch.testing.assert_close(families.logits(stock)[0], expected, atol=2e-5, rtol=1e-4)
    plain = json.loads((out / "config.json").read_text())
    assert "auto_map" not in plain
    assert "drope_released" not in plain
    assert "softmax_scale" not in plain


@pytest.mark.parametrize("attention", ["q_norm", "k_norm", "qk_norm"])
def test_joint_norms_are_refused_where_no_stock_class_has_them(attention, tmp_path):
    write(tmp_path / "m", attention=attention)
    with pytest.raises(UnsupportedModelError, match=f"{attention}.*all heads jointly"):
        convert(tmp_path / "m", tmp_path / "out", target_length=TARGET)
    with pytest.raises(UnsupportedModelError, match="all heads jointly"):
        save(load(tmp_path / "m").model, tmp_path / "out", target_length=TARGET)
    assert not (tmp_path / "out").exists()


def test_what_does_not_fit_together_is_refused(tmp_path):
    write(tmp_path / "a", attention="qk_norm", **{"attention_type": "nope"})
    with pytest.raises(InputError, match="attention type"):
        load(tmp_path / "a")
    write(tmp_path / "b", softmax_scale=30.0)
    with pytest.raises(UnsupportedModelError, match="softmax_scale"):
        load(tmp_path / "b")
    write(tmp_path / "c", **{"attention_type": "alibi"})
    with pytest.raises(UnsupportedModelError, match="alibi"):
        load(tmp_path / "c")
