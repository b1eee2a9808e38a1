"""Runs that stop and go on, and what they find in their folders."""

from __future__ import annotations

import json
import signal

import pytest
from runs import same, weights

from drope import models
from drope.errors import DropeError, InputError, Interrupted
from drope.training import RECIPES, recalibrate
from drope.training.callbacks import StopCallback

RUNS = {
    "paper": {},
    "fast": RECIPES["fast"],
    "lowest first": {"optimizer": "muon", "distill": 0.7, "fade": "lowest_first", "fade_share": 0.5},
    "linear fade, wsd": {"fade": "linear", "fade_share": 0.8, "schedule": "wsd", "distill": 0.5, "temperature": 2.0},
}


@pytest.mark.parametrize("name", sorted(RUNS))
def test_a_resumed_run_has_the_same_weights_to_the_bit(make_model, tokenizer, config, tmp_path, stopped_at, name):
    settings = config(**RUNS[name])
    whole = recalibrate(make_model(), tokenizer, settings, tmp_path / "whole")
    handler = signal.getsignal(signal.SIGINT)  # a run in the background starts with it ignored
    stopped_at(6)
    with pytest.raises(Interrupted, match=r"Stopped after 768 of 2,048 tokens.*--resume"):
        recalibrate(make_model(), tokenizer, settings, tmp_path / "halves")
    assert signal.getsignal(signal.SIGINT) is handler
    resumed = recalibrate(make_model(), tokenizer, settings, tmp_path / "halves", resume=True)
    assert same(weights(whole.model), weights(resumed.model))
    assert models.is_position_free(resumed.model)
    assert [r["tokens"] for r in resumed.history] == [r["tokens"] for r in whole.history]
    assert resumed.history[-1]["eval_loss"] == whole.history[-1]["eval_loss"]


def test_sigterm_stops_as_well_and_a_finished_run_resumes_to_its_end(
    make_model, tokenizer, config, tmp_path, stopped_at
):
    stopped_at(3, signal.SIGTERM)
    with pytest.raises(Interrupted):
        recalibrate(make_model(), tokenizer, config(), tmp_path / "run")
    done = recalibrate(make_model(), tokenizer, config(), tmp_path / "run", resume=True)
    again = recalibrate(make_model(), tokenizer, config(), tmp_path / "run", resume=True)
    assert same(weights(done.model), weights(again.model))
    assert again.history == done.history


def test_a_kill_without_warning_goes_on_from_the_last_whole_checkpoint(
    make_model, tokenizer, config, tmp_path, monkeypatch
):
    whole = recalibrate(make_model(), tokenizer, config(), tmp_path / "whole")

    class Killed(BaseException):
        pass

    def die(self, args, state, control, **kwargs):
        if state.global_step == 10:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(StopCallback, "on_step_begin", die)
        with pytest.raises(Killed):
            recalibrate(make_model(), tokenizer, config(), tmp_path / "run")
    torn = tmp_path / "run" / "checkpoints" / "checkpoint-9"  # no marker: writing it did not end
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half")
    resumed = recalibrate(make_model(), tokenizer, config(), tmp_path / "run", resume=True)
    assert same(weights(whole.model), weights(resumed.model))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"tokens": 32 * 128}, "tokens"),
        ({"learning_rate": 1e-3}, "learning_rate"),
        ({"seed": 1}, "seed"),
        ({"distill": 0.5}, "distill"),
        ({"fade": "linear"}, "fade"),
        ({"micro_batch": 4}, "micro_batch"),
    ],
)
def test_resuming_with_other_settings_names_the_first(
    make_model, tokenizer, config, tmp_path, stopped_at, changes, field
):
    stopped_at(2)
    with pytest.raises(Interrupted):
        recalibrate(make_model(), tokenizer, config(), tmp_path / "run")
    with pytest.raises(InputError, match="as in the run that is to go on") as caught:
        recalibrate(make_model(), tokenizer, config(**changes), tmp_path / "run", resume=True)
    assert caught.value.field == field


def test_resuming_with_another_model_or_text_is_refused(make_model, tokenizer, config, tmp_path, stopped_at):
    text = tmp_path / "own.txt"
    text.write_text(" ".join(str(i % 63 + 1) for i in range(4000)), encoding="utf-8")
    stopped_at(2)
    with pytest.raises(Interrupted):
        recalibrate(make_model(), tokenizer, config(data=str(text)), tmp_path / "run")
    with pytest.raises(InputError, match="weights is"):
        recalibrate(make_model(seed=1), tokenizer, config(data=str(text)), tmp_path / "run", resume=True)
    text.write_text(" ".join(str(i % 62 + 1) for i in range(4000)), encoding="utf-8")
    with pytest.raises(InputError, match="blocks is"):
        recalibrate(make_model(), tokenizer, config(data=str(text)), tmp_path / "run", resume=True)


