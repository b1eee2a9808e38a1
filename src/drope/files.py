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


@contextmanager
def new_folder(target: str | Path, overwrite: bool = False, field: str = "--out") -> Iterator[Path]:
    """Yield a temporary folder beside `target` that becomes `target` on success and vanishes on failure.

    Raises
    ------
    InputError : `target` exists and is not an empty folder, unless `overwrite`
    DropeError : the disk is full
    """
    target = Path(target)
    if target.exists() and not overwrite and not (target.is_dir() and not any(target.iterdir())):
        raise InputError(field, str(target), "a folder that does not exist yet", "Choose another, or pass --overwrite.")
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
