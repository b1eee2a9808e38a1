"""The command line as it was typed: what `--nproc` starts again, and what results say they were made by."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

arguments: list[str] = []  # of the command that runs, kept by `drope.commands.app.main`

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
_FOLDERS = re.compile(r"[^\s=+]*/")  # of a path, also in NAME=PATH and in the parts of a mixture


def command(otherwise: str) -> str:
    """The whole command, of paths the last name alone; `otherwise` where the command line was not used."""
    if not arguments:
        return otherwise
    return shlex.join(["drope", *map(_without_folders, arguments)])


def _without_folders(word: str) -> str:
    name, equals, value = word.partition("=")
    source = value if equals and "/" not in name else word
    if _HUB_ID.fullmatch(source) and not Path(source).exists():
        return word
    return _FOLDERS.sub("", word.rstrip("/"))
