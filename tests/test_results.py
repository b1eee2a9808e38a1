import json
import math

import pytest
from scipy.stats import binomtest, t

from drope.errors import InputError
from drope.results import Measurement, Results, describe_run, mean_interval, wilson


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (250, 500)])
def test_wilson_is_scipys(k, n):
    low, high = wilson(k, n)
    expected = binomtest(k, n).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_of_nothing_knows_nothing():
    assert wilson(0, 0) == (0, 1)


def test_mean_interval_is_students():
    values = [1.0, 2.0, 4.0]
    mean, low, high, error = mean_interval(values)
    expected = t.interval(0.95, 2, loc=mean, scale=error)
    assert (low, high) == pytest.approx(expected)
    assert error == pytest.approx(math.sqrt(7 / 3 / 3))
    assert mean_interval([5.0]) == (5.0, 5.0, 5.0, 0.0)
    with pytest.raises(InputError):
        mean_interval([])


def test_results_come_back_equal(tmp_path):
    row = Measurement("single", "drope", 256, "success", 0.5, 0.2, 0.8, 10, {"depth": 0.5})
    results = Results("m", 128, [row], [{"run": "drope", "tokens": 1}], [{"length": 256}], {"seed": 0})
    again = Results.load(results.save(tmp_path / "results.json"))
    assert again == results
    assert again.select(task="single", method="drope") == [row]
    assert again.select(method="rope") == []


def test_a_row_is_a_line_and_what_is_not_finite_is_refused(tmp_path):
    rows = [
        Measurement("single", "drope", n, "success", 0.5, 0.2, 0.8, 10, {"a": {"b": [1, {"c": 2}]}}) for n in (1, 2)
    ]
    meta = {"paired": [{"p": 0.5, "method": "ü"}, {"p": 1.0}], "versions": {"x": {"y": []}}, "none": [], "e": {}}
    path = Results("m", 128, rows, [], [{"length": 256, "beta": 1.5}], meta).save(tmp_path / "results.json")
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if '"task": "single"' in line]) == 2
    assert sum(line.strip().startswith('{"p": ') for line in lines) == 2
    assert json.loads(path.read_text(encoding="utf-8"))["meta"] == meta
    assert max(map(len, lines)) < 300
    rows[0].value = math.nan
    with pytest.raises(ValueError, match="JSON"):
        Results("m", 128, rows).save(path)
    assert len(Results.load(path).measurements) == 2


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "[]",
        '{"schema": 99}',
        '{"schema": 1, "model": "m"}',
        '{"schema": 1, "model": "m", "context": 1, "x": 1}',
    ],
)
def test_other_files_are_refused_by_name(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"other\.json"):
        Results.load(path)


def test_a_run_describes_itself_without_paths():
    about = describe_run("drope evaluate m", seed=3)
    assert about["seed"] == 3
    assert about["versions"]["torch"]
    assert str(__file__).rsplit("/", 2)[0] not in json.dumps(about)