def test_when_to_save_may_change(make_model, tokenizer, config, tmp_path, stopped_at):
    stopped_at(2)
    with pytest.raises(Interrupted):
        recalibrate(make_model(), tokenizer, config(), tmp_path / "run")
    recalibrate(make_model(), tokenizer, config(save_every=128, eval_every=256), tmp_path / "run", resume=True)


def test_folders(make_model, tokenizer, config, tmp_path):
    model = make_model()
    before = weights(model)
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("precious", encoding="utf-8")
    for resume in (False, True):
        with pytest.raises(InputError, match="--out"):
            recalibrate(model, tokenizer, config(), full, resume=resume)
    with pytest.raises(InputError, match=r"no recalibration\.json"):
        recalibrate(model, tokenizer, config(), tmp_path / "absent", resume=True)
    assert [p.name for p in full.iterdir()] == ["thesis.txt"]
    assert same(before, weights(model))
    recalibrate(model, tokenizer, config(tokens=128), tmp_path / "run")
    with pytest.raises(InputError, match="Pass --resume"):
        recalibrate(make_model(), tokenizer, config(tokens=128), tmp_path / "run")


def test_a_checkpoint_of_another_run_is_not_read(make_model, tokenizer, config, tmp_path, stopped_at):
    stopped_at(6)
    with pytest.raises(Interrupted):
        recalibrate(make_model(), tokenizer, config(), tmp_path / "run")
    for marker in (tmp_path / "run" / "checkpoints").glob("*/drope_run.json"):
        marker.write_text(json.dumps({"run": "someone else's", "step": 6}), encoding="utf-8")
    result = recalibrate(make_model(), tokenizer, config(), tmp_path / "run", resume=True)
    assert result.history[0]["tokens"] == 0
    assert result.steps == 16


@pytest.mark.parametrize("how", ["truncated", "flipped", "missing"])
def test_a_damaged_checkpoint_is_named_and_skipped(make_model, tokenizer, config, tmp_path, stopped_at, how, caplog):
    whole = recalibrate(make_model(), tokenizer, config(eval_blocks=0), tmp_path / "whole")
    stopped_at(6)
    with pytest.raises(Interrupted):
        recalibrate(make_model(), tokenizer, config(eval_blocks=0), tmp_path / "run")
    file = tmp_path / "run" / "checkpoints" / "checkpoint-6" / "optimizer.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content if how == "flipped" else content[:1000])
    if how == "missing":
        file.unlink()
    resumed = recalibrate(make_model(), tokenizer, config(eval_blocks=0), tmp_path / "run", resume=True)
    assert "checkpoint-6 is damaged (optimizer.pt" in caplog.text
    assert (tmp_path / "run" / "checkpoints" / "damaged-checkpoint-6").is_dir()
    assert same(weights(whole.model), weights(resumed.model))
    assert resumed.steps == 16


def test_with_no_whole_checkpoint_a_run_begins_again(make_model, tokenizer, config, tmp_path, stopped_at, caplog):
    whole = recalibrate(make_model(), tokenizer, config(eval_blocks=0), tmp_path / "whole")
    stopped_at(2)
    with pytest.raises(Interrupted):
        recalibrate(make_model(), tokenizer, config(eval_blocks=0), tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "checkpoint-2" / "model.safetensors").write_bytes(b"")
    resumed = recalibrate(make_model(), tokenizer, config(eval_blocks=0), tmp_path / "run", resume=True)
    assert "checkpoint-2 is damaged" in caplog.text
    assert same(weights(whole.model), weights(resumed.model))


def test_a_full_disk_keeps_what_was_written(make_model, tokenizer, config, tmp_path, monkeypatch):
    from drope.training.trainer import RecalibrationTrainer

    original = RecalibrationTrainer._save_optimizer_and_scheduler

    def save(self, folder):
        if self.state.global_step == 8:
            raise OSError(28, "No space left on device")
        original(self, folder)

    monkeypatch.setattr(RecalibrationTrainer, "_save_optimizer_and_scheduler", save)
    with pytest.raises(DropeError, match="disk is full"):
        recalibrate(make_model(), tokenizer, config(), tmp_path / "run")
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["checkpoint-4"]
