"""Projections that stand out are named in a warning and stay in float16 in an 8-bit file."""

from __future__ import annotations

import logging

import exported
import gguf
import pytest
import torch

from drope.export import export
from drope.models import drop, save

WEIGHT = "model.layers.1.self_attn.k_proj.weight"


def kinds(folder):
    """ggml's type of each tensor."""
    return {t.name: t.tensor_type for t in gguf.GGUFReader(folder / "model-q8_0.gguf").tensors}


@pytest.mark.parametrize("factor", [1.0, 100.0])
def test_outliers_are_kept(factor, tmp_path, caplog):
    model = exported.wide("Llama", num_hidden_layers=4)
    with torch.no_grad():
        model.get_parameter(WEIGHT).mul_(factor)
    folder = save(drop(model), tmp_path / "m", exported.tokenizer(), target_length=exported.TARGET)
    with caplog.at_level(logging.WARNING):
        out = export(folder, tmp_path / "out", "llama.cpp", precision=["q8_0"])
    found = kinds(out)
    kept = gguf.GGMLQuantizationType.F16 if factor > 1 else gguf.GGMLQuantizationType.Q8_0
    assert found["blk.1.attn_k.weight"] == kept
    assert found["blk.2.attn_k.weight"] == gguf.GGMLQuantizationType.Q8_0
    assert ("model.layers.1.self_attn.k_proj" in caplog.text) == (factor > 1)


def test_others_on_request(tmp_path):
    folder = exported.write(tmp_path / "m")
    keep = ["model.layers.0.self_attn.q_proj.weight"]
    found = kinds(export(folder, tmp_path / "out", "llama.cpp", precision=["q8_0"], keep=keep))
    assert found["blk.0.attn_q.weight"] == gguf.GGMLQuantizationType.F16
    assert found["blk.1.attn_q.weight"] == gguf.GGMLQuantizationType.Q8_0
