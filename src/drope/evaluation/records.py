"""Logs of finished samples: JSON lines that survive an interruption at any byte."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


def read_lines(log: Path, needed: set[str]) -> Iterator[dict[str, Any]]:
    """The whole records that hold all `needed` fields; torn or foreign lines are passed over."""
    if not log.exists():
        return
    for line in log.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and needed <= set(record):
            yield record


def append(log: Path, records: Sequence[dict[str, Any]]) -> None:
    """Append and flush; a line torn by an earlier interruption is closed first."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab+") as f:
        if f.tell():
            f.seek(-1, 2)
            f.write(b"" if f.read(1) == b"\n" else b"\n")
        f.write("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode("utf-8"))
