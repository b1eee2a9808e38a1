"""Mixed context windows: which blocks are short, what the model computes on each, and resuming to the same weights."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from drope import models
from drope.errors import InputError, Interrupted
from drope.positions import PI, Drope, LongRoPE2, Rope, Yarn
from drope.training import RecalibrationConfig, recalibrate
from drope.training.callbacks import StopCallback
from drope.training.mixed_window import MixedWindow, Windows, is_short

CONTEXT, TARGET = 32, 64


def config(text, **changes) -> RecalibrationConfig:
    settings = {
        "data": str(text), "tokens": 20 * TARGET, "batch_tokens": 2 * TARGET, "learning_rate": 1e-3, "eval_blocks": 2,
        "micro_batch": 1, "precision": "float32", "mixed_window": MixedWindow(PI(), TARGET, 0.5),
        "save_every": 2 * TARGET,
    }  # fmt: skip
    return RecalibrationConfig(**(settings | changes))


@pytest.mark.parametrize("share", [0.3, 0.5, 0.25, 0.9, 1 / 3])
def test_short_micro_batches_are_spread_evenly(share):
    counted = 0
    for index in range(1000):
        counted += is_short(index, share)
        assert abs(counted - share * (index + 1)) < 1 + 1e-6
    assert counted == pytest.approx(1000 * share, abs=1)


def test_each_window_has_its_own_rotation_and_sees_nothing_else(make_model):
    model = make_model()
    windows = Windows(model, MixedWindow(PI(), TARGET, 0.5), 2)
    ids = torch.randint(0, 64, (3, TARGET))
    batch = {"input_ids": ids, "trained": torch.ones_like(ids, dtype=torch.bool)}
    expected = {False: [model(input_ids=row[None]).logits[0] for row in ids.reshape(-1, CONTEXT)]}
    with models.apply(model, PI(), TARGET):
        expected[True] = [model(input_ids=row[None]).logits[0] for row in ids]
    windows.on_step_begin(None, SimpleNamespace(global_step=7), None)
    kinds = []
    for index in range(14, 18):
        made = windows.turn(batch)
        rescaled = not is_short(index, 0.5)
        assert made["input_ids"].shape == made["trained"].shape == ((3, TARGET) if rescaled else (6, CONTEXT))
        torch.testing.assert_close(model(input_ids=made["input_ids"]).logits, torch.stack(expected[rescaled]))
        kinds.append(rescaled)
    assert kinds == [True, False, True, False]
    windows.turn(batch)
    with pytest.raises(ZeroDivisionError), windows.until_done():
        raise ZeroDivisionError
    torch.testing.assert_close(model(input_ids=ids[:, :CONTEXT]).logits[0], expected[False][0])


def test_a_run_trains_both_and_leaves_the_models_own_rotation(make_model, tokenizer, text, tmp_path):
    model = make_model()
    own = model.model.rotary_emb.inv_freq.clone()
    seen = []

    def look(module, args, kwargs):
        seen.append((kwargs["input_ids"].shape[1], torch.equal(module.model.rotary_emb.inv_freq, own), module.training))

    handle = model.register_forward_pre_hook(look, with_kwargs=True)
    done = recalibrate(model, tokenizer, config(text), tmp_path / "run", control=True, cache_dir=tmp_path / "cache")
    handle.remove()
    trained = [(length, plain) for length, plain, training in seen if training]
    assert trained == [(TARGET, False), (CONTEXT, True)] * 10
    assert {(length, plain) for length, plain, training in seen if not training and length > 16} == {(TARGET, False)}
    assert torch.equal(model.model.rotary_emb.inv_freq, own)
    assert done.tokens_seen == 20 * TARGET
    assert done.history[-1]["eval_loss"] < done.history[0]["eval_loss"]
    record = json.loads((tmp_path / "run" / "recalibration.json").read_text())["settings"]
    assert record["mixed_window"] == {"method": "pi", "settings": {"factor": None}, "target": 64, "short_share": 0.5}
    assert record["context"] == TARGET


def test_a_resumed_run_ends_the_same(make_model, tokenizer, text, tmp_path, monkeypatch):
    settings = config(text, mixed_window=MixedWindow(PI(), TARGET, 0.3))
    whole = make_model()
    recalibrate(whole, tokenizer, settings, tmp_path / "whole", control=True, cache_dir=tmp_path / "cache")
    end = StopCallback.on_step_end

    def stop(self, args, state, control, **rest):
        self.requested = state.global_step == 3
        return end(self, args, state, control, **rest)

    monkeypatch.setattr(StopCallback, "on_step_end", stop)
    with pytest.raises(Interrupted):
        recalibrate(make_model(), tokenizer, settings, tmp_path / "part", control=True, cache_dir=tmp_path / "cache")
    monkeypatch.undo()
    part = make_model()
    arguments = {"control": True, "resume": True, "cache_dir": tmp_path / "cache"}
    other = config(text, mixed_window=MixedWindow(PI(), TARGET, 0.4))
    with pytest.raises(InputError, match="mixed_window"):
        recalibrate(part, tokenizer, other, tmp_path / "part", **arguments)
    recalibrate(part, tokenizer, settings, tmp_path / "part", **arguments)
    for a, b in zip(whole.parameters(), part.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("changed", "control", "said"),
    [
        ({}, False, "none while the rotation is dropped"),
        ({"distill": 0.5}, True, "0 with mixed windows"),
        ({"context": 16}, True, "blocks have the target's length"),
        ({"mixed_window": MixedWindow(PI(), 32)}, True, "a multiple of 32 tokens, 2 or more"),
        ({"mixed_window": MixedWindow(PI(), 80)}, True, "a multiple of 32 tokens, 2 or more"),
        ({"mixed_window": MixedWindow(Rope(), 64)}, True, "a method that rescales the rotation"),
        ({"mixed_window": MixedWindow(Drope(), 64)}, True, "a method that rescales the rotation"),
        ({"mixed_window": MixedWindow(LongRoPE2(), 64)}, True, "drope longrope2"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    make_model, tokenizer, text, tmp_path, changed, control, said
):
    with pytest.raises(InputError, match=said):
        recalibrate(make_model(), tokenizer, config(text, **changed), tmp_path / "run", control=control)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "make",
    [
        lambda: MixedWindow("yarn", 64),
        lambda: MixedWindow(Yarn(), 0),
        lambda: MixedWindow(Yarn(), 64.0),
        lambda: MixedWindow(Yarn(), 64, 0.0),
        lambda: MixedWindow(Yarn(), 64, 1.0),
    ],
)
def test_bad_settings(make):
    with pytest.raises(InputError, match="mixed_window"):
        make()
