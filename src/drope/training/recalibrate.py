"""Recalibration: drop the rotation, train briefly at the original context, on blocks whose order is fixed beforehand.

out/recalibration.json   the settings, for telling a resumed run from another
out/history.jsonl        loss, held-out loss, learning rate and speed over tokens
out/checkpoints/         the Trainer's; `resume=True` goes on from the newest whole one
out/rollbacks.json       where a diverging run went back to a checkpoint, and its rate from there on

Under `torchrun` or `accelerate launch` all processes call this alike, and the first one writes.
"""

from __future__ import annotations

import json
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drope.errors import DropeError, InputError, Interrupted
from drope.training import processes
from drope.training.config import RecalibrationConfig
from drope.training.divergence import Diverged, Rollbacks
from drope.training.inputs import blocks_of, own_teacher
from drope.training.parts import trained_part
from drope.training.record import claim, read_record, weights_digest
from drope.training.sharded import is_sharded, unsharded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

    from drope.data.packing import Blocks
    from drope.training.plan import Plan


@dataclass
class RecalibrationResult:
    """What `recalibrate` returns.

    model : the model that was passed in, trained: position free, or rotating after a control run (after `config.fsdp`
        a whole one on the CPU)
    history : rows {tokens, loss, objective, divergence, learning_rate, tokens_per_second, eval_loss}; loss and
        eval_loss are cross entropies in nats per token, objective is what was minimised; None where not measured
    tokens_seen : tokens trained on, earlier parts of a resumed run included
    steps : optimizer steps, likewise
    data : {spec, fingerprint, tokens, epochs} of the training blocks
    checkpoint : the Trainer's last checkpoint
    settings : the settings as they were resolved
    """

    model: PreTrainedModel
    history: list[dict[str, Any]]
    tokens_seen: int
    steps: int
    data: dict[str, Any]
    checkpoint: Path
    settings: dict[str, Any]


def recalibrate(
    model: PreTrainedModel,
    tokenizer: Any,
    config: RecalibrationConfig,
    out: str | Path,
    *,
    resume: bool = False,
    control: bool = False,
    teacher: PreTrainedModel | None = None,
    cache_dir: str | Path | None = None,
    as_is: bool = False,
) -> RecalibrationResult:
    """Train `model` without positions, in place, on `config.tokens` tokens at its own context.

    Parameters
    ----------
    model : rotating or dropped; a resumed run takes the same model as it began with, not a checkpoint of it
    tokenizer : the model's
    out : folder of the run
    resume : go on from the last checkpoint in `out`, with the same data in the same order to the same weights
    control : keep RoPE; everything else, the blocks included, is the same (under `config.mixed_window`, longer blocks),
        but for what helps a model that has lost its rotation: teacher, fade, virtual length
    teacher : what `config.distill` distils from; None: `model` as it is at the start, with its rotation
    as_is : leave the positions as they are, whatever they are (`drope.training.pretrain`)
    cache_dir : of packed blocks (see `drope.data.packing.pack`)

    Raises
    ------
    InputError : a setting, the data or `out` cannot be used; a resumed run has other settings (names the first)
    Interrupted : SIGINT or SIGTERM; a checkpoint was written and the message says how to go on
    DropeError : the disk is full, the loss diverges, memory does not suffice, or processes of one run differ
    """
    from drope.models.shape import stops_rotation
    from drope.models.unrotated import unrotated
    from drope.training.compiled import check_compile, compiled
    from drope.training.plan import make_plan
    from drope.training.virtual_length import check_virtual_length

    out = Path(out)
    if control and config.mixed_window is None:
        config = replace(config, distill=0.0, match=0.0, fade=None, virtual_length=1.0)
    processes.start(model.device)
    record = processes.by_first(lambda: read_record(out, resume))
    if config.fade and not control and stops_rotation(model.config):
        allowed = "none for a checkpoint that is position free already"
        raise InputError("fade", config.fade, allowed, "Start from the original to fade.")
    if teacher is None and (config.distill or config.match):
        teacher = own_teacher(model)
    plan = make_plan(model, tokenizer, config, teacher, record, control)
    if config.virtual_length > 1 and not control:
        check_virtual_length(model, plan.context)
    if config.compile:
        check_compile(model)
    plan = replace(plan, micro_batch=min(processes.gathered(plan.micro_batch)))
    amount = plan.steps * plan.step_blocks * plan.context
    packing: dict[str, Any] = {"cache_dir": cache_dir, "seed": config.seed, "text_field": config.text_field}
    packing["bos"] = config.bos
    blocks, heldout = processes.first_then_all(partial(blocks_of, config, tokenizer, plan.context, amount, packing))
    data = {
        "spec": str(config.data),
        "fingerprint": blocks.fingerprint,
        "tokens": blocks.tokens,
        "epochs": blocks.epochs,
    }
    settings = asdict(config) | asdict(plan) | {"blocks": blocks.fingerprint, "control": control, "as_is": as_is}
    if config.mixed_window is not None:
        settings["mixed_window"] = config.mixed_window.to_dict()
    settings |= {
        "weights": weights_digest(model),
        "teacher": weights_digest(teacher) if config.distill or config.match else None,
    }
    settings = json.loads(json.dumps(settings, default=str))
    processes.agreed(settings)
    run = processes.by_first(lambda: claim(out, settings, record))

    with ExitStack() as lasting:
        lasting.enter_context(_borrowed(model, control, bool(config.fade), as_is))
        lasting.enter_context(trained_part(model, config))
        lasting.enter_context(unrotated(model))
        if config.compile:
            lasting.enter_context(compiled(model))
        eos = tokenizer.eos_token_id
        history = _train_through(model, config, plan, blocks, heldout, teacher, out, run, control, resume, eos)
        if is_sharded(model):
            model = unsharded(model)
    tokens = plan.steps * plan.step_blocks * plan.context
    checkpoint = out / "checkpoints" / f"checkpoint-{plan.steps}"
    return RecalibrationResult(model, history, tokens, plan.steps, data, checkpoint, settings)


