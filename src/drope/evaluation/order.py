"""Probes of order: what a model that has only the causal mask to tell positions apart might have lost.

Each needs the order of tokens and not only their presence, and states the success of a guess that is blind to order.
Prompts end in the middle of a sentence that a base model continues, so that no instruction has to be followed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from drope.data import needles as N
from drope.evaluation.written import Desk, Written, WrittenTask, largest

_NAMES = ("Anna", "Boris", "Clara", "David", "Elena", "Felix", "Greta", "Henry", "Irene", "Jonas", "Karen", "Lucas",
          "Maria", "Nadia", "Oscar", "Paula")  # fmt: skip
_DEEDS = (("thanked", "thanked"), ("called", "called"), ("helped", "helped"), ("followed", "followed"),
          ("invited", "invited"), ("praised", "praised"))  # fmt: skip
_SHORTEST = 16  # tokens between a word and its repetition


def _hide(desk: Desk, rng: random.Random, words: int, sentences: Sequence[str], at: Sequence[float]):
    """Prose of `words` words with sentences put at depths 0 to 1 (in order); and the depths that came of it."""
    pieces = desk.prose(words, int(rng.random() * len(desk.sentences)))
    slots = [round(a * len(pieces)) for a in at]
    for shift, (slot, sentence) in enumerate(sorted(zip(slots, sentences, strict=True), key=lambda x: x[0])):
        pieces.insert(slot + shift, sentence)
    total = max(1, len(pieces) - len(sentences))
    return " ".join(pieces), tuple(round(s / total, 4) for s in slots)


def induction(rng: random.Random, size: int, desk: Desk) -> Written:
    """Random words in which one pair `A B` occurred `distance` tokens ago: A comes again, what follows it?"""
    distances = [_SHORTEST]
    while distances[-1] * 2 <= desk.length - 32:
        distances.append(distances[-1] * 2)
    distance = distances[desk.index % len(distances)]
    nouns = [w for w in N.key_words()[1] if w.isalpha() and w.islower()]
    a, b = rng.sample(nouns, 2)
    others = [w for w in nouns if w not in (a, b)]
    seed = rng.random()

    def between(n: int) -> str:
        return " ".join([a, b, *random.Random(seed).choices(others, k=n)])

    n = largest(lambda k: desk.count(" " + between(k)), distance, 0, distance) or 0
    before = random.Random(rng.random()).choices(others, k=size)
    prompt = " ".join(["Words:\n" + " ".join(before), between(n), a])
    return Written(prompt, (b,), place={"distance": float(distance)})


def digit_copy(rng: random.Random, size: int, desk: Desk) -> Written:
    """A code of 16 digits somewhere in the text, to be repeated digit by digit."""
    code = "".join(rng.choices("0123456789", k=16))
    text, depths = _hide(desk, rng, size, [f"The secret code is {code}."], [rng.random()])
    return Written(f"{text}\nThe secret code is", (code,), depths)


def recency(rng: random.Random, size: int, desk: Desk) -> Written:
    """One key with four values at four places: which came last?"""
    key, values = N.random_key(rng), N.distinct(N.random_number, 4, rng)
    at = sorted(rng.random() for _ in values)
    text, depths = _hide(desk, rng, size, [f"The magic number for {key} is now {v}." for v in values], at)
    prompt = f"{text}\nThe last of the four magic numbers for {key} in the text above, and the one that counts, is"
    return Written(prompt, (values[-1],), depths[-1:], {"rejects": values[:-1]})


def counting(rng: random.Random, size: int, desk: Desk) -> Written:
    """One sentence, one to nine times: how often?"""
    times = 1 + desk.index % 9
    at = sorted(rng.random() for _ in range(times))
    text, _ = _hide(desk, rng, size, ["A bell rang in the tower."] * times, at)
    prompt = f"{text}\nIn the text above, the number of times that a bell rang in the tower is"
    return Written(prompt, (str(times),), extra={"count": times})


def sorted_lookup(rng: random.Random, size: int, desk: Desk) -> Written:
    """A list in alphabetical order, one word a line: which word stands right after this one?"""
    nouns = sorted({w for w in N.key_words()[1] if w.isalpha() and w.islower()})
    draw, place = random.Random(rng.random()), rng.random()
    listed = sorted(draw.sample(nouns, min(size, len(nouns))))
    at = int(place * (len(listed) - 1))
    text = "A list of words, sorted by alphabet:\n" + "\n".join(listed)
    prompt = f"{text}\nIn this list, the word that stands right after {listed[at]} is"
    return Written(prompt, (listed[at + 1],), (round(at / (len(listed) - 1), 4),))


def word_order(rng: random.Random, size: int, desk: Desk) -> Written:
    """`Anna thanked Boris`: two names around a verb, whose roles are told apart by their order alone."""
    agent, patient = rng.sample(_NAMES, 2)
    verb, participle = rng.choice(_DEEDS)
    passive = desk.index % 2
    text, depths = _hide(desk, rng, size, [f"Yesterday {agent} {verb} {patient}."], [rng.random()])
    end = f"The one who was {participle} yesterday is" if passive else f"The one who {verb} somebody yesterday is"
    answer, other = (patient, agent) if passive else (agent, patient)
    return Written(f"{text}\n{end}", (answer,), depths, {"rejects": [other]})


TASKS = (
    WrittenTask("induction", induction, budget=8, scorer="first_word"),
    WrittenTask("digit_copy", digit_copy, budget=32),
    WrittenTask("recency", recency, budget=24, scorer="first_named", chance=0.25),
    WrittenTask("counting", counting, budget=8, scorer="first_number", chance=1 / 9),
    WrittenTask("sorted_lookup", sorted_lookup, budget=12, scorer="first_word", least=2),
    WrittenTask("word_order", word_order, budget=12, scorer="first_named", chance=0.5),
)
