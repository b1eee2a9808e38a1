"""Needle trials: the DroPE paper's three tasks and the single needle, built to the token.

A trial depends on (task, length, seed, index), the haystack and the tokenizer, and on nothing else. Every method
therefore meets the same prompts, and comparisons are paired.

The paper asks `multi_value` for "all the special magic numbers for A" among 4 (key, value) pairs and does not say how
many of them belong to A. Here it is 2 (`Task.values`), which leaves 2 pairs of other keys to be told apart.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import random
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING

from drope.data import needles as N
from drope.errors import InputError
from drope.evaluation.tokens import Encoder

if TYPE_CHECKING:
    import numpy as np

_ANSWER_SLACK = 16  # tokens around the values: " and ", a full stop, a false start
_MARGIN = 1.1  # haystack fetched beyond the estimate, so that the exact count can grow into it
_CLOSE = 2  # tokens of the length that may stay unused


@dataclass(frozen=True)
class Task:
    """What is hidden and asked: `pairs` needles, `keys` of their keys asked for, `values` under each of these."""

    name: str
    ask: str
    pairs: int = 4
    keys: int = 1
    values: int = 1
    grid: bool = False  # needle depth from a grid instead of drawn at random

    def __post_init__(self):
        if not 1 <= self.keys * self.values <= self.pairs:
            raise InputError(
                f"{self.name}: values per asked key",
                self.values,
                f"1 to {self.pairs // self.keys} of its {self.pairs} pairs",
            )


TASKS = {
    task.name: task
    for task in (
        Task("single", N.ASK_KEY, pairs=1, grid=True),
        Task("multi_query", N.ASK_KEYS, keys=2),
        Task("multi_key", N.ASK_KEY),
        Task("multi_value", N.ASK_VALUES, values=2),
    )
}


def get_task(name: str, values: int | None = None) -> Task:
    """A task by name; `values` replaces the number of values that `multi_value` asks for."""
    if name not in TASKS:
        near = difflib.get_close_matches(name.replace("-", "_"), TASKS, n=2, cutoff=0.4)
        raise InputError("tasks", name, ", ".join(TASKS), f"Did you mean {' or '.join(near)}?" if near else "")
    task = TASKS[name]
    return replace(task, values=values) if values is not None and name == "multi_value" else task


@dataclass(frozen=True)
class Trial:
    """One prompt. `depths`: share of the haystack before each answer's needle; `depth`: the grid's own, if any."""

    task: str
    length: int
    seed: int
    index: int
    prompt: str
    answers: tuple[str, ...]
    depths: tuple[float, ...]
    depth: float | None
    max_new_tokens: int
    ids: np.ndarray = field(repr=False, compare=False)  # int32 (tokens of the prompt,)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.prompt.encode()).hexdigest()[:16]

    @property
    def folded(self) -> str:
        """Prompt for people: its first words and its question."""
        head, question = self.prompt.rsplit("\n", 1)
        return f"{head[:60]} … {question}"


def found(answers: Sequence[str], output: str) -> float:
    """Share of the expected answers that occur in the output, case-insensitive (RULER's string match)."""
    text = output.lower()
    return sum(a.lower() in text for a in answers) / len(answers)


def is_success(answers: Sequence[str], output: str) -> bool:
    """The paper's success: every expected value occurs in the output."""
    return found(answers, output) == 1.0


class Trials:
    """Makes trials from one haystack for one tokenizer.

    Parameters
    ----------
    sentences : the haystack, in order
    depths : grid of the single needle, 0 to 1
    max_new_tokens : answer budget, raised where the tokenizer needs more for the answers themselves
    repeat : a haystack shorter than a length is repeated, as in RULER; else refused
    """

    def __init__(
        self,
        tokenizer,
        sentences: Sequence[str],
        *,
        seed: int = 0,
        depths: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
        max_new_tokens: int = 48,
        repeat: bool = True,
    ):
        self.sentences = [s for s in (" ".join(s.split()) for s in sentences) if s]
        if not self.sentences:
            raise InputError("haystack", "empty", "text of at least one sentence")
        self.encode, self.seed, self.depths = Encoder(tokenizer), seed, tuple(depths)
        self.max_new_tokens, self.repeat = max_new_tokens, repeat
        self._ends = list(accumulate(len(s) + 1 for s in self.sentences))  # characters up to and including sentence i
        sample = self.sentences[:: max(1, len(self.sentences) // 256)]
        tokens = sum(map(len, self.encode.plain([" " + s for s in sample])))
        self._sizes: dict[int, int] = {}  # tokens of sentences, counted when first used
        self._characters_per_token = sum(len(s) + 1 for s in sample) / max(1, tokens)

    def make(self, task: Task, length: int, index: int) -> Trial:
        """Trial `index` of a task: the largest prompt with prompt + answer budget <= `length` tokens.

        Raises
        ------
        InputError : needles, question and answer alone exceed `length`, or the haystack is too short to be used once
        """
        import numpy as np

        rng = random.Random(f"{self.seed}/{task.name}/{length}/{index}")
        pairs, asked = _draw_pairs(task, rng)
        at = [self.depths[index % len(self.depths)]] if task.grid else [rng.random() for _ in pairs]
        where = rng.random()
        needles = [N.NEEDLE.format(key=k, value=v) for k, v in pairs]
        question = task.ask.format(keys=N.join_words(asked))
        answers = tuple(v for a in asked for k, v in pairs if k == a)

        spoken = self.encode.plain([f" {N.join_words(answers)}."])[0]
        budget = max(self.max_new_tokens, len(spoken) + _ANSWER_SLACK)
        room = length - budget

        def build(pieces: list[str]) -> tuple[str, list[float], list[int]]:
            text, depths = _insert(pieces, needles, at)
            prompt = f"{text}\n{question}"
            return prompt, depths, self.encode(prompt)

        bare = build([])
        least = len(bare[2])
        if least > room:
            raise InputError(
                "lengths", length, f"at least {least + budget} tokens for {task.name}",
                f"Its needles and question take {least} tokens and the answer {budget}.",
            )  # fmt: skip
        prompt, depths, ids = self._fill(build, bare, room, where, length)
        depth_of = dict(zip((v for _, v in pairs), depths, strict=True))
        return Trial(
            task.name, length, self.seed, index, prompt, answers, tuple(round(depth_of[v], 4) for v in answers),
            at[0] if task.grid else None, budget, np.asarray(ids, dtype=np.int32),
        )  # fmt: skip

    def batch(self, task: Task, length: int, count: int) -> Iterator[Trial]:
        return (self.make(task, length, i) for i in range(count))

    def _fill(self, build, bare, room: int, where: float, length: int):
        """The haystack that fills `room` tokens: estimated sentence by sentence, then corrected by exact counts."""
        spare = room - len(bare[2])
        characters = spare * self._characters_per_token * _MARGIN
        total = self._ends[-1]
        if total < characters and not self.repeat:
            raise InputError(
                "haystack", f"about {int(total / self._characters_per_token)} tokens",
                f"text of at least {int(length * _MARGIN)} tokens", "Give more text, or allow it to repeat.",
            )  # fmt: skip
        first = bisect_left(self._ends, characters) if total > characters else 0
        end = first + int(where * (len(self.sentences) - first))  # the excerpt ends with this sentence
        best, low, high, budget = bare, 0, math.inf, spare
        for _ in range(12):
            pieces, words = self._excerpt(end, budget)
            if not low < words < high:
                if high - low <= 1 or high == math.inf:
                    break
                pieces = self._last_words(end, int(low + high) // 2)
                words = int(low + high) // 2
            built = build(pieces)
            over = len(built[2]) - room
            if over > 0:
                high = words
            else:
                low, best = words, built
                if over >= -_CLOSE:
                    break
            budget -= over
        return best

    def _excerpt(self, end: int, tokens: int) -> tuple[list[str], int]:
        """Sentences up to `end` of about `tokens` tokens, the first cut at a word; and their number of words."""
        pieces: list[str] = []
        words, at = 0, end
        while tokens > 0:
            sentence = self.sentences[at % len(self.sentences)]
            size = self._size(at % len(self.sentences))
            parts = sentence.split(" ")
            if size > tokens:
                fits = self._fitting(parts, tokens)
                parts = parts[len(parts) - fits :]
                tokens = 0
            if parts:
                pieces.append(" ".join(parts))
            words, tokens, at = words + len(parts), tokens - size, at - 1
        return pieces[::-1], words

    def _fitting(self, words: list[str], tokens: int) -> int:
        """How many of the last words take at most `tokens` tokens, short of all of them."""

        def count(n: int) -> int:
            return self._count(" ".join(words[-n:]))

        return bisect_right(range(1, len(words)), tokens, key=count)

    def _last_words(self, end: int, n: int) -> list[str]:
        """The last `n` words up to sentence `end`, as sentences; the first may lack its beginning."""
        pieces: list[str] = []
        while n > 0:
            parts = self.sentences[(end - len(pieces)) % len(self.sentences)].split(" ")
            pieces.append(" ".join(parts[-n:]))
            n -= len(parts)
        return pieces[::-1]

    def _size(self, sentence: int) -> int:
        if sentence not in self._sizes:
            self._sizes[sentence] = self._count(self.sentences[sentence])
        return self._sizes[sentence]

    def _count(self, text: str) -> int:
        return len(self.encode.plain([" " + text])[0])


def _draw_pairs(task: Task, rng: random.Random) -> tuple[list[tuple[str, str]], list[str]]:
    """The hidden (key, value) pairs in random order, and the keys asked for."""
    values = N.distinct(N.random_number, task.pairs, rng)
    keys = N.distinct(N.random_key, task.pairs - task.keys * (task.values - 1), rng)
    asked = keys[: task.keys]
    pairs = list(zip(keys + asked * (task.values - 1), values, strict=True))
    rng.shuffle(pairs)
    return pairs, asked


def _insert(pieces: list[str], needles: list[str], at: Sequence[float]) -> tuple[str, list[float]]:
    """Put each needle at the sentence boundary nearest to its depth; the text, and the depths that came of it."""
    ends = [0, *accumulate(len(p) + 1 for p in pieces)]
    total = max(1, ends[-1])
    slots = [_nearest(ends, d * total) for d in at]
    out = list(pieces)
    for slot, _, needle in sorted(zip(slots, at, needles, strict=True), reverse=True):
        out.insert(slot, needle)
    return " ".join(out), [ends[s] / total if pieces else d for s, d in zip(slots, at, strict=True)]


def _nearest(ends: list[int], place: float) -> int:
    i = bisect_left(ends, place)
    if i == len(ends):
        return i - 1
    return i - 1 if i and place - ends[i - 1] < ends[i] - place else i
