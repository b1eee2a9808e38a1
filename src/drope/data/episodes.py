"""Training documents with needles in them: what the bundled model learned retrieval from.

Each episode is a stretch of prose with needle sentences between its sentences, then one or more questions with their
answers, in the evaluation's own words (`drope.data.needles`). Episodes are sized to the token, so that packed blocks
never cut an answer from its needle.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import numpy as np

from drope.data import needles as N
from drope.data.keys import Keys

# Share of blocks cut into that many equal episodes: short ones teach the lookup, full ones the distance.
_EPISODES_PER_BLOCK = ((1, 0.6), (2, 0.4))


# Share of episodes with several questions that are asked in a few tokens, for more lookups per token.
_BRIEF = 0.5

# Share of episodes that begin with a needle, as a text begins: without the space that stands before it elsewhere.
_OPENING = 0.5

# What a token is for: prose and answers can be predicted; a needle's key and value are random.
PROSE, NEEDLE, ANSWER = 0, 1, 2


class Episodes:
    """An endless, seeded stream of packed blocks.

    Parameters
    ----------
    tokenizer : fast tokenizer with an EOS token
    sentences : prose to hide needles in
    block : tokens per block
    """

    def __init__(self, tokenizer, sentences: Sequence[str], block: int):
        self.tokenizer, self.block = tokenizer, block
        encoded = tokenizer([" " + s for s in sentences], add_special_tokens=False)["input_ids"]
        self.sentences: list[list[int]] = [ids for ids in encoded if ids]
        self.eos: int = tokenizer.eos_token_id
        self.keys = Keys(tokenizer)

    def blocks(self, seed: int) -> Iterator[np.ndarray]:
        """Yield int32 arrays of shape (block,). The same seed gives the same stream."""
        for ids, _ in self.annotated_blocks(seed):
            yield ids

    def annotated_blocks(self, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The same stream with a kind per token, int8 of shape (block,): `PROSE`, `NEEDLE` or `ANSWER`."""
        rng = random.Random(seed)
        sizes = [n for n, _ in _EPISODES_PER_BLOCK]
        weights = [w for _, w in _EPISODES_PER_BLOCK]
        while True:
            n = rng.choices(sizes, weights)[0]
            tokens: list[tuple[int, int]] = []
            for _ in range(n):
                tokens += self.episode(rng, self.block // n)
            ids, kinds = zip(*tokens, strict=True)
            yield np.asarray(ids, dtype=np.int32), np.asarray(kinds, dtype=np.int8)

    def episode(self, rng: random.Random, length: int) -> list[tuple[int, int]]:
        """One document of exactly `length` (token, kind) pairs, opened by the document separator.

        The separator comes first, as the tokenizer puts it before a prompt: a fixed first token is what a model
        without positions can count from (Kazemnejad et al. 2023, arXiv 2305.19466).
        """
        while True:
            pairs = self._pairs(rng, rng.choice([1, 2, 3, 4, 4, 4, 5, 6]))  # drawn again if they do not fit
            opening = rng.random() < _OPENING
            sentences = [N.NEEDLE.format(key=k, value=v) for k, v in pairs]
            needle_ids = self.encode([s if opening and s is sentences[0] else f" {s}" for s in sentences])
            rounds = self._rounds(rng, pairs, length - sum(map(len, needle_ids)) - 1)
            spare = length - 1 - sum(map(len, needle_ids)) - sum(map(len, rounds))
            if rounds and spare >= 0:
                context = self.context(rng, needle_ids, spare, opening)
                return [(self.eos, PROSE)] + context + [t for r in rounds for t in r]

    def _pairs(self, rng: random.Random, n: int) -> list[tuple[str, str]]:
        """`n` (key, value) needles; in two of five episodes one key holds several values."""
        values = N.distinct(N.random_number, n, rng)
        repeated = rng.choice([2, 2, 2, 3, 4]) if n >= 2 and rng.random() < 0.4 else 1
        repeated = min(repeated, n)
        keys = self.keys.draw(n - repeated + 1, rng)
        keys += [keys[0]] * (repeated - 1)
        rng.shuffle(keys)
        return list(zip(keys, values, strict=True))

    def _rounds(self, rng: random.Random, pairs: list[tuple[str, str]], budget: int) -> list[list[tuple[int, int]]]:
        """Different questions with answers while they fit; sometimes one only, as in the evaluation."""
        most = 1 if rng.random() < 0.3 else 8
        brief = most > 1 and rng.random() < _BRIEF
        # A repeated question would only copy its answer.
        asked = dict(_recall(rng, pairs) if brief else _question(rng, pairs) for _ in range(most))
        texts = [part for question in asked.items() for part in question]
        encoded = self.encode(texts)
        rounds: list[list[tuple[int, int]]] = []
        for question, answer in zip(encoded[::2], encoded[1::2], strict=True):
            size = len(question) + len(answer)
            if size > budget * (1.0 if not rounds else 0.6):
                break
            budget -= size
            rounds.append([(t, NEEDLE) for t in question] + [(t, ANSWER) for t in answer])
        return rounds

    def context(
        self, rng: random.Random, needle_ids: list[list[int]], spare: int, opening: bool = False
    ) -> list[tuple[int, int]]:
        """`spare` tokens of running prose with the needles between its sentences, as (token, kind) pairs.

        opening : the first needle comes before everything else
        """
        pieces: list[list[tuple[int, int]]] = []
        at = rng.randrange(len(self.sentences))
        while spare > 0:
            ids = self.sentences[at % len(self.sentences)]
            ids = ids[-spare:]
            spare -= len(ids)
            at -= 1  # walk backwards: the cut sentence comes first, as in an excerpt
            pieces.append([(t, PROSE) for t in ids])
        pieces.reverse()
        slots = sorted(rng.randrange(len(pieces) + 1) for _ in needle_ids)
        if opening:
            slots[0] = 0
        for slot, ids in reversed(list(zip(slots, needle_ids, strict=True))):
            pieces.insert(slot, [(t, NEEDLE) for t in ids])
        return [t for piece in pieces for t in piece]

    def encode(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]


def _question(rng: random.Random, pairs: list[tuple[str, str]]) -> tuple[str, str]:
    by_key: dict[str, list[str]] = {}
    for key, value in pairs:
        by_key.setdefault(key, []).append(value)
    several = [k for k, v in by_key.items() if len(v) > 1]
    single = [k for k, v in by_key.items() if len(v) == 1]
    if several and (not single or rng.random() < 0.5):
        key = rng.choice(several)
        return "\n" + N.ASK_VALUES.format(keys=key), f" {N.join_words(by_key[key])}."
    if len(single) >= 2 and rng.random() < 0.5:
        keys = rng.sample(single, 2)
        return "\n" + N.ASK_KEYS.format(keys=N.join_words(keys)), f" {N.join_words([by_key[k][0] for k in keys])}."
    key = rng.choice(single)
    return "\n" + N.ASK_KEY.format(keys=key), f" {by_key[key][0]}."


def _recall(rng: random.Random, pairs: list[tuple[str, str]]) -> tuple[str, str]:
    """A question in as few words as can be; every value of its key, in order."""
    key = rng.choice(pairs)[0]
    return f"\n{key} is:", f" {N.join_words([v for k, v in pairs if k == key])}."
