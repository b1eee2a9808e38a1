"""`drope analyze`: the paper's theory and figures on any model."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Group, Parameter

from drope.commands import typed
from drope.commands.measuring import short_name
from drope.commands.options import NO_GENERAL, NO_LOADING, GeneralFlags, Loading, LoadingFlags, Several
from drope.commands.output import facts, session, table
from drope.errors import InputError
from drope.quantities import parse_target
from drope.record import folded_beta

if TYPE_CHECKING:
    from rich.console import RenderableType

    from drope.analysis import AnalysisConfig

app = App(
    name="analyze",
    help_epilogue="""Examples:

  # every figure for one model, as a page with its data beside it
  drope analyze bundled --out out/analysis
  # what recalibration changed, and the temperature that entropy predicts beside the fitted one
  drope analyze org/model --against out/recalibrated --temperature temperature.json --out out/analysis
  # frequencies of any config, without its weights
  drope analyze org/model --parts frequencies
  # how gradients of the positional bias went along a run
  drope analyze bundled --parts initial --along out/recalibrated/run --out out/analysis""",
)

_PARTS = ("frequencies", "theory", "initial", "heads", "crop", "spread", "changes", "entropy")
_MOST = 2048  # tokens looked at unless asked for more: a small model then takes a few minutes on a laptop


@dataclass(frozen=True)
class Analysing:
    """What to look at.

    Parameters
    ----------
    parts
        frequencies, theory, initial, heads, crop, spread, changes, entropy. The first three read no weights.
    length
        Tokens of the text that attention is watched on; 1x, but at most 2k, by default.
    beyond
        Tokens of the text for what happens beyond the context (crop, entropy); 0 for none. By default 4x where that is
        at most 2k.
    initial_length
        Tokens for the gradients at initialisation and along a run.
    factor
        Extension factor that PI, NTK and YaRN are set to.
    offsets
        Largest offset at which a head counts as positional.
    depths
        Depths of the needle probes, from 0 (start) to 1 (end).
    text
        Text to look at: stdlib:heldout, a file, a folder or a hub dataset.
    along
        Folder of a training run or recalibration, for the gradients at each of its checkpoints.
    """

    parts: Annotated[tuple[str, ...], Several] = _PARTS
    length: str | None = None
    beyond: str | None = None
    initial_length: int = 256
    factor: float = 2.0
    offsets: int = 8
    depths: Annotated[tuple[float, ...], Several] = (0.0, 0.25, 0.5, 0.75, 1.0)
    text: str = "stdlib:heldout"
    along: Path | None = None

    def config(self, context: int, seed: int) -> AnalysisConfig:
        """The analysis's own settings, for a model of this context in tokens."""
        from drope.analysis import AnalysisConfig

        length = min(context, _MOST) if self.length is None else parse_target(self.length, context, "--length")
        if self.beyond is None:
            beyond = 4 * context if 4 * context <= _MOST else 0
        else:
            beyond = 0 if self.beyond.strip() == "0" else parse_target(self.beyond, context, "--beyond")
        return AnalysisConfig(
            parts=self.parts, length=length, beyond=beyond, initial_length=min(self.initial_length, context),
            factor=self.factor, offsets=self.offsets, depths=self.depths, text=self.text, seed=seed,
        )  # fmt: skip


AnalysingFlags = Annotated[Analysing, Parameter(name="*", group=Group("What to look at", sort_key=20))]
NO_ANALYSING = Analysing()


@app.default
def analyze(
    model: str,
    *,
    against: str | None = None,
    temperature: Path | None = None,
    seed: int = 0,
    out: Path | None = None,
    analysing: AnalysingFlags = NO_ANALYSING,
    loading: LoadingFlags = NO_LOADING,
    general: GeneralFlags = NO_GENERAL,
) -> None:
    """Analyse.

    Parameters
    ----------
    model
        Hub id, folder, GGUF file, or bundled.
    against
        A second model of the same architecture, such as the first one recalibrated.
    temperature
        Fit that `drope temperature --out` wrote, to hold the prediction of entropy against.
    out
        Folder for analysis.html and analysis.json.
    seed
        Seed of the needles, of the initial weights and of the stacks.
    """
    with session(general) as output:
        from drope.analysis import Subject, check_lengths, checkpoints
        from drope.analysis import analyze as run
        from drope.models import load_config, rope_shape
        from drope.results import describe_run

        if out is not None and out.exists() and not out.is_dir():
            raise InputError("--out", str(out), "a folder")
        fit = _fit(temperature) if temperature else None
        model_config = load_config(model, revision=loading.revision, trust_remote_code=loading.trust_remote_code)
        context = rope_shape(model_config).context
        config = analysing.config(context, seed)
        check_lengths(config, model_config, context)  # before weights load
        if analysing.along:
            checkpoints(analysing.along)
        subject = Subject(short_name(model), model_config, temperature=fit)
        _load(subject, model, against, config, loading)
        started = time.perf_counter(), time.process_time()
        data = run(subject, config, run=analysing.along)
        spent = time.perf_counter() - started[0], time.process_time() - started[1]
        times = {"seconds": round(spent[0], 1), "processor_seconds": round(spent[1], 1)}
        data["meta"] = describe_run(typed.command(f"drope analyze {subject.name}"), seed) | times
        shown = summary(data)
        if out is not None:
            from drope.files import write_text
            from drope.report.analysis import write_analysis

            text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
            write_text(out / "analysis.json", text + "\n")
            shown.append(f"Wrote {write_analysis(data, out / 'analysis.html')} and analysis.json beside it")
        else:
            shown.append("Nothing was kept: --out DIR keeps the page and its data.")
        output.result(data, *shown)


