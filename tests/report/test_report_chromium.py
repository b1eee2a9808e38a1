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


def probe(text: str, tmp_path, *flags: str) -> dict:
    bare = re.sub(r"<meta http-equiv=.*?>", "", text).replace("</body>", f"<script>{PROBE}</script></body>")
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
