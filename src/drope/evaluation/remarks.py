"""What is to be said of a comparison: contexts that were only declared, methods on weights not trained for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from drope.evaluation.server import Server
from drope.quantities import format_tokens

if TYPE_CHECKING:
    from drope.evaluation.run import Entry
    from drope.positions import Method

    Planned = Sequence[tuple[str, str, Entry, Method]]


_ALIKE = 0.02  # tokens that differ by less are as many, as in the report


def remarks(entries: Mapping[str, Entry], plan: Planned, context: int) -> dict[str, Any]:
    """Fields for the meta of results: `notes` for people; `declared_context`, `not_recalibrated` and
    `recalibrated_tokens` for programs.

    Parameters
    ----------
    plan : (name in the results, entry's name, entry, method) of all that ran
    context : tokens that methods scaled from
    """
    found: dict[str, Any] = {}
    notes = []
    trained = {name: e.trained for name, e in entries.items() if e.trained and e.trained > context}
    if trained:
        found["declared_context"] = {"tokens": context, "trained": trained}
        notes.append(_declared(trained, context))
    if labels := [label for label, _, entry, method in plan if not _recalibrated(entry, method)]:
        found["not_recalibrated"] = labels
        notes.append(
            f"Not recalibrated: {', '.join(labels)}. The weights were trained with a rotation that is taken out and "
            "have not been trained without it, so these rows are where recalibration starts, not what it ends with."
        )
    tokens = {name: e.tokens for name, e in entries.items() if e.tokens is not None}
    if len(tokens) > 1 and max(tokens.values()):
        found["recalibrated_tokens"] = tokens
        if min(tokens.values()) < (1 - _ALIKE) * max(tokens.values()):
            notes.append(_unmatched(tokens))
    return found | ({"notes": notes} if notes else {})


def _unmatched(tokens: Mapping[str, int]) -> str:
    amounts = ", ".join(f"{name} on {format_tokens(n) if n else 'none'}" for name, n in tokens.items())
    return (
        f"Tokens of recalibration are not matched: {amounts}. Part of a difference between these models may be what "
        "more training gives; a control trained alike (drope recalibrate --control) tells."
    )


def beyond_declared(entry: Entry, length: int, context: int) -> dict[str, int]:
    """`trained_context` for the details of a row that cannot be fair: longer than a context that was only declared."""
    if entry.trained and entry.trained > context and length > context:
        return {"trained_context": entry.trained}
    return {}


def _declared(trained: Mapping[str, int], context: int) -> str:
    models = ", ".join(f"{name} was trained at {tokens} tokens" for name, tokens in trained.items())
    return (
        f"A context of {context} tokens was declared, for the mechanics: {models}. Rows above {context} tokens "
        "(marked *) cannot be fair: the model knows these distances, plain RoPE is at home there, and no method that "
        "scales, remaps or crops can be expected to beat it."
    )


def _recalibrated(entry: Entry, method: Method) -> bool:
    """Whether the weights have had the training that a method is for, as far as they tell."""
    if isinstance(entry.model, Server) or not method.trained or method.from_scratch:
        return True
    from drope.models import is_position_free, trained_for

    if trained_for(entry.model.config) == method.name:
        return True
    return method.name == "drope" and is_position_free(entry.model)
