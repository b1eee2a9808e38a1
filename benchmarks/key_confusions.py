"""Which keys a model takes for the one that is asked: those of the same length in tokens, or of the same words?

    python benchmarks/key_confusions.py bundled bundled:recalibrating --out results/key-confusions.json

Four needles with random keys in the model's own context, one question; what counts is the first token of the answer.
A model that looks keys up by how far their value stands behind the needle's fixed words confuses keys of one length.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from pathlib import Path
from typing import Any

PAIRS = 4


def prompts(tokenizer: Any, context: int, count: int, seed: int) -> list[dict[str, Any]]:
    """Prompts of exactly `context` tokens with their answers; pairs in the order of the text, the asked one first."""
    from drope.data import needles as N
    from drope.data import stdlib
    from drope.data.episodes import Episodes

    rng = random.Random(seed)
    episodes = Episodes(tokenizer, stdlib.sentences(stdlib.prose("heldout")), context)
    made: list[dict[str, Any]] = []
    while len(made) < count:
        keys, values = N.distinct(N.random_key, PAIRS, rng), N.distinct(N.random_number, PAIRS, rng)
        pairs = rng.sample(list(zip(keys, values, strict=True)), PAIRS)
        needles = episodes.encode([" " + N.NEEDLE.format(key=k, value=v) for k, v in pairs])
        question, answer = episodes.encode(["\n" + N.ASK_KEY.format(keys=keys[0]), f" {values[0]}"])
        spare = context - 1 - sum(map(len, (*needles, question, answer)))
        first = [episodes.encode([f" {value}"])[0][1] for _, value in pairs]  # what follows the space
        if spare >= 0 and len(set(first)) == PAIRS:
            text = [t for t, _ in episodes.context(rng, needles, spare)]
            ids = [episodes.eos, *text, *question, *answer]
            made.append({"ids": ids, "at": context - len(answer) + 1, "keys": [k for k, _ in pairs], "first": first,
                         "asked": [k for k, _ in pairs].index(keys[0])})  # fmt: skip
    return made


def likeness(tokenizer: Any, asked: str, other: str) -> dict[str, bool]:
    a, b = (tokenizer.tokenize(f" {key}") for key in (asked, other))
    return {"as many tokens": len(a) == len(b), "a token in common": bool(set(a) & set(b))}


def measure(name: str, count: int, seed: int) -> dict[str, Any]:
    import torch

    from drope import models
    from drope.models.shape import rope_shape

    loaded = models.load(name)
    asked = prompts(loaded.tokenizer, rope_shape(loaded.model.config).context, count, seed)
    taken: dict[tuple[str, bool], list[bool]] = {}
    right, sure = [], []
    for start in range(0, count, 64):
        batch = asked[start : start + 64]
        ids = torch.tensor([row["ids"] for row in batch])
        with torch.no_grad():
            chances = loaded.model(input_ids=ids).logits.softmax(-1)
        for i, row in enumerate(batch):
            chance = chances[i, row["at"] - 1][row["first"]]
            chosen = int(chance.argmax())
            right.append(chosen == row["asked"])
            sure.append(float(chance[row["asked"]]))
            for j, key in enumerate(row["keys"]):
                if j != row["asked"]:
                    for what, holds in likeness(loaded.tokenizer, row["keys"][row["asked"]], key).items():
                        taken.setdefault((what, holds), []).append(chosen == j)
    kinds = dict.fromkeys(what for what, _ in taken)
    return {
        "model": name, "prompts": count, "right": statistics.fmean(right),
        "chance_of_the_right_one": statistics.fmean(sure),
        "taken_for_the_asked": {
            what: {
                say: {"share": statistics.fmean(rows), "keys": len(rows)}
                for say, holds in (("yes", True), ("no", False)) if (rows := taken.get((what, holds)))
            }
            for what in kinds
        },
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--names", nargs="+", help="what to call them in the file")
    parser.add_argument("--prompts", type=int, default=600)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    import torch

    from drope.results import describe_run

    torch.set_num_threads(1)
    names = args.names or args.models
    rows = [measure(m, args.prompts, args.seed) | {"model": n} for m, n in zip(args.models, names, strict=True)]
    found = {"about": describe_run(f"python benchmarks/key_confusions.py {' '.join(names)}", args.seed), "models": rows}
    for row in rows:
        print(f"{row['model']}: {row['right']:.1%} right")
        for what, both in row["taken_for_the_asked"].items():
            print(f"  {what:20} " + "   ".join(f"{k}: {v['share']:.1%} of {v['keys']}" for k, v in both.items()))
    if args.out:
        from drope.files import write_text

        write_text(args.out, json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
