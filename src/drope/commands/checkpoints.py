"""What several subcommands do to a checkpoint before or after their own work."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal


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
