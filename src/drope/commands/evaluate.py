"""`drope evaluate`: one model, its methods, the same trials."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App

from drope.commands import typed
from drope.commands.before_after import before_after
from drope.commands.catalogue import note_lines, skipped_lines
from drope.commands.measuring import (
    NO_MEASURING,
    ROPE_METHODS,
    MeasuringFlags,
    entry,
    measured_lengths,
    short_name,
    split_tasks,
)
from drope.commands.options import NO_GENERAL, NO_LOADING, GeneralFlags, LoadingFlags, Several
from drope.commands.output import resumable, session
from drope.commands.serving import NO_SERVING, ServingFlags, served_entry
from drope.commands.tables import result_tables
from drope.errors import InputError

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
  drope evaluate out/model --temperature temperature.json --out out/drope
  # RULER at 4k and 8k; order-sensitive probes; LongBench from local files
  drope evaluate org/model --tasks ruler order --lengths 4k 8k --trials 100 --out out/ruler
  drope evaluate org/model --tasks paper --longbench-data longbench/ --lengths 8k --out out/longbench
  # did the upgrade break the model? seven short-context tasks, before and after
  drope evaluate out/model --tasks short --against org/model --out out/short
  # a model that vLLM, SGLang or llama.cpp serves
  drope evaluate out/model --base-url http://localhost:8000/v1 --tasks ruler --lengths 16k --documents 0 --out out/v""",
)


@app.default
def evaluate(
    model: str,
    *,
    methods: Annotated[tuple[str, ...], Several] = (),
    temperature: Path | None = None,
    against: str | None = None,
    seed: int = 0,
    out: Path | None = None,
    measuring: MeasuringFlags = NO_MEASURING,
    serving: ServingFlags = NO_SERVING,
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
    against
        A second model, such as the original: measured alike, with a table of before (it) and after (MODEL).
    out
        Folder for results.json and the log of every sample; what it holds already is not run again.
    seed
        Seed of all trials.
    """
    with session(general) as output, resumable(out), tempfile.TemporaryDirectory() as scratch:
        split_tasks(measuring.tasks, measuring.task_data)  # a mistyped name is told before the heavy imports
        from drope.evaluation import compare
        from drope.evaluation.run import method_labels
        from drope.models import load_config

        context = measuring.counted(
            load_config(model, revision=loading.revision, trust_remote_code=loading.trust_remote_code)
        )
        config = measuring.config(context, seed)
        name = short_name(model)
        skipped: dict[str, str] = {}
        if serving.base_url:
            if against or methods:
                raise InputError("--base-url", serving.base_url, "no --methods and no --against",
                                 "A server runs its model as it is.")  # fmt: skip
            entries = {name: served_entry(model, serving, loading, config)}
        else:
            lengths = measured_lengths(config, context)
            usual = ("rope",) if against or not config.tasks and config.harness_tasks else ROPE_METHODS
            entries = {}
            entries[name], skipped = entry(
                model, loading, temperature, rotating=methods or usual, free=methods or ("drope",), lengths=lengths,
                context=measuring.context,
            )  # fmt: skip
            if against:
                other = short_name(against) if short_name(against) != name else f"{name}-before"
                entries[other], _ = entry(
                    against, loading, None, rotating=("rope",), lengths=lengths, context=measuring.context
                )
        reference = method_labels(entries)[-1 if against else 0]
        results = compare(
            entries, config, out or scratch, context=context, model_name=name, reference=reference,
            command=typed.command(f"drope evaluate {name}"), skipped=skipped,
        )  # fmt: skip
        where = f"Wrote {out / 'results.json'}" if out else "Nothing was kept: --out DIR keeps results and samples."
        lines: list[Any] = [*skipped_lines(skipped), *note_lines(results)]
        if against:
            lines = [before_after(results, reference, method_labels(entries)[0]), *lines]
        output.result(asdict(results), *result_tables(results.measurements, context), *lines, where)
