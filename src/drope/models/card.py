"""The model card of a converted checkpoint: README.md with the front matter that model hubs read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from drope.positions import METHODS
from drope.quantities import format_count, format_tokens


def model_card(provenance: Mapping[str, Any], card: Mapping[str, Any] | None = None) -> str:
    """Markdown for README.md.

    Parameters
    ----------
    provenance : the contents of drope.json
    card : optional `title`, `license`, `language`, `tags`, `notes` (Markdown), and `numbers`: rows of measurements,
        mappings with the same keys, shown as a table; `evaluation`: results for the front matter's model-index,
        mappings of `task`, `dataset`, `metric`, `value` and optional `config`
    """
    card = dict(card or {})
    source, original = provenance.get("source"), provenance["original"]
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if isinstance(source, str) and _hub_id(source):
        front["base_model"] = source
    front["tags"] = ["drope", "long-context", *card.get("tags", [])]
    front |= {key: card[key] for key in ("license", "language") if card.get(key)}
    if evaluation := card.get("evaluation"):
        front["model-index"] = [{"name": _name(source), "results": [_result(row) for row in evaluation]}]
    target, context = provenance["target_length"], provenance["context"]
    name = _name(source)
    scheme = positions["label"] if (positions := provenance.get("positions")) else "without positions"
    title = card.get("title") or f"{name}, {scheme}, {format_count(target)}"
    lines = ["---", yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip(), "---", "", f"# {title}", ""]
    lines += [_summary(provenance), ""]
    lines += ["## Use", "", _USE + ("" if positions else _NO_ROTATION), ""]
    if rows := card.get("numbers"):
        lines += ["## Numbers", "", _table(rows), ""]
    lines += ["## How it was made", "", _table(_facts(provenance, original, context)), ""]
    if notes := card.get("notes"):
        lines += ["## Notes", "", str(notes).strip(), ""]
    return "\n".join(lines)


def _name(source: Any) -> str:
    return str(source or "model").rstrip("/").split("/")[-1]


def _result(row: Mapping[str, Any]) -> dict[str, Any]:
    """One entry of a model-index."""
    dataset = {"name": row["dataset"], "type": row["dataset"], "config": row.get("config")}
    return {
        "task": {"type": "text-generation", "name": row["task"]},
        "dataset": {key: value for key, value in dataset.items() if value},
        "metrics": [{"type": row["metric"], "value": float(row["value"]), "name": row["metric"]}],
    }


_USE = """An ordinary checkpoint: no custom code, any engine that reads its config.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER_OR_ID")
tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER_OR_ID")
```"""
_NO_ROTATION = """

The config says "no rotation" through its `rope_parameters`: changing them puts a rotation back, which these
weights cannot use."""


def _summary(provenance: Mapping[str, Any]) -> str:
    context, target = provenance["context"], provenance["target_length"]
    beta = provenance["temperature"]["beta"]
    ending = f", with the softmax temperature β = {beta:.4g} folded into the weights." if beta != 1 else "."
    if positions := provenance.get("positions"):
        settings = ", ".join(f"{key} {value}" for key, value in positions["settings"].items() if value is not None)
        return (
            f"The original model (trained at {context:,} tokens) with its positions changed to {positions['label']}"
            + (f" ({settings})" if settings and len(settings) < 200 else "")
            + f", for inputs of up to {target:,} tokens{ending}"
            + _untrained(provenance)
        )
    text = (
        f"The rotary position embeddings of the original model (trained at {context:,} tokens) are dropped from every "
        "layer, as in [DroPE](https://arxiv.org/abs/2512.12167); order is carried by the causal mask alone. "
    )
    if tokens := provenance.get("tokens"):
        text += f"It was recalibrated on {format_tokens(tokens)} tokens at that context. "
    else:
        text += "**It has not been recalibrated: it needs training before it is of use.** "
    return text + f"Meant for inputs of up to {target:,} tokens" + ending


def _untrained(provenance: Mapping[str, Any]) -> str:
    """A warning for methods that are of use only after a training that there was none of."""
    method = METHODS.get(str(provenance.get("method")))
    if method is None or not method.trained or method.from_scratch or provenance.get("tokens"):
        return ""
    return " **It has not been recalibrated for this: it needs training before it is of use.**"


def _facts(provenance: Mapping[str, Any], original: Mapping[str, Any], context: int) -> list[dict[str, Any]]:
    facts = {
        "source": provenance.get("source") or "not recorded",
        "method": provenance.get("method") or "drope",
        "recalibration": f"{provenance['tokens']:,} tokens" if provenance.get("tokens") else "none",
        "data": data.get("spec", "") if isinstance(data := provenance.get("data"), Mapping) else data or "",
        "trained context": f"{context:,} tokens",
        "original rotation": ", ".join(f"{k} {v}" for k, v in (original.get("rope_parameters") or {}).items()),
        "encoding": f"rope type {provenance['encoding']}",
        "versions": ", ".join(f"{k} {v}" for k, v in provenance["versions"].items()),
    }
    return [{"what": key, "value": value} for key, value in facts.items() if value]


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    body = [[_cell(row.get(key, "")) for key in keys] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [keys, ["---"] * len(keys), *body])


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _hub_id(source: str) -> bool:
    return source.count("/") == 1 and not source.startswith((".", "/", "~"))
