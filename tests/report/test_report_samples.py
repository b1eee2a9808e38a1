"""The browser of samples, and the maps and sections that come with new kinds of rows."""

from __future__ import annotations

import json

from drope.report import write
from drope.report.build import render
from drope.report.samples import browser
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
    found = browser(results, tmp_path / "samples")
    [group] = found.groups
    assert [s.result for s in group.rows] == ["miss"] * 4 + ["hit"] * 4  # what shows without a script
    assert [row[:4] for row in found.data["cells"][0]["rows"]][:2] == [[0, 0, "miss", "0%"], [1, 1, "hit", "11%"]]
    assert len(found.data["cells"][0]["rows"]) == 9
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
    assert browser(results, tmp_path / "samples").groups == []


def many(tmp_path, cells: int, trials: int, words: int) -> Results:
    """Logs of methods that share their prompts; every tenth sample is a hit."""
    (tmp_path / "samples").mkdir()
    made = []
    for cell in range(cells):
        log = f"{cell}.jsonl"
        (tmp_path / "samples" / log).write_text(
            "".join(
                json.dumps({"index": i, "prompt": f"start … what is {i}?" + "<b>" * words, "depth": None,
                            "depths": [0.5], "expected": [f"e{i}"], "output": f"method {cell} says {i} </script>",
                            "found": float(i % 10 == 0), "hit": i % 10 == 0}) + "\n"
                for i in range(trials)
            )
        )  # fmt: skip
        details = {"samples": log}
        made.append(Measurement("niah_single_2", "drope", 512 + cell, "success", 0.1, 0, 0.2, trials, details))
    return Results("m", 512, made)


def test_as_many_samples_as_the_page_may_hold(tmp_path):
    results = many(tmp_path, 6, 700, 20)
    full = browser(results, tmp_path / "samples")
    assert [len(cell["rows"]) for cell in full.data["cells"]] == [500] * 6
    assert len(full.data["texts"]) == 1000  # a prompt and an answer each, once for all cells
    assert "500 of 700 samples are here, spread evenly; all in samples/3.jsonl" in full.groups[3].note
    assert "70 hits, 630 misses, 10%" in full.groups[3].note
    small = browser(results, tmp_path / "samples", limit=60_000)
    assert 20_000 < len(json.dumps(small.data)) <= 60_000
    for cell in small.data["cells"]:
        rows = cell["rows"]
        assert 8 <= len(rows) < 100
        assert [r[0] for r in rows] == sorted({r[0] for r in rows})
        assert rows[-1][0] - rows[0][0] > 500  # from all of the log
        assert 0.05 < sum(r[1] for r in rows) / len(rows) < 0.2
    page = render(results, tmp_path / "samples")
    assert len(page) < 2_000_000
    assert page.count("</script>") == page.count("<script")  # no sample ends its element


def test_probes_have_their_own_section(tmp_path):
    results = rows(tmp_path)
    page = render(results)
    assert 'id="order"' in page
    assert "DroPE is no better than chance in word order (40%, by chance 50%)." in page
    assert "success by distance and length" in page
    assert "RULER single 2" in page
    from drope.report import scores

    assert {m.task for m in scores.success_rows(results)} == {"niah_single_2"}  # probes are no part of the headline
