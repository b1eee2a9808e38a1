"""The page as text: what is in it, what is not, and what cannot get in."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser

import pytest
from synthetic_results import synthetic

from drope import report
from drope.errors import InputError
from drope.results import Measurement, Results

VOID = {"meta", "link", "br", "img", "input", "hr"}
EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7*7 }}"


class Page(HTMLParser):
    """Elements, with a check that every one that opens closes."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in self.open:
            self.text.setdefault(tag, []).append(data)

    def ids(self) -> list[str]:
        return [i for _, a in self.elements if (i := a.get("id"))]

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.elements if t == tag]


def page_of(results: Results, tmp_path) -> tuple[str, Page]:
    path = report.write(results, tmp_path / "deep" / "report.html")
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return page_of(synthetic(), tmp_path_factory.mktemp("whole"))


def test_all_sections_are_there(whole):
    _, page = whole
    wanted = {"success", "depth", "position", "recovery", "temperature", "numbers", "reading", "provenance", "results"}
    assert wanted <= set(page.ids())
    assert len(page.ids()) == len(set(page.ids()))
    links = {a["href"] for a in page.all("a")}
    assert {f"#{i}" for i in wanted - {"results"}} <= links
    assert "".join(page.text["h1"]) == report.headline(synthetic())


def test_nothing_points_outside(whole):
    text, page = whole
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith("#") or value == "data:,", (tag, name, value)
    assert not re.search(r"https?://|url\(|@import", text)


def test_policy_forbids_the_network_and_names_the_one_script(whole):
    text, page = whole
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    script = re.findall(r"<script>(.*?)</script>", text, re.S)
    assert len(script) == 1
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_figures_and_tables_can_be_read_out(whole):
    _, page = whole
    outer = [a for a in page.all("svg") if "aria-label" in a or a.get("role")]
    assert len(outer) >= 18
    assert all(a["role"] == "img" and len(a["aria-label"]) > 20 for a in outer)
    assert all(a.get("scope") in ("col", "row") for a in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table")) > 10


def test_same_results_same_bytes(tmp_path):
    one = report.write(synthetic(), tmp_path / "1.html").read_bytes()
    assert one == report.write(synthetic(), tmp_path / "2.html").read_bytes()
    assert one != report.write(synthetic(seed=1), tmp_path / "3.html").read_bytes()


def test_embedded_results_load_again(whole, tmp_path):
    text, _ = whole
    inside = re.search(r'<script type="application/json" id="results">(.*?)</script>', text, re.S)
    assert inside is not None
    (tmp_path / "results.json").write_text(inside[1], encoding="utf-8")
    assert Results.load(tmp_path / "results.json") == synthetic()


def test_nothing_that_users_write_becomes_markup(tmp_path):
    results = synthetic(model=EVIL, methods=("drope", "rope"))
    for m in results.measurements[::7]:
        m.method = EVIL
    results.measurements.append(Measurement(EVIL, "drope", 512, EVIL, 1.0, 0.9, 1.1, 5, {EVIL: EVIL}))
    results.recovery += [{"run": EVIL, "tokens": t, "loss": 3.0} for t in (1, 2)]
    results.meta |= {EVIL: {EVIL: [EVIL, {EVIL: EVIL}]}, "notes": EVIL, "command": EVIL, "paired": {EVIL: {EVIL: 0.5}}}
    text, page = page_of(results, tmp_path)
    assert "49" not in page.text["title"][0]
    assert len(page.all("script")) == 2
    assert page.all("img") == []
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    inside = re.search(r'<script type="application/json" id="results">(.*?)</script>', text, re.S)
    assert inside is not None
    assert json.loads(inside[1])["model"] == EVIL


@pytest.mark.parametrize(
    ("keep", "ids"),
    [
        ("measurements", {"success", "depth", "position"}),
        ("recovery", {"recovery"}),
        ("temperature", {"temperature"}),
        ("", set()),
    ],
)
def test_sections_without_data_vanish(tmp_path, keep, ids):
    whole, part = synthetic(), Results("synthetic", 256)
    if keep:
        setattr(part, keep, getattr(whole, keep))
    _, page = page_of(part, tmp_path)
    assert {"success", "depth", "position", "recovery", "temperature"} & set(page.ids()) == ids
    assert ("numbers" in page.ids()) == (keep == "measurements")
    assert len(page.all("figure")) == len(ids) + (keep == "measurements")  # and the ranking beside the headline


def test_awkward_results_still_make_a_page(tmp_path):
    """One length, one method, values that are not finite, rows with fields missing: whatever a cut-short run leaves."""
    rows = [
        Measurement("single", "drope", 512, "success", 0.5, 0.4, 0.6, 10),
        Measurement("perplexity", "rope", 512, "perplexity", math.inf, math.nan, math.inf, 3),
        Measurement("perplexity", "rope", 512, "loss", 3.0, 3.0, 3.0, 1, {"position_start": 0}),
        Measurement("quality", "my method", 300, "f1", 0.3, 0.2, 0.4, 10, {"depth": None}),
    ]
    results = Results("m", 256, rows, [{"run": "drope", "tokens": 0, "loss": 3.0}, {"tokens": 1}, {"run": "drope"}],
                      [{"length": 512, "beta": 1.0}, {"length": 1024}], {"paired": {}, "seed": 0})  # fmt: skip
    text, page = page_of(results, tmp_path)
    assert "not finite" in text
    assert "NaN" not in text
    assert "temperature" in page.ids()
    assert "success" not in page.ids()  # a line needs two lengths


def test_perplexity_rows_are_drawn_where_there_is_no_loss(tmp_path):
    rows = [
        Measurement("perplexity_by_position", m, 1024, "perplexity", v, v * 0.9, v * 1.1, 9,
                    {"position_start": s, "position_end": s + 64})
        for m, v in (("drope", 20.0), ("rope", 3e4)) for s in range(0, 1024, 64)
    ]  # fmt: skip
    text, page = page_of(Results("m", 256, rows), tmp_path)
    assert "Perplexity by position" in text
    assert "position" in page.ids()


def test_folders_and_impossible_contexts_are_refused(tmp_path):
    with pytest.raises(InputError, match="file name"):
        report.write(Results("m", 256), tmp_path)
    with pytest.raises(InputError, match="trained context"):
        report.write(Results("m", 0), tmp_path / "x.html")


def test_provenance_shows_what_made_the_file(whole):
    text, _ = whole
    for words in ("drope extend SYNTHETIC", "0.0", "imagined", "2000-01-01", "412.1", "These numbers are invented"):
        assert words in text
