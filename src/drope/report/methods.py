"""How each positional method and each task is named, drawn and explained in a report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from drope.results import Results


@dataclass(frozen=True)
class Style:
    """One method in every figure. `slot` names its colour in the style sheet, so no user input reaches a class name.

    kind: `drope`, `scaling` (RoPE stretched at inference), `rope`, `control` (RoPE trained on the same tokens),
    `control-scaled`, `nope` (rotation removed, nothing trained) or `other`.
    """

    name: str
    label: str
    kind: str
    slot: str
    marker: str
    dash: str = ""
    about: str = ""


_KNOWN = [
    Style("drope", "DroPE", "drope", "drope", "circle", "",
          "rotation dropped, the model recalibrated briefly at its original context, softmax temperature fitted"),
    Style("yarn", "YaRN", "scaling", "yarn", "square", "",
          "RoPE with low frequencies interpolated, high ones kept, and a logit scale; no training"),
    Style("ntk", "NTK", "scaling", "ntk", "triangle", "",
          "RoPE with a larger base, which stretches low frequencies most; no training"),
    Style("dynamic_ntk", "Dynamic NTK", "scaling", "dynamic", "diamond", "7 2",
          "NTK with the base chosen for the length at hand; no training"),
    Style("pi", "PI", "scaling", "pi", "down", "5 3",
          "position interpolation: all positions divided by the factor; no training"),
    Style("control", "RoPE control", "control", "control", "plus", "2 3",
          "RoPE kept and trained on the same tokens as DroPE: what the training alone is worth"),
    Style("rope", "RoPE", "rope", "rope", "cross", "",
          "the original model, unchanged"),
    Style("sliding_window", "Sliding window", "rope", "muted", "ring", "4 4",
          "the model as it is, shown only as many tokens as it was trained on: what forgetting the rest would give"),
    Style("nope", "NoPE, untrained", "nope", "nope", "ring", "1 3",
          "rotation dropped and nothing trained: where recalibration starts"),
    # The rest of the catalogue: a colour for each family, a mark and a dash for each method of it.
    Style("llama3", "Llama-3 scaling", "scaling", "x0", "square", "9 3",
          "RoPE with slow frequencies interpolated, by turns over the context; no training"),
    Style("longrope2", "LongRoPE2", "scaling", "x0", "triangle", "",
          "RoPE with a factor for each frequency, searched with needles; no training"),
    Style("p_rope", "p-RoPE", "scaling", "x0", "down", "2 2",
          "RoPE whose slowest frequencies stand still; no training here"),
    Style("self_extend", "Self-Extend", "other", "x1", "triangle", "4 2",
          "far positions counted in groups; no training"),
    Style("dual_chunk", "Dual Chunk Attention", "other", "x1", "square", "",
          "positions start anew in each chunk; no training"),
    Style("rerope", "ReRoPE", "other", "x1", "diamond", "7 2 1 2",
          "distances clamped to a window; no training"),
    Style("crop", "Last C tokens", "other", "muted", "cross", "2 3",
          "the original model, given the end of the text alone"),
    Style("drop_layers", "DroPE, some layers", "other", "x2", "diamond", "6 2 1 2",
          "rotation dropped from some layers; meant to be recalibrated"),
    Style("partial_drop", "DroPE, low frequencies", "other", "x2", "down", "3 2",
          "rotation dropped from the lowest frequencies; meant to be recalibrated"),
    Style("drope_swan", "DroPE into SWAN", "other", "x2", "square", "",
          "rotation dropped from one layer in four, windows in the others; meant to be recalibrated"),
    Style("alibi", "ALiBi", "other", "x3", "triangle", "5 2",
          "a penalty on distance in place of rotation; trained from scratch"),
    Style("rnope_swa", "RNoPE-SWA", "other", "x3", "diamond", "2 2",
          "windowed RoPE layers and global ones without positions; trained from scratch"),
    Style("swan", "SWAN-GPT", "other", "x3", "square", "",
          "as RNoPE-SWA, sharper with length; trained from scratch"),
]  # fmt: skip
_EXTRA = [("x0", "square", "9 3"), ("x1", "triangle", "4 2"), ("x2", "diamond", "6 2 1 2"), ("x3", "down", "2 2")]

TASKS = {
    "single": ("One needle", "one key and its value hidden in the text; the mean over a grid of depths"),
    "multi_query": ("Multi-query", "four keys hidden; the values of two are asked for at once"),
    "multi_key": ("Multi-key", "four keys hidden; the value of one is asked for"),
    "multi_value": ("Multi-value", "one of three keys hidden with two values; both are asked for"),
    "niah_single_1": ("RULER single 1", "one number among lines of noise"),
    "niah_single_2": ("RULER single 2", "one number in prose"),
    "niah_single_3": ("RULER single 3", "one uuid in prose"),
    "niah_multikey_1": ("RULER multi-key 1", "four keys in prose; the number of one is asked for"),
    "niah_multikey_2": ("RULER multi-key 2", "one key among a text full of other keys"),
    "niah_multikey_3": ("RULER multi-key 3", "the same with uuids as keys and values"),
    "niah_multivalue": ("RULER multi-value", "one key in prose with four numbers, all asked for"),
    "niah_multiquery": ("RULER multi-query", "four keys in prose, all asked for"),
    "vt": ("RULER variable tracking", "a chain of five assignments among noise; every variable in it is asked for"),
    "cwe": ("RULER common words", "the ten words that occur most often in a list"),
    "fwe": ("RULER frequent words", "the three most frequent coded words"),
    "induction": ("Induction", "random words; one comes again, and what followed it the first time is to follow"),
    "digit_copy": ("Digit copying", "a code of 16 digits to be repeated"),
    "recency": ("Which came last", "one key given four values in turn; the last is asked for"),
    "counting": ("Counting", "how often a sentence occurs, one to nine times"),
    "sorted_lookup": ("Sorted list", "the word that stands after another in a sorted list"),
    "word_order": ("Word order", "who did what to whom, told by the order of two names alone"),
}
METRICS = {
    "success": "success",
    "score": "mean score, 0 to 1",
    "loss": "loss, nats per token",
    "perplexity": "perplexity",
}


def task_label(task: str) -> str:
    """A task's name for people; unknown tasks keep their own."""
    return TASKS[task][0] if task in TASKS else task.replace("_", " ")


def styles(results: Results, only: Iterable[str] | None = None) -> dict[str, Style]:
    """The styles of all methods in `results` (or of `only` those), in the order of every legend and table."""
    seen = [m.method for m in results.measurements] + [str(row["run"]) for row in results.recovery if "run" in row]
    present = dict.fromkeys(seen)
    known = [style for style in _KNOWN if style.name in present]
    names = {style.name for style in known}
    others = [name for name in present if name not in names]
    known += [style for name in others if (style := _on_control(name))]
    for i, name in enumerate(name for name in others if not _on_control(name)):
        slot, marker, dash = _EXTRA[i % len(_EXTRA)]
        known.append(Style(name, name, "other", slot, marker, dash))
    if only is not None:
        wanted = set(only)
        known = [style for style in known if style.name in wanted]
    return {style.name: style for style in known}


def _on_control(name: str) -> Style | None:
    """`control_yarn`: a scaling method on the control, in the method's colour."""
    base = next((s for s in _KNOWN if name == f"control_{s.name}"), None)
    if base is None:
        return None
    about = f"{base.label} on the RoPE control: as much training as DroPE, and scaling on top"
    label = f"Control + {base.label}"
    return replace(base, name=name, label=label, kind="control-scaled", marker="ring", dash="2 3", about=about)
