"""The fixed text that engines are compared on, at any length."""

from __future__ import annotations

import random
from typing import Any

_SENTENCES = (
    "The ferry leaves at seven and comes back after dark.",
    "Nobody in the village remembered who had planted the row of chestnut trees.",
    "def area(width, height):\n    return width * height",
    "In 1869 the two railways met, and a golden spike was driven into the last tie.",
    "She counted 17 boats, 4 of them red, and wrote the numbers down.",
    "A prime number has exactly two divisors; 91 is not one, because it is 7 times 13.",
    "When the kettle sang, he put down the letter and did not pick it up again.",
    "Water boils at a lower temperature on a mountain, since the air presses less on it.",
    "The key to the attic hangs behind the clock, as it always has.",
    "for name, price in items:\n    print(name, round(price, 2))",
    "Rain was forecast for the week, yet the fields stayed dry and the wells sank lower.",
    "Most of the letters are lost; those that remain are short, polite and about money.",
)


def text(sentences: int, seed: int = 0) -> str:
    """Sentences drawn with a seed, so that long prompts are no plain repetition."""
    draw = random.Random(seed)
    return " ".join(draw.choice(_SENTENCES) for _ in range(sentences))


def prompt(tokenizer: Any, length: int, vocabulary: int, seed: int = 0) -> list[int]:
    """Exactly `length` token ids: of the fixed text, or drawn at random where there is no tokenizer."""
    if tokenizer is None:
        draw = random.Random(seed)
        return [draw.randrange(vocabulary) for _ in range(length)]
    sentences = max(4, length // 6)
    while True:
        ids = list(tokenizer(text(sentences, seed), truncation=False, verbose=False).input_ids)
        if len(ids) >= length:
            return ids[:length]
        sentences *= 2
