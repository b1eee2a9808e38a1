"""Pretrain the bundled model from nothing: RoPE, context 128, prose and needles, on a CPU.

    python recipes/bundled/pretrain.py --tokenizer DIR --tokens 30e6 --out DIR

The run is warm-up, constant rate, linear cool-down. `touch DIR/cooldown` starts the cool-down early; a rerun of the
same command continues from the last checkpoint. `log.jsonl` holds loss and in-range retrieval over time.

The shipped model (`pretrain_log.jsonl`) had --tokens 16e6 with random keys alone, then, for what that had taught it
(docs/log.md), --tokens 26e6 and from 22.5M on --tokens 28e6: look-alike keys from 16M on, documents that begin with a
needle from 22.5M on. All that had --theta 10000; then came --tokens 32e6 --threads 1 with --theta 500. This file trains
with all of it from the start, which was not tried.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from drope.data import needles as N
from drope.data import stdlib
from drope.data.episodes import Episodes
from drope.training.muon import Muon

CONTEXT = 128
TEXT_SHARE = 0.15
SELECTED_SHARE = 45  # per cent of the tokens whose prediction is trained


def model_config(vocab: int, eos: int, layers: int, width: int, heads: int, mlp: int, theta: float) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab, hidden_size=width, intermediate_size=mlp, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=CONTEXT,
        tie_word_embeddings=True, bos_token_id=eos, eos_token_id=eos, initializer_range=0.02,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
    )  # fmt: skip


def optimizers(model, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for embeddings and norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        Muon(matrices, lr=lr, weight_decay=0.05),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def text_blocks(tokenizer) -> np.ndarray:
    """Plain prose and code, EOS between documents, shape (n, CONTEXT)."""
    texts = stdlib.prose("train") + stdlib.docstrings() + list(stdlib.sources())[::6]
    ids: list[int] = []
    for row in tokenizer(texts, add_special_tokens=False)["input_ids"]:
        ids += [*row, tokenizer.eos_token_id]
    n = len(ids) // CONTEXT
    return np.asarray(ids[: n * CONTEXT], dtype=np.int32).reshape(n, CONTEXT)


def retrieval_sets(tokenizer, heldout: Episodes, n: int) -> dict[str, list[tuple[list[int], int]]]:
    """Evaluation prompts with answers at the full context: (ids, answer length) per task."""
    rng = random.Random(999)
    sets: dict[str, list[tuple[list[int], int]]] = {t: [] for t in ("single", "multikey", "multiquery", "multivalue")}
    for task, rows in sets.items():
        while len(rows) < n:
            n_pairs = 1 if task == "single" else 4
            keys = N.distinct(N.random_key, n_pairs - (task == "multivalue"), rng)
            if task == "multivalue":
                keys = [*keys, keys[0]]
            values = N.distinct(N.random_number, n_pairs, rng)
            pairs = list(zip(keys, values, strict=True))
            rng.shuffle(pairs)
            if task == "multiquery":
                q, a = N.ASK_KEYS.format(keys=N.join_words(keys[:2])), values[:2]
            elif task == "multivalue":
                q, a = N.ASK_VALUES.format(keys=keys[0]), [v for k, v in pairs if k == keys[0]]
            else:
                q, a = N.ASK_KEY.format(keys=keys[0]), values[:1]
            enc = heldout.encode
            needles = enc([" " + N.NEEDLE.format(key=k, value=v) for k, v in pairs])
            q_ids, a_ids = enc(["\n" + q, " " + N.join_words(a)])
            spare = CONTEXT - 1 - sum(map(len, needles)) - len(q_ids) - len(a_ids)
            if spare >= 0:
                prompt = [heldout.eos, *(t for t, _ in heldout.context(rng, needles, spare)), *q_ids]
                rows.append((prompt + a_ids, len(a_ids)))
    return sets


@torch.no_grad()
def retrieval(model, sets) -> dict[str, float]:
    """Share of prompts whose whole answer is the greedy continuation (teacher-forced: identical to decoding)."""
    model.eval()
    scores = {}
    for task, rows in sets.items():
        ids = torch.tensor([r[0] for r in rows])
        best = model(input_ids=ids[:, :-1]).logits.argmax(-1)
        scores[task] = float(np.mean([bool((best[i, -a:] == ids[i, -a:]).all()) for i, (_, a) in enumerate(rows)]))
    model.train()
    return scores


def select(kinds: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """Flat indices of the tokens to predict: every answer, then prose, then needle words, up to half of all tokens.

    A needle's key and value are random, so predicting them teaches nothing and costs logits.
    """
    order = rng.random(kinds.shape) + np.choose(kinds, [1.0, 1.7, 0.0])
    order[:, 0] = np.inf  # nothing comes before the first token
    return torch.from_numpy(np.argsort(order, axis=None)[: kinds.size * SELECTED_SHARE // 100].copy())


def selected_loss(model, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross entropy at the flat positions `targets` of `ids` (B, T); logits exist for those alone."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[targets - 1]), ids.flatten()[targets])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=float, default=30e6)
    parser.add_argument("--batch", type=int, default=32, help="blocks per step")
    parser.add_argument("--lr", type=float, default=6e-3)
    parser.add_argument("--cooldown", type=float, default=0.25)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--mlp", type=int, default=256)
    parser.add_argument(
        "--theta", type=float, default=500.0, help="at 500 the longest wave is 17 contexts (Llama 2: 13, SmolLM: 23)"
    )
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    args.out.mkdir(parents=True, exist_ok=True)
    tok = AutoTokenizer.from_pretrained(args.tokenizer, model_max_length=1 << 30)
    model = LlamaForCausalLM(
        model_config(len(tok), tok.eos_token_id, args.layers, args.width, args.heads, args.mlp, args.theta)
    )
    print(f"{model.num_parameters() / 1e6:.2f}M parameters", flush=True)
    opts = optimizers(model, args.lr)
    text = text_blocks(tok)
    train = Episodes(tok, stdlib.sentences(stdlib.prose("train") + stdlib.docstrings()), CONTEXT)
    sets = retrieval_sets(tok, Episodes(tok, stdlib.sentences(stdlib.prose("heldout")), CONTEXT), 64)
    total = int(args.tokens / (args.batch * CONTEXT))
    step, cool_from = 0, int(total * (1 - args.cooldown))
    state_file = args.out / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        step = state["step"]
        model.load_state_dict(state["model"])
        for o, s in zip(opts, state["opts"], strict=True):
            o.load_state_dict(s)
    objective = torch.compile(partial(selected_loss, model))
    stream = train.annotated_blocks(seed=step)
    text_kinds = np.zeros(CONTEXT, dtype=np.int8)
    rng = np.random.default_rng(step)
    started, losses = time.time(), []
    while step < total:
        if (args.out / "cooldown").exists():
            (args.out / "cooldown").unlink()
            cool_from, total = step, step + int(step * args.cooldown / (1 - args.cooldown))
        rate = min(1.0, (step + 1) / 100) * min(1.0, (total - step) / max(1, total - cool_from))
        for o in opts:
            for g in o.param_groups:
                g["lr"] = args.lr * rate
        rows = [
            (text[rng.integers(len(text))], text_kinds) if rng.random() < TEXT_SHARE else next(stream)
            for _ in range(args.batch)
        ]
        ids = torch.from_numpy(np.stack([r[0] for r in rows])).long()
        loss = objective(ids, select(np.stack([r[1] for r in rows]), rng))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in opts:
            o.step()
            o.zero_grad(set_to_none=True)
        losses.append(loss.item())
        step += 1
        if step % 250 == 0 or step == total:
            row = {"step": step, "tokens": step * args.batch * CONTEXT, "loss": round(float(np.mean(losses)), 4),
                   "lr": args.lr * rate, "seconds": round(time.time() - started), **retrieval(model, sets)}  # fmt: skip
            losses = []
            print(json.dumps(row), flush=True)
            with (args.out / "log.jsonl").open("a") as f:
                f.write(json.dumps(row) + "\n")
            torch.save({"step": step, "model": model.state_dict(), "opts": [o.state_dict() for o in opts]}, state_file)
            model.save_pretrained(args.out)
            tok.save_pretrained(args.out)


if __name__ == "__main__":
    main()
