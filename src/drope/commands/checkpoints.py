"""What several subcommands do to a checkpoint before or after their own work."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal


def folded_beta(source: str) -> float:
    """The temperature in the weights of a local checkpoint; 1 where nothing says otherwise."""
    temperature = _record(source).get("temperature") or {}
    return float(temperature.get("beta") or 1.0)


def recalibrated_tokens(source: str) -> int:
    """Tokens that a local checkpoint was recalibrated on, as its drope.json tells; 0 where nothing does."""
    return int(_record(source).get("tokens") or 0)


def _record(source: str) -> dict[str, Any]:
    """The drope.json of a local checkpoint, or of a model that ships with drope; empty where there is none."""
    from drope.models.load import BUNDLED, bundled_folder

    folder = bundled_folder(source) if source in BUNDLED else Path(source).expanduser()
    record = folder / "drope.json"
    return json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}


def add_norm(
    model: Any, tokenizer: Any, context: int, init: Literal["fitted", "ones"], data: str, tokens: int
) -> tuple[Any, dict[str, Any]]:
    """Per-head QKNorm, its gains fitted on `tokens` of `data`; the new model, and how far it is from the old."""
    import torch

    from drope.data.packing import pack
    from drope.models import add_qk_norm

    batches = None
    if init == "fitted":
        blocks = pack(data, tokenizer, context, tokens=max(tokens, context))
        batches = [torch.as_tensor(row["input_ids"])[None] for row in blocks.dataset]
    model, report = add_qk_norm(model, batches, init=init)
    return model, asdict(report)
