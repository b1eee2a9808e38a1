"""Needle trials: the DroPE paper's three tasks and the single needle, built to the token.

A trial depends on (task, length, seed, index), the haystack and the tokenizer, and on nothing else. So every method
meets the same prompts, and comparisons are paired. At another length, the same needles lie in more of the same text.
"""

from __future__ import annotations

import hashlib
import math
import random
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING

from drope.data import needles as N
from drope.errors import InputError
from drope.evaluation.tasks import Task
from drope.evaluation.tokens import Encoder

if TYPE_CHECKING:
    import numpy as np

_ANSWER_SLACK = 16  # tokens around the values: " and ", a full stop, a false start
_ANSWER_SHARE = 8  # at short lengths, an eighth at most is kept for the answer
_MARGIN = 1.1  # haystack fetched beyond the estimate, so that the exact count can grow into it
_CLOSE = 2  # tokens of the length that may stay unused


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


@dataclass
class _Draft:
    """A trial before its haystack. bare: prompt without haystack; where: place of the excerpt, 0 to 1."""

    pairs: list[tuple[str, str]]
    answers: tuple[str, ...]
    at: list[float]
    where: float
    question: str
    spoken: int
    bare: tuple[str, list[float], list[int]] = ("", [], [])


class Trials:
    """Makes trials from one haystack for one tokenizer.

    Parameters
    ----------
    sentences : the haystack, in order
    depths : grid of the single needle, 0 to 1
    max_new_tokens : answer budget; at most an eighth of the length, but always what the answers take and 16 tokens more
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

        Needles, question and place in the haystack are the same at every length.

        Raises
        ------
        InputError : needles, question and answer alone exceed `length`, or the haystack is too short to be used once
        """
        import numpy as np

        draft = self._draft(task, index)
        self._refuse(task, length, [draft])
        budget = self._budget(draft, length)
        prompt, depths, ids = self._fill(draft, length - budget, length)
        depth_of = dict(zip((v for _, v in draft.pairs), depths, strict=True))
        return Trial(
            task.name, length, self.seed, index, prompt, draft.answers,
            tuple(round(depth_of[v], 4) for v in draft.answers), draft.at[0] if task.grid else None,
            budget, np.asarray(ids, dtype=np.int32),
        )  # fmt: skip

    def check(self, task: Task, length: int, count: int) -> None:
        """Raise InputError now if any of the first `count` trials would not fit: cheap, nothing is filled."""
        drafts = [self._draft(task, i) for i in range(count)]
        self._refuse(task, length, drafts)
        self._fill(drafts[0], length - self._budget(drafts[0], length), length)

    def batch(self, task: Task, length: int, count: int) -> Iterator[Trial]:
        return (self.make(task, length, i) for i in range(count))

    def _draft(self, task: Task, index: int) -> _Draft:
        rng = random.Random(f"{self.seed}/{task.name}/{index}")
        pairs, asked = _draw_pairs(task, rng)
        at = [self.depths[index % len(self.depths)]] if task.grid else [rng.random() for _ in pairs]
        question = task.ask.format(keys=N.join_words(asked))
        answers = tuple(v for a in asked for k, v in pairs if k == a)
        spoken = self.encode.plain([f" {N.join_words(answers)}."])[0]
        draft = _Draft(pairs, answers, at, rng.random(), question, len(spoken))
        draft.bare = self._build(draft, [])
        return draft

    def _build(self, draft: _Draft, pieces: list[str]) -> tuple[str, list[float], list[int]]:
        """Prompt with these haystack sentences, depth of each needle, token ids."""
        needles = [N.NEEDLE.format(key=k, value=v) for k, v in draft.pairs]
        text, depths = _insert(pieces, needles, draft.at)
        prompt = f"{text}\n{draft.question}"
        return prompt, depths, self.encode(prompt)

    def _budget(self, draft: _Draft, length: int) -> int:
        return max(min(self.max_new_tokens, length // _ANSWER_SHARE), draft.spoken + _ANSWER_SLACK)

    def _refuse(self, task: Task, length: int, drafts: Sequence[_Draft]) -> None:
        need, budget = max((len(d.bare[2]) + self._budget(d, length), self._budget(d, length)) for d in drafts)
        if need > length:
            raise InputError(
                "lengths", length, f"at least {need} tokens for {task.name}",
                f"Its needles and question take {need - budget} tokens and the answer {budget}.",
            )  # fmt: skip

    def _fill(self, draft: _Draft, room: int, length: int) -> tuple[str, list[float], list[int]]:
        """The haystack that fills `room` tokens: estimated sentence by sentence, then corrected by exact counts."""
        spare = room - len(draft.bare[2])
        characters = spare * self._characters_per_token * _MARGIN
        total = self._ends[-1]
        if total < characters and not self.repeat:
            raise InputError(
                "haystack", f"about {int(total / self._characters_per_token)} tokens",
                f"text of at least {int(length * _MARGIN)} tokens", "Give more text, or allow it to repeat.",
            )  # fmt: skip
        first = bisect_left(self._ends, characters) if total > characters else 0
        end = first + int(draft.where * (len(self.sentences) - first))  # the excerpt ends with this sentence
        best, low, high, budget = draft.bare, 0, math.inf, spare
        for _ in range(12):
            pieces, words = self._excerpt(end, budget)
            if not low < words < high:
                if high - low <= 1 or high == math.inf:
                    break
                pieces = self._last_words(end, int(low + high) // 2)
                words = int(low + high) // 2
            built = self._build(draft, pieces)
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
