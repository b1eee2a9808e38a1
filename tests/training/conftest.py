"""A small model, a small tokenizer and a small text, so that whole runs take a second."""

from __future__ import annotations

import os
import signal

import pytest
import runs


@pytest.fixture(scope="session")
def tokenizer():
    return runs.make_tokenizer()


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    return runs.write_counting(tmp_path_factory.mktemp("text") / "counting.jsonl")


@pytest.fixture
def make_model():
    return runs.make_model


@pytest.fixture
def small_run(text):
    """Settings of a run of a few steps on the small text; `tokens` is left to the test."""

    def make(**changes):
        from drope.training import RecalibrationConfig

        settings = {
            "data": str(text), "batch_tokens": 128, "learning_rate": 1e-2, "eval_blocks": 2, "precision": "float32",
            "micro_batch": 4,
        }  # fmt: skip
        return RecalibrationConfig(**(settings | changes))

    return make


@pytest.fixture
def config(text):
    """Settings of a run of 16 steps on the small text, with a checkpoint every four."""
    from drope.training import RecalibrationConfig

    def make(**changes):
        settings = {
            "data": str(text), "tokens": 16 * 4 * 32, "batch_tokens": 4 * 32, "learning_rate": 1e-2, "eval_blocks": 4,
            "save_every": 4 * 4 * 32, "eval_every": 4 * 4 * 32, "precision": "float32", "micro_batch": 2,
        }  # fmt: skip
        return RecalibrationConfig(**(settings | changes))

    return make


@pytest.fixture
def stopped_at(monkeypatch):
    """Send ourselves a real signal during the given step, once."""
    from drope.training.callbacks import StopCallback

    def arrange(step: int, number: int = signal.SIGINT) -> None:
        original = StopCallback.on_step_end
        sent: list[int] = []

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == step and not sent:
                sent.append(number)
                os.kill(os.getpid(), number)
            return original(self, args, state, control, **kwargs)

        monkeypatch.setattr(StopCallback, "on_step_end", on_step_end)

    return arrange
