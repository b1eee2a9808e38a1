"""The sections of an analysis page: what each figure shows, and a caption that says what to see in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from drope.report import analysis_changes as later
from drope.report import analysis_theory as theory
from drope.report.analysis_charts import distance_places, get, head_map, lines, number, style
from drope.report.analysis_parts import Figure, Part, figure, row, table
from drope.report.tables import Table

GLOSSARY = [
    ("Positional bias Aᶜ", "The mean over queries of Σ c_ij α_ij, where each row of c sums to 0. It is 0 for attention "
     "that is spread evenly and 1 for a head that always looks where c is 1: at itself (diagonal), at the token before "
     "(previous), or at a fixed offset."),
    ("Positional and semantic heads", "A positional head has the largest Aᶜ. A semantic head is found by meaning: "
     "needles are hidden in text, and the head looks most at the very token that has to be copied next."),
    ("Gradient norm", "Frobenius norm of the derivative of Aᶜ, averaged over a layer's heads, with respect to the "
     "weights of the layer's queries and keys. Where it is 0, training cannot make a head positional."),
    ("Spread Δ", "The largest distance of a token's hidden state from the mean of those up to some token after it. "
     "Where it is 0 all tokens are alike, and a model without positions cannot tell them apart."),
    ("Entropy and β", "Entropy of attention, in nats, grows with the number of tokens. β multiplies the scores and "
     "sharpens it again; the β that restores the entropy at the reference length is a prediction without any loss."),
]  # fmt: skip


@dataclass(frozen=True)
class Section:
    """One part of the page."""

    id: str
    title: str
    lead: str
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


def headline(data: Mapping[str, Any]) -> str:
    """The main finding in one sentence, from the numbers."""
    found = get(data["parts"], "heads", "states")
    first = get(data["parts"], "heads", "first")
    if found:
        scores = {k: _mean_bias(v) for k, v in found.items()}
        said = f"{found[first]['label']}: the mean head has a positional bias of {number(scores[first])}"
        others = [f"{number(scores[k])} {words}" for k, words in
                  (("nope", "once the rotation is off"), ("drope", "in the position-free model"))
                  if k in scores and k != first]  # fmt: skip
        return said + ("; " + ", ".join(others) if others else "") + "."
    table_ = get(data["parts"], "frequencies")
    if table_:
        slow = sum(t < 1 for t in table_["turns"])
        return f"{slow} of {table_['pairs']} rotary pairs never complete a turn within the trained context."
    return "What positions do in this model."


def sections(data: Mapping[str, Any]) -> list[Section]:
    """All sections that have data, in order."""
    parts: Mapping[str, Any] = data["parts"]
    makers: list[tuple[str, str, str, Callable[[Any, Mapping[str, Any]], Part | None]]] = [
        ("frequencies", "frequencies", "Rotary frequencies", theory.frequencies),
        ("heads", "maps", "How positional each head is", _maps),
        ("heads", "heads", "Where attention goes", _profiles),
        ("crop", "crop", "Is YaRN a crop?", later.crop),
        ("theory", "theorem", "Theorem 3.4: measured and bound", theory.theorem),
        ("constant", "constant", "Propositions 3.2 and 3.3 on this model", theory.constant),
        ("initial", "initial", "Gradients at initialisation", theory.initial),
        ("along", "along", "Gradients along training", theory.along),
        ("spread", "spread", "Spread of the hidden states", later.spread),
        ("changes", "changes", "What recalibration changes", later.changes),
        ("entropy", "entropy", "Entropy of attention and the temperature", later.entropy),
    ]
    out = []
    for name, id_, title, make in makers:
        if name in parts and (made := make(parts[name], data)) and (made.figures or made.tables):
            out.append(Section(id_, title, made.lead, made.figures, made.tables))
    return out


def _mean_bias(state: Mapping[str, Any]) -> float:
    values = [v for layer in state["strongest"] for v in layer]
    return sum(values) / len(values)


def _maps(part: Any, data: Mapping[str, Any]) -> Part:
    shown = [k for k in (part["first"], "nope", "drope", "control", "against") if k in part["states"]]
    shown = list(dict.fromkeys(shown))
    names = {"rope": "before dropping", "nope": "after dropping", "drope": "position free", "control": "other model",
             "against": "other model"}  # fmt: skip
    states = part["states"]
    top = max(v for k in shown for layer in states[k]["strongest"] for v in layer)
    panels = []
    for key in shown:
        state = states[key]
        title = f"{state['label']}: {names.get(key, '')}".rstrip(": ")
        panels.append(head_map(state["strongest"], state["bias"]["layers"], style(key, state["label"]), title, top))
    said = "; ".join(f"{states[k]['label']} {number(_mean_bias(states[k]))}" for k in shown)
    strong = {k: sum(v > 0.25 for layer in states[k]["strongest"] for v in layer) for k in shown}
    counted = ", ".join(f"{strong[k]} under {states[k]['label']}" for k in shown)
    caption = (
        "Each cell is a head, rows are layers from the input down. Colour: its largest Aᶜ over the diagonal, the "
        f"previous token and offsets to {len(states[part['first']]['bias']['patterns']) - 1}, on one scale for all "
        f"maps. See which dark cells go out when the rotation is dropped, and which come back: heads above 0.25 are "
        f"{counted}."
    )
    made = Figure(caption, [p for p in panels if p], layout=max(2, min(3, len(panels))), scale=number(top))
    heads = [
        row(f"layer {h['layer']}, head {h['head']}", [h["what"], number(h["score"])])
        for h in part["positional"]
    ]  # fmt: skip
    listed = table("The most positional heads", "Head", ["pattern", "Aᶜ"], heads)
    return Part(f"Mean over all heads: {said}.", [made], [listed])


def _profiles(part: Any, data: Mapping[str, Any]) -> Part:
    states, edges = part["states"], part["edges"]
    looks = {k: style(k, v["label"], place=i) for i, (k, v) in enumerate(states.items())}
    xs = distance_places(edges)
    figures = []
    panels = []
    for name, what in (("positional", "positional head"), ("semantic", "semantic head")):
        if not part[name]:
            continue
        head = part[name][0]
        series = [(looks[k], xs, v[f"{name}_profile"][0]) for k, v in states.items()]
        title = f"The most {what}: layer {head['layer']}, head {head['head']}"
        panels.append(
            lines(series, title=title, x="distance, tokens", y="share of attention", columns=2, log_x=True,
                  alt=f"{title}: attention by distance under {', '.join(v['label'] for v in states.values())}.",
                  head=_distance)
        )  # fmt: skip
    scaled = [k for k in ("pi", "ntk", "yarn") if k in states]
    moved = "; ".join(
        f"{states[k]['label']} moves {_moved(part, k, 'positional')} of the positional head's attention and "
        f"{_moved(part, k, 'semantic')} of the semantic head's" for k in scaled
    )  # fmt: skip
    said = f" {moved}." if moved else ""
    factor = number(data["factor"])
    figures.append(
        figure(
            f"Share of attention by distance back, over the second half of the text, under each method set to {factor} "
            "times the trained context. A head that scaling leaves alone keeps its curve; see whether the positional "
            f"head's curves fall together and the semantic head's part.{said}", panels, list(looks.values()), 2,
        )
    )  # fmt: skip
    mass = [(looks[k], part["distances"], v["semantic_mass"][0]) for k, v in states.items()]
    own = [(looks[k], part["distances"], v["own_semantic_mass"][0]) for k, v in states.items()]
    panels = [
        lines(mass, title="The semantic head's attention to the needle", x="distance to the needle, tokens",
              y="share of attention", columns=2, low=0.0,
              alt="Attention of the semantic head to the value to be copied."),
        lines(own, title="Each state's own best head", x="distance to the needle, tokens", y="share of attention",
              columns=2, low=0.0, alt="Attention to the value to be copied, by the best head of each state."),
    ]  # fmt: skip
    means = {k: sum(v["semantic_mass"][0]) / len(v["semantic_mass"][0]) for k, v in states.items()}
    told = ", ".join(f"{states[k]['label']} {number(v)}" for k, v in means.items())
    figures.append(
        figure(
            "Attention of the places that predict a needle's value to the very token to be copied, by how far back the "
            f"needle lies. Mean over distances, for the head chosen under {states[part['first']]['label']}: {told}. On "
            "the right each state may use the head that serves it best: retrieval can move to other heads.",
            panels, list(looks.values()), 2,
        )
    )  # fmt: skip
    rows = [row(f"layer {h['layer']}, head {h['head']}", [number(h["score"])]) for h in part["semantic"]]
    listed = table("The most semantic heads", "Head", ["attention to the token to be copied"], rows)
    best = part["positional"][0], part["semantic"][0]
    lead = (
        f"The most positional head is layer {best[0]['layer']}, head {best[0]['head']} ({best[0]['what']}, Aᶜ "
        f"{number(best[0]['score'])}); the head that copies needles is layer {best[1]['layer']}, head "
        f"{best[1]['head']} ({number(best[1]['score'])} of its attention on the token to be copied)."
    )
    return Part(lead, [f for f in figures if f], [listed])


def _moved(part: Any, key: str, kind: str) -> str:
    """Total variation between a method's profile and that of the model as it is."""
    a, b = (part["states"][k][f"{kind}_profile"][0] for k in (key, part["first"]))
    return f"{50 * sum(abs(x - y) for x, y in zip(a, b, strict=True)):.0f}%"


def _distance(x: float) -> str:
    return f"about {x - 1:.0f} tokens back"
