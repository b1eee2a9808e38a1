"""Pretraining with a scheduled drop: positions until some step, then none, with a new warm-up (arXiv 2512.12167 §4)."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drope.errors import InputError
from drope.training.config import RecalibrationConfig
from drope.training.recalibrate import RecalibrationResult, recalibrate

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from drope.positions import Method


def fresh_model(config: PreTrainedConfig, changes: dict[str, Any], vocabulary: int, seed: int = 0) -> PreTrainedModel:
    """A model of a configuration's class with new weights, drawn from `seed`.

    Parameters
    ----------
    changes : fields of the configuration to set otherwise, such as `num_hidden_layers`
    vocabulary : of the tokenizer

    Raises
    ------
    InputError : a field that this configuration does not have, or values that no model can be built of
    """
    import torch
    from transformers import AutoModelForCausalLM

    text = config.get_text_config(decoder=True)
    fields = text.to_dict()
    for name in changes:
        if name not in fields:
            raise InputError("--shape", name, f"a field of {type(text).__name__}, such as num_hidden_layers")
    if "hidden_size" in changes or "num_attention_heads" in changes:
        fields.pop("head_dim", None)  # worked out anew
    fields |= {"vocab_size": max(vocabulary, int(changes.get("vocab_size", 0)))} | changes
    torch.manual_seed(seed)
    try:
        made = AutoModelForCausalLM.from_config(type(text).from_dict(fields), dtype=torch.float32)
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise InputError("--shape", changes, "values that a model can be built of", str(error)) from error
    return made.eval()


def pretrain(
    model: PreTrainedModel,
    tokenizer: Any,
    config: RecalibrationConfig,
    out: str | Path,
    *,
    method: Method | None = None,
    drop_at: int | None = None,
    rewarm: float = 70,
    drop_rate: float = 1e-3,
    resume: bool = False,
    cache_dir: str | Path | None = None,
) -> list[RecalibrationResult]:
    """Train a new model, in place: `config.tokens` tokens in all, the last of them without positions.

    Two runs of one trainer in `out/positions` and `out/dropped`, each with a schedule over its own steps; the second
    goes on in the text where the first ended. Both resume exactly.

    Parameters
    ----------
    method : architecture of the first part, any of the catalogue that this family carries out; None: as the model is
    drop_at : tokens with positions; None: all of them
    rewarm : steps (or share, below 1) of the second warm-up; drop_rate: its peak learning rate. The defaults are the
        paper's for 494M parameters.

    Raises
    ------
    InputError : a drop that is not inside the run, or as for `recalibrate`
    """
    from drope import models
    from drope.models.applicable import mark_trained

    out = Path(out)
    if drop_at is not None and not 0 < drop_at < config.tokens:
        raise InputError("--drop-at", drop_at, f"above 0 and below the {config.tokens} tokens of the run")
    first = config if drop_at is None else replace(config, tokens=drop_at)
    context = config.context or models.rope_shape(model.config).context

    def go_on(folder: Path) -> bool:
        return resume and folder.exists()

    text: Any = model.config.get_text_config(decoder=True)
    if method is not None:
        mark_trained(model.config, method)  # also tells whoever loads the model how to run it
    under = models.apply(model, method, context) if method is not None else nullcontext()
    with under:
        folder = out / "positions"
        done = [recalibrate(model, tokenizer, first, folder, resume=go_on(folder), as_is=True, cache_dir=cache_dir)]
    if drop_at is not None:
        if method is not None:
            del text.drope_method
        folder = out / "dropped"
        seen = done[0].tokens_seen
        rest: dict[str, Any] = {
            "tokens": config.tokens - seen,
            "skip": seen,
            "warmup": rewarm,
            "learning_rate": drop_rate,
        }
        rest["batch_tokens"] = done[0].settings["step_blocks"] * done[0].settings["context"]
        second = RecalibrationConfig(**(asdict(config) | rest))
        done.append(recalibrate(model, tokenizer, second, folder, resume=go_on(folder), cache_dir=cache_dir))
    return done
