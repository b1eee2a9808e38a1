from __future__ import annotations

import json
import math
import random

import pytest
import torch

from drope.errors import DropeError
from drope.training import RecalibrationConfig, recalibrate
from drope.training.divergence import Diverged, Rollbacks, Watch


@pytest.fixture
def config(text):
    def make(**changes) -> RecalibrationConfig:
        settings = {
            "data": str(text), "tokens": 16 * 128, "batch_tokens": 128, "learning_rate": 1e-2, "eval_blocks": 0,
            "save_every": 4 * 128, "precision": "float32", "micro_batch": 4, "schedule": "constant", "warmup": 0,
        }  # fmt: skip
        return RecalibrationConfig(**(settings | changes))

    return make


def watched(losses, spike=2.0, fade=0):
    watch = Watch(spike, fade)
    for step, loss in enumerate(losses, 1):
        watch.see(step, loss)


def test_noise_a_single_leap_and_a_fall_are_no_divergence():
    rng = random.Random(0)
    watched([10 * math.exp(-i / 20) + 2 + rng.gauss(0, 0.2) for i in range(200)])
    watched([3.0] * 60 + [9.0] + [3.0] * 60)
    watched([3.0] * 60 + [9.0] * 10, spike=0)
    watched([3.0] * 30 + [9.0] * 60, fade=90)


def test_a_leap_that_stays_is_told_with_where_the_weights_were_good():
    with pytest.raises(Diverged) as caught:
        watched([3.0] * 60 + [7.0] * 5)
    assert caught.value.step == 63  # all of three steps are high
    assert caught.value.good <= 59
    assert (caught.value.before, round(caught.value.now)) == (3.0, 7)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_told_at_once(bad):
    with pytest.raises(Diverged) as caught:
        watched([3.0] * 5 + [bad], fade=90)
    assert (caught.value.step, caught.value.good) == (6, 4)


def broken_once(model, at):
    """NaN in the hidden states of training pass `at`, from 1, and in no other: as a failing device gives it."""
    passes = []

    def spoil(module, args, output):
        if module.training:
            passes.append(1)
            if len(passes) == at:
                return output * float("nan")
        return output

    model.model.norm.register_forward_hook(spoil)
    return model


def test_stopping_says_what_to_change(make_model, tokenizer, config, tmp_path):
    with pytest.raises(DropeError, match=r"nan after 1,280 tokens.*lower learning_rate than 0.01 \(try 0.005\)"):
        recalibrate(broken_once(make_model(), 10), tokenizer, config(), tmp_path / "run")
    kept = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["checkpoint-4", "checkpoint-8"]


def test_rolling_back_goes_on_from_before_at_half_the_rate(make_model, tokenizer, config, tmp_path, caplog):
    settings = config(on_divergence="rollback")
    # Step 9 is the first that saw bad weights, if step 8 made them: checkpoint 8 is not trusted.
    result = recalibrate(broken_once(make_model(), 9), tokenizer, settings, tmp_path / "run")
    assert result.steps == 16
    assert "back to step 4" in caplog.text
    entry = {"diverged": 9, "to": 4, "loss": None, "factor": 0.5}
    assert json.loads((tmp_path / "run" / "rollbacks.json").read_text()) == {"entries": [entry]}
    rates = {row["tokens"] // 128: row["learning_rate"] for row in result.history}
    assert [rates[step] for step in (1, 4, 5, 16)] == [1e-2, 1e-2, 5e-3, 5e-3]
    assert [row["tokens"] for row in result.history] == [128 * i for i in range(1, 17)]
    assert all(torch.isfinite(p).all() for p in result.model.parameters())


def test_rolling_back_to_the_beginning_restores_the_weights(make_model, tokenizer, config, tmp_path):
    settings = config(on_divergence="rollback", save_every=16 * 128)
    result = recalibrate(broken_once(make_model(), 3), tokenizer, settings, tmp_path / "run")
    lower = recalibrate(make_model(), tokenizer, config(learning_rate=5e-3), tmp_path / "lower")
    for ours, theirs in zip(result.model.parameters(), lower.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_three_times_are_enough(make_model, tokenizer, config, tmp_path):
    model = make_model()
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(DropeError, match="Going back 3 times did not help"):
        recalibrate(model, tokenizer, config(on_divergence="rollback"), tmp_path / "run")


def test_factors_multiply():
    entries = [{"to": 4, "factor": 0.5}, {"to": 6, "factor": 0.5}]
    assert [Rollbacks(entries).factor(step) for step in (0, 3, 4, 5, 6, 9)] == [1, 1, 0.5, 0.5, 0.25, 0.25]
