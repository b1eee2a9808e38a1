"""The drawing primitives."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from drope.report.svg import Axis, linear_ticks, log_ticks, marker, spread, tag, tip


def test_text_and_attributes_are_escaped():
    made = tag("text", "<b>&", class_='x" onload="alert(1)', **tip('"<i>', [("drope", "<n>", "1 & 2")]))
    node = ET.fromstring(made)
    assert node.text == "<b>&"
    assert set(node.attrib) == {"class", "data-head", "data-tip"}
    assert node.attrib["data-tip"] == '[["drope","<n>","1 & 2"]]'


def test_axes_map_ends_to_ends():
    line, log = Axis(0, 10, 100, 200), Axis(256, 2048, 0, 300, log=True)
    assert (line(0), line(5), line(10)) == (100, 150, 200)
    assert [log(256 * 2**k) for k in range(4)] == pytest.approx([0, 100, 200, 300])


@pytest.mark.parametrize(("low", "high"), [(0, 1), (2.93, 3.31), (-4, 977), (1e-6, 3e-6), (0, 7e9)])
def test_linear_ticks_are_round_even_and_inside(low, high):
    ticks = linear_ticks(low, high)
    assert 3 <= len(ticks) <= 11
    assert low - 1e-9 <= ticks[0] <= ticks[-1] <= high + 1e-9 * abs(high)
    step = ticks[1] - ticks[0]
    assert [b - a for a, b in pairwise(ticks)] == pytest.approx([step] * (len(ticks) - 1))
    assert round(step / 10 ** math.floor(math.log10(step) + 1e-9), 6) in (1, 2, 5)


@pytest.mark.parametrize(("low", "high"), [(16384, 6.5e6), (2.8, 10.4), (1, 1e9)])
def test_log_ticks_lie_inside(low, high):
    ticks = log_ticks(low, high)
    assert 3 <= len(ticks) <= 12
    assert all(low * 0.99 <= t <= high * 1.01 for t in ticks)


def test_labels_are_spread_in_order():
    placed = spread([50, 51, 50.5, 10], 14, 0, 80)
    ordered = sorted(placed)
    assert all(b - a >= 14 - 1e-9 for a, b in pairwise(ordered))
    assert placed[0] < placed[2] < placed[1]
    assert max(placed) <= 80


def test_markers_differ_in_form():
    made = [
        marker(shape, 5, 5) for shape in ("circle", "square", "triangle", "down", "diamond", "plus", "cross", "ring")
    ]
    assert len(set(made)) == len(made)
