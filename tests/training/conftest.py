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
