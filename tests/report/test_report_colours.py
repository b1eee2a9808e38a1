"""The palette: legible, and DroPE distinct to colour-blind readers, in both schemes."""

from __future__ import annotations

import re
from importlib.resources import files

import numpy as np
import pytest

from drope.positions import METHODS as METHODS_RUN
from drope.report.charts import success
from drope.report.methods import styles
from drope.results import Measurement, Results

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
BLINDNESS = {
    name: np.array(values).reshape(3, 3)
    for name, values in {
        "none": [1, 0, 0, 0, 1, 0, 0, 0, 1],
        "protanopia": [0.152286, 1.052583, -0.204868, 0.114503, 0.786281, 0.099216, -0.003882, -0.048116, 1.051998],
        "deuteranopia": [0.367322, 0.860646, -0.227968, 0.280085, 0.672501, 0.047413, -0.011820, 0.042940, 0.968881],
        "tritanopia": [1.255528, -0.076749, -0.178779, -0.078411, 0.930809, 0.147602, 0.004733, 0.691367, 0.303900],
    }.items()
}
METHODS = ("yarn", "ntk", "pi", "dynamic", "control", "rope", "x0", "x1", "x2", "x3", "muted", "nope")


def palette(scheme: str) -> dict[str, np.ndarray]:
    """Colour variables of one scheme as linear RGB."""
    css = (files("drope.report") / "page" / "page.css").read_text(encoding="utf-8")
    light, dark = css.split("@media screen and (prefers-color-scheme: dark)", 1)
    found = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", light if scheme == "light" else dark))
    return {name: linear(value) for name, value in found.items()}


def linear(hexed: str) -> np.ndarray:
    c = np.array([int(hexed[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def contrast(a: np.ndarray, b: np.ndarray) -> float:
    """WCAG 2 contrast ratio."""
    one, two = sorted((float(c @ [0.2126, 0.7152, 0.0722]) for c in (a, b)), reverse=True)
    return (one + 0.05) / (two + 0.05)


def lab(c: np.ndarray) -> np.ndarray:
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ c
    f = np.cbrt(np.maximum(xyz / [0.9505, 1.0, 1.089], 0.008856))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible(scheme):
    colours = palette(scheme)
    for name in ("ink", "soft", "drope"):
        assert contrast(colours[name], colours["paper"]) >= 4.5, name
    assert contrast(colours["soft"], colours["raised"]) >= 4.5
    for name in METHODS[:-1]:
        assert contrast(colours[name], colours["paper"]) >= 2.7, name


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("blindness", BLINDNESS)
def test_drope_stands_apart_from_every_method(scheme, blindness):
    seen = {name: lab(np.clip(BLINDNESS[blindness] @ c, 0, 1)) for name, c in palette(scheme).items()}
    for name in METHODS:
        assert np.linalg.norm(seen["drope"] - seen[name]) > 20, name


def test_every_method_of_the_catalogue_has_a_look_of_its_own():
    results = Results("m", 128, [Measurement("single", name, 128, "success", 0.5, 0.4, 0.6, 9) for name in METHODS_RUN])
    looks = styles(results)
    assert set(looks) == set(METHODS_RUN)
    assert all(style.about and style.label != style.name for style in looks.values())
    assert len({(s.slot, s.marker, s.dash) for s in looks.values()}) == len(looks)
    assert len({s.label for s in looks.values()}) == len(looks)
    alone = styles(Results("m", 128, [Measurement("single", "swan", 128, "success", 0.5, 0.4, 0.6, 9)]))
    assert alone["swan"] == looks["swan"]  # whatever else is shown


@pytest.mark.parametrize(("count", "bands"), [(9, 9), (10, 1)])
def test_of_many_lines_drope_alone_keeps_its_band(count, bands):
    shown = ["drope", *[name for name in METHODS_RUN if name != "drope"][: count - 1]]
    rows = [Measurement("single", name, n, "success", 0.5, 0.4, 0.6, 9) for name in shown for n in (128, 256)]
    [panel] = success(Results("m", 128, rows))
    assert panel.svg.count('class="band"') == 2 * bands  # drawn twice: wide and narrow
    assert panel.svg.count('class="line"') == 2 * count
