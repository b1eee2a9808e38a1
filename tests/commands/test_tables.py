"""Results as tables."""

from __future__ import annotations

import io

from rich.console import Console

from drope.commands.tables import result_tables
from drope.results import Measurement


def measured(method: str, length: int, value: float, task: str = "multi_query", **more) -> Measurement:
    fields = {"metric": "success", "low": value - 0.05, "high": value + 0.05, "n": 500, **more}
    return Measurement(task, method, length, value=value, **fields)


def render(*measurements: Measurement) -> str:
    console = Console(file=io.StringIO(), width=160)
    for item in result_tables(measurements, 256):
        console.print(item)
    return console.file.getvalue()


def test_methods_down_and_lengths_across() -> None:
    lines = render(measured("rope", 512, 0.1), measured("drope", 512, 0.8), measured("drope", 2048, 0.625)).splitlines()
    assert "multi-query: success, % [95% interval], n = 500" in lines[0]
    head = next(line for line in lines if "method" in line)
    assert head.index("512 (2x)") < head.index("2k (8x)")
    drope = next(line for line in lines if "drope" in line)
    assert "80.0 [75–85]" in drope
    assert "62.5 [57–68]" in drope  # halves go to the even number
    assert "–" in next(line for line in lines if "rope" in line and "drope" not in line).split("]")[-1]


def test_parts_by_depth_or_position_stay_out() -> None:
    whole, part = (
        measured("drope", 512, 0.8, task="single"),
        measured("drope", 512, 0.4, task="single", details={"depth": 0.5}),
    )
    assert "40.0" not in render(whole, part)


def test_each_metric_has_its_own_table() -> None:
    out = render(
        measured("rope", 512, 3.25, task="perplexity", metric="loss"),
        measured("rope", 512, 25.8, task="perplexity", metric="perplexity"),
    )
    assert "loss, nats per token" in out
    assert "3.250 [3.200–3.300]" in out
    assert "25.8 [" in out
