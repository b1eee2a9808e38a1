"""Tasks that write their whole prompt themselves at a size asked for, and the largest size that fits a length."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from drope.evaluation.tokens import Encoder


@dataclass(frozen=True)
class Written:
    """A prompt and what is expected. `place`: what a heat map has down its side, such as {"distance": 64}."""

    prompt: str
    answers: tuple[str, ...]
    depths: tuple[float, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    place: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Desk:
    """What a task may write with: the length asked for, the tokenizer, the haystack's sentences, the trial's index."""

    length: int
    encode: Encoder
    sentences: Sequence[str]
    index: int

    def count(self, text: str) -> int:
        """Tokens of a text without special tokens."""
        return len(self.encode.plain([text])[0])

    def prose(self, words: int, start: int) -> list[str]:
        """So many words of the haystack from sentence `start`, as sentences; the last may be cut, the end wraps."""
        out: list[str] = []
        while words > 0:
            parts = self.sentences[(start + len(out)) % len(self.sentences)].split(" ")
            out.append(" ".join(parts[:words]))
            words -= len(parts)
        return out


Write = Callable[[random.Random, int, Desk], Written]


@dataclass(frozen=True)
class WrittenTask:
    """A task that writes prompts of any size: a pure function of (random state, size, desk).

    least, most : sizes between which the largest that fits is searched; most None: as many units as tokens
    budget : tokens for the answer, part of the length
    chance : success of a guess that is blind to what is tested, where that is not nearly 0
    """

    name: str
    write: Write = field(repr=False, compare=False)
    budget: int
    scorer: str = "all"
    least: int = 0
    most: int | None = None
    chance: float = 0.0
    version: int = 1
    grid: bool = False

    def identity(self) -> dict[str, Any]:
        """What the task's samples depend on."""
        return {"name": self.name, "budget": self.budget, "version": self.version}


def largest(count: Callable[[int], int], room: int, least: int, most: int) -> int | None:
    """The largest size whose count is within `room`: a secant search closed by bisection. None if `least` is too much.

    It depends on `count` alone, so the same trial has the same size on every run.
    """
    base = count(least)
    if base > room:
        return None
    low, high, low_count = least, most + 1, base  # low fits, high does not (or may not be used)
    at = min(most, least + 16)
    for step in range(64):
        if high - low <= 1:
            break
        at = min(max(at, low + 1), high - 1)
        n = count(at)
        rate = max((n - base) / (at - least), 1e-3)
        if n <= room:
            low, low_count = at, n
        else:
            high = at
        at = (low + high) // 2 if step > 7 else low + int((room - low_count) / rate)
    return low
