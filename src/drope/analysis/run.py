"""All of an analysis in order, as one JSON value that the page is made from. See `docs/theory.md` for what it means."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from drope.analysis import changes, crop, heads
from drope.analysis.attention import observe
from drope.analysis.config import PARTS, AnalysisConfig
from drope.analysis.entropy import Entropy, EntropyVisitor, sampled_lengths
from drope.analysis.figure4 import along, checkpoints, initial_gradients
from drope.analysis.frequencies import frequency_table
from drope.analysis.patterns import STANDARD, Pattern, offsets
from drope.analysis.propositions import constant_input, proposition_32, proposition_33
from drope.analysis.states import State, Survey, states, survey
from drope.analysis.text import Probe, probes, text_ids
from drope.analysis.theorem import Stack, Statement, theorem_34
from drope.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from drope.positions import RopeShape

SCHEMA = 1
_BINS = 24  # of positions, in figures of loss
_PROBE = 1024  # tokens of a needle probe at most: there are many of them
# (width, heads, depth, length) of the stacks that the theorem is measured on, and ε
STACKS = ((32, 2, 2, 32), (32, 2, 2, 128), (64, 4, 4, 64), (64, 4, 4, 256), (96, 6, 8, 64))
EPSILONS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass
class Subject:
    """What is analysed. model, tokenizer : None where only the config is looked at.

    temperature : a fit as `drope temperature` writes it (`a`, `context`), to compare the prediction with
    """

    name: str
    config: PreTrainedConfig
    model: PreTrainedModel | None = None
    tokenizer: Any = None
    against: PreTrainedModel | None = None
    against_name: str = ""
    temperature: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)


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
        _ids(subject, config.text, max(config.length, config.beyond))
        if "heads" in config.parts:
            _probes(subject, config)
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
            ids = _ids(subject, config.text, min(config.initial_length, shape.context))
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
    ids = _ids(subject, config.text, config.initial_length)
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
        lengths = _entropy_lengths(config, shape.context)[1]
        entropies = {s.key: EntropyVisitor(lengths) for s in chosen if _whole(s)}
    if wanted & {"heads", "spread", "changes"}:
        ids = _ids(subject, config.text, config.length)
        patterns: tuple[Pattern, ...] = offsets(config.offsets)
        edges = heads.distance_edges(config.length)
        for state in chosen:
            if not _whole(state) and "heads" not in wanted:
                continue
            others = [entropies[state.key]] if state.key in entropies else []
            with state.applied() as model:
                spread = _whole(state) and "spread" in wanted
                surveys[state.key] = survey(model, ids, patterns, edges, *others, spread=spread)
        labels = {s.key: s.label for s in chosen}
        if "heads" in wanted:
            done("heads", _heads(subject, config, chosen, surveys, edges))
            data["constant"] = _constant(subject, config, chosen)
        if "spread" in wanted:
            done("spread", {k: {"label": labels[k], **s.spread.to_dict()} for k, s in surveys.items() if s.spread})
        if "changes" in wanted:
            done("changes", _changes(subject, surveys, labels))
    if "crop" in wanted:
        if config.beyond and chosen[0].key == "rope":
            done("crop", _crop(subject, config, chosen, shape.context))
        else:
            why = "the model has no rotary positions" if chosen[0].key != "rope" else "it needs --beyond"
            notes.append(f"The comparison of YaRN with a crop was left out: {why}.")
            done("crop", None)
    if "entropy" in wanted:
        seen = {key: v.result() for key, v in entropies.items() if key in surveys}
        done("entropy", _entropy(subject, config, chosen, shape.context, seen))


def _whole(state: State) -> bool:
    """Whether a state is looked at in full, and not for where its attention goes alone."""
    return state.method is None or state.key == "nope"


def _heads(
    subject: Subject, config: AnalysisConfig, chosen: list[State], surveys: dict[str, Survey], edges: list[int]
) -> dict[str, Any]:
    first = chosen[0]
    found = _probes(subject, config)
    needles = {}
    for state in chosen:
        with state.applied() as model:
            needles[state.key] = heads.needle_attention(model, found)
    positional = heads.positional_heads(surveys[first.key].bias)
    semantic = heads.semantic_heads(needles[first.key])
    out: dict[str, Any] = {
        "first": first.key,
        "positional": heads.heads_to_dict(positional),
        "semantic": heads.heads_to_dict(semantic),
        "edges": edges,
        "distances": needles[first.key].distances,
        "depths": list(config.depths),
        "states": {},
    }
    for state in chosen:
        seen, copying = surveys[state.key], needles[state.key]
        own = heads.semantic_heads(copying)
        out["states"][state.key] = {
            "label": state.label,
            "bias": seen.bias.to_dict(),
            "strongest": [v.tolist() for v in seen.bias.strongest()],
            "copying": {str(n): v.mean(0).tolist() for n, v in copying.copied.items()},
            "positional_profile": [seen.distances.profile(h.layer, h.head) for h in positional],
            "semantic_profile": [seen.distances.profile(h.layer, h.head) for h in semantic],
            "semantic_mass": [copying.at(h) for h in semantic],
            "own_semantic": heads.heads_to_dict(own),
            "own_semantic_mass": [copying.at(h) for h in own],
        }
    return out


def _probes(subject: Subject, config: AnalysisConfig) -> list[Probe]:
    """The needle probes: of the text's length, or shorter."""
    return probes(subject.tokenizer, config.text, min(config.length, _PROBE), config.depths, seed=config.seed)


