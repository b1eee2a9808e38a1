"""Small recalibrations for processes of their own: what they are started with must be importable by name."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import socket
from pathlib import Path
from typing import Any


def make_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({"<eos>": 0, **{str(i): i for i in range(1, 64)}}, unk_token="<eos>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>")


def make_model(seed: int = 0, **changes):
    """Two layers of 32, rotating, context 32; the same weights for the same seed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    settings = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 32,
        "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**(settings | changes))).eval()


def write_counting(path: Path) -> Path:
    """Counting, from random starts: learnable within a few steps."""
    rng = random.Random(0)
    lines = []
    for _ in range(300):
        start = rng.randrange(1, 64)
        lines.append('{"text": "' + " ".join(str((start + i) % 63 + 1) for i in range(40)) + '"}')
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(a, b):
    """Whether two such dictionaries agree to the bit."""
    import torch

    return all(torch.equal(a[name], b[name]) for name in a)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def context():
    """Processes that begin with everything imported, and with no threads."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["runs", "torch", "datasets", "transformers.trainer", "drope.training.trainer"])
    return server


def launch(count: int, *args: Any) -> list[int]:
    """`work` in `count` processes, as torchrun would start them; their exit codes."""
    port = free_port()
    started = []
    for rank in range(count):
        place: dict[str, Any] = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        started.append(context().Process(target=work, args=(place if count > 1 else {}, *args)))
        started[-1].start()
    for process in started:
        process.join(240)
        if process.is_alive():
            process.kill()
    return [process.exitcode for process in started]


def work(
    place: dict[str, Any],
    out: Path,
    settings: dict[str, Any],
    resume: bool = False,
    stop_at: int | None = None,
    masked: bool = False,
) -> None:
    """One recalibration; writes what it saw, and from the first process the model and its history."""
    os.environ.update({name: str(value) for name, value in place.items()})
    import torch

    from drope import models
    from drope.errors import Interrupted
    from drope.training import RecalibrationConfig, recalibrate
    from drope.training.callbacks import StopCallback

    torch.set_num_threads(1)
    rank = int(place.get("RANK", 0))
    if masked:
        _mask_some_tokens()
    if stop_at is not None and rank == place.get("WORLD_SIZE", 1) - 1:  # a signal to one process stops all
        original = StopCallback.on_step_end

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(self, args, state, control, **kwargs)

        setattr(StopCallback, "on_step_end", on_step_end)  # noqa: B010
    model = make_model()
    seen: list[list[list[int]]] = []
    model.model.embed_tokens.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].tolist()) if module.training else None
    )
    config = RecalibrationConfig(**settings)
    try:
        result = recalibrate(
            model, make_tokenizer(), config, out / "run", resume=resume, cache_dir=out.parent / "cache"
        )
    except Interrupted:
        (out / "stopped").touch()
        return
    finally:
        (out / f"seen-{rank}{'-resumed' * resume}.json").write_text(json.dumps(seen), encoding="utf-8")
    if rank == 0:
        models.save(result.model, out / "model", make_tokenizer(), target_length=64, overwrite=True)
        (out / "history.json").write_text(json.dumps(result.history), encoding="utf-8")


def _mask_some_tokens() -> None:
    """As blocks of episodes do: tokens that are not to be predicted, more of them in some blocks than in others."""
    from dataclasses import replace

    import numpy as np
    from datasets import Dataset

    from drope.data import packing

    original = packing.pack

    def pack(*args, **kwargs):
        blocks = original(*args, **kwargs)
        rng = np.random.default_rng(0)
        rows = [row["input_ids"].tolist() for row in blocks.dataset]
        masks = [(rng.random(len(row)) < rng.random()).tolist() for row in rows]
        return replace(blocks, dataset=Dataset.from_dict({"input_ids": rows, "trained": masks}).with_format("torch"))

    packing.pack = pack
