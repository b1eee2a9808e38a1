"""`drope pretrain`: a new model, with positions until some point and without them from there on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Group, Parameter

from drope.commands import launching
from drope.commands.config import parse_settings
from drope.commands.measuring import short_name
from drope.commands.options import NO_GENERAL, NO_LOADING, Flag, GeneralFlags, LoadingFlags, Several, Tokens
from drope.commands.output import facts, session
from drope.commands.recalibrate import save_rotating
from drope.commands.recalibrating import RecalibratingFlags
from drope.errors import InputError
from drope.quantities import parse_target

app = App(
    name="pretrain",
    help_epilogue="""Examples:

  # RoPE for seven eighths of the run, then none: the paper's schedule
  drope pretrain bundled --data stdlib --tokens 16M --drop-at 14M --out out/dropped
  # the same shape with ALiBi throughout, and another size
  drope pretrain bundled --data stdlib --tokens 16M --method alibi --out out/alibi
  drope pretrain bundled --shape hidden_size=256 num_hidden_layers=8 --data stdlib --tokens 16M --out out/larger""",
)


@dataclass(frozen=True)
class Pretraining:
    """What to make.

    Parameters
    ----------
    out
        Folder: the runs, and the model in model/.
    method
        Positions of the first part, any architecture of the catalogue; by default the model's own rotation.
    drop_at
        Tokens after which the positions are dropped. Default: never.
    rewarm
        Steps of the new warm-up, or a share below 1.
    drop_rate
        Peak learning rate after the drop.
    shape
        Fields of the configuration to set otherwise, as key=value.
    to
        Context that a dropped checkpoint declares, such as 8x.
    resume
        Go on with the run in that folder.
    nproc
        Processes on this machine, one GPU each.
    """

    out: Path
    method: str = "rope"
    drop_at: Annotated[Tokens | None, Parameter(show_default=False)] = None
    rewarm: float = 70
    drop_rate: float = 1e-3
    shape: Annotated[tuple[str, ...], Several] = ()
    to: str = "8x"
    resume: Flag = False
    nproc: int = 1


@app.default
def pretrain(
    model: str,
    *,
    pretraining: Annotated[Pretraining, Parameter(name="*", group=Group("What to make", sort_key=5))],
    recalibrating: RecalibratingFlags,
    seed: int = 0,
    loading: LoadingFlags = NO_LOADING,
    general: GeneralFlags = NO_GENERAL,
) -> None:
    """Pretrain.

    Parameters
    ----------
    model
        Hub id, folder or bundled: its configuration and tokenizer are taken, its weights are not.
    seed
        Seed of the weights and of the order of the text.
    """
    with session(general) as output:
        from drope import models, positions
        from drope.models.load import load_tokenizer
        from drope.training import processes
        from drope.training.pretrain import fresh_model
        from drope.training.pretrain import pretrain as train

        if launching.handed_over(pretraining.nproc):
            return
        processes.set_device()
        config = recalibrating.config(seed, taught=False)
        if config.distill or config.fade or config.match:
            raise InputError("--recipe", "fast", "paper: a new model has no original to learn from, nor to fade")
        place: Any = {"revision": loading.revision, "trust_remote_code": loading.trust_remote_code}
        source, tokenizer = models.load_config(model, **place), load_tokenizer(model, **place)
        made = fresh_model(source, parse_settings(pretraining.shape, "--shape"), len(tokenizer), seed)
        method = None if pretraining.method == "rope" else positions.get(pretraining.method)
        context = models.rope_shape(made.config).context
        target = parse_target(pretraining.to, context)
        if loading.device == "auto" and torch_device() != "cpu" or loading.device not in ("auto", "cpu"):
            made.to(torch_device() if loading.device == "auto" else loading.device)  # type: ignore[arg-type]
        runs = train(
            made, tokenizer, config, pretraining.out, method=method, drop_at=pretraining.drop_at,
            rewarm=pretraining.rewarm, drop_rate=pretraining.drop_rate, resume=pretraining.resume,
        )  # fmt: skip
        written = pretraining.out / "model"
        tokens = sum(run.tokens_seen for run in runs)
        made = runs[-1].model
        provenance = {
            "source": f"new weights in the shape of {short_name(model)}", "tokens": tokens, "data": runs[-1].data,
            "method": pretraining.method if pretraining.drop_at is None else "drope",
            "recalibration": runs[-1].settings,
        }  # fmt: skip
        if pretraining.drop_at is None:
            save: Any = partial(save_rotating, made, tokenizer, written)
        else:
            save = partial(
                models.save, made, written, tokenizer, target_length=target, provenance=provenance, overwrite=True
            )
        processes.by_first(save)
        history = [{"run": name, **row} for name, run in zip(("positions", "dropped"), runs, strict=False)
                   for row in run.history]  # fmt: skip
        loss = next((row["eval_loss"] for row in reversed(history) if row["eval_loss"] is not None), None)
        output.result(
            {"model": str(written), "history": history, **provenance},
            facts(
                f"Wrote {written}",
                [("trained on", f"{tokens:,} tokens"), ("held-out loss", loss and f"{loss:.4f}")],
            ),
        )


def torch_device() -> str:
    """This process's accelerator, or cpu."""
    import torch

    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
