"""`drope recalibrate`: train without positions until the model is itself again."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Group, Parameter

from drope.commands import launching
from drope.commands.checkpoints import add_norm
from drope.commands.measuring import short_name
from drope.commands.options import NO_GENERAL, NO_LOADING, Flag, GeneralFlags, LoadingFlags, Tokens
from drope.commands.output import facts, session, table
from drope.commands.recalibrating import RecalibratingFlags
from drope.errors import InputError
from drope.quantities import format_tokens, parse_target

if TYPE_CHECKING:
    from rich.console import RenderableType

app = App(
    name="recalibrate",
    help_epilogue="""Examples:

  # fewer tokens, helped by the original
  drope recalibrate org/model --data text/ --tokens 5B --out out/recalibrated
  # the paper's recipe
  drope recalibrate org/model --data text/ --tokens 5B --recipe paper --out out/paper
  # the control: RoPE kept, the same tokens
  drope recalibrate org/model --data text/ --tokens 5B --control --out out/control
  # the control in LongRoPE2's way: mixed windows of 1x and 8x
  drope recalibrate org/model --data text/ --tokens 5B --control --mixed-window longrope2 --to 8x --out out/longrope2
  # after an interruption, the same command and
  drope recalibrate org/model --data text/ --tokens 5B --out out/recalibrated --resume
  # on the four GPUs of this machine; several machines: docs/training.md
  drope recalibrate org/model --data text/ --tokens 5B --out out/x --nproc 4
  # any field of transformers.TrainingArguments
  drope recalibrate org/model --data text/ --tokens 5B --out out/x --set activation_checkpointing=true""",
)


@dataclass(frozen=True)
class Run:
    """What to make.

    Parameters
    ----------
    out
        Folder: the run in run/, the model in model/.
    to
        Context that the written checkpoint declares, such as 8x.
    resume
        Go on with the run in that folder.
    control
        Keep RoPE and train on the same tokens: what the recalibrated model is to be compared with.
    qk_norm
        Add per-head query and key normalisation first: Llama-shaped models become Qwen3.
    qk_norm_init
        Gains of that normalisation: fitted on some of --data, or ones as in the paper.
    qk_norm_tokens
        How much of it.
    mixed_window
        With --control: train on blocks of --to tokens, in part at the model's own context with its own rotation, the
        rest whole under this method's (LongRoPE2's training): longrope2, yarn, ntk, pi, ...
    short_share
        How large the first part is.
    nproc
        Processes on this machine, one GPU each. For several machines: torchrun or accelerate launch.
    """

    out: Path
    to: str = "8x"
    resume: Flag = False
    control: Flag = False
    qk_norm: Flag = False
    qk_norm_init: Literal["fitted", "ones"] = "fitted"
    qk_norm_tokens: Tokens = 16384
    mixed_window: str | None = None
    short_share: float = 0.3
    nproc: int = 1


@app.default
def recalibrate(
    model: str,
    *,
    run: Annotated[Run, Parameter(name="*", group=Group("What to make", sort_key=5))],
    recalibrating: RecalibratingFlags,
    seed: int = 0,
    loading: LoadingFlags = NO_LOADING,
    general: GeneralFlags = NO_GENERAL,
) -> None:
    """Train.

    Parameters
    ----------
    model
        Hub id, folder, GGUF file, or bundled.
    seed
        Seed of the order of the text.
    """
    with session(general) as output:
        from drope import models
        from drope.models.shape import stops_rotation
        from drope.training import processes
        from drope.training import recalibrate as train

        if launching.handed_over(run.nproc):
            return
        processes.set_device()
        if run.control and run.qk_norm:
            raise InputError("--qk-norm", True, "no QKNorm with --control, which trains the model as it is")
        if run.mixed_window and not run.control:
            raise InputError("--mixed-window", run.mixed_window, "none without --control, which keeps the rotation")
        place: Any = {"revision": loading.revision, "trust_remote_code": loading.trust_remote_code}
        taught = not run.mixed_window and not stops_rotation(models.load_config(model, **place))
        config = recalibrating.config(seed, taught)
        loaded = models.load(model, **loading.options())
        if loaded.tokenizer is None:
            raise InputError("model", model, "a checkpoint with a tokenizer")
        context = models.rope_shape(loaded.model.config).context
        target = context if run.control and not run.mixed_window else parse_target(run.to, context)
        rescaled = None
        if run.mixed_window:
            config.mixed_window = _mixed_window(run, loaded, target)
            rescaled = config.mixed_window.method
        if not run.control and target <= context:
            raise InputError("--to", run.to, f"a length above the model's context of {context} tokens")
        learns = (config.distill or config.match) and run.qk_norm and not run.control
        teacher = models.load(model, **loading.options()).model if learns else None
        start: Any = loaded.model
        norm: dict[str, Any] = {}
        if run.qk_norm:
            start = start if config.fade else models.drop(start)
            processes.start(start.device)
            norming = (config.context or context, run.qk_norm_init, recalibrating.data, run.qk_norm_tokens)
            start, norm = processes.first_then_all(partial(add_norm, start, loaded.tokenizer, *norming))
        done = train(
            start, loaded.tokenizer, config, run.out / "run", resume=run.resume, control=run.control, teacher=teacher
        )
        written = run.out / "model"
        method = rescaled.name if rescaled else "rope" if run.control else "drope"
        provenance = {
            "source": short_name(model), "method": method, "tokens": done.tokens_seen, "data": done.data,
            "recalibration": done.settings, **({"qk_norm": norm} if norm else {}),
        }  # fmt: skip
        if run.control and rescaled is None:
            save: Any = partial(save_rotating, done.model, loaded.tokenizer, written)
        else:
            save = partial(
                models.save, done.model, written, loaded.tokenizer, target_length=target, provenance=provenance,
                overwrite=True,
                method=rescaled,
            )  # fmt: skip
        processes.by_first(save)
        value = {"model": str(written), "steps": done.steps, "history": done.history, **provenance}
        output.result(value, *_summary(done, run, written))


def _mixed_window(run: Run, loaded: Any, target: int) -> Any:
    """What the run trains at; LongRoPE2's factors are searched, or taken from the cache."""
    from drope.positions import get
    from drope.search import longrope2_method
    from drope.training.mixed_window import MixedWindow

    method = get(str(run.mixed_window))
    MixedWindow(method, target, run.short_share)  # refuses settings before a search
    if method.name == "longrope2":
        method = longrope2_method(loaded.model, loaded.tokenizer, [target])
    return MixedWindow(method, target, run.short_share)


