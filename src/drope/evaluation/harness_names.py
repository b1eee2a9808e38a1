"""Whether lm-evaluation-harness can know a task, without its import and its parsing of 14,000 files (half a minute)."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from drope.evaluation.tasks import GROUPS, LONGBENCH, TASKS, unknown_task

_NO_YAML = {".py", ".pyc", ".md", ".json", ".jsonl", ".txt", ".csv", ".tsv", ".png", ".ipynb"}
_NAMED = re.compile(rb"^[ \t]*(?:-[ \t]+)?(?:task|group|tag)[ \t]*:[ \t]*[\"']?([\w.+-]+)", re.MULTILINE)


def refuse_unknown(names: Iterable[str], local: Iterable[str] = ()) -> None:
    """Raise InputError for a name that stands in none of the harness's files and is no file of the user's.

    Whoever passes may still be no task: a word of some prompt, say. The harness tells then.
    """
    ours = {*(f"drope_{name}" for name in TASKS), *("drope_needles", "drope_ruler", "drope_order")}
    asked = [n for n in dict.fromkeys(names) if n not in {*ours, *local}]
    if not asked or (folder := _folder()) is None:
        return
    whole = {n: re.compile(rb"(?<![\w.-])" + re.escape(n.encode()) + rb"(?![\w.-])") for n in asked}
    known: set[str] = set()
    for data in _texts(folder):
        known.update(match.decode() for match in _NAMED.findall(data))
        for name in [n for n in whole if n.encode() in data and whole[n].search(data)]:
            del whole[name]
        if not whole:
            return
    mine = [*TASKS, *LONGBENCH, *GROUPS, "short", "none", *local]
    raise unknown_task(next(iter(whole)), mine, others=known - set(mine))


def _folder() -> Path | None:
    """The harness's tasks, found without importing it."""
    found = importlib.util.find_spec("lm_eval")
    for place in (found.submodule_search_locations if found else None) or ():
        if (folder := Path(place) / "tasks").is_dir():
            return folder
    return None


def _texts(folder: Path) -> Iterator[bytes]:
    """Every YAML file, those without the suffix (templates) among them."""
    for place, _, files in os.walk(folder):
        for name in files:
            if os.path.splitext(name)[1] not in _NO_YAML:
                with open(os.path.join(place, name), "rb") as f:
                    yield f.read()
