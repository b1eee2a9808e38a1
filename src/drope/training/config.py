"""What a recalibration is told: amounts in tokens, everything else with the paper's defaults (method.md §3)."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

from drope.errors import InputError
from drope.quantities import parse_count, parse_tokens

if TYPE_CHECKING:
    from drope.training.mixed_window import MixedWindow

Schedule = Literal["cosine", "wsd", "constant"]
Optimizer = Literal["adamw", "muon"]
Precision = Literal["auto", "bf16", "float32"]
Part = Literal["all", "attention"]
States = Literal["layers", "attention", "both"]  # whose outputs are matched
OnDivergence = Literal["stop", "rollback"]
Fade = Literal["lowest_first", "linear", "layers_top_first", "layers_bottom_first"]

LARGEST_BATCH = 1 << 20  # tokens a step: the paper's
WSD_DECAY = 0.2  # share of a wsd run that cools down

# Fields of TrainingArguments that a run sets itself, and the setting that decides each.
_RESERVED = {
    "output_dir": "out", "max_steps": "tokens", "num_train_epochs": "tokens", "learning_rate": "learning_rate",
    "per_device_train_batch_size": "micro_batch", "gradient_accumulation_steps": "batch_tokens",
    "auto_find_batch_size": "micro_batch", "lr_scheduler_type": "schedule", "lr_scheduler_kwargs": "schedule",
    "warmup_steps": "warmup", "warmup_ratio": "warmup", "weight_decay": "weight_decay", "adam_beta1": "betas",
    "adam_beta2": "betas", "adam_epsilon": "eps", "max_grad_norm": "max_grad_norm", "bf16": "precision",
    "fp16": "precision", "seed": "seed", "data_seed": "seed", "save_strategy": "save_every", "save_steps": "save_every",
    "eval_strategy": "eval_every", "eval_steps": "eval_every", "eval_on_start": "eval_every",
    "remove_unused_columns": "data", "train_sampling_strategy": "data", "ignore_data_skip": "resume",
    "resume_from_checkpoint": "resume", "save_only_model": "resume", "use_cpu": "the model's device",
    "full_determinism": "seed", "load_best_model_at_end": "tokens", "label_smoothing_factor": "distill",
    "logging_strategy": "the history", "logging_steps": "the history", "use_liger_kernel": "precision",
    "logging_nan_inf_filter": "on_divergence",
}  # fmt: skip


@dataclass
class RecalibrationConfig:
    """Settings of one recalibration. Amounts may be written as people do: `tokens="5B"`, `context="2k"`.

    data : training text (see `drope.data.sources`); text_field: its column in .jsonl, .parquet and hub data
    tokens : to train on; rounded down to whole steps
    batch_tokens : tokens a step, rounded down to whole blocks; None: 1,048,576, or less so that there are 500 steps
    context : tokens a block; None: the model's training context
    learning_rate : peak; None: 3e-4, or 1e-3 for a model with QKNorm
    schedule : `cosine` to zero; `wsd`, constant then cooling down over the last fifth; `constant`
    warmup : steps if 1 or more, else a share of the run
    weight_decay, betas, eps : AdamW's (weight_decay also Muon's)
    max_grad_norm : gradients are clipped to this norm; 0: not
    optimizer : `adamw`, or `muon` for the matrices of the blocks with AdamW for everything else
    precision : `bf16` computes in bfloat16 over float32 weights; `auto` does so where the hardware has it
    seed : of the order of the data
    micro_batch : blocks computed at once on one device; `auto` fits memory
    save_every, eval_every : tokens between checkpoints (None: a tenth of the run) and evaluations (None: a twentieth)
    eval_blocks : held-out blocks of an evaluation; 0: none
    distill : weight w of the KL divergence from the RoPE original, (1 - w) CE + w T² KL; 0: cross entropy alone
    temperature : T of the divergence
    fade : None drops the rotation at once; `lowest_first` takes frequencies out one after the other, the lowest first;
        `linear` scales all of them down together
        `layers_top_first` and `layers_bottom_first` drop one layer after the other
    fade_share : share of the run over which it fades
    match : share of the run, at its beginning, that also minimises the distance from the original's hidden states
    match_weight : of that distance, which is relative to the size of the states, in the objective
    match_states : those of `layers`, of their `attention`, or `both`
    train : `all`, or `attention` for the attention layers alone
    lora : rank of low-rank additions that are trained in place of the linear layers' weights, then merged; 0: none
    on_divergence : what to do when the loss is not finite or leaps: `stop`, or `rollback` to the last good checkpoint
        and go on at half the rate, at most three times
    spike : nats per token above the loss of the last 50 steps that are a leap; 0: only what is not finite is one
    compile : each decoder layer through `torch.compile`
    fsdp : spread weights, gradients and optimizer over the processes (FSDP2; accelerators only)
    skip : tokens of the text to leave out, because an earlier run has had them
    stream : read and tokenise while training, from the shards of a hub dataset or a folder; for corpora too large to
        tokenise first
    bos : begin each document with BOS; the paper does not
    document_mask : tokens attend within their document only; the paper's attend across
    virtual_length : contexts seem up to this many times longer: spans of a block count several times in
        attention, at no cost (see `drope.training.virtual_length`; not for a control); 1: as they are
    mixed_window : for a control run: train at a longer target, in part under a rescaled rotation (LongRoPE2)
    training_arguments : further fields of `transformers.TrainingArguments`

    Raises
    ------
    InputError : a value outside its range, or a training argument that does not exist or is decided by another setting
    """

    data: str
    tokens: int
    batch_tokens: int | None = None
    context: int | None = None
    learning_rate: float | None = None
    schedule: Schedule = "cosine"
    warmup: float = 0.035
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    max_grad_norm: float = 1.0
    optimizer: Optimizer = "adamw"
    precision: Precision = "auto"
    seed: int = 0
    micro_batch: int | Literal["auto"] = "auto"
    save_every: int | None = None
    eval_every: int | None = None
    eval_blocks: int = 16
    distill: float = 0.0
    temperature: float = 1.0
    fade: Fade | None = None
    fade_share: float = 0.3
    text_field: str = "text"
    match: float = 0.0
    match_weight: float = 1.0
    match_states: States = "layers"
    train: Part = "all"
    lora: int = 0
    on_divergence: OnDivergence = "stop"
    spike: float = 2.0
    compile: bool = False
    fsdp: bool = False
    skip: int = 0
    stream: bool = False
    bos: bool = False
    document_mask: bool = False
    virtual_length: float = 1.0
    mixed_window: MixedWindow | None = None
    training_arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tokens = parse_tokens(self.tokens, "tokens")
        for name in ("batch_tokens", "save_every", "eval_every"):
            if getattr(self, name) is not None:
                setattr(self, name, parse_tokens(getattr(self, name), name))
        if self.context is not None:
            self.context = parse_count(self.context, "context")
        self.betas = self._numbers("betas", self.betas, 2)
        self._choices("schedule", Schedule)
        self._choices("optimizer", Optimizer)
        self._choices("precision", Precision)
        self._choices("on_divergence", OnDivergence)
        self._choices("train", Part)
        self._range("match", least=0, most=1)
        self._range("match_weight", above=0)
        self._choices("match_states", States)
        self._whole("lora", 0)
        self._whole("skip", 0)
        if self.lora and (self.train != "all" or self.fsdp):
            raise InputError("lora", self.lora, "0 with train=attention and with fsdp")
        if self.compile and (self.match_states != "layers" or (self.fade or "").startswith("layers")):
            # Hooks within a layer, which come and go from step to step, would not be seen.
            raise InputError("compile", True, "false with match_states other than layers and with fades over layers")
        if self.fade is not None:
            self._choices("fade", Fade)
        if self.learning_rate is not None:
            self._range("learning_rate", above=0)
        self._range("warmup", least=0)
        self._range("weight_decay", least=0)
        self._range("eps", above=0)
        self._range("max_grad_norm", least=0)
        self._range("distill", least=0, most=1)
        self._range("temperature", above=0)
        self._range("fade_share", above=0, below=1)
        self._range("spike", least=0)
        self._range("virtual_length", least=1)
        self._whole("seed", 0)
        self._whole("eval_blocks", 0)
        if self.micro_batch != "auto":
            self._whole("micro_batch", 1, "auto, or ")
        for beta in self.betas:
            if not 0 <= beta < 1:
                raise InputError("betas", self.betas, "two numbers from 0 to below 1")
        _check_training_arguments(self.training_arguments, self.optimizer)

    def _choices(self, name: str, kind: Any) -> None:
        value = getattr(self, name)
        if value not in get_args(kind):
            raise InputError(name, value, ", ".join(get_args(kind)))

    def _range(self, name: str, *, least=None, above=None, most=None, below=None) -> None:
        value = self._numbers(name, (getattr(self, name),), 1)[0]
        bounds = [
            f"{words} {bound:g}"
            for words, bound in (("at least", least), ("above", above), ("at most", most), ("below", below))
            if bound is not None
        ]
        inside = (
            (least is None or value >= least)
            and (above is None or value > above)
            and (most is None or value <= most)
            and (below is None or value < below)
        )
        if not inside:
            raise InputError(name, value, f"a number {' and '.join(bounds)}")
        setattr(self, name, value)

    def _whole(self, name: str, least: int, prefix: str = "") -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(name, value, f"{prefix}a whole number of at least {least}")

    @staticmethod
    def _numbers(name: str, values: Any, n: int) -> Any:
        try:
            numbers = tuple(float(v) for v in values)
        except (TypeError, ValueError):
            numbers = ()
        if len(numbers) != n or not all(map(math.isfinite, numbers)):
            raise InputError(name, values[0] if n == 1 else values, "a number" if n == 1 else f"{n} numbers")
        return numbers


#: Named settings, for `RecalibrationConfig(data=..., tokens=..., **RECIPES["fast"])`. `paper` is the published recipe;
#: `fast` recovers in fewer tokens, helped by the RoPE original: its predictions and its hidden states.
RECIPES: dict[str, dict[str, Any]] = {
    "paper": {"schedule": "cosine", "optimizer": "adamw", "distill": 0.0, "fade": None},
    "fast": {"optimizer": "muon", "distill": 0.7, "match": 1.0, "match_weight": 10.0},
}


def _check_training_arguments(given: Any, optimizer: str) -> None:
    from transformers import TrainingArguments

    if not isinstance(given, dict):
        raise InputError("training_arguments", given, "a mapping of field names to values")
    known = [f.name for f in fields(TrainingArguments) if f.init]
    for name in given:
        if name in _RESERVED:
            raise InputError(f"training_arguments.{name}", given[name], f"set by {_RESERVED[name]}, not here")
        if name not in known:
            near = difflib.get_close_matches(name, [k for k in known if k not in _RESERVED])
            hint = f"Did you mean {' or '.join(near)}?" if near else ""
            raise InputError("training_arguments", name, "the fields of transformers.TrainingArguments", hint)
        if name == "optim" and optimizer != "adamw":
            raise InputError("training_arguments.optim", given[name], f"nothing while optimizer is {optimizer}")
