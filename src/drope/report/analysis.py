"""The page of `drope analyze`: made from its JSON alone, with the style, the script and the charts of every report."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from drope.errors import InputError
from drope.files import write_text
from drope.report.analysis_sections import GLOSSARY, headline, sections
from drope.report.build import _clean, _plain
from drope.report.svg import marker

SCHEMA = 1


def write_analysis(data: Mapping[str, Any], out_path: str | Path) -> Path:
    """Write the page: no network, no other file, the data inside. The same data give the same bytes.

    Raises
    ------
    InputError : `out_path` is a folder, or `data` is not what `drope.analysis.analyze` returns
    """
    target = Path(out_path)
    if target.is_dir():
        raise InputError("--out", str(target), "a file name such as analysis.html")
    write_text(target, render_analysis(data))
    return target


def render_analysis(data: Mapping[str, Any]) -> str:
    """The whole page as text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    if data.get("kind") != "analysis" or data.get("schema") != SCHEMA:
        raise InputError("analysis", str(data.get("kind")), f"the JSON of `drope analyze`, schema {SCHEMA}")
    source = files("drope.report") / "page"
    script = (source / "page.js").read_text(encoding="utf-8")
    environment = Environment(
        loader=PackageLoader("drope.report", "page"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.tests["mapping_value"] = lambda v: isinstance(v, Mapping)
    environment.filters["plain"] = _plain
    page = environment.get_template("analysis.html").render(
        model=data["model"],
        against=data.get("against"),
        context=data["context"],
        headline=headline(data),
        notes=[str(note) for note in data.get("notes", [])],
        sections=sections(data),
        glossary=GLOSSARY,
        mark=lambda style: marker(style.marker, 13.0, 5.0, 3.0),
        facts=_facts(data),
        results_json=_embedded(data),
        css=Markup((source / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return page if page.endswith("\n") else page + "\n"


def _facts(data: Mapping[str, Any]) -> list[tuple[str, Any]]:
    out: list[tuple[str, Any]] = [("Model", data["model"])]
    if data.get("against"):
        out.append(("Against", data["against"]))
    out += [("Trained context", f"{data['context']} tokens"), ("Text", f"{data['length']} tokens")]
    if data.get("beyond"):
        out.append(("Text beyond the context", f"{data['beyond']} tokens"))
    meta = data.get("meta") or {}
    return out + [(k.replace("_", " ").capitalize(), v) for k, v in meta.items() if v not in (None, "", [], {})]


def _embedded(data: Mapping[str, Any]) -> Markup:
    """The data as JSON that cannot end its script element early."""
    text = json.dumps(_clean(dict(data)), ensure_ascii=False, allow_nan=False, default=str)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
