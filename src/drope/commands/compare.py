"""`drope compare`: several models and methods on the same trials."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App

from drope.commands import typed
from drope.commands.catalogue import note_lines, skipped_lines
from drope.commands.measuring import (
    NO_MEASURING,
    ROPE_METHODS,
    MeasuringFlags,
    doublings,
    entry,
    measured_lengths,
    short_name,
    split_tasks,
)
from drope.commands.options import NO_GENERAL, NO_LOADING, GeneralFlags, LoadingFlags, Several
from drope.commands.output import resumable, session
from drope.commands.tables import result_tables
from drope.errors import InputError

if TYPE_CHECKING:
    from drope.evaluation import Entry

app = App(
    name="compare",
    help_epilogue="""Examples:

  # an extended model against RoPE, PI, NTK, dynamic NTK, YaRN and NoPE on its original
  drope compare org/model out/model --out out/compare
  # every method that the model can run, at 1x, 2x, 4x and 8x its context
  drope compare org/model --methods all --to 8x --out out/compare
  # names of your own, and some methods only
  drope compare base=org/model long=out/model --methods rope yarn --lengths 2x 4x --out out/compare
  # the mechanics of every method on short texts, as if the model had been trained at 256 tokens
  drope compare org/model --methods all --context 256 --to 8x --trials 5 --out out/mechanics""",
)


@app.default
def compare(
    models: Annotated[tuple[str, ...], Several],
    *,
    out: Path,
    methods: Annotated[tuple[str, ...], Several] = (),
    to: str | None = None,
    temperature: Path | None = None,
    seed: int = 0,
    measuring: MeasuringFlags = NO_MEASURING,
    loading: LoadingFlags = NO_LOADING,
    general: GeneralFlags = NO_GENERAL,
) -> None:
    """Compare.

    Parameters
    ----------
    models
        Hub ids, folders, GGUF files or bundled, each also as NAME=MODEL. The first sets the context.
    out
        Folder for results.json, report.html and the log of every sample; what it holds already is not run again.
    methods
        Methods for the models that rotate, by name (docs/methods.md), or all: every one that a model can run. By
        default rope, pi, ntk, dynamic_ntk, yarn and nope for the first such model and rope for the others.
        Position-free models run as drope.
    to
        Measure at the context, twice it, and so on up to this length, such as 8x or 16k, in place of --lengths.
    temperature
        Fit that `drope temperature --out` wrote; sets β for each length of the position-free models.
    seed
        Seed of all trials.
    """
    with session(general) as output, resumable(out):
        split_tasks(measuring.tasks, measuring.task_data)  # a mistyped name is told before the heavy imports
        from drope.evaluation import compare as run
        from drope.models import load_config
        from drope.report import write

        named = _named(models)
        first = load_config(
            next(iter(named.values())), revision=loading.revision, trust_remote_code=loading.trust_remote_code
        )
        context = measuring.counted(first)
        if to is not None:
            measuring = replace(measuring, lengths=doublings(to, context))
        config = measuring.config(context, seed)
        lengths = measured_lengths(config, context)
        entries: dict[str, Entry] = {}
        skipped: dict[str, str] = {}
        for name, source in named.items():
            seen = any(m.name == "rope" for e in entries.values() for m in e.methods)
            entries[name], left_out = entry(
                source, loading, temperature, rotating=methods or (("rope",) if seen else ROPE_METHODS),
                lengths=lengths, context=measuring.context,
            )  # fmt: skip
            skipped |= {f"{name}_{method}" if len(named) > 1 else method: why for method, why in left_out.items()}
        labels = [m.name for e in entries.values() for m in e.methods]
        reference = "drope" if "drope" in labels else labels[0]
        results = run(
            entries, config, out, context=context, reference=reference, skipped=skipped,
            command=typed.command("drope compare " + " ".join(named)),
        )  # fmt: skip
        page = write(results, out / "report.html")
        output.result(
            asdict(results),
            *result_tables(results.measurements, context),
            *skipped_lines(skipped),
            *note_lines(results),
            f"Wrote {out / 'results.json'} and {page}",
        )


def _named(models: tuple[str, ...]) -> dict[str, str]:
    """Names of the models: as given, else the last part of the path or hub id."""
    named: dict[str, str] = {}
    for model in models:
        name, equals, source = model.partition("=")
        if not equals or "/" in name:
            name, source = short_name(model), model
        if name in named:
            raise InputError("models", model, "models with different names", f"Name it: OTHER={source}.")
        named[name] = source
    return named
