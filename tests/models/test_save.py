"""Saved checkpoints are stock, compute what the model in memory does, and appear whole or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import checkpoints
import families
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from drope.errors import InputError, UnsupportedModelError, VerificationError
from drope.models import drop, is_position_free, load, restore, save, set_logit_scale
from drope.models.fold import fold

TARGET = 4 * families.CONTEXT
BETA = 1.37


def greedy(model, ids: torch.Tensor, use_cache: bool) -> list[int]:
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    out = model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=use_cache, **settings)
    return out[0].tolist()


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_reloaded_checkpoint_equals_the_model_under_beta(family, tmp_path):
    model = drop(families.model(family))
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    ids = families.tokens()
    out = save(model, tmp_path / "out", target_length=TARGET, beta=BETA, provenance={"source": "org/base"})

    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert type(loaded) is type(model)
    assert is_position_free(loaded)
    set_logit_scale(model, BETA)
    expected = families.logits(model, ids)
    set_logit_scale(model, 1.0)
    torch.testing.assert_close(families.logits(loaded, ids), expected, atol=2e-5, rtol=1e-4)
    assert (expected - families.logits(model, ids)).abs().max() > 1e-3, "β must matter, or the comparison shows nothing"
    assert greedy(loaded, ids, use_cache=True) == greedy(loaded, ids, use_cache=False)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items()), "the model was changed"


def test_the_folder_is_complete(tmp_path):
    checkpoints.write(tmp_path / "base")
    loaded = load(tmp_path / "base")
    original = dict(loaded.model.config.rope_parameters)
    provenance = {
        "source": "org/base",
        "tokens": 2_000_000,
        "data": {"spec": "books.txt", "fingerprint": "0123abcd"},
        "temperature": {"a": 0.2},
        "note": "extra",
    }
    card = {"numbers": [{"length": 256, "success": 0.5}], "license": "mit"}
    out = save(drop(loaded.model), tmp_path / "out", loaded.tokenizer, target_length=TARGET, beta=BETA,
               provenance=provenance, card=card)  # fmt: skip

    assert AutoTokenizer.from_pretrained(out).model_max_length == TARGET
    assert loaded.tokenizer.model_max_length == families.CONTEXT
    assert (out / "generation_config.json").exists()
    assert (out / "model.safetensors").exists()
    record = json.loads((out / "drope.json").read_text())
    assert record["original"] == {"rope_parameters": original, "max_position_embeddings": families.CONTEXT}
    assert record["temperature"] == {"a": 0.2, "beta": BETA, "length": TARGET}
    assert (record["tokens"], record["data"], record["note"]) == (2_000_000, provenance["data"], "extra")
    assert record["context"] == families.CONTEXT
    assert set(record["versions"]) == {"drope", "transformers", "torch"}
    card_text = (out / "README.md").read_text()
    assert card_text.startswith("---\n")
    assert "base_model: org/base" in card_text
    assert "| length | success |" in card_text
    assert "| data | books.txt |" in card_text
    assert f"rope_theta {original['rope_theta']}" in card_text
    assert "{'" not in card_text
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_loading_says_nothing_confusing(tmp_path):
    out = save(
        drop(families.model("Llama")), tmp_path / "out", checkpoints.tokenizer(), target_length=TARGET, beta=BETA
    )
    code = (
        "import sys, transformers; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T;"
        "M.from_pretrained(sys.argv[1]); T.from_pretrained(sys.argv[1])"
    )
    run = subprocess.run([sys.executable, "-W", "error", "-c", code, str(out)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "rope" not in run.stderr.lower(), run.stderr
    assert "warn" not in run.stderr.lower(), run.stderr


def test_restore_gives_a_saved_model_its_rotation_back(tmp_path):
    model = families.model("Llama")
    expected = families.logits(model)
    out = save(drop(model), tmp_path / "out", target_length=TARGET)
    again = restore(AutoModelForCausalLM.from_pretrained(out))
    torch.testing.assert_close(families.logits(again), expected, atol=1e-5, rtol=1e-4)


def test_a_saved_model_can_be_saved_for_a_longer_target(tmp_path):
    model = drop(families.model("Phi3"))
    first = save(model, tmp_path / "first", target_length=TARGET)
    again = AutoModelForCausalLM.from_pretrained(first)
    second = save(again, tmp_path / "second", target_length=2 * TARGET)
    torch.testing.assert_close(families.logits(AutoModelForCausalLM.from_pretrained(second)), families.logits(model))
    records = [json.loads((f / "drope.json").read_text())["original"] for f in (first, second)]
    assert records[0] == records[1]
    assert records[0]["rope_parameters"]


def test_half_precision_is_saved_in_half_precision(tmp_path):
    model = drop(families.model("Llama")).to(torch.bfloat16)
    out = save(model, tmp_path / "out", target_length=TARGET, beta=BETA)
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_slightly_wrong_fold_is_found_in_any_precision(dtype, tmp_path, monkeypatch):
    import drope.models.fold as folding

    real = folding._scaled
    monkeypatch.setattr(folding, "_scaled", lambda parameter, factor, rows=None: real(parameter, 1.02 * factor, rows))
    with pytest.raises(VerificationError):
        save(drop(families.model("Llama")).to(dtype), tmp_path / "out", target_length=TARGET, beta=BETA)
    assert list(tmp_path.iterdir()) == []


def test_folding_touches_query_rows_only():
    model = families.model("GPT-NeoX")
    name = "gpt_neox.layers.0.attention"
    changed = fold(model, {name: 2.0})
    before = dict(model.named_parameters())
    width = 8
    for key, new in changed.items():
        heads_old, heads_new = (t.detach().unflatten(0, (4, 3, width)) for t in (before[key], new))
        torch.testing.assert_close(heads_new[:, 0], 2 * heads_old[:, 0])
        assert torch.equal(heads_new[:, 1:], heads_old[:, 1:])
    assert set(changed) == {f"{name}.query_key_value.weight", f"{name}.query_key_value.bias"}


def test_folding_into_a_norm_with_gain_one_plus_w():
    model = families.model("Gemma3")
    name = "model.layers.0.self_attn"
    with torch.no_grad():
        model.get_submodule(name).q_norm.weight.uniform_(-0.5, 0.5)
    old = model.get_submodule(name).q_norm.weight.detach().clone()
    changed = fold(model, {name: 1.5})
    torch.testing.assert_close(1 + changed[f"{name}.q_norm.weight"], 1.5 * (1 + old))
    assert set(changed) == {f"{name}.q_norm.weight"}


def test_what_cannot_be_folded_is_refused(tmp_path):
    import transformers

    config = transformers.Llama4TextConfig(
        hidden_size=32, intermediate_size=16, intermediate_size_mlp=16, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, vocab_size=96, num_local_experts=2, max_position_embeddings=64,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, no_rope_layers=[1, 1], attention_chunk_size=32,
    )  # fmt: skip
    with pytest.raises(UnsupportedModelError, match=r"llama4_text.*without a gain"):
        save(drop(families.from_config(config)), tmp_path / "out", target_length=TARGET, beta=BETA)
    assert list(tmp_path.iterdir()) == []


def test_bad_input_writes_nothing(tmp_path):
    model = drop(families.model("Llama"))
    with pytest.raises(InputError, match="--to is 64"):
        save(model, tmp_path / "out", target_length=families.CONTEXT)
    with pytest.raises(InputError, match="beta is 0"):
        save(model, tmp_path / "out", target_length=TARGET, beta=0)
    with pytest.raises(InputError, match="without rotation"):
        save(families.model("Llama"), tmp_path / "out", target_length=TARGET)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("kept")
    with pytest.raises(InputError, match="--out"):
        save(model, tmp_path / "out", target_length=TARGET)
    assert (tmp_path / "out" / "precious").read_text() == "kept"


def test_a_checkpoint_that_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    model = drop(families.model("Llama"))
    keep = Path(tmp_path / "out")
    keep.mkdir()
    (keep / "precious").write_text("kept")
    import drope.models.fold as folding

    real = folding._scaled
    monkeypatch.setattr(folding, "_scaled", lambda parameter, factor, rows=None: real(parameter, 1.1 * factor, rows))
    with pytest.raises(VerificationError, match="Nothing was kept"):
        save(model, keep, target_length=TARGET, beta=BETA, overwrite=True)
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "precious"]
