from __future__ import annotations

import json
from functools import partial

import pytest
import torch

from drope import models, positions
from drope.commands import main
from drope.errors import InputError
from drope.training.pretrain import fresh_model, pretrain


@pytest.fixture
def config(small_run):
    return partial(small_run, tokens=24 * 128)


def blocks_seen(model):
    seen: list[list[int]] = []
    model.model.embed_tokens.register_forward_pre_hook(
        lambda m, args: seen.extend(args[0].tolist()) if m.training else None
    )
    return seen


def test_positions_go_at_the_given_point_and_the_text_goes_on(make_model, tokenizer, config, tmp_path):
    model, whole = make_model(), make_model()
    seen, expected = blocks_seen(model), blocks_seen(whole)
    done = pretrain(model, tokenizer, config(), tmp_path / "a", drop_at=16 * 128, rewarm=3, drop_rate=5e-3)
    assert models.is_position_free(model)
    assert [run.steps for run in done] == [16, 8]
    rates = [row["learning_rate"] for row in done[1].history if row["learning_rate"] is not None]
    assert rates[:4] == pytest.approx([0, 5e-3 / 3, 2 * 5e-3 / 3, 5e-3])
    (control,) = pretrain(whole, tokenizer, config(), tmp_path / "b")
    assert not models.is_position_free(whole)
    assert control.steps == 24
    assert seen == expected
    assert done[1].history[-1]["eval_loss"] < done[0].history[0]["eval_loss"]


def test_an_architecture_of_the_catalogue_trains_as_it_is(make_model, tokenizer, config, tmp_path):
    model, method = make_model(), positions.get("alibi")
    (run,) = pretrain(model, tokenizer, config(), tmp_path / "run", method=method)
    ids = torch.arange(1, 31)[None]
    with torch.no_grad(), models.apply(model, method, 32):
        own = model(input_ids=ids, labels=ids).loss
    with torch.no_grad():
        rotating = model(input_ids=ids, labels=ids).loss
    assert run.history[-1]["eval_loss"] < run.history[0]["eval_loss"]
    assert own < rotating  # it learned under ALiBi, not under the rotation that it has now


def test_new_weights_in_another_shape():
    config = models.load_config("bundled")
    made = fresh_model(config, {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96}, 300, seed=1)
    again = fresh_model(config, {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96}, 300, seed=1)
    assert made.config.num_hidden_layers == 2
    assert made.get_input_embeddings().weight.shape == (300, 64)
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), again.parameters(), strict=True))
    with pytest.raises(InputError, match="--shape is 'layers'"):
        fresh_model(config, {"layers": 2}, 300)


def test_a_drop_must_be_inside_the_run(make_model, tokenizer, config, tmp_path):
    with pytest.raises(InputError, match="--drop-at"):
        pretrain(make_model(), tokenizer, config(), tmp_path / "run", drop_at=24 * 128)


def test_on_the_command_line(text, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DROPE_CACHE", str(tmp_path / "cache"))
    command = ["pretrain", "bundled", "--shape", "hidden_size=32", "num_hidden_layers=1", "intermediate_size=32"]
    command += ["num_attention_heads=2", "num_key_value_heads=2", "max_position_embeddings=32"]
    command += ["--data", str(text), "--tokens", "1k", "--batch-tokens", "128", "--drop-at", "512", "--rewarm", "1"]
    command += ["--out", str(tmp_path / "out"), "--json", "--eval-blocks", "2"]
    assert main(command) == 0, capsys.readouterr().err
    done = json.loads(capsys.readouterr().out)
    assert {row["run"] for row in done["history"]} == {"positions", "dropped"}
    assert models.is_position_free(models.load(tmp_path / "out" / "model").model)
    assert main([*command, "--recipe", "fast"]) == 2
    assert "no original" in capsys.readouterr().err
