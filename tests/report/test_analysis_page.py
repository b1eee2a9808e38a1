"""The page of an analysis: complete from partial data, the same every time, and opened in a real browser."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from test_report_chromium import CHROMIUM, browse

from drope.analysis import PARTS, AnalysisConfig, Subject, analyze
from drope.errors import InputError
from drope.models import drop, load
from drope.report.analysis import render_analysis, write_analysis

PROBE = """
const seen = {width: innerWidth, overflow: document.documentElement.scrollWidth};
const move = (e) => e.dispatchEvent(new PointerEvent("pointermove", {bubbles: true, clientX: 50, clientY: 50}));
move(document.querySelector("#maps [data-tip]"));
seen.tip = document.getElementById("tip").innerText;
document.querySelector("#heads button.key").click();
seen.dimmed = document.querySelectorAll(".series.dim").length;
seen.inside = [...document.querySelectorAll("svg[role=img]")].filter((s) => s.getBoundingClientRect().width > 0)
  .every((s) => { const b = s.getBoundingClientRect(); return b.left >= 0 && b.right <= innerWidth + 1; });
let name = null;
HTMLAnchorElement.prototype.click = function () { name = this.download; };
document.getElementById("download").click();
seen.download = name;
const out = document.createElement("pre"); out.id = "probe"; out.textContent = JSON.stringify(seen);
document.body.append(out);
"""


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    loaded, other = load("bundled"), load("bundled")
    subject = Subject("bundled", loaded.model.config, loaded.model, loaded.tokenizer, drop(other.model), "dropped")
    subject.notes.append("A <note> & more.")
    config = AnalysisConfig(length=96, beyond=512, initial_length=32, offsets=2, depths=(0.0, 1.0))
    return analyze(subject, config) | {"meta": {"command": "drope analyze bundled"}}


@pytest.fixture(scope="module")
def page(data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_analysis(data, tmp_path_factory.mktemp("analysis") / "analysis.html")


class Reader(HTMLParser):
    """Figures and their captions, and every address that the page names."""

    def __init__(self) -> None:
        super().__init__()
        self.captions: list[str] = []
        self.addresses: list[str | None] = []
        self.figures, self._inside = 0, False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.figures += tag == "figure"
        self.addresses += [v for k, v in attrs if k in ("src", "href")]
        if tag == "figcaption":
            self.captions.append("")
            self._inside = True

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "figcaption"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.captions[-1] += data


def test_every_figure_has_a_caption_that_says_something(page: Path) -> None:
    reader = Reader()
    reader.feed(page.read_text(encoding="utf-8"))
    assert reader.figures == len(reader.captions) >= 11
    assert all(len(caption.split()) >= 20 for caption in reader.captions)
    assert all("nan" not in caption.split() and "None" not in caption for caption in reader.captions)
    assert all(str(address).startswith(("#", "data:")) for address in reader.addresses)


def test_the_data_is_inside_and_the_page_is_the_same_every_time(page: Path, data: dict[str, Any]) -> None:
    text = page.read_text(encoding="utf-8")
    inside = re.search(r'<script type="application/json" id="results">(.*?)</script>', text, re.S)
    assert inside is not None
    assert json.loads(inside[1]) == json.loads(json.dumps(data))
    assert render_analysis(json.loads(json.dumps(data))) == text
    assert "A &lt;note&gt; &amp; more." in text


@pytest.mark.parametrize("part", PARTS)
def test_each_part_stands_alone(part: str, data: dict[str, Any]) -> None:
    alone = render_analysis(data | {"parts": {part: data["parts"][part]}})
    assert alone.count("<figcaption>") >= 1


def test_a_page_without_parts_and_one_of_something_else(data: dict[str, Any], tmp_path: Path) -> None:
    assert "<h1>" in render_analysis(data | {"parts": {}})
    with pytest.raises(InputError, match="schema"):
        render_analysis({"schema": 1, "kind": "results"})
    with pytest.raises(InputError, match="--out"):
        write_analysis(data, tmp_path)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH: the page was not opened in a browser")
def test_opens_from_disk_without_a_word_on_the_console(page: Path, tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    dom, console = browse(page.as_uri(), tmp_path, "--dump-dom")
    assert console == []
    assert 'id="download"' in dom
    shot = tmp_path / "page.png"
    browse(page.as_uri(), tmp_path, f"--screenshot={shot}", "--window-size=1280,6000")
    pixels = np.asarray(Image.open(shot).convert("RGB")) / 255
    orange = np.abs(pixels - np.array([0xC8, 0x43, 0x0A]) / 255).max(axis=-1) < 0.02
    assert orange.mean() > 0.0005
    heat = np.abs(pixels - np.array([0x0D, 0x55, 0x73]) / 255).max(axis=-1) < 0.02
    assert heat.mean() > 0.0002  # the darkest heads of the map


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH: the page was not opened in a browser")
@pytest.mark.parametrize("width", [1280, 500])
def test_works_wide_and_narrow(page: Path, tmp_path: Path, width: int) -> None:
    text = re.sub(r"<meta http-equiv=.*?>", "", page.read_text(encoding="utf-8"))
    path = tmp_path / "probe.html"
    path.write_text(text.replace("</body>", f"<script>{PROBE}</script></body>"), encoding="utf-8")
    dom, console = browse(path.as_uri(), tmp_path, "--dump-dom", f"--window-size={width},900")
    assert console == []
    found = re.search(r'<pre id="probe">(.*?)</pre>', dom, re.S)
    assert found is not None
    seen = json.loads(found[1].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))
    assert seen["overflow"] <= seen["width"] == width
    assert "layer 0, head 0" in seen["tip"]
    assert seen["dimmed"] > 5
    assert seen["inside"] is True
    assert seen["download"] == "analysis.json"
