"""Saving with a temperature: folded where a stock checkpoint can carry it, refused with a reason where it cannot."""

from __future__ import annotations

import json

import pytest
import torch
from families import CONTEXT, logits, model, tokens
from transformers import AutoModelForCausalLM

from drope import models
from drope.errors import InputError, UnsupportedModelError, VerificationError
from drope.positions import Drope, LongRoPE2, Yarn
from drope.positions.temperatures import (
    ConstantTemperature,
    HeadTemperature,
    LogTemperature,
    PositionTemperature,
    ScalableSoftmaxTemperature,
    Tempered,
)

LENGTH = 2 * CONTEXT
HEADS = ((1.0, 1.5, 2.0, 1.2), (1.7, 1.0, 1.1, 3.0))


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")


@pytest.mark.parametrize("family", ["Llama", "Qwen2"])  # without and with a bias on q
@pytest.mark.parametrize("temperature", [ConstantTemperature(1.3), LogTemperature(0.4), HeadTemperature(HEADS)])
@pytest.mark.parametrize("inner", [Drope(), Yarn()], ids=lambda m: m.name)
def test_folded_forms_are_in_the_stock_checkpoint(family, temperature, inner, tmp_path):
    made, ids = model(family), tokens(LENGTH)[:1]
    method = Tempered(inner, temperature)
    before = logits(made, ids)
    with models.apply(made, method, LENGTH):
        expected = logits(made, ids)
    if inner.name == "drope":
        models.drop(made)
    models.save(made, tmp_path / "out", method=method, target_length=LENGTH)
    torch.testing.assert_close(logits(load(tmp_path / "out"), ids), expected, rtol=1e-4, atol=1e-4)
    record = json.loads((tmp_path / "out" / "drope.json").read_text())
    if temperature.name == "per_head":
        assert record["temperature"]["heads"] == [list(row) for row in HEADS]
    assert torch.equal(logits(models.restore(made), ids), before)


@pytest.mark.parametrize("temperature", [PositionTemperature(0.4), ScalableSoftmaxTemperature()])
def test_forms_by_position_are_refused_with_what_can_run_them(temperature, tmp_path):
    with pytest.raises(UnsupportedModelError, match=r"cannot be saved as a stock checkpoint.*drope\.apply"):
        models.save(model("Llama"), tmp_path / "out", method=Tempered(Yarn(), temperature), target_length=LENGTH)
    assert not (tmp_path / "out").exists()


def test_a_norm_that_heads_share_takes_no_factor_of_a_head(tmp_path):
    with pytest.raises(UnsupportedModelError, match="a norm, whose gain all heads share"):
        models.save(
            model("Qwen3"), tmp_path / "out", method=Tempered(Yarn(), HeadTemperature(HEADS)), target_length=LENGTH
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_a_wrong_fold_is_found_out(tmp_path, monkeypatch):
    from drope.models import fold_heads

    right = fold_heads.heads_folded
    monkeypatch.setattr(fold_heads, "heads_folded", lambda made, values: right(made, values[::-1]))
    with pytest.raises(VerificationError, match="Nothing was written"):
        models.save(
            model("Llama"), tmp_path / "out", method=Tempered(Yarn(), HeadTemperature(HEADS)), target_length=LENGTH
        )  # fmt: skip
    monkeypatch.undo()
    with pytest.raises(InputError, match="2 layers of 4 heads"), right(model("Llama"), HEADS[:1]):
        pass


def test_longrope2_is_its_own_rotation_within_the_context_and_rescaled_beyond(tmp_path):
    made = model("Llama")
    pairs = models.rope_shape(made.config).pairs
    method = LongRoPE2({LENGTH: [1.0] * (pairs - 2) + [2.5, 3.0]})
    short, long = tokens(CONTEXT)[:1], tokens(LENGTH)[:1]
    within = logits(made, short)
    with models.apply(made, method, LENGTH):
        beyond = logits(made, long)
        assert (logits(made, short) - within).abs().max() > 1e-3  # in memory the length is known: all is rescaled
    models.save(made, tmp_path / "out", method=method, target_length=LENGTH)
    loaded = load(tmp_path / "out")
    torch.testing.assert_close(logits(loaded, short), within, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(loaded, long), beyond, rtol=1e-4, atol=1e-4)
