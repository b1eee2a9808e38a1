"""`drope temperature`: fit a softmax temperature on held-out text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Group, Parameter

from drope.commands.options import NO_GENERAL, NO_LOADING, GeneralFlags, Length, LoadingFlags, Pair, Several, Tokens
from drope.commands.output import facts, session, table
from drope.errors import InputError
from drope.quantities import format_count, parse_target
from drope.record import folded_beta

if TYPE_CHECKING:
    from rich.console import RenderableType

    from drope.temperature import FormFit, TemperatureFit

app = App(
    name="temperature",
    help_epilogue="""Examples:

  # β for three lengths and the constant a, on the standard library's held-out prose
  drope temperature out/recalibrated --to 2x 4x 8x
  # on a book, kept for evaluate and compare
  drope temperature out/recalibrated --to 32k --data book.txt --out temperature.json
  # what serves retrieval rather than running text
  drope temperature out/recalibrated --to 4x --objective needles
  # a factor for each head, by gradient descent (HeadScale); evaluate and compare take it as they take β
  drope temperature out/recalibrated --to 4x --form per_head --out heads.json""",
)


@dataclass(frozen=True)
class Fitting:
    """How to fit.

    Parameters
    ----------
    to
        Target lengths, such as 8x or 16k.
    context
        Tokens that s counts from, for a model that was recalibrated at fewer than its own context.
    form
        log: β(s) = 1 + a·ln s over several lengths, as in the paper. For one length: constant β, per_position
        1 + a·ln(i/C), per_head (HeadScale), per_head_log 1 + a·ln s of each head, scalable_softmax s·ln n.
    data
        Held-out text, or the haystack of the needles: stdlib:heldout, a file, a folder or a hub dataset.
    max_tokens
        Tokens per length and pass; a fit takes about 12 passes.
    bounds
        Interval of β to search.
    objective
        Minimise the perplexity of text, as in the paper, or the loss of needle answers.
    tolerance
        Accuracy of β.
    batch_tokens
        Tokens held on the device at once.
    tasks
        Tasks of the needle objective.
    seed
        Seed of those needles, none of which the evaluation uses, and of the order of a gradient fit.
    steps
        Of the gradient fits: per_head, per_head_log, scalable_softmax.
    learning_rate
        Theirs, at the first step and at the last.
    least
        Lower bound of a head's factor.
    """

    to: Annotated[tuple[str, ...], Several]
    context: Length | None = None
    form: Literal["log", "constant", "per_position", "per_head", "per_head_log", "scalable_softmax"] = "log"
    data: str = "stdlib:heldout"
    max_tokens: Tokens = 65536
    bounds: Pair = (0.7, 3.0)
    objective: Literal["perplexity", "needles"] = "perplexity"
    tolerance: float = 0.01
    batch_tokens: Tokens = 16384
    tasks: Annotated[tuple[str, ...], Several] = ("multi_query", "multi_key")
    seed: int = 0
    steps: int = 200
    learning_rate: Pair = (1e-1, 5e-2)
    least: float = 1.0


@app.default
def temperature(
    model: str,
    *,
    fitting: Annotated[Fitting, Parameter(name="*", group=Group("How to fit", sort_key=20))],
    out: Path | None = None,
    loading: LoadingFlags = NO_LOADING,
    general: GeneralFlags = NO_GENERAL,
) -> None:
    """Fit.

    Parameters
    ----------
    model
        A position-free checkpoint: folder or hub id.
    out
        File for the fit, as JSON.
    """
    with session(general) as output:
        from drope.files import write_json
        from drope.models import declare_context, is_position_free, load, rope_shape
        from drope.temperature import fit, fit_form
        from drope.temperature.heads import Gradient

        gradient = Gradient(fitting.steps, fitting.learning_rate, fitting.least)
        if fitting.form != "log" and len(fitting.to) != 1:
            raise InputError("--to", " ".join(fitting.to), f"one length with --form {fitting.form}")
        if (beta := folded_beta(model)) != 1:
            hint = "Fit the recalibrated model that it was made from, which has none."
            raise InputError(
                "model", model, f"a checkpoint without a temperature in its weights (here β = {beta:.3g})", hint
            )
        loaded = load(model, **loading.options())
        if loaded.tokenizer is None:
            raise InputError("model", model, "a checkpoint with a tokenizer")
        if not is_position_free(loaded.model):
            output.note(f"{model} rotates: β is fitted with its rotation in place, which is not what DroPE does.")
        declare_context(loaded.model.config, fitting.context)
        context = rope_shape(loaded.model.config).context
        lengths = [parse_target(text, context) for text in fitting.to]
        common: dict[str, Any] = {
            "text": fitting.data, "max_tokens": fitting.max_tokens, "bounds": fitting.bounds,
            "objective": fitting.objective, "tolerance": fitting.tolerance, "batch_tokens": fitting.batch_tokens,
            "tasks": fitting.tasks, "seed": fitting.seed,
        }  # fmt: skip
        fitted: TemperatureFit | FormFit
        if fitting.form == "log":
            fitted = fit(loaded.model, loaded.tokenizer, lengths, context=context, **common)
            shown = fit_tables(fitted)
        else:
            arguments = (loaded.model, loaded.tokenizer, fitting.form, lengths[0])
            fitted = fit_form(*arguments, gradient=gradient, **common)
            shown = _form_tables(fitted)
        if out:
            write_json(out, fitted.to_dict())
        output.result(fitted.to_dict(), *shown, *([f"Wrote {out}"] if out else []))


def _form_tables(fit: FormFit) -> list[RenderableType]:
    """A fit of another form than β(s), for people."""
    rows: list[tuple[str, str]] = [
        ("length", f"{format_count(fit.length)} ({fit.length / fit.context:.3g}x)"),
        ("loss", f"{fit.loss_without:.4f} without, {fit.loss:.4f} with"),
        ("gain", f"{fit.loss_without - fit.loss:+.4f} ± {fit.gain_se:.4f} nats per token, {fit.samples} samples"),
    ]
    for name, value in fit.settings.items():
        if name == "form":
            continue
        if isinstance(value, float):
            rows.append((name, _with_error(value, fit.value_se) + ("*" if fit.at_bound else "")))
        else:
            rows += [(f"layer {i}", "  ".join(f"{x:.3f}" for x in row)) for i, row in enumerate(value)]
    lines: list[RenderableType] = [facts(f"{fit.temperature.label} ({fit.form}) by {fit.objective}", rows)]
    return lines + (["* at an end of --bounds: the optimum may lie outside."] if fit.at_bound else [])


def fit_tables(fit: TemperatureFit) -> list[RenderableType]:
    """The fit for people."""
    rows = [
        (
            f"{format_count(p.length)} ({p.length / fit.context:.3g}x)",
            _with_error(p.beta, p.beta_se) + ("*" if p.at_bound else ""),
            f"{fit.beta(p.length):.3f}",
            f"{p.loss_without:.4f}",
            f"{p.loss:.4f}",
            f"{p.loss_without - p.loss:+.4f} ± {p.gain_se:.4f}",
            p.samples,
        )
        for p in fit.points
    ]
    head = ("length", "β", "of fit", "loss at 1", "at β", "gain", "n")
    return [
        table(f"Temperature by {fit.objective} (loss in nats per token, ± standard error)", head, rows),
        facts("β(s) = 1 + a·ln s", [("a", _with_error(fit.a, fit.a_se)), ("s", f"length / {fit.context}")]),
        *(["* at an end of --bounds: the optimum may lie outside."] if any(p.at_bound for p in fit.points) else []),
    ]


def _with_error(value: float, error: float | None) -> str:
    return f"{value:.3f}" + (f" ± {error:.3f}" if error is not None else "")
