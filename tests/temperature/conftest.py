"""A position-free model in which attention matters, a tokenizer of one token a character, text of the model itself."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from drope.models import drop

VOCABULARY = 32


@pytest.fixture(scope="session")
def letters() -> PreTrainedTokenizerFast:
    """One token per character, so that sampled ids survive the way through text."""
    raw = Tokenizer(models.WordLevel({chr(0x4E00 + i): i for i in range(VOCABULARY)}, unk_token=chr(0x4E00)))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=raw)


@pytest.fixture
def make_sharp():
    """Position-free models in which attention matters, and with it the temperature."""

    def make(**changes) -> LlamaForCausalLM:
        torch.manual_seed(0)
        settings = {
            "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 4, "max_position_embeddings": 24, "initializer_range": 0.35, "bos_token_id": None,
            "eos_token_id": None,
        }  # fmt: skip
        return drop(LlamaForCausalLM(LlamaConfig(**(settings | changes))).eval())

    return make


@pytest.fixture
def write():
    """`write(model, windows, length)`: text of windows that were sampled from the model one after another."""

    def sample(model, windows: int, length: int) -> str:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            ids = torch.randint(0, VOCABULARY, (windows, 1), generator=generator)
            cache = None
            for _ in range(length - 1):
                step = model(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True)
                cache = step.past_key_values
                ids = torch.cat([ids, torch.multinomial(step.logits[:, -1].softmax(-1), 1, generator=generator)], 1)
        return "".join(chr(0x4E00 + i) for i in ids.flatten().tolist())

    return sample
