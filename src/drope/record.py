"""drope.json: what a checkpoint that drope wrote says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NAME = "drope.json"


def local_folder(source: str | Path) -> Path:
    """Where a local checkpoint, or one that ships with drope, lies; of a hub id a path that does not exist."""
    from drope.models.load import BUNDLED, bundled_folder

    return bundled_folder(str(source)) if str(source) in BUNDLED else Path(source).expanduser()


def read_record(source: str | Path) -> dict[str, Any]:
    """The drope.json of a local checkpoint; empty where there is none."""
    path = local_folder(source) / NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def folded_beta(source: str | Path) -> float:
    """The temperature in the weights of a local checkpoint; 1 where nothing says otherwise."""
    temperature = read_record(source).get("temperature") or {}
    return float(temperature.get("beta") or 1.0)


def recalibrated_tokens(source: str | Path) -> int:
    """Tokens that a local checkpoint was recalibrated on, as its drope.json tells; 0 where nothing does."""
    return int(read_record(source).get("tokens") or 0)
