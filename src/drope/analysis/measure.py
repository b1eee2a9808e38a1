"""The parts of an analysis that need weights, each as plain JSON values."""

from __future__ import annotations

from typing import Any

from drope.analysis import changes, crop, heads
from drope.analysis.attention import observe
from drope.analysis.config import AnalysisConfig
from drope.analysis.entropy import Entropy, EntropyVisitor, sampled_lengths
from drope.analysis.propositions import constant_input
from drope.analysis.states import State, Survey
from drope.analysis.subject import Subject
from drope.analysis.text import Probe, probes

_BINS = 24  # of positions, in figures of loss
_PROBE = 512  # tokens of a needle probe at most: there are many of them


def is_whole(state: State) -> bool:
    """Whether a state is looked at in full, and not for where its attention goes alone."""
    return state.method is None or state.key == "nope"


def heads_part(
    subject: Subject, config: AnalysisConfig, chosen: list[State], surveys: dict[str, Survey], edges: list[int]
) -> dict[str, Any]:
    first = chosen[0]
    found = needle_probes(subject, config)
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


def needle_probes(subject: Subject, config: AnalysisConfig) -> list[Probe]:
    """The needle probes: of the text's length, or shorter."""
    return probes(subject.tokenizer, config.text, min(config.length, _PROBE), config.depths, seed=config.seed)


def constant_part(subject: Subject, config: AnalysisConfig, chosen: list[State]) -> dict[str, Any]:
    """Propositions 3.2 and 3.3 on the model itself: 64 times the first token of the text."""
    token = int(subject.ids(config.text, 16)[0, 8])
    out = {}
    for state in chosen:
        if is_whole(state):
            with state.applied() as model:
                out[state.key] = {"label": state.label, **constant_input(model, token, 64).to_dict()}
    return out


def changes_part(subject: Subject, surveys: dict[str, Survey], labels: dict[str, str]) -> dict[str, Any]:
    assert subject.model is not None
    own = [k for k in surveys if k in ("rope", "drope", "nope", "control", "against")]
    norms = {k: {"label": labels[k], **surveys[k].norms, "outliers": changes.outliers(surveys[k].norms)} for k in own}
    drift = changes.weight_drift(subject.model, subject.against).to_dict() if subject.against is not None else None
    return {"norms": norms, "drift": drift}


def crop_part(subject: Subject, config: AnalysisConfig, chosen: list[State], context: int) -> dict[str, Any]:
    """Loss by position and needles by depth: RoPE, YaRN, a crop, and DroPE where there is one."""
    ids = subject.ids(config.text, config.beyond)
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


def entropy_lengths(config: AnalysisConfig, context: int) -> tuple[int, list[int]]:
    """The reference length, and all at which entropy is sampled."""
    longest = max(config.length, config.beyond)
    reference = context if longest > context else max(8, longest // 4)
    lengths = sampled_lengths(max(8, min(config.length, context) // 16), longest)
    return reference, sorted({*lengths, reference})


def entropy_part(
    subject: Subject, config: AnalysisConfig, chosen: list[State], context: int, known: dict[str, Entropy]
) -> dict[str, Any]:
    """Entropy against length; of models without positions also with β, and the β that entropy predicts."""
    from drope.models import set_logit_scale
    from drope.models.logit_scale import logit_scale

    longest = max(config.length, config.beyond)
    reference, lengths = entropy_lengths(config, context)
    ids = subject.ids(config.text, longest)
    out: dict[str, Any] = {"reference": reference, "states": {}}
    for state in chosen:
        if not is_whole(state):
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
