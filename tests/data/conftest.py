"""A tokenizer trained in milliseconds."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def tokenizer():
    """Byte-level BPE over 400 tokens, `<eos>` its end of text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from drope.data import stdlib

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(stdlib.prose("train")[:5], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>")