def save_rotating(model: Any, tokenizer: Any, out: Path) -> None:
    """A rotating model is saved as transformers saves it, whole or not at all."""
    from drope.files import new_folder

    with new_folder(out, overwrite=True) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _summary(done: Any, run: Run, written: Path) -> list[RenderableType]:
    rows = [
        (
            format_tokens(row["tokens"]),
            *("" if row.get(k) is None else f"{row[k]:.4f}" for k in ("loss", "eval_loss")),
            "" if row.get("learning_rate") is None else f"{row['learning_rate']:.2e}",
            "" if not row.get("tokens_per_second") else f"{row['tokens_per_second']:,.0f}",
        )
        for row in _thinned(done.history)
    ]
    name = "Training the control, RoPE kept" if run.control else "Recalibration"
    after = f"drope compare {written} ..." if run.control else f"drope temperature {written} --to {run.to}"
    return [
        table(f"{name} (loss in nats per token)", ("tokens", "loss", "held-out loss", "rate", "tokens/s"), rows),
        facts(f"Wrote {written}", [("trained on", f"{done.tokens_seen:,} tokens"), ("next", after)]),
    ]


def _thinned(history: list[dict[str, Any]], most: int = 20) -> list[dict[str, Any]]:
    """Rows to show: those with a held-out loss, or all if there are none, evenly thinned; the last is kept."""
    rows = [row for row in history if row.get("eval_loss") is not None] or history
    step = -(-len(rows) // most) or 1
    return rows[::-1][::step][::-1]
