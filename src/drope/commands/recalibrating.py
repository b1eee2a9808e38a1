"""The flags of everything that recalibrates."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from drope.commands.config import parse_settings
from drope.commands.options import Flag, Length, Pair, Several, Tokens
from drope.errors import InputError

if TYPE_CHECKING:
    from drope.training import RecalibrationConfig

Fading = Literal["none", "lowest_first", "linear", "layers_top_first", "layers_bottom_first"]
Value = Parameter(show_default=False)  # None: from the recipe or worked out, as the help says


@dataclass(frozen=True)
class Recalibrating:
    """How to train. What is not given comes from the recipe.

    Parameters
    ----------
    data
        Training text: stdlib, episodes, a file or folder of .txt .md .jsonl .parquet, a hub dataset, or a mixture.
    tokens
        How much of it to train on, such as 500M or 5B.
    recipe
        paper as published, or fast: Muon, with the original's predictions and hidden states as further aims.
        Default: fast; paper where no original can help (a position-free checkpoint), with --fsdp and with DeepSpeed.
    batch_tokens
        Tokens a step. Default: 1,048,576, or less so that there are 500 steps.
    context
        Tokens a block. Default: the model's own context.
    learning_rate
        Peak. Default: 3e-4, or 1e-3 with QKNorm.
    schedule
        cosine to zero, wsd (constant, then down over the last fifth), or constant. Default: cosine.
    warmup
        Steps if 1 or more, else a share of the run.
    weight_decay
        Of AdamW and Muon.
    betas
        Of AdamW.
    eps
        Of AdamW.
    max_grad_norm
        Gradients are clipped to it; 0: not.
    optimizer
        adamw, or muon for the matrices of the blocks. Default: adamw; fast: muon.
    precision
        bf16 computes in bfloat16 over float32 weights, auto does so where the hardware has it.
    micro_batch
        Blocks computed at once; auto fits memory.
    save_every
        Tokens between checkpoints. Default: a tenth of the run.
    eval_every
        Tokens between evaluations. Default: a twentieth of the run.
    eval_blocks
        Held-out blocks of an evaluation; 0: none.
    distill
        Weight of the divergence from the original, 0 to 1. Default: 0; fast: 0.7.
    distill_temperature
        Temperature of that divergence.
    fade
        How the rotation goes: none (at once), by frequency or by layer. Default: none.
    fade_share
        Share of the run over which it goes. Default: 0.3.
    virtual_length
        Let contexts seem up to this many times longer: spans count several times in attention, at no cost. 1: not.
    match
        Share of the run, at its beginning, that also minimises the distance from the original's hidden states.
        Default: 0; fast: 1, all of it.
    match_weight
        Weight of that distance. Default: 1; fast: 10.
    match_states
        What is compared: the outputs of layers, of their attention, or both.
    train
        all, or attention for the attention layers alone.
    lora
        Rank of low-rank additions that are trained in place of the weights, then merged; 0: none.
    on_divergence
        When the loss is not finite or leaps: stop, or rollback to the last good checkpoint and halve the rate.
    spike
        Nats per token above the last 50 steps that are a leap; 0: only what is not finite.
    compile
        Run each layer through torch.compile: faster steps after a slow first one; needs a C++ compiler or a GPU.
    fsdp
        Spread weights, gradients and optimizer over the GPUs (FSDP2), for models that do not fit on one.
    stream
        Read and tokenise while training, from shards; for corpora too large to tokenise first.
    bos
        Begin each document with BOS.
    document_mask
        Tokens attend within their document only.
    text_field
        Column of the text in .jsonl, .parquet and hub data.
    set
        Any other field of transformers.TrainingArguments, as key=value.
    """

    data: str
    tokens: Tokens
    recipe: Annotated[Literal["paper", "fast"] | None, Value] = None
    batch_tokens: Annotated[Tokens | None, Value] = None
    context: Annotated[Length | None, Value] = None
    learning_rate: Annotated[float | None, Value] = None
    schedule: Annotated[Literal["cosine", "wsd", "constant"] | None, Value] = None
    warmup: float = 0.035
    weight_decay: float = 0.1
    betas: Pair = (0.9, 0.95)
    eps: float = 1e-8
    max_grad_norm: float = 1.0
    optimizer: Annotated[Literal["adamw", "muon"] | None, Value] = None
    precision: Literal["auto", "bf16", "float32"] = "auto"
    micro_batch: str = "auto"
    save_every: Annotated[Tokens | None, Value] = None
    eval_every: Annotated[Tokens | None, Value] = None
    eval_blocks: int = 16
    distill: Annotated[float | None, Value] = None
    distill_temperature: float = 1.0
    fade: Annotated[Fading | None, Value] = None
    fade_share: Annotated[float | None, Value] = None
    virtual_length: float = 1.0
    match: Annotated[float | None, Value] = None
    match_weight: Annotated[float | None, Value] = None
    match_states: Literal["layers", "attention", "both"] = "layers"
    train: Literal["all", "attention"] = "all"
    lora: int = 0
    on_divergence: Literal["stop", "rollback"] = "stop"
    spike: float = 2.0
    compile: Flag = False
    fsdp: bool = False
    stream: Flag = False
    bos: Flag = False
    document_mask: Flag = False
    text_field: str = "text"
    set: Annotated[tuple[str, ...], Several] = ()

    def config(self, seed: int, taught: bool) -> RecalibrationConfig:
        """The training's own settings: the recipe's, under those given.

        Parameters
        ----------
        taught : whether there is an original to learn from, which the default recipe needs
        """
        from drope.training import RECIPES, RecalibrationConfig

        given: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        sharded = self.fsdp or any(setting.startswith(("fsdp", "deepspeed")) for setting in self.set)
        recipe = RECIPES[given.pop("recipe") or ("fast" if taught and not sharded else "paper")]
        given["temperature"] = given.pop("distill_temperature")
        given["training_arguments"] = parse_settings(given.pop("set"))
        if self.micro_batch != "auto":
            if not self.micro_batch.isdecimal():
                raise InputError("--micro-batch", self.micro_batch, "auto, or a whole number of at least 1")
            given["micro_batch"] = int(self.micro_batch)
        values = recipe | {name: value for name, value in given.items() if value is not None}
        if self.fade == "none":
            values["fade"] = None
        return RecalibrationConfig(**values, seed=seed)


RecalibratingFlags = Annotated[Recalibrating, Parameter(name="*", group=Group("How to train", sort_key=10))]
