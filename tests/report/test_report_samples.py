"""The browser of samples, and the maps and sections that come with new kinds of rows."""

from __future__ import annotations

import json

from drope.report import write
from drope.report.build import render
from drope.report.samples import shown_samples
from drope.results import Measurement, Results


def rows(tmp_path) -> Results:
    samples = tmp_path / "samples"
    samples.mkdir()
    records = [
        {"index": i, "prompt": f"start … end <b>{i}</b>", "digest": "d", "depth": None, "depths": [i / 9],
         "expected": ["7"], "output": f"is {i} & more", "found": float(i % 2), "hit": bool(i % 2)}
        for i in range(9)
    ]  # fmt: skip
    (samples / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records) + '{"torn')
    made = []
    for method in ("drope", "rope"):
        for length in (512, 1024):
            details = {"samples": "a.jsonl"} if method == "drope" and length == 512 else {}
            made.append(Measurement("niah_single_2", method, length, "success", 0.4, 0.2, 0.6, 9, details))
            made.append(Measurement("niah_single_2", method, length, "success", 0.5, 0.1, 0.9, 2, {"depth": 0.25}))
            probe = {"probe": "order", "chance": 0.5}
            made.append(Measurement("word_order", method, length, "success", 0.4, 0.3, 0.6, 9, probe))
            for distance in (16, 32):
                made.append(
                    Measurement("induction", method, length, "success", 0.9, 0.7, 1, 9, {**probe, "distance": distance})
                )
            made.append(Measurement("induction", method, length, "success", 0.9, 0.7, 1, 9, {**probe, "chance": 0.0}))
    return Results("m", 512, made)


def test_samples_are_browsable_and_escaped(tmp_path):
    results = rows(tmp_path)
    [group] = shown_samples(results, tmp_path / "samples")
    assert [s.result for s in group.rows] == ["miss"] * 4 + ["hit"] * 4
    assert group.rows[0].place == "0%"
    assert "4 hits, 5 misses" in group.note
    page = write(results, tmp_path / "report.html").read_text()
    assert "end &lt;b&gt;0&lt;/b&gt;" in page
    assert "is 0 &amp; more" in page
    assert "<b>0</b>" not in page
    assert 'id="samples"' in page
    assert 'id="samples"' not in render(results)


def test_a_log_outside_the_folder_is_not_read(tmp_path):
    results = rows(tmp_path)
    results.measurements[0].details["samples"] = "../secret.jsonl"
    (tmp_path / "secret.jsonl").write_text((tmp_path / "samples" / "a.jsonl").read_text())
    assert shown_samples(results, tmp_path / "samples") == []


def test_probes_have_their_own_section(tmp_path):
    results = rows(tmp_path)
    page = render(results)
    assert 'id="order"' in page
    assert "DroPE is no better than chance in word order (40%, by chance 50%)." in page
    assert "success by distance and length" in page
    assert "RULER single 2" in page
    from drope.report import scores

    assert {m.task for m in scores.success_rows(results)} == {"niah_single_2"}  # probes are no part of the headline
