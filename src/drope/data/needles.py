"""The needle-in-a-haystack vocabulary: needles, keys, values, questions and answers.

One sentence form serves everything: RULER (arXiv 2404.06654), the DroPE paper's three tasks, and the training data of
the bundled model. Lengths, depths and trials belong to `drope.evaluation`; this module only knows the words.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Sequence
from functools import cache
from importlib import resources

NEEDLE = "One of the special magic numbers for {key} is: {value}."
ASK_KEYS = "The special magic numbers for {keys} mentioned in the provided text are:"
ASK_KEY = "The special magic number for {keys} mentioned in the provided text is:"
ASK_VALUES = "What are all the special magic numbers for {keys} mentioned in the provided text?"

# RULER's own frame (niah.py); `unit` is what is hidden: numbers or uuids.
RULER_OPENING = (
    "Some special magic {unit} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {unit} afterwards.\n"
)
RULER_ASK = "What are all the special magic {unit} for {keys} mentioned in the provided text?"
RULER_PREFIX = " The special magic {unit} for {keys} mentioned in the provided text are"
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
RULER_DEPTHS = tuple(round(i * 100 / 39) / 100 for i in range(40))  # 40 points of linspace(0, 100), as shares


def needle(key: str, value: str, unit: str = "numbers") -> str:
    """One needle sentence."""
    return NEEDLE.replace("numbers", unit).format(key=key, value=value)


def singular(template: str) -> str:
    """RULER's frame for one query with one value."""
    return template.replace("Some", "A").replace("are all", "is").replace("are", "is")


@cache
def key_words() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The adjectives and nouns that RULER draws its keys from (package `wonderwords`), in file order."""
    folder = resources.files("wonderwords") / "assets"

    def read(name: str) -> tuple[str, ...]:
        lines = (folder / name).read_text(encoding="utf-8").split("\n")
        return tuple(dict.fromkeys(w.strip() for w in lines if w.strip()))

    return read("adjectivelist.txt"), read("nounlist.txt")


def random_key(rng: random.Random) -> str:
    """An `adjective-noun` key, RULER's `words` type."""
    adjectives, nouns = key_words()
    return f"{rng.choice(adjectives)}-{rng.choice(nouns)}"


def random_number(rng: random.Random) -> str:
    """A 7-digit number without a leading zero, RULER's `numbers` type."""
    return str(rng.randint(1_000_000, 9_999_999))


def random_uuid(rng: random.Random) -> str:
    """A version 4 UUID, RULER's `uuids` type."""
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


DRAW = {"words": random_key, "numbers": random_number, "uuids": random_uuid}


def distinct(draw, n: int, rng: random.Random) -> list[str]:
    """`n` different draws of `draw(rng)`."""
    seen: dict[str, None] = {}
    while len(seen) < n:
        seen[draw(rng)] = None
    return list(seen)


def join_words(items: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b, and c`: RULER's list form."""
    if len(items) <= 2:
        return " and ".join(items)
    return ", ".join(items[:-1]) + ", and " + items[-1]
