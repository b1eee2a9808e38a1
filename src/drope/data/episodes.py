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

# Share of blocks cut into that many equal episodes: short ones teach the lookup, full ones the distance.
_EPISODES_PER_BLOCK = ((1, 0.5), (2, 0.3), (4, 0.2))


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

    def blocks(self, seed: int) -> Iterator[np.ndarray]:
        """Yield int32 arrays of shape (block,). The same seed gives the same stream."""
        rng = random.Random(seed)
        sizes, weights = zip(*_EPISODES_PER_BLOCK, strict=True)
        while True:
            n = rng.choices(sizes, weights)[0]
            out: list[int] = []
            for _ in range(n):
                out += self.episode(rng, self.block // n)
            yield np.asarray(out, dtype=np.int32)

    def episode(self, rng: random.Random, length: int) -> list[int]:
        """One document of exactly `length` tokens, the final EOS included."""
        while True:
            most = max(1, min(6, (length - 30) // 36))
            n_pairs = min(rng.choice([1, 2, 3, 4, 4, 4, 5, 6]), most)
            pairs = _pairs(rng, n_pairs)
            needle_ids = self._encode([" " + N.NEEDLE.format(key=k, value=v) for k, v in pairs])
            rounds = self._rounds(rng, pairs, length - sum(map(len, needle_ids)) - 1)
            spare = length - 1 - sum(map(len, needle_ids)) - sum(map(len, rounds))
            if rounds and spare >= 0:
                context = self._context(rng, needle_ids, spare)
                return context + [t for r in rounds for t in r] + [self.eos]

    def _rounds(self, rng: random.Random, pairs: list[tuple[str, str]], budget: int) -> list[list[int]]:
        """Questions with answers while they fit; about half the time one only, as in the evaluation."""
        most = 1 if rng.random() < 0.3 else 8
        texts = [_question(rng, pairs) for _ in range(most)]
        rounds: list[list[int]] = []
        for ids in self._encode(["\n" + t for t in texts]):
            if len(ids) > budget * (1.0 if not rounds else 0.6):
                break
            budget -= len(ids)
            rounds.append(ids)
        return rounds

    def _context(self, rng: random.Random, needle_ids: list[list[int]], spare: int) -> list[int]:
        pieces: list[list[int]] = []
        at = rng.randrange(len(self.sentences))
        while spare > 0:
            ids = self.sentences[at % len(self.sentences)]
            ids = ids[-spare:]
            spare -= len(ids)
            at -= 1  # walk backwards: the cut sentence comes first, as in an excerpt
            pieces.append(ids)
        pieces.reverse()
        slots = sorted(rng.randrange(len(pieces) + 1) for _ in needle_ids)
        for slot, ids in reversed(list(zip(slots, needle_ids, strict=True))):
            pieces.insert(slot, ids)
        return [t for piece in pieces for t in piece]

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]


def _pairs(rng: random.Random, n: int) -> list[tuple[str, str]]:
    """`n` (key, value) needles; in two of five episodes one key holds several values."""
    values = N.distinct(N.random_number, n, rng)
    repeated = rng.choice([2, 2, 2, 3, 4]) if n >= 2 and rng.random() < 0.4 else 1
    repeated = min(repeated, n)
    keys = N.distinct(N.random_key, n - repeated + 1, rng)
    keys += [keys[0]] * (repeated - 1)
    rng.shuffle(keys)
    return list(zip(keys, values, strict=True))


def _question(rng: random.Random, pairs: list[tuple[str, str]]) -> str:
    by_key: dict[str, list[str]] = {}
    for key, value in pairs:
        by_key.setdefault(key, []).append(value)
    several = [k for k, v in by_key.items() if len(v) > 1]
    single = [k for k, v in by_key.items() if len(v) == 1]
    if several and (not single or rng.random() < 0.5):
        key = rng.choice(several)
        return f"{N.ASK_VALUES.format(keys=key)} {N.join_words(by_key[key])}."
    if len(single) >= 2 and rng.random() < 0.5:
        keys = rng.sample(single, 2)
        return f"{N.ASK_KEYS.format(keys=N.join_words(keys))} {N.join_words([by_key[k][0] for k in keys])}."
    key = rng.choice(single)
    return f"{N.ASK_KEY.format(keys=key)} {by_key[key][0]}."
