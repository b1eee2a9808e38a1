"""The needle tasks, what each hides and asks, and what counts as an answer.

The paper asks `multi_value` for "all the special magic numbers for A" among 4 (key, value) pairs and does not say how
many of them belong to A. Here it is 2 (`Task.values`), which leaves 2 pairs of other keys to be told apart.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from drope.data import needles as N
from drope.errors import InputError


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


def found(answers: Sequence[str], output: str) -> float:
    """Share of the expected answers that occur in the output, case-insensitive (RULER's string match)."""
    text = output.lower()
    return sum(a.lower() in text for a in answers) / len(answers)


def is_success(answers: Sequence[str], output: str) -> bool:
    """The paper's success: every expected value occurs in the output."""
    return found(answers, output) == 1.0
