"""Tiny tokenizers of several kinds, trained on the spot, and a tiny model."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from drope.data import stdlib
from drope.data.needles import ASK_KEYS, NEEDLE

_TEXT = [*stdlib.prose("train")[:40], *([NEEDLE, ASK_KEYS] * 20)]


def _byte_level(*, split_digits: bool, bos: bool) -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    steps = [pre_tokenizers.Digits(individual_digits=True), byte_level] if split_digits else [byte_level]
    raw.pre_tokenizer = pre_tokenizers.Sequence(steps)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        _TEXT, trainers.BpeTrainer(vocab_size=600, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    )
    if bos:
        raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")


def _metaspace() -> PreTrainedTokenizerFast:
    """In the manner of SentencePiece, and one that also closes every text with EOS."""
    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Split(Regex(r"\n"), "isolated")]
    )
    raw.decoder = decoders.Metaspace()
    raw.train_from_iterator(_TEXT, trainers.BpeTrainer(vocab_size=700, special_tokens=["<s>", "</s>", "<unk>"]))
    raw.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    return {
        "digits": _byte_level(split_digits=True, bos=False),
        "bos": _byte_level(split_digits=False, bos=True),
        "metaspace": _metaspace(),
    }


@pytest.fixture(scope="session")
def tokenizer(tokenizers) -> PreTrainedTokenizerFast:
    return tokenizers["digits"]


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    return stdlib.sentences(stdlib.prose("heldout"))


@pytest.fixture
def model(tokenizer) -> LlamaForCausalLM:
    """Two layers with weights large enough that the argmax is never a near tie."""
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=0, eos_token_id=1, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(3)
    return LlamaForCausalLM(config).eval()
