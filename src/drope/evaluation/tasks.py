"""The tasks by name: the paper's needles, RULER, the probes of order. What is hidden and asked; nothing runs here.

The paper asks `multi_value` for "all the special magic numbers for A" among 4 (key, value) pairs and does not say how
many of them belong to A. Here it is 2 (`Task.values`), which leaves 2 pairs of other keys to be told apart.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from drope.data import needles as N
from drope.errors import InputError
from drope.evaluation import aggregation, longbench, order
from drope.evaluation.scoring import found, is_success
from drope.evaluation.written import WrittenTask

_FIRST_FIELDS = (
    "name",
    "ask",
    "pairs",
    "keys",
    "values",
    "grid",
)  # in every cache key; later fields where they are set


@dataclass(frozen=True)
class Task:
    """A needle task: `pairs` needles, `keys` of their keys asked for, `values` under each of these.

    haystack : `text` (an excerpt from anywhere, filled to the token), or RULER's: `essay` (from the beginning of the
        text), `noise` (one line again and again) or `needles` (distractors of the needle's own form)
    key_kind, value_kind : `words`, `numbers` or `uuids`
    opening, prefix : text before the haystack and after the question; both may name {unit}, the prefix also {keys}
    ruler_depths : each needle at one of RULER's 40 depths, none twice, instead of anywhere
    budget : tokens for the answer, fixed; None: from the settings and the answer itself
    """

    name: str
    ask: str
    pairs: int = 4
    keys: int = 1
    values: int = 1
    grid: bool = False  # needle depth from a grid instead of drawn at random
    haystack: str = "text"
    key_kind: str = "words"
    value_kind: str = "numbers"
    opening: str = ""
    prefix: str = ""
    ruler_depths: bool = False
    budget: int | None = None
    scorer: str = "all"

    def __post_init__(self):
        if not 1 <= self.keys * self.values <= self.pairs:
            raise InputError(
                f"{self.name}: values per asked key",
                self.values,
                f"1 to {self.pairs // self.keys} of its {self.pairs} pairs",
            )

    @property
    def unit(self) -> str:
        """What is hidden, as the prompt names it."""
        return self.value_kind if self.keys * self.values > 1 or not self.budget else self.value_kind[:-1]

    def identity(self) -> dict[str, Any]:
        """What the task's samples depend on."""
        changed = {f.name for f in fields(self) if getattr(self, f.name) != f.default}
        return {k: v for k, v in asdict(self).items() if k in _FIRST_FIELDS or k in changed}


def _ruler(name: str, haystack: str, key: str, value: str, pairs: int = 1, values: int = 1, queries: int = 1) -> Task:
    one = values * queries == 1
    opening, ask, prefix = (
        N.singular(t) if one else t for t in (N.RULER_OPENING, N.RULER_ASK, N.RULER_PREFIX)
    )  # fmt: skip
    return Task(
        name, ask, pairs=pairs, keys=queries, values=values, haystack=haystack, key_kind=key, value_kind=value,
        opening=opening, prefix=prefix, ruler_depths=True, budget=128,
    )  # fmt: skip


AnyTask = Task | WrittenTask | longbench.LongBenchTask

_NEEDLES = (
    Task("single", N.ASK_KEY, pairs=1, grid=True),
    Task("multi_query", N.ASK_KEYS, keys=2),
    Task("multi_key", N.ASK_KEY),
    Task("multi_value", N.ASK_VALUES, values=2),
)
_RULER = (
    _ruler("niah_single_1", "noise", "words", "numbers"),
    _ruler("niah_single_2", "essay", "words", "numbers"),
    _ruler("niah_single_3", "essay", "words", "uuids"),
    _ruler("niah_multikey_1", "essay", "words", "numbers", pairs=4),
    _ruler("niah_multikey_2", "needles", "words", "numbers"),
    _ruler("niah_multikey_3", "needles", "uuids", "uuids"),
    _ruler("niah_multivalue", "essay", "words", "numbers", pairs=4, values=4),
    _ruler("niah_multiquery", "essay", "words", "numbers", pairs=4, queries=4),
    *aggregation.TASKS,
)

TASKS: dict[str, Task | WrittenTask] = {task.name: task for task in (*_NEEDLES, *_RULER, *order.TASKS)}
LONGBENCH = longbench.TASKS
NEEDLES = tuple(t.name for t in _NEEDLES)
RULER = tuple(t.name for t in _RULER)
ORDER = tuple(t.name for t in order.TASKS)
GROUPS = {
    "needles": NEEDLES, "ruler": RULER, "order": ORDER, "longbench": tuple(LONGBENCH), "paper": longbench.PAPER,
}  # fmt: skip


def get_task(name: str, values: int | None = None) -> AnyTask:
    """A task by name; `values` replaces the number of values that `multi_value` asks for."""
    if name in LONGBENCH:
        return LONGBENCH[name]
    if name not in TASKS:
        raise unknown_task(name, [*TASKS, *LONGBENCH])
    task = TASKS[name]
    if isinstance(task, Task) and values is not None and name == "multi_value":
        return replace(task, values=values)
    return task


def unknown_task(name: str, known: Iterable[str], others: Iterable[str] = ()) -> InputError:
    """The error for a task that does not exist, with the nearest names that do: of `known` before `others`."""
    known, plain = list(known), name.replace("-", "_")
    near = difflib.get_close_matches(plain, known, n=2, cutoff=0.6)
    alike = (other for other in others if other[:1] == plain[:1] and abs(len(other) - len(plain)) <= 3)
    near += difflib.get_close_matches(plain, alike, n=2, cutoff=0.75)
    near = near or difflib.get_close_matches(plain, known, n=2, cutoff=0.4)
    guess = f"Did you mean {' or '.join(near)}?" if near else ""
    more = ["and any task of lm-evaluation-harness"] if others else []
    return InputError("tasks", name, ", ".join([*known, *more]), guess)


def expand(names: Sequence[str]) -> tuple[str, ...]:
    """Task names with the groups (`GROUPS`) written out, each name once. `paper`: its four sets of LongBench."""
    out = [n for name in names for n in GROUPS.get(name, (name,))]
    return tuple(dict.fromkeys(out))


__all__ = ["GROUPS", "LONGBENCH", "NEEDLES", "ORDER", "RULER", "TASKS", "AnyTask", "Task", "expand", "found",
           "get_task", "is_success", "unknown_task"]  # fmt: skip
