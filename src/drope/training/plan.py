"""From amounts in tokens to steps, blocks and `TrainingArguments`; checked before anything is touched."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from drope.errors import InputError
from drope.training.config import LARGEST_BATCH, WSD_DECAY, RecalibrationConfig
from drope.training.processes import count
from drope.training.sharded import fsdp_arguments

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainingArguments

_LOG_ROWS = 200  # rows of history in a run
_CPU_TOKENS = 8192  # in a micro batch: more is no faster there


@dataclass(frozen=True)
class Plan:
    """A run in steps.

    context : tokens a block; step_blocks: blocks of one optimizer step, over all devices; steps: optimizer steps
    micro_batch : blocks that one device computes at once; learning_rate: peak; fade_steps: until the rotation is gone
    precision : of the computation, `bf16` or `float32`
    """

    context: int
    step_blocks: int
    steps: int
    micro_batch: int
    learning_rate: float
    warmup_steps: int
    fade_steps: int
    precision: str
    processes: int

    @property
    def step_tokens(self) -> int:
        return self.step_blocks * self.context

    @property
    def micro_batches(self) -> int:
        """Micro batches of one device in a step."""
        return self.step_blocks // (self.micro_batch * self.processes)

    @property
    def autocast(self) -> torch.dtype | None:
        return torch.bfloat16 if self.precision == "bf16" else None

    def training_arguments(
        self, config: RecalibrationConfig, folder: Path, evaluates: bool, device: torch.device
    ) -> TrainingArguments:
        """The Trainer's arguments: quiet, without reporters; the user's own fields win over ours."""
        from transformers import TrainingArguments

        kinds = {"cosine": "cosine", "wsd": "warmup_stable_decay", "constant": "constant_with_warmup"}
        decay = max(1, min(round(WSD_DECAY * self.steps), self.steps - self.warmup_steps))
        every = {
            name: max(1, round((tokens or self.steps * self.step_tokens * share) / self.step_tokens))
            for name, tokens, share in (("save", config.save_every, 0.1), ("eval", config.eval_every, 0.05))
        }
        ours: dict[str, Any] = {
            "output_dir": str(folder), "max_steps": self.steps, "learning_rate": self.learning_rate,
            "per_device_train_batch_size": self.micro_batch,
            "gradient_accumulation_steps": self.micro_batches,
            "lr_scheduler_type": kinds[config.schedule], "warmup_steps": self.warmup_steps,
            "lr_scheduler_kwargs": {"num_decay_steps": decay} if config.schedule == "wsd" else {},
            "weight_decay": config.weight_decay, "adam_beta1": config.betas[0], "adam_beta2": config.betas[1],
            "adam_epsilon": config.eps, "max_grad_norm": config.max_grad_norm, "seed": config.seed,
            "logging_strategy": "steps", "logging_steps": max(1, self.steps // _LOG_ROWS), "logging_first_step": True,
            "save_strategy": "steps", "save_steps": every["save"], "save_total_limit": 2,
            "eval_strategy": "steps" if evaluates else "no", "eval_steps": every["eval"], "eval_on_start": evaluates,
            "logging_nan_inf_filter": False,
            "ddp_find_unused_parameters": False,
            "remove_unused_columns": False, "report_to": "none", "disable_tqdm": True, "use_cpu": device.type == "cpu",
        }  # fmt: skip
        ours |= fsdp_arguments(config, self.processes)
        try:
            arguments = TrainingArguments(**(ours | config.training_arguments))
        except (TypeError, ValueError, ImportError) as error:
            given = config.training_arguments
            raise InputError("training_arguments", given, "what transformers accepts", str(error)) from error
        if arguments.n_gpu > 1:
            arguments._n_gpu = 1  # several devices work as one process each (torchrun), never through DataParallel
        return arguments


def make_plan(
    model: PreTrainedModel,
    tokenizer: Any,
    config: RecalibrationConfig,
    teacher: PreTrainedModel | None,
    record: dict[str, Any] | None,
    control: bool,
) -> Plan:
    """Resolve what the config leaves open.

    Raises
    ------
    InputError : a context longer than the model's, too few tokens for a step, a tokenizer that does not fit the model
    """
    from drope.models import rope_shape

    shape = rope_shape(model.config)
    context = config.context or shape.context
    if context > shape.context:
        raise InputError("context", context, f"at most the model's own {shape.context} tokens")
    if config.mixed_window is not None:
        config.mixed_window.check(shape, control, config.distill, config.context)
        context = config.mixed_window.target
    rows = _embedded(model)
    if len(tokenizer) > rows:
        raise InputError("tokenizer", f"of {len(tokenizer)} tokens", f"one of at most the model's {rows}")
    if teacher is not None and teacher.config.get_text_config(decoder=True).vocab_size != rows:
        raise InputError("teacher", type(teacher).__name__, f"a model with the same vocabulary of {rows} tokens")
    processes = count()
    step_blocks = _step_blocks(config, context, processes, record)
    steps = config.tokens // (step_blocks * context)
    if not steps:
        raise InputError("tokens", config.tokens, f"at least one step of {step_blocks * context} tokens")
    rate = config.learning_rate
    if rate is None:
        rate = 1e-3 if any(name.endswith(("q_norm", "q_layernorm")) for name, _ in model.named_modules()) else 3e-4
    warmup = int(config.warmup) if config.warmup >= 1 else math.ceil(config.warmup * steps)
    if warmup > steps:
        raise InputError("warmup", config.warmup, f"at most the run's {steps} steps")
    if config.fsdp and model.device.type == "cpu":
        raise InputError("fsdp", True, "an accelerator for each process", "accelerate shards on accelerators only.")
    fsdp_arguments(config, processes)
    precision = config.precision if config.precision != "auto" else _precision(model.device)
    share = step_blocks // processes
    if config.micro_batch != "auto":
        micro = config.micro_batch
    elif record is not None and record["settings"].get("processes", 1) == processes:
        # Sums in another order differ in their last bits: a resumed run keeps what it had.
        micro = int(record["settings"].get("micro_batch") or 1)
    else:
        micro = _micro_batch(model, teacher, context, share, precision)
    if share % micro:
        raise InputError("micro_batch", micro, f"a divisor of the {share} blocks of a step")
    fade = min(max(1, round(config.fade_share * steps)), steps - 1) if config.fade and not control else 0
    return Plan(context, step_blocks, steps, micro, rate, warmup, fade, precision, processes)


def _embedded(model: Any) -> int:
    return model.get_input_embeddings().weight.shape[0]


def _step_blocks(config: RecalibrationConfig, context: int, processes: int, record: dict[str, Any] | None) -> int:
    """Blocks of one step; a resumed run keeps those that it had, whatever the number of processes."""
    each = f" for each of {processes} processes" * (processes > 1)
    if record is not None and config.batch_tokens is None:
        blocks = int(record["settings"].get("step_blocks") or 0)
    elif config.batch_tokens is None:
        batch = min(LARGEST_BATCH, max(config.tokens // 500, context * processes))
        blocks = batch // context // processes * processes
    else:
        blocks = config.batch_tokens // context
    if blocks < processes:
        raise InputError("batch_tokens", config.batch_tokens, f"at least one block of {context} tokens{each}")
    if blocks % processes:
        raise InputError(
            "batch_tokens", config.batch_tokens or blocks * context, f"as many blocks of {context} tokens{each}",
            f"These are {blocks} blocks a step; take a batch or a number of processes that divides.",
        )  # fmt: skip
    return blocks


def _precision(device: torch.device) -> str:
    """bf16 where the hardware computes in it; processors without AVX-512 BF16 or AMX emulate it, 25 times slower."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        native = any(getattr(torch.cpu, name, lambda: False)() for name in names)
    else:
        native = False
    return "bf16" if native else "float32"


def _micro_batch(
    model: PreTrainedModel, teacher: PreTrainedModel | None, context: int, blocks: int, precision: str
) -> int:
    """The largest divisor of `blocks` whose activations fit in 60% of what the weights and optimizer leave free."""
    text = model.config.get_text_config(decoder=True)
    wide = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    wide = max(wide) if isinstance(wide, list | tuple) else wide
    width = 2 if precision == "bf16" else 4
    per_token = text.num_hidden_layers * (16 * text.hidden_size + 4 * wide) * width  # stored for the backward pass
    weights = sum(p.numel() for p in model.parameters())
    needed = 16 * weights - sum(p.numel() * p.element_size() for p in model.parameters())
    if teacher is not None and teacher.device != model.device:
        needed += sum(p.numel() * p.element_size() for p in teacher.parameters())
    tokens = max(0.0, 0.6 * (_free_memory(model.device) - needed)) / per_token
    if model.device.type == "cpu":
        tokens = min(tokens, _CPU_TOKENS)
    most = max(1, int(tokens // context))
    return max(d for d in range(1, blocks + 1) if blocks % d == 0 and d <= most)


def _free_memory(device: torch.device) -> float:
    """Free bytes on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available