def _load(subject: Any, model: str, against: str | None, config: AnalysisConfig, loading: Loading) -> None:
    """The models and the tokenizer, as far as the parts need them."""
    from drope.models import load

    if not config.needs_weights:
        if against:
            hint = "These parts read one config alone: leave --against out, or choose other parts."
            raise InputError("--against", against, "nothing, with these --parts", hint)
        if "initial" in config.parts:
            subject.tokenizer = load(model, **{**loading.options(), "device": "cpu"}, weights=False).tokenizer
        return
    loaded = load(model, **loading.options())
    if loaded.tokenizer is None:
        raise InputError("model", model, "a checkpoint with a tokenizer", "Its attention is watched on text.")
    subject.model, subject.tokenizer, subject.config = loaded.model, loaded.tokenizer, loaded.model.config
    if against:
        other = load(against, **loading.options())
        subject.against, subject.against_name = other.model, short_name(against)
        if (beta := folded_beta(against)) != 1:
            subject.notes.append(
                f"The weights of {subject.against_name} hold a temperature of {beta:.3g}: its queries, its entropy and "
                "its drift show it."
            )


def _fit(path: Path) -> dict[str, Any]:
    from drope.temperature import TemperatureFit

    try:
        return TemperatureFit.from_dict(json.loads(path.read_text(encoding="utf-8"))).to_dict()
    except (OSError, ValueError, KeyError, TypeError, InputError) as error:
        allowed = "a fit of β(s) that `drope temperature --out` wrote"
        raise InputError("--temperature", str(path), allowed, str(error)) from error


def _law(a: float) -> str:
    return f"1 {'-' if a < 0 else '+'} {abs(a):.3f} ln s"


def summary(data: dict[str, Any]) -> list[RenderableType]:
    """The analysis for people; the page has all of it."""
    parts, shown = data["parts"], []
    if found := parts.get("frequencies"):
        targets = sorted({m["length"] for m in found["methods"]})
        counts = {(m["label"], m["length"]): len(m["out_of_range"]) for m in found["methods"]}
        labels = list(dict.fromkeys(m["label"] for m in found["methods"]))
        head = ("method", *(f"{n} tokens" for n in targets))
        rows = [(label, *(f"{counts.get((label, n), 0)} of {found['pairs']}" for n in targets)) for label in labels]
        shown.append(table("Rotary pairs with phases that training never showed", head, rows))
    if found := parts.get("heads"):
        means = {s["label"]: [v for layer in s["strongest"] for v in layer] for s in found["states"].values()}
        rows = [(label, f"{sum(v) / len(v):.3f}", f"{max(v):.3f}") for label, v in means.items()]
        shown.append(table("How positional the heads are (A^c)", ("state", "mean", "largest"), rows))
        best = [(f"layer {h['layer']}, head {h['head']}", h["what"], f"{h['score']:.3f}")
                for kind in ("positional", "semantic") for h in found[kind][:3]]  # fmt: skip
        shown.append(table("Positional and semantic heads", ("head", "what it does", "score"), best, left=2))
    lines = []
    if found := parts.get("theory"):
        held = all(r["holds"] for r in (*found["theorem"], *found["propositions"]))
        checks = sum(r["checks"] for r in (*found["theorem"], *found["propositions"]))
        lines.append(("theorem and propositions", f"{checks} checks, {'all hold' if held else 'NOT all hold'}"))
    if found := parts.get("entropy"):
        for state in found["states"].values():
            if state.get("a") is not None:
                lines.append((f"β by entropy, {state['label']}", _law(state["a"])))
        if found.get("fitted"):
            lines.append(("β fitted to the loss", _law(found["fitted"]["a"])))
    if lines:
        shown.append(facts("Theory and temperature", lines))
    return [*shown, *(f"Note: {note}" for note in data["notes"])]