def _train_through(
    model: PreTrainedModel,
    config: RecalibrationConfig,
    plan: Plan,
    blocks: Blocks,
    heldout: Blocks | None,
    teacher: PreTrainedModel | None,
    out: Path,
    run: str,
    control: bool,
    resume: bool,
    eos: int,
) -> list[dict[str, Any]]:
    """`_train`, and again from the last good checkpoint at a lower rate where the loss diverges, if asked for."""
    wanted = config.on_divergence == "rollback"
    rollbacks = Rollbacks.read(out)
    begin = {k: v.detach().to("cpu", copy=True) for k, v in model.state_dict().items()} if wanted else {}
    while True:
        try:
            return _train(model, config, plan, blocks, heldout, teacher, out, run, control, resume, rollbacks, eos)
        except Diverged as error:
            if not wanted:
                raise DropeError(error.advice(config, plan)) from None
            rollbacks = processes.by_first(partial(rollbacks.add, out, run, error, config, plan))
            model.load_state_dict(begin)
            resume = True


def _train(
    model: PreTrainedModel,
    config: RecalibrationConfig,
    plan: Plan,
    blocks: Blocks,
    heldout: Blocks | None,
    teacher: PreTrainedModel | None,
    out: Path,
    run: str,
    control: bool,
    resume: bool,
    rollbacks: Rollbacks,
    eos: int,
) -> list[dict[str, Any]]:
    """Run the Trainer; the rows of the history."""
    from transformers.trainer_callback import PrinterCallback

    from drope import models
    from drope.progress import track
    from drope.training.callbacks import DivergenceCallback, History, StopCallback
    from drope.training.checkpoints import newest_whole
    from drope.training.fade import FadeCallback
    from drope.training.mixed_window import Windows
    from drope.training.trainer import RecalibrationTrainer

    folder = out / "checkpoints"
    last = processes.by_first(lambda: newest_whole(folder, run)) if resume else None
    label = "Training the control" if control else "Recalibrating"
    with track(label, plan.steps * plan.step_tokens, "tokens") as bar:
        history = History(out / "history.jsonl", plan.step_tokens, bar)
        stop = StopCallback()
        # The watch looks at a step's loss before it is logged, and before its checkpoint is written.
        watch = DivergenceCallback(config, plan, rollbacks)
        callbacks: list[Any] = [watch, history, stop]
        fade = FadeCallback(model, config.fade, plan.fade_steps) if config.fade and not control else None
        callbacks += [fade] if fade else []
        windows = None
        if config.mixed_window is not None:
            windows = Windows(model, config.mixed_window, plan.micro_batches)
            callbacks.append(windows)
        trainer = RecalibrationTrainer(
            model=model, args=plan.training_arguments(config, folder, bool(heldout), model.device), callbacks=callbacks,
            train_dataset=blocks.dataset, eval_dataset=heldout.dataset if heldout else None,
            data_collator=partial(_collate, virtual_length=1.0 if control else config.virtual_length, seed=config.seed),
            config=config, teacher=teacher if config.distill or config.match else None, autocast=plan.autocast, run=run,
            windows=windows, rate_factor=rollbacks.factor,
            eos=eos if config.document_mask else None, match_steps=round(config.match * plan.steps),
        )  # fmt: skip
        trainer.pop_callback(PrinterCallback)
        history.trainer = watch.trainer = trainer
        with (
            stop.listening(),
            _training_errors(),
            closing(fade) if fade else nullcontext(),
            windows.until_done() if windows else nullcontext(),
        ):
            trainer.train(resume_from_checkpoint=str(last) if last else None)
        history.trainer = watch.trainer = None  # the cycle would keep the optimizer's state in memory
        if model.device.type != "cpu":
            trainer.accelerator.free_memory()
    if config.fade and not control:
        models.drop(model)
    done = trainer.state.global_step
    if done < plan.steps:
        raise Interrupted(
            f"Stopped after {done * plan.step_tokens:,} of {plan.steps * plan.step_tokens:,} tokens; all of it is "
            f"saved in {out}. To go on, run the same command with --resume (in Python: recalibrate(..., resume=True))."
        )
    return history.rows


