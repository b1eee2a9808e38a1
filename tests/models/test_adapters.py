"""A LoRA that was trained with rotation is noticed where it meets a model without."""

from __future__ import annotations

import logging

import checkpoints
import families
import pytest
import torch

from drope.errors import InputError, UnsupportedModelError
from drope.models import convert, drop, load, save
from drope.models.adapters import adapter_mismatch, carries_adapter, load_adapter

peft = pytest.importorskip("peft", reason="peft is not installed (extra peft)")
# peft's own call of transformers
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
TARGET = 4 * families.CONTEXT


def adapter(base, folder):
    """A LoRA for the checkpoint in `base`, as PEFT saves it."""
    settings = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    made = peft.get_peft_model(load(base).model, settings)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    made.save_pretrained(folder)
    return folder


def test_an_adapter_of_the_original_gives_a_warning(tmp_path, caplog):
    checkpoints.write(tmp_path / "base")
    out = convert(tmp_path / "base", tmp_path / "out", target_length=TARGET)
    old = adapter(tmp_path / "base", tmp_path / "old")
    with caplog.at_level(logging.WARNING, logger="drope"):
        loaded = load_adapter(load(out).model, old)
    assert "assume the rotation that is dropped" in caplog.text
    assert carries_adapter(loaded)


def test_an_adapter_of_the_converted_model_gives_none(tmp_path, caplog):
    checkpoints.write(tmp_path / "base")
    out = convert(tmp_path / "base", tmp_path / "out", target_length=TARGET)
    new = adapter(out, tmp_path / "new")
    with caplog.at_level(logging.WARNING, logger="drope"):
        load_adapter(load(out).model, new)
    assert "rotation" not in caplog.text
    assert adapter_mismatch(load(tmp_path / "base").model, tmp_path / "new") is None, "that model rotates"


def test_dropping_under_an_adapter_gives_a_warning(tmp_path, caplog):
    checkpoints.write(tmp_path / "base")
    model = peft.PeftModel.from_pretrained(load(tmp_path / "base").model, adapter(tmp_path / "base", tmp_path / "old"))
    with caplog.at_level(logging.WARNING, logger="drope"):
        drop(model.get_base_model())
    assert "trained with rotation" in caplog.text
    with pytest.raises(UnsupportedModelError, match="merge"):
        save(model.get_base_model(), tmp_path / "out", target_length=TARGET)
    merged = model.merge_and_unload()
    save(merged, tmp_path / "merged", target_length=TARGET)


def test_no_adapter_there(tmp_path):
    with pytest.raises(InputError, match="adapter"):
        load_adapter(drop(families.model("Llama")), tmp_path)
