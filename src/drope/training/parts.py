"""Training a part of a model: its attention alone, or low-rank additions that are merged at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from drope.errors import DropeError, InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from drope.training.config import RecalibrationConfig


def attention_names(model: PreTrainedModel) -> list[str]:
    """Names of the attention modules.

    Raises
    ------
    InputError : none can be told from the rest
    """
    names = [name for name, _ in model.named_modules() if name.endswith((".self_attn", ".attention", ".attn"))]
    if not names:
        raise InputError("train", "attention", f"all: the attention of {type(model).__name__} cannot be told apart")
    return names


@contextmanager
def only_attention(model: PreTrainedModel) -> Iterator[None]:
    """Freeze everything else, and thaw it on exit."""
    names = tuple(f"{name}." for name in attention_names(model))
    frozen = [p for name, p in model.named_parameters() if p.requires_grad and not name.startswith(names)]
    for p in frozen:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in frozen:
            p.requires_grad_(True)


@contextmanager
def low_rank(model: PreTrainedModel, rank: int) -> Iterator[None]:
    """LoRA on every linear layer but the output's (PEFT); merged into the weights on exit, after an exception too.

    Raises
    ------
    DropeError : PEFT is not installed
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer
    except ImportError:
        raise DropeError('LoRA needs the package "peft": pip install "drope-llm[peft]".') from None
    from torch import nn

    head = model.get_output_embeddings()
    thawed = [p for p in model.parameters() if p.requires_grad]
    targets = [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head]
    # α = 2 r, as usual: the additions are multiplied by 2.
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, bias="none"), model)
    try:
        yield
    finally:
        for name, module in list(model.named_modules()):
            if isinstance(module, LoraLayer):
                layer: Any = module
                layer.merge()
                model.set_submodule(name, layer.get_base_layer())
        vars(model).pop("peft_config", None)
        for p in thawed:
            p.requires_grad_(True)


def trained_part(model: PreTrainedModel, config: RecalibrationConfig) -> AbstractContextManager:
    """What of the model is trained, for as long as the block lasts."""
    if config.lora:
        return low_rank(model, config.lora)
    return only_attention(model) if config.train == "attention" else nullcontext()