def _constant(subject: Subject, config: AnalysisConfig, chosen: list[State]) -> dict[str, Any]:
    """Propositions 3.2 and 3.3 on the model itself: 64 times the first token of the text."""
    token = int(_ids(subject, config.text, 16)[0, 8])
    out = {}
    for state in chosen:
        if _whole(state):
            with state.applied() as model:
                out[state.key] = {"label": state.label, **constant_input(model, token, 64).to_dict()}
    return out


def _changes(subject: Subject, surveys: dict[str, Survey], labels: dict[str, str]) -> dict[str, Any]:
    assert subject.model is not None
    own = [k for k in surveys if k in ("rope", "drope", "nope", "control", "against")]
    norms = {k: {"label": labels[k], **surveys[k].norms, "outliers": changes.outliers(surveys[k].norms)} for k in own}
    drift = changes.weight_drift(subject.model, subject.against).to_dict() if subject.against is not None else None
    return {"norms": norms, "drift": drift}


def _crop(subject: Subject, config: AnalysisConfig, chosen: list[State], context: int) -> dict[str, Any]:
    """Loss by position and needles by depth: RoPE, YaRN, a crop, and DroPE where there is one."""
    ids = _ids(subject, config.text, config.beyond)
    found = probes(subject.tokenizer, config.text, config.beyond, config.depths, seed=config.seed + 1)
    edges = sorted({round(config.beyond * i / _BINS) for i in range(_BINS + 1)})
    rows: dict[str, Any] = {}
    for state in chosen:
        if state.key not in ("rope", "yarn", "drope", "control"):
            continue
        aimed = State(state.key, state.label, state.model, state.method, config.beyond)
        with aimed.applied() as model:
            asked = [crop.answers(model, p) for p in found]
            rows[state.key] = _crop_row(state.label, crop.binned(crop.losses(model, ids), edges), asked)
    model = chosen[0].model
    asked = [crop.answers(model, p, keep=context) for p in found]
    cropped = crop.binned(crop.cropped_losses(model, ids, context), edges)
    rows["crop"] = _crop_row(f"RoPE, last {context} tokens alone", cropped, asked)
    return {"edges": edges, "distances": [p.distance for p in found], "depths": list(config.depths), "rows": rows}


def _crop_row(label: str, losses: list[float], asked: list[tuple[float, bool]]) -> dict[str, Any]:
    return {"label": label, "loss": losses, "answer_loss": [a for a, _ in asked], "answered": [b for _, b in asked]}


def _entropy_lengths(config: AnalysisConfig, context: int) -> tuple[int, list[int]]:
    """The reference length, and all at which entropy is sampled."""
    longest = max(config.length, config.beyond)
    reference = context if longest > context else max(8, longest // 4)
    lengths = sampled_lengths(max(8, min(config.length, context) // 16), longest)
    return reference, sorted({*lengths, reference})


def _entropy(
    subject: Subject, config: AnalysisConfig, chosen: list[State], context: int, known: dict[str, Entropy]
) -> dict[str, Any]:
    """Entropy against length; of models without positions also with β, and the β that entropy predicts."""
    from drope.models import set_logit_scale
    from drope.models.logit_scale import logit_scale

    longest = max(config.length, config.beyond)
    reference, lengths = _entropy_lengths(config, context)
    ids = _ids(subject, config.text, longest)
    out: dict[str, Any] = {"reference": reference, "states": {}}
    for state in chosen:
        if not _whole(state):
            continue
        with state.applied() as model:
            seen = known.get(state.key)
            if seen is None:
                visitor = EntropyVisitor(lengths)
                observe(model, ids, visitor)
                seen = visitor.result()
            row = {"label": state.label, **seen.to_dict()}
            if state.key in ("drope", "nope"):
                predicted = seen.predicted_betas(reference)
                row["betas"] = {str(n): b for n, b in predicted.items()}
                row["a"] = seen.predicted_a(reference)
                if beta := predicted.get(longest):
                    own = logit_scale(model)
                    again = EntropyVisitor(lengths, (1.0,))
                    try:
                        set_logit_scale(model, own * beta)
                        observe(model, ids, again)
                    finally:
                        set_logit_scale(model, own)
                    row["beta"], row["mean_with_beta"] = beta, again.result().mean()
        out["states"][state.key] = row
    out["fitted"] = subject.temperature
    return out


def _ids(subject: Subject, text: str, length: int) -> torch.Tensor:
    """Text where there is a tokenizer; else random ids, for what needs no more (gradients at initialisation)."""
    if subject.tokenizer is not None:
        return text_ids(subject.tokenizer, text, length)
    vocabulary = subject.config.get_text_config(decoder=True).vocab_size
    return torch.randint(0, vocabulary, (1, length), generator=torch.Generator().manual_seed(0))


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
