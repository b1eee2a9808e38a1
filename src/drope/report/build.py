"""Puts the page together: the template, the sections, the tables and the results themselves."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from drope.errors import InputError
from drope.report import charts, findings, scores, tables
from drope.report.methods import TASKS, styles, task_label
from drope.report.samples import Browser, browser
from drope.report.scores import finite, times
from drope.report.sections import sections
from drope.report.svg import marker
from drope.results import SCHEMA, Results


def render(results: Results, samples: Path | None = None) -> str:
    """The whole page as text; `samples` is the folder that holds the logs that the measurements name."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    if not finite(results.context) or results.context < 1:
        raise InputError("context", results.context, "the trained context in tokens, at least 1")
    source = files("drope.report") / "page"
    found = browser(results, samples) if samples else Browser()
    scripts = ["page.js", "samples.js"] if found.groups else ["page.js"]
    script = "".join((source / name).read_text(encoding="utf-8") for name in scripts)
    environment = Environment(
        loader=PackageLoader("drope.report", "page"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.tests["mapping_value"] = lambda v: isinstance(v, Mapping)
    environment.filters["plain"] = _plain
    length = scores.headline_length(results)
    page = environment.get_template("page.html").render(
        model=results.model,
        mark=lambda style: marker(style.marker, 13.0, 5.0, 3.0),
        context=results.context,
        headline=findings.headline(results),
        standfirst=findings.standfirst(results),
        hero=charts.ranked(results, length) if length and len(scores.ranking(results, length)) > 1 else None,
        hero_caption=_hero_caption(results, length) if length else "",
        numbers=findings.key_numbers(results),
        notes=_notes(results),
        sections=sections(results),
        tables=[t for t in (*tables.totals(results), tables.bands(results), tables.paired(results)) if t],
        details=tables.details(results),
        methods=list(styles(results).values()),
        tasks=[(task_label(t), TASKS[t][1]) for t in dict.fromkeys(m.task for m in results.measurements) if t in TASKS],
        facts=_facts(results),
        samples=found,
        samples_json=_embedded(found.data),
        results_json=_embedded({"schema": SCHEMA, **asdict(results)}, indent=1),
        css=Markup((source / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return page if page.endswith("\n") else page + "\n"


def _hero_caption(results: Results, length: int) -> str:
    tasks = [task_label(t).lower() for t in scores.ranking(results, length)[0].tasks]
    of = f"mean of {len(tasks)} needle tasks" if len(tasks) > 1 else tasks[0]
    return (
        f"Success at {times(length, results.context)} the trained context ({length} tokens), {of}, with 95% intervals."
    )


def _notes(results: Results) -> list[str]:
    notes = results.meta.get("notes")
    if not notes:
        return []
    return [_plain(n) for n in notes] if isinstance(notes, (list, tuple)) else [_plain(notes)]


def _facts(results: Results) -> list[tuple[str, Any]]:
    meta = results.meta
    first = ["command", "seed", "source", "target_length", "commit", "created", "versions", "hardware"]
    keys = [k for k in first if k in meta] + [k for k in meta if k not in first and k not in ("notes", "paired")]
    out: list[tuple[str, Any]] = [("Model", results.model), ("Trained context", f"{results.context} tokens")]
    return out + [(str(k).replace("_", " ").capitalize(), meta[k]) for k in keys if meta[k] not in (None, "", [], {})]


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(v) for v in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _embedded(value: Any, indent: int | None = None) -> Markup:
    """JSON that cannot end its script element early; numbers that are not finite become null."""
    text = json.dumps(_clean(value), indent=indent, ensure_ascii=False, allow_nan=False, default=str)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _clean(value: Any) -> Any:
    if isinstance(value, float) and not finite(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): _clean(v) for k, v in value.items()}
    return [_clean(v) for v in value] if isinstance(value, (list, tuple)) else value
