"""A random RoPE model with a tokenizer of its own, as a checkpoint on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drope.commands import main

CONTEXT = 128
SOURCES = Path(__file__).parents[2] / "src"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Llama, 2 layers of 32, context 128, a vocabulary of 384 byte pairs."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from drope.data.haystack import haystack

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=384, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(haystack()[:200], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<eos>", bos_token="<eos>", pad_token="<eos>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=384,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=CONTEXT,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        initializer_range=0.2,
    )
    folder = tmp_path_factory.mktemp("models") / "tiny-rope"
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def process() -> Callable[..., subprocess.Popen[str]]:
    """Start `drope` as a process of its own; `check` is run after it, in the same interpreter."""

    def start(*argv: str | Path, check: str = "pass") -> subprocess.Popen[str]:
        code = f"import sys; from drope.commands import main; code = main(sys.argv[1:]); {check}; sys.exit(code)"
        return subprocess.Popen(
            [sys.executable, "-c", code, *map(str, argv)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(SOURCES)},
        )

    return start


@pytest.fixture
def drope(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run a subcommand with --json, in process, and give back what it printed."""

    def run(*argv: str | Path) -> Any:
        code = main([*map(str, argv), "--json"])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return json.loads(captured.out)

    return run
