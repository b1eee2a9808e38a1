"""Logged samples for the page: of each task, method and length the first misses and the first hits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drope.report.methods import styles, task_label
from drope.report.scores import percent, times
from drope.results import Results

_EACH = 4  # misses and hits shown of each cell
_CELLS = 200  # cells shown at all
_CHARACTERS = 600


@dataclass(frozen=True)
class Sample:
    """One row. brief: the prompt's end; prompt: as the log holds it, folded."""

    result: str
    place: str
    brief: str
    prompt: str
    expected: str
    output: str


@dataclass(frozen=True)
class Group:
    """The samples of one task, method and length. place: what the second column holds."""

    title: str
    note: str
    place: str
    rows: list[Sample]


def shown_samples(results: Results, folder: Path) -> list[Group]:
    """Groups in the order of the measurements; those whose log is missing are left out."""
    looks = styles(results)
    groups: list[Group] = []
    seen: set[str] = set()
    for m in results.measurements:
        log = m.details.get("samples")
        if not isinstance(log, str) or log in seen or Path(log).name != log or len(groups) == _CELLS:
            continue
        seen.add(log)
        records = list(_records(folder / log))
        if not records:
            continue
        misses, hits = ([r for r in records if bool(r["hit"]) == hit] for hit in (False, True))
        rows = [_sample(r) for r in (*misses[:_EACH], *hits[:_EACH])]
        label = looks[m.method].label if m.method in looks else m.method
        note = f"{len(hits)} hits, {len(misses)} misses, {percent(len(hits) / len(records))}; all in samples/{log}"
        place = "Distance" if any(r.get("place") for r in records) else "Depth"
        where = f"{times(m.length, results.context)} ({m.length} tokens)"
        groups.append(Group(f"{task_label(m.task)} · {label} · {where}", note, place, rows))
    return groups


def _records(log: Path) -> Iterator[dict[str, Any]]:
    if not log.is_file():
        return
    found: dict[int, dict[str, Any]] = {}
    for line in log.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and {"index", "hit", "output", "expected", "prompt"} <= set(record):
            found[record["index"]] = record
    yield from (found[i] for i in sorted(found))


def _sample(r: dict[str, Any]) -> Sample:
    if r.get("place"):
        place = ", ".join(f"{v:g}" for v in r["place"].values())
    else:
        depths = [r["depth"]] if r.get("depth") is not None else r.get("depths") or []
        place = ", ".join(f"{100 * d:.0f}%" for d in depths)
    score = r.get("found", float(r["hit"]))
    result = "hit" if r["hit"] else "miss" if not score else f"{score:.2f}"
    prompt = str(r["prompt"])
    brief = prompt if len(prompt) <= 48 else "… " + prompt[-48:]
    return Sample(result, place, brief, prompt, ", ".join(map(str, r["expected"])), _cut(str(r["output"])))


def _cut(text: str) -> str:
    return text if len(text) <= _CHARACTERS else text[:_CHARACTERS] + " …"
