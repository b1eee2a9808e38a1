"""What the report says, against results whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from synthetic_results import synthetic

from drope import report
from drope.report import findings, scores
from drope.results import Measurement, Results, wilson


def shares(rows: dict[tuple[str, str, int], float], n: int = 500, **meta) -> Results:
    """Results of (task, method, length) -> share."""
    out = Results("synthetic", 256, meta=meta)
    for (task, method, length), share in rows.items():
        hits = round(share * n)
        out.measurements.append(Measurement(task, method, length, "success", hits / n, *wilson(hits, n), n))
    return out


def test_headline_when_drope_wins():
    said = report.headline(shares({("single", "drope", 1024): 0.6, ("single", "yarn", 1024): 0.05}))
    assert said == "At 4× the context, DroPE answers 60% of the needle questions; the best RoPE scaling (YaRN) 5%."


def test_headline_when_drope_loses_names_the_winner():
    said = report.headline(shares({("single", "drope", 512): 0.2, ("single", "ntk", 512): 0.5}))
    assert "DroPE falls behind" in said
    assert "20%" in said
    assert "(NTK) 50%" in said


def test_headline_does_not_choose_between_overlapping_intervals():
    said = report.headline(shares({("single", "drope", 512): 0.52, ("single", "yarn", 512): 0.5}, n=50))
    assert "cannot be told apart" in said
    assert "52%" in said
    assert "50%" in said


def test_headline_when_nothing_works():
    said = report.headline(shares({("single", "drope", 2048): 0.02, ("single", "yarn", 2048): 0.0}))
    assert "no method works" in said


def test_a_rival_that_is_the_control_is_called_so():
    said = report.headline(shares({("single", "drope", 512): 0.9, ("single", "control", 512): 0.4}))
    assert "RoPE trained on the same tokens 40%" in said


def test_scaling_on_the_control_is_told_from_scaling_alone():
    said = report.headline(shares({("single", "drope", 512): 0.9, ("single", "control_yarn", 512): 0.4}))
    assert "YaRN on RoPE trained alike 40%" in said


def test_headline_speaks_of_the_target_and_not_of_the_kindest_length():
    rows = {("single", m, n): s for n in (512, 1024, 2048) for m, s in (("drope", 700 / n / 2), ("yarn", 0.05))}
    assert report.headline(shares(rows, target_length=1024)).startswith("At 4×")
    assert report.headline(shares(rows)).startswith("At 8×")
    assert report.headline(shares(rows, target_length=999)).startswith("At 8×")


@pytest.mark.parametrize(
    ("results", "words"),
    [
        (Results("m", 256), "Nothing was measured."),
        (Results("m", 256, recovery=[{"run": "drope", "tokens": t, "loss": loss} for t, loss in [(0, 9.0), (5e6, 3)]]),
         "5M tokens of recalibration take the loss from 9.00 to 3.00."),
        (Results("m", 256, temperature=[{"length": 512, "beta": 1.07, "loss": 3.0, "loss_without": 3.1}]),
         "At 2× the context the best softmax temperature is 1.07."),
        (Results("m", 256, [Measurement("perplexity", "drope", 512, "loss", 3.1, 3, 3.2, 8, {"position_start": 448})]),
         "At the end of 2× the context, the loss of DroPE is 3.10."),
        (shares({("single", "yarn", 512): 0.3}), "At 2× the context, YaRN answers 30% of the needle questions."),
    ],
)  # fmt: skip
def test_headline_of_partial_results(results, words):
    assert report.headline(results) == words


def test_mean_of_one_task_keeps_its_interval_and_of_many_narrows_by_the_root():
    rows = {(t, "drope", 512): 0.3 for t in ("a", "b", "c", "d")}
    results = shares(rows, n=100)
    one, four = scores.score(results, "drope", 512, ["a"]), scores.score(results, "drope", 512, ["a", "b", "c", "d"])
    assert one is not None and four is not None  # noqa: PT018
    low, high = wilson(30, 100)
    assert (one.low, one.high) == pytest.approx((low, high))
    assert (0.3 - four.low, four.high - 0.3) == pytest.approx(((0.3 - low) / 2, (high - 0.3) / 2))


def test_interval_of_a_mean_covers_the_truth():
    """By simulation: 95% intervals of the mean of three tasks hold the true mean about 95% of the time."""
    rng, truth, n = np.random.default_rng(0), np.array([0.05, 0.4, 0.9]), 100
    held = 0
    for hits in rng.binomial(n, truth, size=(1500, 3)):
        rows = [
            Measurement(str(i), "drope", 512, "success", k / n, *wilson(k, n), n) for i, k in enumerate(hits.tolist())
        ]
        s = scores.score(Results("m", 256, rows), "drope", 512, ["0", "1", "2"])
        assert s is not None
        held += s.low <= truth.mean() <= s.high
    assert 0.93 < held / 1500 < 0.975


def test_methods_that_lack_a_task_are_not_ranked():
    rows = {(t, m, 512): 0.1 for t in ("single", "multi_key") for m in ("drope", "pi")}
    rows["single", "yarn", 512] = 0.99
    assert [s.method for s in scores.ranking(shares(rows), 512)] == ["drope", "pi"]


def test_depth_rows_are_no_totals():
    results = shares({("single", "drope", 512): 0.5})
    results.measurements.insert(0, Measurement("single", "drope", 512, "success", 1, 0.9, 1, 9, {"depth": 0.0}))
    assert scores.ranking(results, 512)[0].value == 0.5


def test_kept_share_is_of_the_same_method_and_tasks():
    results = shares({("single", "drope", 256): 0.8, ("single", "drope", 512): 0.4, ("multi_key", "drope", 256): 0.1})
    assert scores.kept_share(results, scores.ranking(results, 512)[0]) == pytest.approx(0.5)


def test_losses_are_compared_only_like_with_like():
    rows = [{"run": r, "tokens": t, "loss": 3.0 + t / 1e6} for r in ("drope", "control") for t in (0, 100, 200)]
    rows[2]["eval_loss"] = 2.5  # DroPE's alone: no match for the control's training loss
    ends = scores.endings(Results("m", 256, recovery=rows))
    assert not ends["drope"].held_out
    assert ends["drope"].loss == pytest.approx(3.0002)
    assert scores.at_equal_tokens(ends)
    rows[5]["tokens"] = 300
    assert not scores.at_equal_tokens(scores.endings(Results("m", 256, recovery=rows)))


def test_standfirst_says_what_it_costs_within_the_context():
    rows = {
        ("single", "drope", 256): 0.5,
        ("single", "rope", 256): 0.95,
        ("single", "drope", 512): 0.4,
        ("single", "rope", 512): 0.0,
    }
    said = " ".join(findings.standfirst(shares(rows)))
    assert "pays a price: 50% against 95%" in said
    assert "ahead of every other method at 2×" in said


def test_few_trials_are_admitted():
    said = findings.standfirst(shares({("single", "drope", 512): 0.5, ("single", "yarn", 512): 0.1}, n=20))
    assert any("only 20 trials" in s for s in said)


def test_values_that_are_not_finite_are_left_out_of_the_words():
    results = shares({("single", "drope", 512): 0.5})
    results.measurements.append(Measurement("single", "yarn", 512, "success", math.nan, math.nan, math.nan, 0))
    assert "DroPE answers 50%" in report.headline(results)


def test_table_is_markdown_of_every_total():
    text = report.table(synthetic())
    blocks = text.split("\n\n")
    assert len(blocks) == 6  # the mean, four tasks, loss by stretch
    for block in blocks:
        widths = {line.count("|") for line in block.splitlines()}
        assert len(widths) == 1
    assert "| DroPE" in blocks[0]


def test_table_keeps_a_pipe_in_a_name_from_making_a_column():
    text = report.table(shares({("single", "a|b\nc", 512): 0.5}))
    assert "a\\|b c" in text
