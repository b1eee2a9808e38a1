"""Keys for training needles, among them some that are hard to tell apart.

Random `adjective-noun` keys differ in how many tokens they have, and that is the first thing a model with positions
learns to look them up by: how far the value stands behind the sentence's fixed words. The look-alikes drawn here agree
in that number, or in one of their two words, so that only the whole key tells them apart.
"""

from __future__ import annotations

import random
from typing import Any

from drope.data import needles as N

# Share of draws whose keys all look like the first one; of those look-alikes, shares that keep one word of it.
_ALIKE, _SAME_NOUN, _SAME_ADJECTIVE = 0.6, 0.15, 0.1


class Keys:
    """Draws of distinct keys, by one tokenizer's measure of likeness."""

    def __init__(self, tokenizer: Any):
        adjectives, nouns = N.key_words()

        def lengths(words: list[str]) -> list[int]:
            return [len(ids) for ids in tokenizer(words, add_special_tokens=False)["input_ids"]]

        self.adjectives = dict(zip(adjectives, lengths([f" {a}" for a in adjectives]), strict=True))
        self.nouns = dict(zip(nouns, lengths([f"-{n}" for n in nouns]), strict=True))
        self._nouns_of: dict[int, list[str]] = {}
        for noun, length in self.nouns.items():
            self._nouns_of.setdefault(length, []).append(noun)
        self._drawn = list(self.adjectives), list(self.nouns)

    def draw(self, n: int, rng: random.Random) -> list[str]:
        """`n` different keys; in most draws all of them look like the first."""
        first = self._any(rng)
        alike = rng.random() < _ALIKE
        keys = {first: None}
        while len(keys) < n:
            keys[self._like(first, rng) if alike else self._any(rng)] = None
        return [f"{adjective}-{noun}" for adjective, noun in keys]

    def _any(self, rng: random.Random) -> tuple[str, str]:
        adjectives, nouns = self._drawn
        return rng.choice(adjectives), rng.choice(nouns)

    def _like(self, key: tuple[str, str], rng: random.Random) -> tuple[str, str]:
        """A key with a word of `key`, or with as many tokens."""
        adjective, noun = key
        kept = rng.random()
        other, another = self._any(rng)
        if kept < _SAME_NOUN:
            return other, noun
        if kept < _SAME_NOUN + _SAME_ADJECTIVE:
            return adjective, another
        same = self._nouns_of.get(self.adjectives[adjective] + self.nouns[noun] - self.adjectives[other])
        return (other, rng.choice(same)) if same else (adjective, another)
