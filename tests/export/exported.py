"""Tiny checkpoints with a byte-level BPE tokenizer, as engines want it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import families
import torch

from drope.models import drop, save

ROWS = 320
TARGET = 4 * families.CONTEXT


def tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=ROWS - 10, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    made.train_from_iterator(
        ["the quick brown fox jumps over the lazy dog", "a river ran", *["In 1869 they met in 1869"] * 5], trainer
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", model_max_length=families.CONTEXT
    )


def wide(family: str, **changes: Any) -> Any:
    """A small model whose sizes engines accept: heads of 32 channels, rows of a multiple of 32."""
    heads: dict[str, Any] = {"head_dim": 32} if family in ("Qwen3", "Gemma", "Qwen3-MoE") else {}
    if family == "Mistral":
        heads["sliding_window"] = None
    sizes = {"hidden_size": 128, "intermediate_size": 96, "vocab_size": ROWS, "bos_token_id": 0, "eos_token_id": 1}
    made = families.model(family, **(sizes | heads | changes))
    with torch.no_grad():
        made.get_input_embeddings().weight.mul_(2.0 if family == "Gemma" else 8.0)
    return made


def write(folder: Path, family: str = "Llama", beta: float = 1.0, **changes: Any) -> Path:
    """A position-free checkpoint of a family."""
    return save(drop(wide(family, **changes)), folder, tokenizer(), target_length=TARGET, beta=beta,
                provenance={"source": "org/base", "tokens": 1_000_000})  # fmt: skip
