"""Small checkpoints on disk, with a tokenizer that needs no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import families
from transformers import PreTrainedModel, PreTrainedTokenizerFast

WORDS = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(93))]


def tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>", model_max_length=families.CONTEXT
    )


def write(folder: Path, family: str = "Llama", shard: str = "50GB", **changes: Any) -> PreTrainedModel:
    """A random RoPE checkpoint as transformers writes it; returns the model."""
    model = families.model(family, **changes)
    model.save_pretrained(folder, max_shard_size=shard)
    tokenizer().save_pretrained(folder)
    (folder / "README.md").write_text("the original card\n")
    (folder / "LICENSE").write_text("a licence\n")
    return model
