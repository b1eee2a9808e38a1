"""A temperature that grows with position, against the formula applied by hand to q of the original."""

from __future__ import annotations

import json
from importlib.util import find_spec

import exported
import families
import pytest
import torch
from transformers import AutoModelForCausalLM

from drope.errors import InputError, UnsupportedModelError
from drope.export import export
from drope.export.runners import MlxRunner, TransformersRunner

C = 0.7


@torch.no_grad()
def by_hand(folder, ids, beta):
    """Logits of the position-free model whose q is scaled by position, and not by β any more."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    scale = 1 + C * torch.log(1 + torch.floor(torch.arange(ids.shape[1]) / families.CONTEXT))
    for layer in model.model.layers:
        layer.self_attn.q_proj.register_forward_hook(lambda _m, _i, out: out * scale[None, :, None] / beta)
    return model(ids, use_cache=False).logits


def test_it_equals_the_formula_and_decodes_from_the_cache(tmp_path):
    folder = exported.write(tmp_path / "m", beta=1.3)
    out = export(folder, tmp_path / "out", "transformers", length_temperature=C)
    ids = families.tokens(3 * families.CONTEXT)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert type(model).__name__ == "Ministral3ForCausalLM"
    found = families.logits(model, ids)
    torch.testing.assert_close(found, by_hand(folder, ids, 1.3), atol=1e-3, rtol=1e-4)
    constant = families.logits(AutoModelForCausalLM.from_pretrained(folder), ids)
    assert (found - constant)[:, families.CONTEXT :].abs().max() > 0.1
    whole, cached = (TransformersRunner(out).steps(ids[0].tolist(), 3, cached) for cached in (False, True))
    for a, b in zip(whole, cached, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-3)
    plain = json.loads((out / "config.json").read_text())
    assert plain["llama_4_scaling"] == {"original_max_position_embeddings": families.CONTEXT, "beta": C}
    assert json.loads((out / "drope.json").read_text())["temperature"]["per_position"] == C


@pytest.mark.skipif(find_spec("mlx_lm") is None, reason="mlx-lm is not installed (extra mlx)")
def test_mlx_computes_the_same(tmp_path):
    out = export(exported.write(tmp_path / "m", beta=1.3), tmp_path / "out", "mlx", length_temperature=C)
    ids = families.tokens(3 * families.CONTEXT)[0].tolist()
    expected = TransformersRunner(out).steps(ids, 3, False)
    for cached in (False, True):
        for a, b in zip(expected, MlxRunner(out).steps(ids, 3, cached), strict=True):
            assert b.logprobs == pytest.approx(a.logprobs, abs=1e-3)


def test_what_has_no_such_temperature_is_refused(tmp_path):
    folder = exported.write(tmp_path / "m")
    for engine in ("llama.cpp", "sglang"):
        with pytest.raises(UnsupportedModelError, match="grows with position"):
            export(folder, tmp_path / "out", engine, length_temperature=C)
    with pytest.raises(UnsupportedModelError, match="qwen2"):
        export(exported.write(tmp_path / "q", "Qwen2"), tmp_path / "out", "mlx", length_temperature=C)
    with pytest.raises(InputError, match="length-temperature"):
        export(folder, tmp_path / "out", "mlx", length_temperature=-1)
    assert not (tmp_path / "out").exists()
