"""RULER's other tasks (arXiv 2404.06654): variable tracking, common words and frequent words extraction.

Templates, word lists, frequencies and answer budgets are RULER's own, its spelling mistake included.
"""

from __future__ import annotations

import math
import random
import string
from functools import cache

from drope.data.needles import NOISE
from drope.evaluation.written import Desk, Written, WrittenTask, largest

_VT = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\n"
    "Question: Find all variables that are assigned the value {query} in the text above."
    " Answer: According to the chain(s) of variable assignment in the text above, "
    "{n} variables are assgined the value {query}, they are: "
)
_CWE = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n{context}\n"
    "Question: What are the 10 most common words in the above list?"
    " Answer: The top 10 words that appear most often in the list are:"
)
_FWE = (
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared "
    "coded words. {context}\nQuestion: Do not provide any explanation. Please ignore the dots '....'. "
    "What are the three most frequently appeared words in the above coded text?"
    " Answer: According to the coded text above, the three most frequently appeared words are:"
)
_HOPS = 4
_EXAMPLE_TOKENS = 500  # of the solved example in front of variable tracking


def _tracking(rng: random.Random, noises: int, letters: int) -> tuple[str, list[str]]:
    """One chain of assignments scattered over lines of noise, and its variables."""
    names: dict[str, None] = {}
    while len(names) < _HOPS + 1:
        names["".join(rng.choices(string.ascii_uppercase, k=letters))] = None
    variables, value = list(names), rng.randrange(10000, 99999)
    chain = [f"VAR {variables[0]} = {value}"]
    chain += [f"VAR {b} = VAR {a} " for a, b in zip(variables, variables[1:], strict=False)]
    lines = [NOISE + "\n"] * noises
    if len(lines) <= len(chain):  # as RULER does where there is little noise: between its sentences
        lines = [s + "." if s.strip() else s for line in lines for s in line.split(".")]
    places = sorted(rng.random() for _ in chain)
    count = len(lines)
    for i, (place, assignment) in enumerate(zip(places, chain, strict=True)):
        lines.insert(int(place * count) + i, assignment)
    context = " ".join(lines).replace(". \n", ".\n")
    return _VT.format(context=context, query=value, n=_HOPS + 1), variables


def variable_tracking(rng: random.Random, size: int, desk: Desk) -> Written:
    """RULER's `vt`: one chain of four hops among `size` lines of noise, after one solved example of 500 tokens."""
    example_seed, seed = rng.random(), rng.random()
    room = min(_EXAMPLE_TOKENS, desk.length // 2) - 30

    def example(noises: int) -> str:
        text, variables = _tracking(random.Random(example_seed), noises, 3)
        return f"{text} {' '.join(variables)}\n\n"

    fives = largest(lambda n: desk.count(example(5 * n)), room, 1, 40) or 1
    text, variables = _tracking(random.Random(seed), size, 5)
    return Written(example(5 * fives) + "\n\n" + text, tuple(variables))


@cache
def _words() -> tuple[str, ...]:
    """RULER's list: the nouns, adjectives and verbs of `wonderwords`."""
    from importlib import resources

    folder = resources.files("wonderwords") / "assets"
    names = ("nounlist.txt", "adjectivelist.txt", "verblist.txt")
    lines = [line for name in names for line in (folder / name).read_text(encoding="utf-8").split("\n")]
    return tuple(sorted({w.strip() for w in lines if w.strip()}))


def _common(seed: float, words: int, repeats: int, others: int) -> tuple[str, list[str]]:
    rng = random.Random(seed)
    chosen = list(_words())
    rng.shuffle(chosen)
    chosen = chosen[:words]
    listed = chosen[:10] * repeats + chosen[10:] * others
    rng.shuffle(listed)
    return " ".join(f"{i + 1}. {w}" for i, w in enumerate(listed)), chosen[:10]


def common_words(rng: random.Random, size: int, desk: Desk) -> Written:
    """RULER's `cwe`: ten words that occur 30 times among others that occur 3 times (below 4k tokens: 6 and 1)."""
    short = desk.length < 4096
    example, solved = _common(rng.random(), *((20, 3, 1) if short else (40, 10, 3)))
    context, answers = _common(rng.random(), size, *((6, 1) if short else (30, 3)))
    shown = _CWE.format(context=example) + " " + " ".join(f"{i + 1}. {w}" for i, w in enumerate(solved))
    return Written(f"{shown}\n{_CWE.format(context=context)}", tuple(answers))


def frequent_words(rng: random.Random, size: int, desk: Desk) -> Written:
    """RULER's `fwe`: coded words whose frequencies follow a zeta distribution (α = 2); the most frequent is dots."""
    many = max(8, desk.length // 50)
    names: dict[str, None] = {}
    while len(names) < many:
        names["".join(rng.choices(string.ascii_lowercase, k=6))] = None
    words = ["...", *list(names)[1:]]
    zeta = math.pi**2 / 6
    listed = [w for k, w in enumerate(words, 1) for _ in range(int(size / k**2 / zeta))]
    rng.shuffle(listed)
    return Written(_FWE.format(context=" ".join(listed)), tuple(words[1:4]))


TASKS = (
    WrittenTask("vt", variable_tracking, budget=30, least=1),
    WrittenTask("cwe", common_words, budget=120, least=10, most=9000),
    WrittenTask("fwe", frequent_words, budget=50, least=64),
)
