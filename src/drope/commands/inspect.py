"""`drope inspect`: what a model is and what an extension takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from drope.commands.options import NO_GENERAL, GeneralFlags, Several
from drope.commands.output import facts, gibibytes, human, session, table
from drope.quantities import format_count, format_tokens

if TYPE_CHECKING:
    from rich.console import RenderableType

    from drope.models import Inspection

app = App(
    name="inspect",
    help_epilogue="""Examples:

  drope inspect bundled
  drope inspect org/model --to 2x 8x 128k
  drope inspect model.gguf --json""",
)


@app.default
def inspect(
    model: str,
    *,
    to: Annotated[tuple[str, ...], Several] = ("2x", "4x", "8x"),
    revision: Annotated[str | None, Parameter(show_default=False)] = None,
    general: GeneralFlags = NO_GENERAL,
) -> None:
    """Describe.

    Parameters
    ----------
    model
        Hub id, folder, GGUF file, or bundled.
    to
        Target lengths, such as 8x or 32k.
    revision
        Branch, tag or commit on the hub.
    """
    with session(general) as output:
        from drope.models import inspect as look

        found = look(model, to, revision=revision)
        output.result(found.to_dict(), *summary(found))


def summary(found: Inspection) -> list[RenderableType]:
    """The inspection for people."""
    from drope.models.inspect import FLOPS_FORMULA, MEMORY_FORMULAS

    grouped = f", {found.kv_heads} of keys and values" if found.kv_heads != found.heads else ""
    sliding = f"{found.sliding_layers} layers see {found.sliding_window} tokens" if found.sliding_layers else ""
    active = (
        f", {human(found.active_parameters)} active per token" if found.active_parameters < found.parameters else ""
    )
    shown: list[RenderableType] = [
        facts(
            f"{found.source}: {found.architecture}",
            [
                ("size", f"{human(found.parameters)} parameters{active}"),
                ("layers", f"{found.layers} of width {found.hidden_size}, {found.heads} heads{grouped}"),
                ("vocabulary", f"{found.vocabulary:,} tokens"),
                ("context", f"{format_count(found.context)} tokens" if found.context else "not declared"),
                ("sliding windows", sliding),
            ],
        )
    ]
    if found.pairs is not None:
        rows = [("scheme", found.positions), ("base θ", f"{found.theta:g}" if found.theta else None)]
        rows.append(("rotated pairs", f"{found.pairs} per head, {found.rotated_width} channels"))
        if found.wavelengths:
            rows.append(("wavelengths", f"{found.wavelengths[0]:.1f} to {found.wavelengths[1]:,.0f} tokens"))
        rows.append(
            ("longer than the context", f"{found.long_wavelengths} of {found.pairs} pairs never complete a turn")
        )
        shown.append(facts("Positions", rows))
        head = ("target", "factor", "pairs with phases never trained")
        targets = [
            (format_count(t.length), f"{t.factor:g}x", f"{t.out_of_range} of {found.pairs}") for t in found.targets
        ]
        shown.append(table("Out of range at a longer context", head, targets))
    else:
        shown.append(facts("Positions", [("scheme", found.positions)]))
    norm = "can be added (--qk-norm)" if found.qk_norm_refusal is None else f"cannot be added: {found.qk_norm_refusal}"
    verdict = f"yes: the config will say rope type {found.encoding!r}" if found.convertible else f"no: {found.refusal}"
    shown.append(facts("Conversion", [("can be dropped", verdict), ("QKNorm", norm)]))
    if found.convertible:
        rows = [
            (
                "tokens",
                f"{format_tokens(found.suggested_tokens)}: {found.suggestion}" if found.suggested_tokens else None,
            ),
            ("work", f"{human(found.training_flops)} operations per token of training ({FLOPS_FORMULA})"),
        ]
        for name, size in found.memory.items():
            rows.append(("memory", f"{gibibytes(size)} + activations; bytes a parameter: {MEMORY_FORMULAS[name][0]}"))
        shown.append(facts("Recalibration", rows))
    return [*shown, *(f"Note: {note}" for note in found.notes)]
