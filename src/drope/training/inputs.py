"""What a recalibration learns from: its blocks of text, and its teacher."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drope.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from drope.data.packing import Blocks
    from drope.training.config import RecalibrationConfig


def own_teacher(model: PreTrainedModel) -> PreTrainedModel:
    """A frozen copy of the model with its rotation."""
    from drope import models
    from drope.models.shape import stops_rotation

    if stops_rotation(model.config):
        raise InputError("teacher", None, "the RoPE original, since this checkpoint is position free already")
    teacher = models.restore(copy.deepcopy(model)).eval()
    for p in teacher.parameters():
        p.requires_grad_(False)
    return teacher


def blocks_of(
    config: RecalibrationConfig, tokenizer: Any, context: int, tokens: int, packing: dict[str, Any]
) -> tuple[Any, Blocks | None]:
    """Blocks of training and held-out ones."""
    from drope.data.packing import Tokenising, default_cache, pack
    from drope.data.sources import open_source
    from drope.data.streaming import LastShard, stream

    skipped = config.skip // context
    if not config.stream:
        blocks: Any = pack(config.data, tokenizer, context, tokens=tokens + skipped * context, **packing)
        if skipped:
            blocks = replace(blocks, dataset=blocks.dataset.select(range(skipped, len(blocks))))
        return blocks, heldout_of(config, tokenizer, context, packing)
    source = open_source(config.data, text_field=config.text_field)
    notes = Path(packing["cache_dir"] or default_cache()) / "positions"
    blocks = stream(source, Tokenising(tokenizer, config.bos), context, tokens=tokens, notes=notes, skip=skipped)
    heldout = None
    if config.eval_blocks:
        heldout = pack(LastShard(source), tokenizer, context, tokens=config.eval_blocks * context, **packing)
    return blocks, heldout


def heldout_of(config: RecalibrationConfig, tokenizer: Any, context: int, packing: dict[str, Any]) -> Blocks | None:
    from drope.data.packing import pack

    if not config.eval_blocks:
        return None
    try:
        return pack(config.data, tokenizer, context, tokens=config.eval_blocks * context, heldout=True, **packing)
    except InputError as error:
        logging.getLogger(__name__).warning("No held-out loss is measured: %s", error)
        return None
