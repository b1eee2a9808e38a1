"""A small model, a small tokenizer and a small text, so that whole runs take a second."""

from __future__ import annotations

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
