"""All of an analysis in order, as one JSON value that the page is made from. See `docs/theory.md` for what it means."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drope.analysis import changes, heads
from drope.analysis.config import PARTS, AnalysisConfig
from drope.analysis.entropy import EntropyVisitor
from drope.analysis.figure4 import along, checkpoints, initial_gradients
from drope.analysis.frequencies import frequency_table
from drope.analysis.measure import (
    changes_part,
    constant_part,
    crop_part,
    entropy_lengths,
    entropy_part,
    heads_part,
    is_whole,
    needle_probes,
)
from drope.analysis.patterns import STANDARD, Pattern, offsets
from drope.analysis.propositions import proposition_32, proposition_33
from drope.analysis.stack import Stack, Statement
from drope.analysis.states import Survey, states, survey
from drope.analysis.subject import Subject
from drope.analysis.theorem import theorem_34
from drope.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from drope.positions import RopeShape

SCHEMA = 1
# (width, heads, depth, length) of the stacks that the theorem is measured on, and ε
STACKS = ((32, 2, 2, 32), (32, 2, 2, 128), (64, 4, 4, 64), (64, 4, 4, 256), (96, 6, 8, 64))
EPSILONS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def analyze(subject: Subject, config: AnalysisConfig | None = None, run: str | Path | None = None) -> dict[str, Any]:
    """Analyse a model, alone or against another of the same architecture; the models come back as they were.

    Parameters
    ----------
    run : folder with the checkpoints of a training run or a recalibration, for ‖∇A^c‖ along it

    Returns
    -------
    {schema, kind, model, against, context, length, beyond, notes, parts: {name: data}}; every list is plain JSON

    Raises
    ------
    UnsupportedModelError : a family without rotation, or whose attention cannot be watched
    InputError : a length beyond the model, models of different architectures, too little text
    """
    from drope.models import rope_shape
    from drope.progress import track

    config = config or AnalysisConfig()
    shape = rope_shape(subject.config)
    check_lengths(config, subject.config, shape.context)
    if subject.model is not None and subject.against is not None:
        changes.same_architecture(subject.model, subject.against)
    places = checkpoints(run) if run else []
    if subject.model is not None:  # what would fail after minutes fails now
        subject.ids(config.text, max(config.length, config.beyond))
        if "heads" in config.parts:
            needle_probes(subject, config)
    data: dict[str, Any] = {}
    notes = list(subject.notes)
    with track("Analysis", total=len(config.parts) + bool(run), unit="parts") as bar:

        def done(name: str, value: Any) -> None:
            if value is not None:
                data[name] = value
            bar.advance(1, name)

        if "frequencies" in config.parts:
            targets = [round(shape.context * f) for f in (config.factor, 2 * config.factor, 4 * config.factor)]
            done("frequencies", frequency_table(shape, targets).to_dict())
        if "theory" in config.parts:
            done("theory", theory(config.seed))
        if "initial" in config.parts:
            done("initial", _initial(subject, config))
        if subject.model is not None:
            with _still(subject.model, subject.against):
                _measure(subject, config, shape, data, notes, done)
        if places:
            ids = subject.ids(config.text, min(config.initial_length, shape.context))
            done("along", along(places, ids))
    return _rounded({
        "schema": SCHEMA, "kind": "analysis", "model": subject.name, "against": subject.against_name or None,
        "context": shape.context, "length": config.length, "beyond": config.beyond or None, "factor": config.factor,
        "notes": notes, "parts": {name: data[name] for name in (*PARTS, "constant", "along") if name in data},
    })  # fmt: skip


def check_lengths(config: AnalysisConfig, model_config: PreTrainedConfig, context: int) -> None:
    """Raise InputError where a text is longer than the model takes, or `beyond` is not beyond its context."""
    most = max(context, getattr(model_config.get_text_config(decoder=True), "max_position_embeddings", None) or context)
    if config.length > most:
        raise InputError(
            "--length", config.length, f"at most {most} tokens, what the model was made for",
            "--beyond looks at longer texts.",
        )  # fmt: skip
    if config.beyond and config.beyond <= context:
        raise InputError("--beyond", config.beyond, f"more than the trained context of {context} tokens, or 0")


def theory(seed: int = 0) -> dict[str, Any]:
    """Theorem 3.4 and Propositions 3.2 and 3.3 on stacks of several widths, depths and lengths."""
    found: list[Statement] = []
    for width, count, depth, length in STACKS:
        stack = Stack(width, count, depth, seed=seed)
        found += [theorem_34(stack, length, epsilon, STANDARD, seed + 1) for epsilon in EPSILONS]
    rows = []
    for statement in found:
        last = statement.layers[-1]
        rows.append(
            {**statement.premise, "holds": statement.holds, "checks": len(statement.checks),
             "measured": {c.name: [c.measured, c.bound] for c in last}}
        )  # fmt: skip
    constant = []
    for width, count, depth, length in STACKS[:3]:
        constant.append(proposition_32(Stack(width, count, depth, seed=seed), length).to_dict())
        constant.append(proposition_33(Stack(width, count, depth, theta=1e4, seed=seed), length).to_dict())
    for row in constant:  # the page needs no more than the worst of each
        row["checks"] = sum(map(len, row["layers"]))
        row["layers"] = row["layers"][-1:]
    return {"theorem": rows, "propositions": constant}


def _initial(subject: Subject, config: AnalysisConfig) -> dict[str, Any]:
    ids = subject.ids(config.text, config.initial_length)
    return {"length": ids.shape[1], **initial_gradients(subject.config, ids, seed=config.seed).to_dict()}


def _measure(
    subject: Subject, config: AnalysisConfig, shape: RopeShape, data: dict[str, Any], notes: list[str], done: Any
) -> None:
    """The parts that need weights."""
    assert subject.model is not None
    wanted = set(config.parts)
    surveys: dict[str, Survey] = {}
    chosen = states(subject.model, subject.against, round(shape.context * config.factor))
    entropies: dict[str, EntropyVisitor] = {}
    if "entropy" in wanted and config.beyond <= config.length:  # then one pass over the text serves both
        lengths = entropy_lengths(config, shape.context)[1]
        entropies = {s.key: EntropyVisitor(lengths) for s in chosen if is_whole(s)}
    if wanted & {"heads", "spread", "changes"}:
        ids = subject.ids(config.text, config.length)
        patterns: tuple[Pattern, ...] = offsets(config.offsets)
        edges = heads.distance_edges(config.length)
        for state in chosen:
            if not is_whole(state) and "heads" not in wanted:
                continue
            others = [entropies[state.key]] if state.key in entropies else []
            with state.applied() as model:
                spread = is_whole(state) and "spread" in wanted
                surveys[state.key] = survey(model, ids, patterns, edges, *others, spread=spread)
        labels = {s.key: s.label for s in chosen}
        if "heads" in wanted:
            done("heads", heads_part(subject, config, chosen, surveys, edges))
            data["constant"] = constant_part(subject, config, chosen)
        if "spread" in wanted:
            done("spread", {k: {"label": labels[k], **s.spread.to_dict()} for k, s in surveys.items() if s.spread})
        if "changes" in wanted:
            done("changes", changes_part(subject, surveys, labels))
    if "crop" in wanted:
        if config.beyond and chosen[0].key == "rope":
            done("crop", crop_part(subject, config, chosen, shape.context))
        else:
            why = "the model has no rotary positions" if chosen[0].key != "rope" else "it needs --beyond"
            notes.append(f"The comparison of YaRN with a crop was left out: {why}.")
            done("crop", None)
    if "entropy" in wanted:
        seen = {key: v.result() for key, v in entropies.items() if key in surveys}
        done("entropy", entropy_part(subject, config, chosen, shape.context, seen))


def _rounded(value: Any) -> Any:
    """Six digits: what float32 holds, in a third of the space."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


@contextmanager
def _still(*models: PreTrainedModel | None) -> Iterator[None]:
    """Evaluation mode for all; each model's own mode comes back."""
    kept = [(m, m.training) for m in models if m is not None]
    try:
        for m, _ in kept:
            m.eval()
        yield
    finally:
        for m, training in kept:
            m.train(training)
