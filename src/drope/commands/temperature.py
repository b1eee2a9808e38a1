"""`drope temperature`: fit β(s) on held-out text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Group, Parameter

from drope.commands.checkpoints import folded_beta
from drope.commands.options import NO_GENERAL, NO_LOADING, GeneralFlags, LoadingFlags, Pair, Several, Tokens
from drope.commands.output import facts, session, table
from drope.errors import InputError
from drope.quantities import format_count, parse_target

if TYPE_CHECKING:
    from rich.console import RenderableType

    from drope.temperature import TemperatureFit

app = App(
    name="temperature",
    help_epilogue="""Examples:

  # β for three lengths and the constant a, on the standard library's held-out prose
  drope temperature out/recalibrated --to 2x 4x 8x
  # on a book, kept for evaluate and compare
  drope temperature out/recalibrated --to 32k --data book.txt --out temperature.json
  # what serves retrieval rather than running text
  drope temperature out/recalibrated --to 4x --objective needles""",
)


@dataclass(frozen=True)
class Fitting:
    """How to fit.

    Parameters
    ----------
    to
        Target lengths, such as 8x or 16k.
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
        Seed of those needles, none of which the evaluation uses.
    """

    to: Annotated[tuple[str, ...], Several]
    data: str = "stdlib:heldout"
    max_tokens: Tokens = 65536
    bounds: Pair = (0.7, 3.0)
    objective: Literal["perplexity", "needles"] = "perplexity"
    tolerance: float = 0.01
    batch_tokens: Tokens = 16384
    tasks: Annotated[tuple[str, ...], Several] = ("multi_query", "multi_key")
    seed: int = 0


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
        from drope.models import is_position_free, load, rope_shape
        from drope.temperature import fit

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
        context = rope_shape(loaded.model.config).context
        fitted = fit(
            loaded.model, loaded.tokenizer, [parse_target(text, context) for text in fitting.to], context=context,
            text=fitting.data, max_tokens=fitting.max_tokens, bounds=fitting.bounds, objective=fitting.objective,
            tolerance=fitting.tolerance, batch_tokens=fitting.batch_tokens, tasks=fitting.tasks, seed=fitting.seed,
        )  # fmt: skip
        if out:
            write_json(out, fitted.to_dict())
        output.result(fitted.to_dict(), *fit_tables(fitted), *([f"Wrote {out}"] if out else []))


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
