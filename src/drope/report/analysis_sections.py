"""The sections of an analysis page: what each figure shows, and a caption that says what to see in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from drope.report import analysis_theory as theory
from drope.report.analysis_charts import distance_places, get, head_map, lines, middles, number, style
from drope.report.analysis_parts import Figure, Part, figure, row, table
from drope.report.methods import Style
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
        ("crop", "crop", "Is YaRN a crop?", _crop),
        ("theory", "theorem", "Theorem 3.4: measured and bound", theory.theorem),
        ("constant", "constant", "Propositions 3.2 and 3.3 on this model", theory.constant),
        ("initial", "initial", "Gradients at initialisation", theory.initial),
        ("along", "along", "Gradients along training", theory.along),
        ("spread", "spread", "Spread of the hidden states", _spread),
        ("changes", "changes", "What recalibration changes", _changes),
        ("entropy", "entropy", "Entropy of attention and the temperature", _entropy),
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


def _crop(part: Any, data: Mapping[str, Any]) -> Part:
    rows = part["rows"]
    looks = {k: style(k, v["label"], place=i) for i, (k, v) in enumerate(rows.items())}
    xs = middles(part["edges"])
    context = data["context"]
    left = lines([(looks[k], xs, v["loss"]) for k, v in rows.items()], title="Loss by position", columns=2,
                 x="position, tokens", y="loss, nats per token", context=float(context),
                 alt="Loss by position for RoPE, YaRN and a crop of the text.")  # fmt: skip
    right = lines([(looks[k], part["distances"], v["answer_loss"]) for k, v in rows.items()], columns=2,
                  title="Needles by distance", x="distance to the needle, tokens",
                  y="loss of the answer, nats per token",
                  context=float(context), alt="Loss of a needle's answer by its distance.")  # fmt: skip
    beyond = [i for i, a in enumerate(part["edges"][:-1]) if a >= context]

    def mean(key: str) -> float:
        return sum(rows[key]["loss"][i] for i in beyond) / max(1, len(beyond))

    far = [i for i, d in enumerate(part["distances"]) if d > context]
    lead = (
        f"Beyond the trained context the loss is {number(mean('yarn'))} under YaRN and {number(mean('crop'))} cropped."
    )
    if far:
        hits = {k: sum(bool(rows[k]["answered"][i]) for i in far) for k in ("yarn", "crop")}
        lead += f" Of {len(far)} needles out of the crop's reach YaRN finds {hits['yarn']}, the crop {hits['crop']}."
    caption = (
        "If YaRN were a crop, its curve would lie on that of the plain model that sees the last trained context alone, "
        "on the left, and fail on the right wherever the needle lies farther back than that. One text and one needle "
        "at each distance: a look, not a measurement of success."
    )
    made = figure(caption, [left, right], list(looks.values()), 2, trained=True)
    return Part(lead, [made] if made else [])


def _spread(part: Any, data: Mapping[str, Any]) -> Part:
    series = {k: (style(k, v["label"]), v) for k, v in part.items()}
    start = get(data["parts"], "initial", "spread") or {}
    for key, value in start.items():
        label = f"{style(key).label.split(',')[0]} at initialisation"
        slot = "x0" if key == "rope" else "x1"
        series[f"initial {key}"] = (Style(f"initial-{key}", label, "other", slot, "none", "3 3"), value)
    both = [("relative", "Largest: Δ over the norm"), ("typical_relative", "Typical distance over the norm")]
    panels = [
        lines([(look, list(range(len(v[key]))), v[key]) for look, v in series.values()], title=title, columns=2,
              x="layer", y="in units of the states' norm", low=0.0, alt=f"{title}, by layer.")
        for key, title in both
    ]  # fmt: skip
    ends = "; ".join(f"{look.label} {number(v['typical_relative'][-1])}" for look, v in series.values())
    caption = (
        "Spread of the hidden states around their prefix means, through the layers (0: the embeddings). Near 0 a model "
        f"without positions attends evenly whatever its weights. At initialisation rotation makes little difference "
        f"to it: what it changes is the scores. After the last layer, typically: {ends}. On the left "
        "single tokens with huge states stand out; the right shows what most tokens do."
    )
    made = figure(caption, panels, [look for look, _ in series.values()], 2)
    return Part("How far apart the tokens' states are, layer by layer.", [made] if made else [])


def _changes(part: Any, data: Mapping[str, Any]) -> Part:
    norms, drift = part["norms"], part.get("drift")
    looks = {k: style(k, v["label"], place=i) for i, (k, v) in enumerate(norms.items())}
    panels = [
        lines([(looks[k], v["layers"], v[key]) for k, v in norms.items()], title=title, columns=4, log_y=True,
              x="layer", y="norm", alt=f"{title} by layer.")
        for key, title in (("query", "Queries, mean"), ("key", "Keys, mean"), ("query_largest", "Queries, largest"),
                           ("key_largest", "Keys, largest"))
    ]  # fmt: skip
    marked = {v["label"]: v["outliers"] for v in norms.values() if v["outliers"]}
    said = "; ".join(f"{label}: layer {', '.join(map(str, found))}" for label, found in marked.items())
    caption = (
        "Norms of queries and keys as they meet in the scores, over tokens and heads. Look for a layer that leaves the "
        "others by an order of magnitude: the published 7B has such queries and keys in layer 1, and quantisation "
        f"suffers from them. More than 5 times the median layer here: {said or 'none'}."
    )
    figures = [figure(caption, panels, list(looks.values()), 4)]
    lead = "No second model was given, so there is no drift of weights to show."
    if drift:
        series = [(style(p, p, place=i), drift["layers"], v) for i, (p, v) in enumerate(drift["parts"].items())]
        worst = max(((v, p, n) for p, vs in drift["parts"].items() for n, v in zip(drift["layers"], vs, strict=True)))
        lead = f"The weights that moved most: {worst[1]} of layer {worst[2]}, by {100 * worst[0]:.3g}% of their norm."
        panel = lines(series, title="Drift of the weights", x="layer", y="‖W′ − W‖ / ‖W‖", low=0.0, columns=1,
                      alt="Relative change of each layer's weights, by part.")  # fmt: skip
        rest = ", ".join(f"{k} {100 * v:.3g}%" for k, v in drift["other"].items())
        figures.insert(0, figure(
            "How far each layer's weights are from the first model's, relative to their size. See whether queries and "
            f"keys moved more than the rest: positions live there. Outside the layers: {rest or 'nothing'}. A "
            "temperature folded into the queries counts as drift.", [panel], [s for s, _, _ in series], 1,
        ))  # fmt: skip
    return Part(lead, [f for f in figures if f])


def _entropy(part: Any, data: Mapping[str, Any]) -> Part:
    states, reference = part["states"], part["reference"]
    looks = {k: style(k, v["label"], place=i) for i, (k, v) in enumerate(states.items())}
    series = [(looks[k], v["lengths"], v["mean"]) for k, v in states.items()]
    legend = list(looks.values())
    for key, value in states.items():
        if "mean_with_beta" in value:
            look = Style(
                f"{key}-beta", f"{value['label']}, β = {value['beta']:.2f}", "other", looks[key].slot, "ring", "2 3"
            )
            series.append((look, value["lengths"], value["mean_with_beta"]))
            legend.append(look)
    left = lines(series, title="Entropy of attention", x="tokens seen", y="nats, mean over heads and layers", columns=2,
                 log_x=True, lengths=True, context=float(reference),
                 alt="Entropy of attention by tokens seen.")  # fmt: skip
    curves, said = [], []
    for key, value in states.items():
        if value.get("betas"):
            points = [(float(n), b) for n, b in value["betas"].items() if b is not None]
            if not points:
                said.append(f"{value['label']}: no β between 0.7 and 2.95 restores the entropy")
                continue
            curves.append((looks[key], [p[0] for p in points], [p[1] for p in points]))
            said.append(f"{value['label']}: β = 1 + {value['a']:.3f} ln s by entropy")
    fitted = part.get("fitted")
    if fitted:
        points = [(p["length"], p["beta"]) for p in fitted.get("points", [])]
        look = Style("fitted", "fitted to the loss", "other", "fit", "diamond", "2 3")
        curves.append((look, [p[0] for p in points], [p[1] for p in points]))
        legend.append(look)
        said.append(f"fitted to the loss: 1 + {fitted['a']:.3f} ln s")
    right = lines(curves, title="β by entropy alone" + (", and fitted" if fitted else ""), x="tokens seen", y="β",
                  columns=2, log_x=True, lengths=True, alt="Predicted temperature by length.")  # fmt: skip
    told = "; ".join(said)
    caption = (
        f"Left: the more tokens a query sees, the flatter its attention. The dotted line is the same model with the β "
        f"that brings the entropy at the end back to that at {reference} tokens. Right: that β at each length, s being "
        f"the length over {reference}. {told}."
    )
    if not fitted:
        caption += " No fit to the loss was given to compare with (--temperature)."
    first = next(iter(states.values()))
    lead = (
        f"From {first['lengths'][0]} to {first['lengths'][-1]} tokens the entropy goes from {number(first['mean'][0])} "
        f"to {number(first['mean'][-1])} nats under {first['label']}."
    )
    made = figure(caption, [left, right], legend, 2, trained=False)
    return Part(lead, [made] if made else [])
