"""A small model, a small tokenizer and a small text, so that whole runs take a second."""

from __future__ import annotations

import random

import pytest
import torch


@pytest.fixture(scope="session")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({"<eos>": 0, **{str(i): i for i in range(1, 64)}}, unk_token="<eos>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>")


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """Counting, from random starts: learnable within a few steps."""
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("text") / "counting.jsonl"
    lines = []
    for _ in range(300):
        start = rng.randrange(1, 64)
        lines.append('{"text": "' + " ".join(str((start + i) % 63 + 1) for i in range(40)) + '"}')
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def make_model():
    """Two layers of 32, rotating, context 32; the same weights for the same seed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(seed: int = 0, **changes) -> LlamaForCausalLM:
        torch.manual_seed(seed)
        settings = {
            "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 32,
            "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 0,
        }  # fmt: skip
        return LlamaForCausalLM(LlamaConfig(**(settings | changes))).eval()

    return make
