"""Checkpoints that are whole: a marker, written last, says of which run one is and what every file in it must be."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import zlib
from pathlib import Path

from drope.files import write_json

MARKER = "drope_run.json"
_log = logging.getLogger(__name__)


def write_marker(folder: Path, run: str, step: int) -> None:
    """Declare a checkpoint whole: its run, its step, and size and CRC-32 of each of its files."""
    files = {str(p.relative_to(folder)): [p.stat().st_size, _crc(p)] for p in sorted(folder.rglob("*")) if p.is_file()}
    files.pop(MARKER, None)
    write_json(folder / MARKER, {"run": run, "step": step, "files": files})


def checkpoints(folder: Path, run: str | None = None) -> list[Path]:
    """The checkpoints in a folder that were written to their end, oldest first; of one run only, if given."""
    found = []
    for marker in folder.glob(f"checkpoint-*/{MARKER}"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            content = json.loads(marker.read_text(encoding="utf-8"))
            if run in (None, content["run"]):
                found.append((int(content["step"]), marker.parent))
    return [path for _, path in sorted(found)]


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, by name; None where all are as they were written."""
    files = json.loads((checkpoint / MARKER).read_text(encoding="utf-8")).get("files", {})
    for name, (size, crc) in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} of {size:,} bytes"
        if _crc(path) != crc:
            return f"{name} does not hold what was written"
    return None


def newest_whole(folder: Path, run: str, before: int | None = None) -> Path | None:
    """The newest checkpoint of a run to go on from; None to begin again.

    A damaged one is named in a warning, set aside as `damaged-checkpoint-N`, and the one before it is taken.

    Parameters
    ----------
    before : only checkpoints of steps below this
    """
    for checkpoint in reversed(checkpoints(folder, run)):
        if before is not None and step_of(checkpoint) >= before:
            continue
        if (what := damage(checkpoint)) is None:
            return checkpoint
        aside = checkpoint.with_name(f"damaged-{checkpoint.name}")
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint.rename(aside)
        _log.warning("%s is damaged (%s): it is skipped and kept as %s.", checkpoint.name, what, aside.name)
    return None


def step_of(checkpoint: Path) -> int:
    """Optimizer steps that a checkpoint has had."""
    return int(checkpoint.name.rpartition("-")[2])


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            crc = zlib.crc32(block, crc)
    return crc
