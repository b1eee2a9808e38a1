"""What an answer is worth, and when more of it cannot change that (so that generation may stop)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


def found(answers: Sequence[str], output: str) -> float:
    """Share of the expected answers that occur in the output, case-insensitive (RULER's `string_match_all`)."""
    text = output.lower()
    return sum(a.lower() in text for a in answers) / len(answers)


def is_success(answers: Sequence[str], output: str) -> bool:
    """The paper's success: every expected value occurs in the output."""
    return found(answers, output) == 1.0


Score = Callable[[Sequence[str], str, Mapping[str, Any]], float]
Decided = Callable[[Sequence[str], str, Mapping[str, Any]], bool]


@dataclass(frozen=True)
class Scorer:
    """score(answers, output, extra) in 0 to 1; decided: no continuation of the output can change the score."""

    score: Score
    decided: Decided


def first_named(answers: Sequence[str], output: str, extra: Mapping[str, Any]) -> float:
    """1 if an answer is named before anything in `extra["rejects"]`, else 0; whole words, case-insensitive."""
    places = {word: _place(word, output) for word in (*answers, *extra.get("rejects", ()))}
    named = [(at, word in answers) for word, at in places.items() if at >= 0]
    return float(min(named)[1]) if named else 0.0


def first_word(answers: Sequence[str], output: str, extra: Mapping[str, Any]) -> float:
    """1 if the output's first word (letters, digits, hyphens) is an answer, else 0."""
    match = re.search(r"[\w-]+", output)
    return float(bool(match) and match[0].lower() in {a.lower() for a in answers})  # type: ignore[index]


def first_number(answers: Sequence[str], output: str, extra: Mapping[str, Any]) -> float:
    """1 if the output's first number is an answer, else 0. One to twelve may be spelled out."""
    for word in re.findall(r"\d+|[a-z]+", output.lower()):
        if word.isdigit() or word in _SPELLED:
            return float((word if word.isdigit() else str(_SPELLED.index(word))) in answers)
    return 0.0


_SPELLED = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


def _place(word: str, text: str) -> int:
    match = re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE)
    return match.start() if match else -1


def _word_is_over(answers: Sequence[str], output: str, extra: Mapping[str, Any]) -> bool:
    return re.search(r"[\w-]+[^\w-]", output) is not None


def _number_is_over(answers: Sequence[str], output: str, extra: Mapping[str, Any]) -> bool:
    return any(w.isdigit() or w in _SPELLED for w in re.findall(r"(\d+|[a-z]+)[^\da-z]", output.lower()))


def _named_is_over(answers: Sequence[str], output: str, extra: Mapping[str, Any]) -> bool:
    words = (*answers, *extra.get("rejects", ()))
    return any(0 <= (at := _place(w, output)) and at + len(w) < len(output) for w in words)


SCORERS: dict[str, Scorer] = {
    "all": Scorer(lambda answers, output, extra: found(answers, output), lambda a, o, e: is_success(a, o)),
    "first_named": Scorer(first_named, _named_is_over),
    "first_word": Scorer(first_word, _word_is_over),
    "first_number": Scorer(first_number, _number_is_over),
}


def scorer(name: str) -> Scorer:
    """A scorer by name; those of LongBench register themselves when first asked for."""
    if name not in SCORERS and name.startswith("longbench:"):
        from drope.evaluation.longbench import scorers

        SCORERS.update(scorers())
    return SCORERS[name]
