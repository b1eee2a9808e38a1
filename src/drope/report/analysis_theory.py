"""The sections on theory: frequencies, the theorem, the propositions, gradients at initialisation and along a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from drope.quantities import format_count
from drope.report.analysis_charts import lines, number, style
from drope.report.analysis_parts import Part, figure, row, table
from drope.report.methods import Style


def frequencies(part: Any, data: Mapping[str, Any]) -> Part:
    """γ_m and phases by pair, and the pairs out of range by method and target."""
    targets = sorted({m["length"] for m in part["methods"]})
    first = [m for m in part["methods"] if m["length"] == targets[0]]
    looks = {m["method"]: style(m["method"], m["label"], place=i) for i, m in enumerate(first)}
    pairs = list(range(part["pairs"]))
    factor = number(targets[0] / part["context"])
    left = lines([(looks[m["method"]], pairs, m["gamma"]) for m in first], columns=2,
                 title="Scaling γ of each frequency", x="pair m", y="γ", low=0.0, high=1.06, marks=False,
                 alt="Frequency scaling by pair, of each method.",
                 head=lambda m: f"pair {m:.0f}, wavelength {part['wavelength'][int(m)]:.4g} tokens")  # fmt: skip
    turns = [[p / (2 * math.pi) if p else math.nan for p in m["phase"]] for m in first]  # a stopped pair has no angle
    seen = Style("trained", "at the trained context", "other", "fit", "none", "2 3")
    at_end = [(looks[m["method"]], pairs, t) for m, t in zip(first, turns, strict=True)]
    right = lines([*at_end, (seen, pairs, part["turns"])], title="Phase at the target, in turns", columns=2, log_y=True,
                  x="pair m", y="turns", marks=False, alt="Phase at the target length by pair, of each method.",
                  head=lambda m: f"pair {m:.0f}")  # fmt: skip
    slow = sum(t < 1 for t in part["turns"])
    out = "; ".join(f"{m['label']} {len(m['out_of_range'])}" for m in first)
    caption = (
        f"At {factor} times the trained context. Left: what each method multiplies the frequency of pair m by. Right: "
        "how far each pair has turned at the far end of the text; pairs left of one turn at the trained context (the "
        "dotted line) have seen every angle, those below it meet new ones wherever a method's line lies above the "
        f"dotted one. Pairs out of range: {out}."
    )
    made = figure(caption, [left, right], [*looks.values(), seen], 2)
    names = {m["method"]: m["label"] for m in first}
    counts = {(m["method"], m["length"]): len(m["out_of_range"]) for m in part["methods"]}
    rows = [row(label, [f"{counts[name, n]} of {part['pairs']}" for n in targets], looks[name])
            for name, label in names.items()]  # fmt: skip
    heads = [f"{n / part['context']:g}× ({format_count(n)})" for n in targets]
    summary = table("Pairs out of range", "Method", heads, rows)
    each = [
        row(str(m), [number(part["omega"][m]), number(part["wavelength"][m]), number(part["turns"][m]),
                     *(number(f["gamma"][m]) for f in first)])
        for m in pairs
    ]  # fmt: skip
    columns = ["ω, rad a token", "wavelength, tokens", "turns in training", *(f"γ {label}" for label in names.values())]
    full = table(f"Every pair, γ at {factor}×", "m", columns, each, folded=True)
    lead = (
        f"θ = {part['theta']:g}, {part['pairs']} pairs: {slow} of them never complete a turn within the trained "
        f"context of {part['context']} tokens."
    )
    return Part(lead, [made] if made else [], [summary, full])


def theorem(part: Any, data: Mapping[str, Any]) -> Part:
    """Measured value against bound, by ε, for stacks of several sizes."""
    rows = part["theorem"]
    sizes = list(dict.fromkeys((r["width"], r["depth"], r["length"]) for r in rows))
    panels = []
    legend: list[Style] = []
    for name, title in (("‖α − u‖₁", "Distance from uniform attention"), ("|A^c|", "Positional bias"),
                        ("‖∂W_Q‖", "Its gradient, W_Q"), ("Δ from ε", "Spread before the last layer")):  # fmt: skip
        series = []
        for i, (width, depth, length) in enumerate(sizes):
            mine = [r for r in rows if (r["width"], r["depth"], r["length"]) == (width, depth, length)]
            look = style(f"stack-{i}", f"{depth} layers of {width}, {length} tokens", place=i)
            bound = Style(look.name, look.label + ", bound", "other", look.slot, "none", "2 3")
            epsilons = [r["epsilon"] for r in mine]
            series.append((look, epsilons, [r["measured"][name][0] for r in mine]))
            series.append((bound, epsilons, [r["measured"][name][1] for r in mine]))
            if look not in legend and len(legend) < len(sizes):
                legend.append(look)
        panels.append(
            lines(series, title=title, x="ε", y="measured, and bound (dotted)", columns=2, log_x=True, log_y=True,
                  alt=f"{title}: measured against bound by ε.", head=lambda v: f"ε = {v:g}")
        )  # fmt: skip
    checks, held = sum(r["checks"] for r in rows), all(r["holds"] for r in rows)
    tight = max(
        (
            r["measured"][n][0] / r["measured"][n][1]
            for r in rows
            for n in ("|s − s̄|", "‖α − u‖₁")
            if r["measured"][n][1]
        ),
    )
    caption = (
        "Stacks without positions, on embeddings within ε of one another; the last layer of each. Measured values "
        "(marks) fall in proportion to ε and lie below their bounds (dotted); longer texts do not lift them. Bounds in "
        "the last panel start from ε alone and grow with every layer, which is where they become loose. The closest "
        f"that a score comes to its bound is {100 * tight:.0f}%."
    )
    verdict = "all hold" if held else "NOT all hold"
    constants = sum(p["checks"] for p in part["propositions"])
    good = all(p["holds"] for p in part["propositions"])
    lead = (
        f"{checks} inequalities of the theorem and {constants} statements of Propositions 3.2 and 3.3 checked on "
        f"stacks of known weights: {verdict if good == held else 'NOT all hold'}."
    )
    made = figure(caption, panels, legend, 2)
    return Part(lead, [made] if made else [])


def constant(part: Any, data: Mapping[str, Any]) -> Part:
    """The same token over and over: with and without rotation."""
    looks = {k: style(k, v["label"], place=i) for i, (k, v) in enumerate(part.items())}
    left = lines([(looks[k], v["layers"], v["uniformity"]) for k, v in part.items()],
                 title="Distance from even attention", x="layer", y="max |i α − 1|", log_y=True, floor=1e-9, columns=2,
                 alt="Largest deviation from uniform attention by layer.")  # fmt: skip
    right = lines([(looks[k], v["layers"], v["gradient"][0]) for k, v in part.items()], title="‖∇Aᶜ‖, diagonal",
                  x="layer", y="gradient norm", log_y=True, floor=1e-9, columns=2,
                  alt="Gradient norm of the positional bias on a constant sequence, by layer.")  # fmt: skip
    said = "; ".join(f"{v['label']} {number(max(v['uniformity']))}" for v in part.values())
    caption = (
        "One token, 64 times. Without positions nothing tells the places apart: attention is even to rounding error in "
        "every layer and no weight can change that, whatever the training. With the rotation every layer tells them "
        f"apart. Largest deviation: {said}."
    )
    made = figure(caption, [left, right], list(looks.values()), 2)
    return Part("A constant sequence shows what the architecture alone can see of positions.", [made] if made else [])


def initial(part: Any, data: Mapping[str, Any]) -> Part:
    """Figure 4 of the paper."""
    gradients = part["gradients"]
    looks = {k: style(k, k.replace("rope", "RoPE").replace("nope", "NoPE")) for k in gradients}
    patterns = next(iter(gradients.values()))["patterns"]
    panels = [
        lines([(looks[k], v["layers"], v["total"][p]) for k, v in gradients.items()], columns=2,
              title=name.capitalize(), x="layer", y="‖∇Aᶜ‖", log_y=True,
              alt=f"Gradient norm of Aᶜ, {name}, by layer, RoPE and NoPE.")
        for p, name in enumerate(patterns)
    ]  # fmt: skip
    lead = "The same initial weights with rotation and without."
    caption = (
        f"‖∇Aᶜ‖ with respect to each layer's W_Q and W_K at initialisation, on {part['length']} tokens of text "
        "(Figure 4 of the paper)."
    )
    if {"rope", "nope"} <= set(gradients):
        both = zip(gradients["rope"]["total"], gradients["nope"]["total"], strict=True)
        ratios = [[a / b if b else math.inf for a, b in zip(*pair, strict=True)] for pair in both]
        above = sum(r > 1 for row_ in ratios for r in row_)
        total = sum(map(len, ratios))
        ends = "; ".join(f"{n}: {number(r[0])} times at the first layer, {number(r[-1])} at the last"
                         for n, r in zip(patterns, ratios, strict=True))  # fmt: skip
        lead = f"RoPE's gradient is the larger one at {above} of {total} layers and patterns."
        caption += f" The distance of the lines is how much faster RoPE can learn to be positional. {ends}."
    if part.get("note"):
        caption += f" {part['note']}"
    made = figure(caption, panels, list(looks.values()), 2)
    return Part(lead, [made] if made else [])


def along(part: Any, data: Mapping[str, Any]) -> Part:
    """Gradients over checkpoints."""
    names = list(dict.fromkeys(r["checkpoint"] for r in part))
    methods = list(dict.fromkeys(r["method"] for r in part))
    looks = {m: style(m, {"rope": "with rotation", "nope": "without"}.get(m, m)) for m in methods}
    patterns = part[0]["gradients"]["patterns"]

    def over(method: str, p: int, what: str) -> tuple[list[float], list[float]]:
        xs, ys = [], []
        for r in part:
            if r["method"] == method:
                values = r["gradients"]["total"][p] if what == "gradient" else r["bias"][p]
                xs.append(float(names.index(r["checkpoint"]) + 1))
                ys.append(sum(values) / len(values))
        return xs, ys

    def named(x: float) -> str:
        return names[int(x) - 1]

    panels = []
    for p, pattern in enumerate(patterns):
        for what, title in (("gradient", "‖∇Aᶜ‖, mean over layers"), ("bias", "Aᶜ, mean over heads")):
            series = [(looks[m], *over(m, p, what)) for m in methods]
            panels.append(
                lines(series, title=f"{pattern.capitalize()}: {title}", x="checkpoint", y="", columns=2,
                      log_y=what == "gradient", alt=f"{title}, {pattern}, by checkpoint.", head=named)
            )  # fmt: skip
    caption = (
        f"From {names[0]} (1) to {names[-1]} ({len(names)}), each checkpoint with its rotation on and off. Where the "
        "line without rotation rises, the model is learning positions from its causal mask."
    )
    made = figure(caption, panels, list(looks.values()), 2)
    return Part(f"{len(names)} checkpoints of one run.", [made] if made else [])
