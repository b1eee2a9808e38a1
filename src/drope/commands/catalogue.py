"""Which methods of the catalogue are run on a model: names, what cannot be run, and why; before its weights load."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from drope.errors import DropeError, InputError

if TYPE_CHECKING:
    from drope.positions import Method
    from drope.results import Results

ALL = "all"


@dataclass
class Chosen:
    """Methods to run on one model, and what was left out.

    skipped : name -> reason
    search : whether factors that are not known yet may be searched (LongRoPE2); with `all` that would take too long
    """

    methods: list[Method] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    search: bool = True


def choose(
    source: str,
    config: Any,
    names: Sequence[str],
    lengths: Iterable[int],
    free: Sequence[str],
    architecture: Callable[[], Any] | None = None,
) -> Chosen:
    """The methods of these names for a model of this configuration.

    Parameters
    ----------
    names : for a model that rotates; `all` is the catalogue, less what the model cannot run or was not trained for
    lengths : lengths in tokens that it will be measured at
    free : names for a position-free model
    architecture : makes the model without weights, to see whether its rotary modules carry out a scaling

    Raises
    ------
    InputError, UnsupportedModelError : a method asked for by name cannot be run on this model
    """
    from drope.models.applicable import check_method, trained_for, untrained_reason
    from drope.models.apply import apply
    from drope.models.shape import stops_rotation
    from drope.positions import METHODS, get

    noted = trained_for(config)
    bare = stops_rotation(config) and noted is None
    wanted = list(free if bare else names)
    every = ALL in wanted
    if every and len(wanted) > 1:
        raise InputError("--methods", " ".join(wanted), "all, or names of methods")
    chosen, lengths, made = Chosen(search=not every), list(lengths), None
    methods = {name: get(name) for name in (METHODS if every else wanted)}
    for name, method in methods.items():
        reason = _untrained(method, bare, noted) if every else None
        if reason is None:
            try:
                if (never := untrained_reason(config, method)) is not None:
                    raise InputError("--methods", name, _others(methods=METHODS), never)
                if bare and name not in ("drope", "nope"):
                    raise InputError("--methods", name, "drope or nope", f"{source} has no rotary positions to scale.")
                if name != "longrope2":  # its factors need the weights
                    needs = [check_method(config, method, length) for length in lengths]
                    if architecture is not None and any(needed.rope_parameters for needed in needs):
                        made = architecture() if made is None else made
                        with apply(made, method, max(lengths)):
                            pass
            except DropeError as error:
                if not every:
                    raise
                reason = str(error)
        if reason is None:
            chosen.methods.append(method)
        else:
            chosen.skipped[name] = reason
    return chosen


def with_factors(chosen: Chosen, model: Any, tokenizer: Any, lengths: Iterable[int]) -> Chosen:
    """LongRoPE2 with its factors for this model: searched, or taken from the cache."""
    from drope.search import longrope2_method

    done = Chosen(skipped=dict(chosen.skipped), search=chosen.search)
    for method in chosen.methods:
        if method.name == "longrope2" and not method.settings()["factors"]:
            try:
                method = longrope2_method(model, tokenizer, list(lengths), search=chosen.search)
            except InputError:
                if chosen.search:
                    raise
                done.skipped[method.name] = "No factors are known for these lengths; --methods longrope2 searches them."
                continue
        done.methods.append(method)
    return done


def skipped_lines(skipped: dict[str, str]) -> list[str]:
    """Lines for people on what was left out."""
    return [f"Not run: {name}. {reason}" for name, reason in skipped.items()]


def note_lines(results: Results) -> list[str]:
    """Lines for people on how far the results can be trusted."""
    return [f"Note: {note}" for note in results.meta.get("notes", ())]


def _untrained(method: Method, bare: bool, noted: str | None) -> str | None:
    """Why `all` leaves a method out for the training that the weights have had."""
    if bare:
        if method.name == "nope":
            return "It is the same as drope on a position-free model."
        return None if method.name == "drope" else "The model has no rotary positions."
    if method.trained and noted != method.name:
        how = "trained from scratch with it" if method.from_scratch else "recalibrated for it"
        return f"{method.label} needs weights that were {how}."
    return None


def _others(methods: dict[str, type[Method]]) -> str:
    return ", ".join(name for name, cls in methods.items() if not cls.from_scratch)