def _collate(rows: list[dict[str, Any]], virtual_length: float, seed: int) -> dict[str, Any]:
    """A batch of packed blocks, with ln m of their tokens where contexts are to seem longer."""
    import torch

    from drope.training.virtual_length import log_copies

    batch = {name: torch.stack([row[name] for row in rows]) for name in ("input_ids", "trained")}
    if virtual_length > 1:
        batch["log_copies"] = torch.stack([log_copies(ids, virtual_length, seed) for ids in batch["input_ids"]])
    return batch


@contextmanager
def _borrowed(model: PreTrainedModel, control: bool, fades: bool, as_is: bool) -> Iterator[None]:
    """Give the model its rotation (or none) and float32 weights; put back on exit all that is not to be changed."""
    import torch

    from drope import models

    if as_is:
        pass
    elif control:
        models.restore(model)
    elif not fades:
        models.drop(model)
    else:
        models.restore(model)
    dtypes = {name: p.dtype for name, p in model.named_parameters()}
    training, use_cache = model.training, model.config.use_cache
    frozen = not any(p.requires_grad for p in model.parameters())
    for p in model.parameters():
        if frozen:
            p.requires_grad_(True)
        if p.dtype in (torch.bfloat16, torch.float16):
            p.data = p.data.float()  # small updates would be lost in 8 bits of mantissa; buffers keep their dtype
    try:
        yield
    finally:
        for name, p in model.named_parameters():
            p.grad = None
            p.data = p.data.to(dtypes[name])
            if frozen:
                p.requires_grad_(False)
        model.train(training)
        model.config.use_cache = use_cache


@contextmanager
def _training_errors() -> Iterator[None]:
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DropeError(
            "The device's memory does not suffice. Set micro_batch to fewer blocks (1 at least), or pass "
            "training_arguments activation_checkpointing=True."
        ) from error
