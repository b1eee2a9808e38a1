"""`drope evaluate`: one model, its methods, the same trials."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import App

from drope.commands.catalogue import skipped_lines
from drope.commands.measuring import NO_MEASURING, ROPE_METHODS, MeasuringFlags, entry, measured_lengths, short_name
from drope.commands.options import NO_GENERAL, NO_LOADING, GeneralFlags, LoadingFlags, Several
from drope.commands.output import resumable, session
from drope.commands.tables import result_tables

app = App(
    name="evaluate",
    help_epilogue="""Examples:

  # every method that needs no training, at 1x, 2x, 4x and 8x the context
  drope evaluate bundled --out out/rope
  # a quick look
  drope evaluate bundled --tasks single --lengths 1x 2x --trials 50 --methods rope yarn
  # perplexity by position only
  drope evaluate org/model --tasks none --text book.txt --documents 8 --lengths 32k
  # an extended checkpoint, with the β of each length
  drope evaluate out/model --temperature temperature.json --out out/drope""",
)


@app.default
def evaluate(
    model: str,
    *,
    methods: Annotated[tuple[str, ...], Several] = (),
    temperature: Path | None = None,
    seed: int = 0,
    out: Path | None = None,
    measuring: MeasuringFlags = NO_MEASURING,
    loading: LoadingFlags = NO_LOADING,
    general: GeneralFlags = NO_GENERAL,
) -> None:
    """Measure.

    Parameters
    ----------
    model
        Hub id, folder, GGUF file, or bundled.
    methods
        Names of methods (docs/methods.md), such as rope, yarn, self_extend or drope; or all: every one that the model
        can run. By default drope for a position-free model, and rope, pi, ntk, dynamic_ntk, yarn and nope for others.
    temperature
        Fit that `drope temperature --out` wrote; sets β for each length of a position-free model.
    out
        Folder for results.json and the log of every sample; what it holds already is not run again.
    seed
        Seed of all trials.
    """
    with session(general) as output, resumable(out), tempfile.TemporaryDirectory() as scratch:
        from drope.evaluation import compare
        from drope.models import load_config, rope_shape

        context = rope_shape(
            load_config(model, revision=loading.revision, trust_remote_code=loading.trust_remote_code)
        ).context
        config = measuring.config(context, seed)
        name = short_name(model)
        loaded, skipped = entry(
            model, loading, temperature, rotating=methods or ROPE_METHODS, free=methods or ("drope",),
            lengths=measured_lengths(config, context),
        )  # fmt: skip
        results = compare(
            {name: loaded}, config, out or scratch, context=context, model_name=name,
            reference=loaded.methods[0].name, command=f"drope evaluate {name}",
            skipped=skipped,
        )  # fmt: skip
        where = f"Wrote {out / 'results.json'}" if out else "Nothing was kept: --out DIR keeps results and samples."
        lines = skipped_lines(skipped)
        output.result(asdict(results), *result_tables(results.measurements, context), *lines, where)
