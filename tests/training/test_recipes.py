"""Each recipe, through the command line, on a tiny random model of its family."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import runs
import torch

from drope.commands import main

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = {
    "smollm-360m": ("LlamaConfig", {"tie_word_embeddings": True}, 30040),
    "smollm-1.7b": ("LlamaConfig", {"tie_word_embeddings": True}, 19073),
    "smollm2-360m": ("LlamaConfig", {"tie_word_embeddings": True}, 30040),
    "llama-2-7b": ("LlamaConfig", {}, 19073),
    "qwen3-0.6b": ("Qwen3Config", {"head_dim": 16, "tie_word_embeddings": True}, 1907),
}


@pytest.fixture
def tiny(tmp_path):
    def make(name, context=32):
        import transformers

        kind, extra, _ = RECIPES[name]
        torch.manual_seed(0)
        config = getattr(transformers, kind)(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=context, bos_token_id=0, eos_token_id=0, **extra,
        )  # fmt: skip
        folder = tmp_path / "tiny"
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        runs.make_tokenizer().save_pretrained(folder)
        return folder

    return make


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs(name, tiny, text, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DROPE_CACHE", str(tmp_path / "cache"))
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    lines = text.read_text().splitlines()
    for i in range(3):
        (corpus / f"{i}.jsonl").write_text("\n".join(lines[i * 100 : (i + 1) * 100]), encoding="utf-8")
    command = ["recalibrate", "--config", str(FOLDER / f"{name}.yaml"), "--model", str(tiny(name))]
    command += ["--data", str(corpus), "--tokens", "512", "--batch-tokens", "128", "--context", "32", "--json"]
    command += ["--warmup", "1", "--eval-blocks", "2", "--qk-norm-tokens", "512", "--out", str(tmp_path / "out")]
    if name == "llama-2-7b":
        assert main(command) == 2  # it shards, which takes accelerators
        assert "fsdp is True; allowed: an accelerator" in capsys.readouterr().err
        command += ["--no-fsdp"]
    assert main(command) == 0, capsys.readouterr().err
    done = json.loads(capsys.readouterr().out)
    assert done["steps"] == 4
    assert (tmp_path / "out" / "model" / "model.safetensors").exists()
    settings = done["recalibration"]
    assert settings["stream"]
    assert settings["learning_rate"] == (3e-4 if name in ("smollm-1.7b", "llama-2-7b") else 1e-3)
    assert (settings["weight_decay"], settings["betas"], settings["schedule"]) == (0.1, [0.9, 0.95], "cosine")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_at_its_own_size_is_a_plan(name):
    """The numbers themselves: steps and warm-up at the recipe's own tokens, batch and context."""
    import dataclasses

    from drope.commands.config import read_yaml
    from drope.quantities import parse_tokens
    from drope.training import RecalibrationConfig
    from drope.training.plan import make_plan

    raw = {key.replace("-", "_"): value for key, value in read_yaml(FOLDER / f"{name}.yaml").items()}
    known = {f.name for f in dataclasses.fields(RecalibrationConfig)}
    given = {k: (float(v) if k in ("learning_rate", "eps") else v) for k, v in raw.items() if k in known}
    config = RecalibrationConfig(**(given | {"fsdp": False, "micro_batch": 1}))
    model = runs.make_model(max_position_embeddings=raw["context"])
    plan = make_plan(model, runs.make_tokenizer(), config, None, None, False)
    assert plan.context == raw["context"]
    assert plan.step_tokens == raw["batch_tokens"]
    assert plan.steps == parse_tokens(raw["tokens"], "tokens") // raw["batch_tokens"] == RECIPES[name][2]
    expected = {"smollm-360m": 490, "smollm2-360m": 490, "smollm-1.7b": 311, "llama-2-7b": 311, "qwen3-0.6b": 67}
    assert plan.warmup_steps == expected[name]


def test_the_bundled_models_recalibration_goes_on_part_by_part(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DROPE_CACHE", str(tmp_path / "cache"))
    start = "bundled"
    for part in (1, 2, 3):
        out = tmp_path / str(part)
        command = ["recalibrate", "--model", start, "--config", str(FOLDER / "bundled" / f"recalibrate-{part}.yaml")]
        command += ["--tokens", "2048", "--batch-tokens", "1024", "--eval-blocks", "2", "--nproc", "1"]
        assert main([*command, "--out", str(out), "--json"]) == 0, capsys.readouterr().err
        assert json.loads(capsys.readouterr().out)["steps"] == 2
        start = str(out / "model")
    record = json.loads((Path(start) / "drope.json").read_text())
    assert record["recalibration"]["virtual_length"] == 32
    assert record["original"]["rope_parameters"]["rope_theta"] == 500
