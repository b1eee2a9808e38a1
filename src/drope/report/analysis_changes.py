"""The sections on lengths and on training: YaRN and the crop, the spread of states, drift and norms, entropy and β."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drope.report.analysis_charts import get, lines, middles, number, style
from drope.report.analysis_parts import Part, figure
from drope.report.methods import Style


def crop(part: Any, data: Mapping[str, Any]) -> Part:
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


def spread(part: Any, data: Mapping[str, Any]) -> Part:
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


def changes(part: Any, data: Mapping[str, Any]) -> Part:
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


def _law(a: float) -> str:
    return f"1 {'−' if a < 0 else '+'} {abs(a):.3f} ln s"


def entropy(part: Any, data: Mapping[str, Any]) -> Part:
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
            said.append(f"{value['label']}: β = {_law(value['a'])} by entropy")
    fitted = part.get("fitted")
    if fitted:
        points = [(p["length"], p["beta"]) for p in fitted.get("points", [])]
        look = Style("fitted", "fitted to the loss", "other", "fit", "diamond", "2 3")
        curves.append((look, [p[0] for p in points], [p[1] for p in points]))
        legend.append(look)
        said.append(f"fitted to the loss: {_law(fitted['a'])}")
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
