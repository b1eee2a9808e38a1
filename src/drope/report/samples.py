"""Logged samples for the page: a browser of each task, method and length, over as many samples as the page may hold."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drope.report.methods import styles, task_label
from drope.report.scores import percent, times
from drope.results import Results

_EACH = 4  # misses and hits that show without a script
_CELLS = 400  # cells shown at all
_ROWS = 500  # samples of one cell in the page
_BYTES = 5_000_000  # all samples in the page together
_CHARACTERS = 600  # of one output


@dataclass(frozen=True)
class Sample:
    """One row. brief: the prompt's end; prompt: as the log holds it, folded."""

    index: int
    hit: bool
    result: str
    place: str
    brief: str
    prompt: str
    expected: str
    output: str


@dataclass(frozen=True)
class Group:
    """The samples of one task, method and length. place: what the second column holds; rows: those without a script."""

    title: str
    note: str
    place: str
    rows: list[Sample]


@dataclass(frozen=True)
class Browser:
    """groups: in the order of the measurements; data: what the script reads; left_out: cells that are not shown at all.

    data["cells"][i]["rows"] are [index, hit, result, place, prompt, expected, output] of group i, where prompt and
    expected are places in data["texts"]: methods share their prompts.
    """

    groups: list[Group] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    left_out: int = 0


def browser(results: Results, folder: Path, limit: int = _BYTES) -> Browser:
    """What the page shows of the logs in `folder`; cells whose log is missing are left out.

    Where the samples take more than `limit` bytes of JSON, each cell keeps fewer, spread evenly over its misses and
    over its hits, and says so.
    """
    looks = styles(results)
    cells: list[tuple[str, str, str, list[Sample]]] = []
    left_out, seen = 0, set()
    for m in results.measurements:
        log = m.details.get("samples")
        if not isinstance(log, str) or log in seen or Path(log).name != log:
            continue
        seen.add(log)
        if len(cells) == _CELLS:
            left_out += (folder / log).is_file()
            continue
        records = list(_records(folder / log))
        if records:
            label = looks[m.method].label if m.method in looks else m.method
            where = f"{times(m.length, results.context)} ({m.length} tokens)"
            place = "Distance" if any(r.get("place") for r in records) else "Depth"
            title = f"{task_label(m.task)} · {label} · {where}"
            cells.append((title, place, log, [_sample(r) for r in records]))
    rows = _ROWS
    while True:
        kept = [_spread(samples, rows) for *_, samples in cells]
        data = _data(kept)
        if rows <= 2 * _EACH or len(json.dumps(data, ensure_ascii=False).encode("utf-8")) <= limit:
            break
        rows = max(2 * _EACH, rows // 2)
    groups = []
    for (title, place, log, samples), shown in zip(cells, kept, strict=True):
        hits = sum(s.hit for s in samples)
        note = f"{hits} hits, {len(samples) - hits} misses, {percent(hits / len(samples))}; "
        if len(shown) < len(samples):
            note += f"{len(shown)} of {len(samples)} samples are here, spread evenly; "
        groups.append(Group(title, f"{note}all in samples/{log}", place, _spread(shown, 2 * _EACH, first=True)))
    return Browser(groups, data, left_out)


def _spread(samples: Sequence[Sample], rows: int, first: bool = False) -> list[Sample]:
    """At most `rows` of the samples, by index: misses and hits in their proportion, both if there are both.

    first : instead the first of each kind, misses before hits
    """
    misses, hits = ([s for s in samples if s.hit == hit] for hit in (False, True))
    if first:
        return [*misses[: rows // 2], *hits[: rows // 2]]
    if len(samples) <= rows:
        return list(samples)
    n = min(max(round(rows * len(misses) / len(samples)), bool(misses)), rows - bool(hits))
    kept = [part[i * len(part) // k] for part, k in ((misses, n), (hits, rows - n)) for i in range(min(k, len(part)))]
    return sorted(kept, key=lambda s: s.index)


def _data(cells: Sequence[Sequence[Sample]]) -> dict[str, Any]:
    texts: dict[str, int] = {}

    def place(text: str) -> int:
        return texts.setdefault(text, len(texts))

    made = [
        {"rows": [[s.index, int(s.hit), s.result, s.place, place(s.prompt), place(s.expected), s.output] for s in rows]}
        for rows in cells
    ]
    return {"texts": list(texts), "cells": made}


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
    expected = ", ".join(map(str, r["expected"]))
    return Sample(r["index"], bool(r["hit"]), result, place, brief, prompt, expected, _cut(str(r["output"])))


def _cut(text: str) -> str:
    return text if len(text) <= _CHARACTERS else text[:_CHARACTERS] + " …"
