"""A converted checkpoint loads quantised, stays free of positions, and keeps named layers as they are."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import families
import pytest
import torch
from transformers import AutoModelForCausalLM

from drope.models import drop, restore, save

KEPT = "model.layers.1.self_attn.k_proj"
TARGET = 4 * families.CONTEXT


def written(folder) -> Any:
    """A checkpoint of a Llama wide enough to quantise; how far its logits are from those of its RoPE original."""
    model = families.model("Llama", hidden_size=128, intermediate_size=192)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(8.0)
    ids = families.tokens()
    free = families.logits(drop(model), ids)
    save(model, folder, target_length=TARGET)
    return free, (families.logits(restore(model), ids) - free).square().mean().sqrt()


def judged(model, free, control) -> None:
    """Near the model without rotation and far nearer than a returned rotation; positions do not matter."""
    ids = families.tokens()
    found = families.logits(model, ids)
    error = (found - free).square().mean().sqrt()
    assert 0 < error < control / 4, (error, control)
    gaps = torch.arange(ids.shape[1])[None] * 3
    with torch.no_grad():
        moved = model(ids, position_ids=gaps, attention_mask=torch.ones_like(ids), use_cache=False).logits
    torch.testing.assert_close(moved.float(), found.float(), atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torchao's own
def test_torchao_int8(tmp_path):
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    free, control = written(tmp_path / "m")
    config = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=[KEPT, "lm_head"])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m", quantization_config=config)
    assert type(model.get_submodule(KEPT).weight) is torch.nn.Parameter
    assert type(model.get_submodule(KEPT.replace("k_proj", "q_proj")).weight) is not torch.nn.Parameter
    judged(model, free, control)


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_bitsandbytes_int8(tmp_path):
    from transformers import BitsAndBytesConfig

    free, control = written(tmp_path / "m")
    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=[KEPT, "lm_head"])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m", quantization_config=config, device_map="cpu")
    assert type(model.get_submodule(KEPT)) is torch.nn.Linear
    assert type(model.get_submodule(KEPT.replace("k_proj", "q_proj"))) is not torch.nn.Linear
    judged(model, free, control)
