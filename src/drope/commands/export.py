"""`drope export`: a position-free checkpoint in the form that one engine reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Group, Parameter

from drope.commands.options import NO_GENERAL, Flag, GeneralFlags, Several
from drope.commands.output import facts, gibibytes, session

app = App(
    name="export",
    help_epilogue="""Examples:

  drope export out/model --engine vllm --out out/model-vllm
  # model-f16.gguf and model-q8_0.gguf, with the tokenizer in them
  drope export out/model --engine llama.cpp --out out/model-gguf
  # a temperature 1 + 0.1·ln(1 + ⌊position / C_train⌋) in place of the constant one
  drope export out/model --engine mlx --length-temperature 0.1 --out out/model-mlx""",
)


@dataclass(frozen=True)
class Export:
    """What to write.

    Parameters
    ----------
    engine
        Who will serve it.
    out
        Folder to write.
    precision
        GGUF files to write: f16, q8_0, f32.
    pre_tokenizer
        llama.cpp's name of the tokenizer's splitting rule, where it is not recognised.
    keep
        Weights that stay in float16 in a q8_0 file; the outliers that are reported by default.
    length_temperature
        c of a temperature 1 + c·ln(1 + ⌊position / C_train⌋), in place of the constant one.
    results
        A results.json whose numbers go into the model card.
    push_to_hub
        Upload the folder as this owner/name afterwards.
    private
        Make that repository private.
    dry_run
        Only say what would be uploaded.
    overwrite
        Replace the folder if it exists.
    """

    engine: Literal["transformers", "vllm", "sglang", "llama.cpp", "mlx"]
    out: Path
    precision: Annotated[tuple[str, ...], Several] = ("f16", "q8_0")
    pre_tokenizer: str | None = None
    keep: Annotated[tuple[str, ...], Several] = ()
    length_temperature: float | None = None
    results: Path | None = None
    push_to_hub: str | None = None
    private: Flag = False
    dry_run: Flag = False
    overwrite: Flag = False


def _evaluation(path: Path) -> list[dict[str, Any]]:
    """Rows for the card: what was measured of the dropped model without further adjustment by depth or position."""
    from drope.results import Results

    return [
        {"task": m.task, "dataset": "drope", "config": f"{m.length} tokens", "metric": m.metric, "value": m.value}
        for m in Results.load(path).select(method="drope")
        if not {"depth", "position"} & m.details.keys()
    ]


@app.default
def export(
    model: str,
    *,
    options: Annotated[Export, Parameter(name="*", group=Group("What to write", sort_key=20))],
    revision: Annotated[str | None, Parameter(show_default=False)] = None,
    general: GeneralFlags = NO_GENERAL,
) -> None:
    """Write for an engine.

    Parameters
    ----------
    model
        Folder or hub id of a position-free checkpoint.
    revision
        Branch, tag or commit on the hub.
    """
    with session(general) as output:
        from drope.export import ENGINES
        from drope.export import export as write

        out = write(
            model, options.out, options.engine, precision=options.precision, pre=options.pre_tokenizer,
            keep=options.keep, length_temperature=options.length_temperature, overwrite=options.overwrite,
            evaluation=_evaluation(options.results) if options.results else (), revision=revision,
        )  # fmt: skip
        files = sorted(f.name for f in out.iterdir())
        value: dict[str, Any] = {"model": model, "out": str(out), "engine": options.engine, "files": files}
        check = {
            "llama.cpp": f"drope verify {out} --reference {model}",
            "transformers": f"drope verify {out} --engine transformers",
            "mlx": f"drope verify {out} --engine mlx",
        }.get(options.engine, f"drope verify {model} --base-url http://127.0.0.1:PORT/v1")
        serve = ENGINES[options.engine].serve.format(name=out, length="LENGTH")
        rows = [
            ("engine", options.engine),
            ("files", ", ".join(files)),
            ("serve", serve),
            ("check", check),
        ]
        if options.push_to_hub:
            from drope.export.hub import push

            pushed = push(out, options.push_to_hub, private=options.private, dry_run=options.dry_run)
            value["hub"] = pushed
            size = gibibytes(sum(pushed["files"].values()))
            rows.append(("hub", pushed["url"] or f"{pushed['repo']}: {len(pushed['files'])} files, {size} (dry run)"))
        output.result(value, facts(f"Wrote {out}", rows))
