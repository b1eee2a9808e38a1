"""The page in a real browser, opened from disk."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from synthetic_results import synthetic

from drope import report

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH: the page was not opened in a browser")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
         "--enable-logging=stderr"]  # fmt: skip
# Runs in a copy of the page without its policy, which (as it should) would refuse a second script.
PROBE = """
const move = (e) => e.dispatchEvent(new PointerEvent("pointermove", {bubbles: true, clientX: 50, clientY: 50}));
const seen = {width: innerWidth,
  overflow: document.documentElement.scrollWidth, background: getComputedStyle(document.body).backgroundColor};
move(document.querySelector("#success [data-tip]"));
seen.tip = document.getElementById("tip").innerText;
move(document.querySelector("h1"));
seen.hidden = document.getElementById("tip").hidden;
document.querySelector("#success button.key").click();
seen.dimmed = document.querySelectorAll(".series.dim").length;
seen.kept = [...document.querySelectorAll("figure .series:not(.dim)")].every((g) => g.dataset.m === "drope");
seen.inside = [...document.querySelectorAll("svg[role=img]")].filter((s) => s.getBoundingClientRect().width > 0)
  .every((s) => { const b = s.getBoundingClientRect(); return b.left >= 0 && b.right <= innerWidth + 1; });
const blobs = [];
URL.createObjectURL = (b) => { blobs.push(b); return "#"; };
document.getElementById("download").click();
seen.download = blobs.map((b) => [b.type, b.size]);
const out = document.createElement("pre"); out.id = "probe"; out.textContent = JSON.stringify(seen);
document.body.append(out);
"""


def browse(url: str, tmp_path, *flags: str) -> tuple[str, list[str]]:
    """Standard output and the lines of the console."""
    profile = tmp_path / "profile"
    shutil.rmtree(profile, ignore_errors=True)
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", *flags, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def probe(text: str, tmp_path, *flags: str, script: str = PROBE) -> dict:
    bare = re.sub(r"<meta http-equiv=.*?>", "", text).replace("</body>", f"<script>{script}</script></body>")
    path = tmp_path / "probe.html"
    path.write_text(bare, encoding="utf-8")
    dom, console = browse(path.as_uri(), tmp_path, "--dump-dom", *flags)
    assert console == []
    seen = re.search(r'<pre id="probe">(.*?)</pre>', dom, re.S)
    assert seen is not None
    return json.loads(seen[1].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return report.write(synthetic(), tmp_path_factory.mktemp("page") / "report.html")


def test_opens_from_disk_without_a_word_on_the_console(page, tmp_path):
    from PIL import Image

    shot = tmp_path / "page.png"
    dom, console = browse(page.as_uri(), tmp_path, "--dump-dom")
    assert console == []
    assert 'id="download">' in dom  # the script ran under the policy: it takes the button's `hidden` away
    browse(page.as_uri(), tmp_path, f"--screenshot={shot}", "--window-size=1280,1600")
    pixels = np.asarray(Image.open(shot).convert("RGB")) / 255
    orange = np.abs(pixels - np.array([0xC8, 0x43, 0x0A]) / 255).max(axis=-1) < 0.02
    assert orange.mean() > 0.002  # DroPE's bar and lines are drawn
    assert pixels.reshape(-1, 3).std() > 0.05


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (500, "dark")])
def test_works_wide_and_narrow_light_and_dark(page, tmp_path, width, scheme):
    preferred = f"--blink-settings=preferredColorScheme={1 if scheme == 'light' else 0}"
    seen = probe(page.read_text(encoding="utf-8"), tmp_path, f"--window-size={width},900", preferred)
    assert seen["overflow"] <= seen["width"] == width
    assert seen["background"] == {"light": "rgb(251, 250, 247)", "dark": "rgb(22, 21, 19)"}[scheme]
    assert "DroPE" in seen["tip"]
    assert "1× · 256 tokens" in seen["tip"]
    assert seen["hidden"] is True
    assert seen["dimmed"] > 20
    assert seen["kept"] is True
    assert seen["inside"] is True
    assert seen["download"][0][0] == "application/json"
    assert seen["download"][0][1] > 10_000


BROWSE = """
const cell = document.querySelectorAll("details[data-cell]")[1];
const rows = () => [...cell.querySelectorAll("tbody > tr")].map((r) => [...r.children].map((c) => c.textContent));
const status = () => cell.querySelector("[role=status]").textContent;
const button = (name) => [...cell.querySelectorAll(".browse button")].find((b) => b.textContent.startsWith(name));
const seen = {before: rows().length, bars: document.querySelectorAll(".browse").length};
const off = (name) => button(name).disabled;
const at = (name) => { seen[name] = [status(), rows()[0], rows().length, off("Previous"), off("Next")]; };
cell.addEventListener("toggle", () => setTimeout(() => {
  at("opened");
  button("Next").click(); at("next");
  button("Next").click(); at("last");
  button("Misses").click(); at("misses");
  button("Hits").click(); at("hits");
  button("All").click();
  const search = cell.querySelector("input");
  search.value = "WHAT IS 33?"; search.dispatchEvent(new Event("input")); at("search");
  search.value = "nowhere"; search.dispatchEvent(new Event("input"));
  seen.nothing = [status(), rows().length];
  search.value = ""; search.dispatchEvent(new Event("input"));
  seen.scripts = window.broken === undefined && cell.querySelector("tbody b") === null;
  seen.folded = cell.querySelector("tbody details").open;
  seen.overflow = document.documentElement.scrollWidth; seen.width = innerWidth;
  const out = document.createElement("pre"); out.id = "probe"; out.textContent = JSON.stringify(seen);
  document.body.append(out);
}), { once: true });
cell.open = true;
"""


@pytest.mark.parametrize("width", [1280, 500])
def test_samples_page_and_filter(tmp_path, width):
    """Every sample of a log is reached: by pages of 20, by result, by text; and none of it runs."""
    (tmp_path / "samples").mkdir()
    results = synthetic()
    for m, log in zip(
        [m for m in results.measurements if m.metric == "success"][:2], ("a.jsonl", "b.jsonl"), strict=True
    ):
        m.details["samples"] = log
        lines = [
            {"index": i, "prompt": f"start <b>x</b> … what is {i}?", "depth": i / 50, "depths": [i / 50],
             "expected": [f"{i}"], "output": f"{log} <script>broken = 1</script> & {i}",
             "found": float(i % 5 == 0), "hit": i % 5 == 0}
            for i in range(50)
        ]  # fmt: skip
        (tmp_path / "samples" / log).write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = report.write(results, tmp_path / "report.html")
    assert browse(page.as_uri(), tmp_path, "--dump-dom")[1] == []  # under the page's own policy
    flags = (f"--window-size={width},900", "--virtual-time-budget=4000")
    seen = probe(page.read_text(encoding="utf-8"), tmp_path, *flags, script=BROWSE)
    assert (seen["before"], seen["bars"]) == (8, 0)
    row = ["hit #0", "0%", "start <b>x</b> … what is 0?" * 2, "0", "b.jsonl <script>broken = 1</script> & 0"]
    assert seen["opened"] == ["1 to 20 of 50", row, 20, True, False]
    assert seen["next"][0] == "21 to 40 of 50"
    assert seen["next"][1][:2] == ["hit #20", "40%"]
    assert seen["last"][0] == "41 to 50 of 50"
    assert seen["last"][2:] == [10, False, True]
    assert (seen["misses"][0], seen["misses"][1][0]) == ("1 to 20 of 40", "miss #1")
    assert (seen["hits"][0], seen["hits"][2:]) == ("1 to 10 of 10", [10, True, True])
    assert (seen["search"][0], seen["search"][1][3]) == ("1 to 1 of 1", "33")
    assert seen["nothing"] == ["none", 0]
    assert seen["scripts"] is True
    assert seen["folded"] is False
    assert seen["overflow"] <= seen["width"] == width


def test_a_request_or_an_error_would_have_shown_on_the_console(page, tmp_path):
    """The silent console proves something: under the page's policy an outside file is refused aloud."""
    text = page.read_text(encoding="utf-8").replace("</h1>", '</h1><img src="missing.png" alt="">')
    path = tmp_path / "asks.html"
    path.write_text(text, encoding="utf-8")
    _, console = browse(path.as_uri(), tmp_path, "--dump-dom")
    assert any("missing.png" in line for line in console)
    bare = re.sub(r"<meta http-equiv=.*?>", "", page.read_text(encoding="utf-8"))
    path.write_text(bare.replace("</body>", "<script>nonsense();</script></body>"), encoding="utf-8")
    _, console = browse(path.as_uri(), tmp_path, "--dump-dom")
    assert any("nonsense" in line for line in console)
