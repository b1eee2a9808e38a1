"""`drope extend`: everything in order."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Group, Parameter

from drope.commands import typed
from drope.commands.measuring import NO_MEASURING, ROPE_METHODS, MeasuringFlags, short_name
from drope.commands.options import NO_GENERAL, NO_LOADING, Flag, GeneralFlags, LoadingFlags, Several, Tokens
from drope.commands.output import resumable, session
from drope.commands.recalibrating import RecalibratingFlags
from drope.commands.tables import result_tables
from drope.quantities import parse_target

app = App(
    name="extend",
    help_epilogue="""Examples:

  # the bundled model, on text that every machine has
  drope extend bundled --data stdlib --tokens 2M --to 8x --out out/bundled
  # a real model, with the control that keeps RoPE on the same tokens
  drope extend org/model --data text/ --tokens 5B --to 32k --control --out out/model
  # settings from a file; flags win over it
  drope extend --config recipe.yaml --tokens 1B --out out/short

The same command again goes on where it stopped. DIR then holds checkpoint/, results.json and report.html.""",
)


@dataclass(frozen=True)
class Extending:
    """What to make.

    Parameters
    ----------
    to
        Target length, such as 16k or 8x; its temperature is folded into the checkpoint.
    out
        Folder for everything; the folder of an unfinished run with the same settings goes on.
    methods
        Methods that the source model is measured with.
    continue_from
        A position-free checkpoint that has had part of its recalibration, to go on from.
    control
        Also train the source with RoPE kept on the same tokens, and measure it.
    qk_norm
        Add per-head query and key normalisation.
    qk_norm_init
        Gains of that normalisation: fitted, or ones as in the paper.
    temperature_text
        Held-out text for β.
    temperature_objective
        Minimise the perplexity of text, as in the paper, or the loss of needle answers.
    temperature_tokens
        Tokens per length and pass of that fit.
    temperature_form
        One β(s) = 1 + a ln s for the model, as in the paper, or an a for each head, fitted by gradient descent.
    temperature_steps
        Of that descent.
    notes
        Lines for the report.
    """

    to: str
    out: Path
    methods: Annotated[tuple[str, ...], Several] = ROPE_METHODS
    continue_from: str | None = None
    control: Flag = False
    qk_norm: Flag = False
    qk_norm_init: Literal["fitted", "ones"] = "fitted"
    temperature_text: str = "stdlib:heldout"
    temperature_objective: Literal["perplexity", "needles"] = "perplexity"
    temperature_tokens: Tokens = 32768
    temperature_form: Literal["log", "per_head_log"] = "log"
    temperature_steps: int = 200
    notes: Annotated[tuple[str, ...], Several] = ()


@app.default
def extend(
    model: str,
    *,
    extending: Annotated[Extending, Parameter(name="*", group=Group("What to make", sort_key=5))],
    recalibrating: RecalibratingFlags,
    measuring: MeasuringFlags = NO_MEASURING,
    seed: int = 0,
    loading: LoadingFlags = NO_LOADING,
    general: GeneralFlags = NO_GENERAL,
) -> None:
    """Extend.

    Parameters
    ----------
    model
        Hub id, folder, GGUF file, or bundled.
    seed
        Seed of the order of the text and of all trials.
    """
    with session(general) as output, resumable(extending.out):
        from drope.models import load_config, rope_shape
        from drope.models.shape import stops_rotation
        from drope.pipeline import ExtendConfig
        from drope.pipeline import extend as run
        from drope.report import headline

        source = load_config(model, revision=loading.revision, trust_remote_code=loading.trust_remote_code)
        taught = extending.continue_from is None and not stops_rotation(source)
        recalibration = recalibrating.config(seed, taught)
        context = recalibration.context or rope_shape(source).context
        config = ExtendConfig(
            parse_target(extending.to, context),
            recalibration,
            measuring.config(context, seed),
            **{k: v for k, v in asdict(extending).items() if k not in ("to", "out", "notes")},
            notes=list(extending.notes),
        )
        for note in config.notes:
            output.note(note)
        name = short_name(model)
        done = run(
            model,
            extending.out,
            config,
            command=typed.command(f"drope extend {name}"),
            loading=loading.options(),
            say=output.note,
        )
        output.result(
            {"results": asdict(done.results), "checkpoint": str(done.checkpoint), "report": str(done.report)},
            *result_tables(done.results.measurements, context),
            headline(done.results),
            f"Wrote {done.checkpoint}, {extending.out / 'results.json'} and {done.report}",
        )
