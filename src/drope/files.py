"""Writing whole or not at all: everything goes to a temporary name beside its target and is renamed at the end."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drope.errors import DropeError, InputError


def check_free(target: Path, overwrite: bool, field: str = "--out") -> None:
    """Raise InputError where `target` exists and is not an empty folder, unless `overwrite`."""
    if target.exists() and not overwrite and not (target.is_dir() and not any(target.iterdir())):
        raise InputError(field, str(target), "a folder that does not exist yet", "Choose another, or pass --overwrite.")


@contextmanager
def new_folder(target: str | Path, overwrite: bool = False, field: str = "--out") -> Iterator[Path]:
    """Yield a temporary folder beside `target` that becomes `target` on success and vanishes on failure.

    Raises
    ------
    InputError : `target` exists and is not an empty folder, unless `overwrite`
    DropeError : the disk is full
    """
    target = Path(target)
    check_free(target, overwrite, field)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    temporary.chmod(0o755)  # mkdtemp makes it private; a checkpoint is not
    try:
        with _disk_errors(target):
            yield temporary
            retired = None
            if target.exists():
                retired = temporary.with_name(temporary.name + ".old")
                target.rename(retired)
            temporary.rename(target)
            if retired:
                shutil.rmtree(retired) if retired.is_dir() else retired.unlink()
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class Partial:
    """A folder that is being written, and which of its files are finished."""

    def __init__(self, folder: Path, key: str):
        self.folder, self._journal = folder, folder / ".journal.json"
        state = json.loads(self._journal.read_text(encoding="utf-8")) if self._journal.exists() else {}
        self._done: list[str] = state.get("done", []) if state.get("key") == key else []
        self._key = key

    def done(self, name: str) -> bool:
        """Whether an earlier try finished this file."""
        return name in self._done and (self.folder / name).exists()

    def mark(self, name: str) -> None:
        """The file is finished: a later try with the same key keeps it."""
        self._done.append(name)
        write_json(self._journal, {"key": self._key, "done": self._done})


@contextmanager
def resumable_folder(target: str | Path, key: str, overwrite: bool = False, field: str = "--out") -> Iterator[Partial]:
    """As `new_folder`, but what was finished is kept when the process is stopped or the disk fills up.

    The next try with the same `key` goes on from there. Errors that trying again would not mend (`DropeError`) leave
    nothing behind.
    """
    target = Path(target)
    check_free(target, overwrite, field)
    temporary = target.parent / f".{target.name}.partial"
    if temporary.exists() and not _same_key(temporary / ".journal.json", key):
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True, exist_ok=True)
    partial = Partial(temporary, key)
    try:
        with _disk_errors(target):
            yield partial
            (temporary / ".journal.json").unlink(missing_ok=True)
            retired = None
            if target.exists():
                retired = temporary.with_name(temporary.name + ".old")
                target.rename(retired)
            temporary.rename(target)
            if retired:
                shutil.rmtree(retired) if retired.is_dir() else retired.unlink()
    except DropeError as error:
        if not isinstance(error.__cause__, OSError):  # a full disk can be mended
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def _same_key(journal: Path, key: str) -> bool:
    try:
        return json.loads(journal.read_text(encoding="utf-8")).get("key") == key
    except (OSError, ValueError, AttributeError):
        return False


def write_text(target: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with _disk_errors(target):
            with os.fdopen(handle, "w", encoding="utf-8") as f:
                f.write(text)
            os.chmod(name, 0o644)
            os.replace(name, target)
    finally:
        Path(name).unlink(missing_ok=True)


def write_json(target: str | Path, value: Any) -> None:
    """Write indented JSON atomically; NaN is refused, so that every reader can read it."""
    write_text(target, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def fingerprint(value: Any) -> str:
    """A short, stable digest of any JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


@contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DropeError(
                f"The disk is full while writing {target}. Nothing there was changed: free space or write elsewhere."
            ) from error
        raise
