"""Trials of every task, built to the token: the paper's needles, RULER's, and tasks that write their own prompts.

A trial depends on (task, length, seed, index), the haystack and the tokenizer, and on nothing else. So every method
meets the same prompts, and comparisons are paired. At another length, the same needles lie in more of the same text.
"""

from __future__ import annotations

import hashlib
import math
import random
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from drope.data import needles as N
from drope.errors import InputError
from drope.evaluation.longbench import LongBenchTask
from drope.evaluation.scoring import scorer
from drope.evaluation.tasks import AnyTask, Task
from drope.evaluation.tokens import Encoder
from drope.evaluation.written import Desk, Written, WrittenTask, largest

if TYPE_CHECKING:
    import numpy as np

_ANSWER_SLACK = 16  # tokens around the values: " and ", a full stop, a false start
_ANSWER_SHARE = 8  # at short lengths, an eighth at most is kept for the answer
_MARGIN = 1.1  # haystack fetched beyond the estimate, so that the exact count can grow into it
_CLOSE = 2  # tokens of the length that may stay unused


@dataclass(frozen=True)
class Trial:
    """One prompt.

    depths : share of the haystack before each answer's needle; depth: the grid's own, if any
    scorer, extra : how the output is scored, and what that needs besides the answers
    place : where the trial lies on another axis than depth, such as {"distance": 64}
    """

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
    scorer: str = "all"
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)
    place: Mapping[str, float] = field(default_factory=dict, compare=False)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.prompt.encode()).hexdigest()[:16]

    @property
    def folded(self) -> str:
        """Prompt for people: its first words and its question."""
        if len(self.prompt) <= 240:
            return self.prompt
        question = self.prompt.rsplit("\n", 1)[-1]
        return f"{self.prompt[:60]} … {question[-400:]}"

    def score(self, output: str) -> float:
        """What an output is worth, 0 to 1."""
        return scorer(self.scorer).score(self.answers, output, self.extra)

    def decided(self, output: str) -> bool:
        """Whether no continuation of the output can change its score."""
        return scorer(self.scorer).decided(self.answers, output, self.extra)


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

    def make(self, task: Task | WrittenTask, length: int, index: int) -> Trial:
        """Trial `index` of a task: the largest prompt with prompt + answer budget <= `length` tokens.

        Needles, question and place in the haystack are the same at every length.

        Raises
        ------
        InputError : needles, question and answer alone exceed `length`, or the haystack is too short to be used once
        """
        import numpy as np

        if not isinstance(task, Task) or task.haystack != "text":
            return self._largest(task, length, index)
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

    def check(self, task: AnyTask, length: int, count: int, rows: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Raise InputError now if any of the first `count` trials would not fit: cheap, nothing is filled."""
        if isinstance(task, LongBenchTask):
            next(iter(task.make(rows or [], self.encode, length, self.seed)), None)
            return
        if not isinstance(task, Task) or task.haystack != "text":
            self._largest(task, length, 0)
            return
        drafts = [self._draft(task, i) for i in range(count)]
        self._refuse(task, length, drafts)
        self._fill(drafts[0], length - self._budget(drafts[0], length), length)

    def batch(
        self, task: AnyTask, length: int, count: int, rows: Sequence[Mapping[str, Any]] | None = None
    ) -> Iterator[Trial]:
        """The first `count` trials; `rows` holds the samples of a set of LongBench, of which there may be fewer."""
        if isinstance(task, LongBenchTask):
            return task.make((rows or [])[:count], self.encode, length, self.seed)
        return (self.make(task, length, i) for i in range(count))

    def _largest(self, task: Task | WrittenTask, length: int, index: int) -> Trial:
        """The trial at the largest size with prompt + answer budget <= length, by the tokenizer's own count."""
        import numpy as np

        assert task.budget is not None
        desk = Desk(length, self.encode, self.sentences, index)
        room, least = length - task.budget, 0 if isinstance(task, Task) else task.least
        most = room if isinstance(task, Task) or task.most is None else task.most

        def write(size: int) -> Written:
            if isinstance(task, Task):
                return _write_ruler(task, self._rng(task, index), size, desk)
            return task.write(self._rng(task, index), size, desk)

        def count(size: int) -> int:
            return len(self.encode(write(size).prompt))

        if isinstance(task, Task) and task.haystack == "essay":
            self._refuse_short(room * self._characters_per_token, length)
        size = largest(count, room, least, max(least, most))
        if size is None:
            raise InputError(
                "lengths", length, f"at least {count(least) + task.budget} tokens for {task.name}",
                f"Its shortest prompt takes {count(least)} tokens and the answer {task.budget}.",
            )  # fmt: skip
        made = write(size)
        return Trial(
            task.name, length, self.seed, index, made.prompt, made.answers, made.depths, None, task.budget,
            np.asarray(self.encode(made.prompt), dtype=np.int32), task.scorer, made.extra, made.place,
        )  # fmt: skip

    def _rng(self, task: AnyTask, index: int) -> random.Random:
        return random.Random(f"{self.seed}/{task.name}/{index}")

    def _draft(self, task: Task, index: int) -> _Draft:
        rng = self._rng(task, index)
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
        self._refuse_short(characters, length)
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

    def _refuse_short(self, characters: float, length: int) -> None:
        """Raise unless the haystack has so many characters or may repeat."""
        total = self._ends[-1]
        if total < characters and not self.repeat:
            raise InputError(
                "haystack", f"about {int(total / self._characters_per_token)} tokens",
                f"text of at least {int(length * _MARGIN)} tokens", "Give more text, or allow it to repeat.",
            )  # fmt: skip

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
    values = N.distinct(N.DRAW[task.value_kind], task.pairs, rng)
    keys = N.distinct(N.DRAW[task.key_kind], task.pairs - task.keys * (task.values - 1), rng)
    asked = keys[: task.keys]
    pairs = list(zip(keys + asked * (task.values - 1), values, strict=True))
    rng.shuffle(pairs)
    return pairs, asked


def _write_ruler(task: Task, rng: random.Random, size: int, desk: Desk) -> Written:
    """RULER's prompt with `size` words of essay, or lines of noise or of distractor needles.

    Essays begin with the haystack's first word, and needles lie between sentences; else needles are lines of their own.
    """
    pairs, asked = _draw_pairs(task, rng)
    at = rng.sample(N.RULER_DEPTHS, len(pairs))
    lines = random.Random(rng.random())
    if task.haystack == "essay":
        pieces, between = desk.prose(size, 0), " "
    elif task.haystack == "noise":
        pieces, between = [N.NOISE] * size, "\n"
    else:
        key, value = N.DRAW[task.key_kind], N.DRAW[task.value_kind]
        taken = {k for k, _ in pairs}
        drawn = ((key(lines), value(lines)) for _ in range(size))
        pieces = [N.needle(k if k not in taken else k + "-other", v, task.value_kind) for k, v in drawn]
        between = "\n"
    slots = [int(len(pieces) * depth) for depth in at]
    ends = [0, *accumulate(len(p) + 1 for p in pieces)]
    for slot, (key_, value_) in sorted(zip(slots, pairs, strict=True), key=lambda x: -x[0]):
        pieces.insert(slot, N.needle(key_, value_, task.value_kind))
    unit = task.unit
    keys = N.join_words(asked)
    head, question = task.opening.format(unit=unit), (task.ask + task.prefix).format(unit=unit, keys=keys)
    share = {value: ends[slot] / max(1, ends[-1]) for slot, (_, value) in zip(slots, pairs, strict=True)}
    answers = tuple(v for a in asked for k, v in pairs if k == a)
    return Written(f"{head}{between.join(pieces)}\n{question}", answers, tuple(round(share[v], 4) for v in answers))


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
