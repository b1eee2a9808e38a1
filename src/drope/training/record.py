"""`recalibration.json`: which run a folder holds, so that only this run goes on in it."""

from __future__ import annotations

import hashlib
import json
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drope.errors import InputError
from drope.files import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What may change on resume: it decides when something is written, not what is computed.
_FREE = ("save_every", "eval_every", "eval_blocks", "on_divergence", "spike")
# On another number of processes the same samples make each step; sums in another order differ in their last bits.
_FREE_ELSEWHERE = ("processes", "micro_batch")


def read_record(out: Path, resume: bool) -> dict[str, Any] | None:
    """What `out` says of the run to go on with; None for a new run."""
    path = out / "recalibration.json"
    if not resume:
        if path.exists() or (out.exists() and not _is_empty(out)):
            hint = (
                "Pass --resume to go on with the run in it, or choose another." if path.exists() else "Choose another."
            )
            raise InputError("--out", str(out), "a folder that does not exist yet", hint)
        return None
    if not path.exists():
        if out.is_dir() and _is_empty(out):
            return None  # stopped before it began
        raise InputError("--out", str(out), "the folder of a run to resume", "There is no recalibration.json in it.")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {"run": str(record["run"]), "settings": dict(record["settings"])}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            "--out", str(out), "the folder of a run to resume", f"Its record is damaged: {error}"
        ) from error


def _is_empty(out: Path) -> bool:
    """Whether a folder holds nothing, or a record that a killed process had not written to its end."""
    return out.is_dir() and all(path.name.startswith(".recalibration.json.") for path in out.iterdir())


def claim(out: Path, settings: dict[str, Any], record: dict[str, Any] | None) -> str:
    """Compare with the run that is resumed, or begin a record; the run's identity."""
    if record is not None:
        moved = settings["processes"] != record["settings"].get("processes", 1)
        free = _FREE + _FREE_ELSEWHERE * moved
        for name, theirs in record["settings"].items():
            if name not in free and settings.get(name) != theirs:
                raise InputError(
                    name, settings.get(name), f"{theirs!r}, as in the run that is to go on",
                    "Give the old setting, or start a new run in another folder.",
                )  # fmt: skip
        return record["run"]
    run = uuid.uuid4().hex
    write_json(out / "recalibration.json", {"run": run, "settings": settings})
    return run


def weights_digest(model: PreTrainedModel | None) -> str | None:
    """A digest of a model's weights: the first and last values of every parameter."""
    if model is None:
        return None
    digest = hashlib.sha256()
    for name, p in model.named_parameters():
        flat = p.detach().flatten()
        for part in (flat[:64], flat[-64:]):
            digest.update(name.encode() + part.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
