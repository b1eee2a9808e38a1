"""`drope plan`: what a recalibration will take, before anything is rented."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cyclopts import App, Group, Parameter

from drope.commands.measuring import short_name
from drope.commands.options import NO_GENERAL, NO_LOADING, Flag, GeneralFlags, Length, LoadingFlags, Tokens
from drope.commands.output import facts, gibibytes, human, session, table
from drope.quantities import format_tokens

app = App(
    name="plan",
    help_epilogue="""Examples:

  drope plan org/model --tokens 20B --gpus 8xH100
  # distilled from the original, at a utilisation that was measured
  drope plan org/model --tokens 5B --gpus 4xA100-40 --distill --mfu 0.35""",
)


@dataclass(frozen=True)
class Planning:
    """What is to be run, and on what.

    Parameters
    ----------
    tokens
        To train on, such as 20B.
    gpus
        Number and kind: 8xH100, 4xA100-40, RTX4090.
    batch_tokens
        Tokens a step.
    context
        Tokens a block. Default: the model's own context.
    optimizer
        adamw, or muon for the matrices.
    distill
        A copy of the original in memory, as --recipe fast has it.
    mfu
        Model FLOPs utilisation to reckon with: 0.4 is usual for dense models of 1B and more, small ones reach less.
    """

    tokens: Tokens
    gpus: str = "1xH100"
    batch_tokens: Tokens = 1 << 20
    context: Annotated[Length | None, Parameter(show_default=False)] = None
    optimizer: Literal["adamw", "muon"] = "adamw"
    distill: Flag = False
    mfu: float = 0.4


@app.default
def plan(
    model: str,
    *,
    planning: Annotated[Planning, Parameter(name="*", group=Group("What to plan", sort_key=5))],
    loading: LoadingFlags = NO_LOADING,
    general: GeneralFlags = NO_GENERAL,
) -> None:
    """Plan.

    Parameters
    ----------
    model
        Hub id, folder, GGUF file, or bundled; only its configuration is read.
    """
    with session(general) as output:
        from drope.models import load_config
        from drope.training.budget import GPUS, Shape, budget

        config = load_config(model, revision=loading.revision, trust_remote_code=loading.trust_remote_code)
        shape = Shape.of(config)
        found = budget(
            shape, planning.gpus, planning.tokens, batch_tokens=planning.batch_tokens, context=planning.context,
            optimizer=planning.optimizer, distill=planning.distill, mfu=planning.mfu,
        )  # fmt: skip
        capacity, teraflops = GPUS[found.gpu]
        memory = found.to_dict()["memory"]
        split = {"none": "one GPU", "ddp": "a whole copy on each GPU (DDP)", "fsdp": "sharded over the GPUs (FSDP2)"}
        rows = [(name, gibibytes(value)) for name, value in memory.items()]
        output.result(
            {"model": short_name(model), "parameters": shape.parameters, **found.to_dict()},
            table(f"Memory of each {found.gpu} ({capacity} GiB)", ("part", "size"), rows),
            facts(
                f"{short_name(model)}, {human(shape.parameters)} parameters, "
                f"{format_tokens(planning.tokens)} tokens on {found.gpus} × {found.gpu}",
                [
                    ("split", split[found.sharding] + (", gradient checkpointing" if found.checkpointing else "")),
                    ("batch", f"{found.batch_tokens:,} tokens in blocks of {found.context:,}"),
                    ("micro batch", f"{found.micro_batch} blocks × {found.accumulation} a step on each GPU"),
                    ("steps", f"{found.steps:,}"),
                    ("compute", f"{human(found.flops_per_token)}FLOP a token"),
                    ("time", f"{_hours(found.seconds)} at {found.mfu:.0%} of {teraflops:,} TFLOP/s"),
                    ("cost", f"{found.gpu_hours:,.0f} GPU-hours" if found.gpu_hours >= 10 else
                     f"{found.gpu_hours:.1f} GPU-hours"),
                    ("command", _command(model, planning, found)),
                ],
            ),
        )  # fmt: skip


def _hours(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours / 24:.1f} days" if hours > 48 else f"{hours:.1f} hours" if hours >= 1 else f"{seconds / 60:.0f} min"


def _command(model: str, planning: Planning, found: Any) -> str:
    words = ["drope recalibrate", short_name(model), "--data DATA", f"--tokens {planning.tokens}"]
    words += [f"--batch-tokens {found.batch_tokens}", f"--micro-batch {found.micro_batch}", "--out OUT"]
    words += [f"--nproc {found.gpus}"] * (found.gpus > 1) + ["--fsdp"] * (found.sharding == "fsdp")
    words += ["--set activation_checkpointing=true"] * found.checkpointing
    return " ".join(words)
