"""docs/methods.md has a row for every method and temperature, filled in, and none for anything else."""

from __future__ import annotations

from pathlib import Path

import pytest

from drope.positions import METHODS
from drope.positions.temperatures import TEMPERATURES
from drope.report import table
from drope.results import Results

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
COLUMNS = ["idea", "formula", "training", "changes", "engines"]


def tables() -> list[dict[str, dict[str, str]]]:
    """The tables of the page: name in the first column -> cells by heading."""
    found: list[dict[str, dict[str, str]]] = []
    heads: list[str] = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            heads = []
        elif not heads:
            heads = cells
            found.append({})
        elif not set(line) <= set("|-: "):
            found[-1][cells[0].strip("`")] = dict(zip(heads[1:], cells[1:], strict=True))
    return found


def test_every_method_has_a_row_and_every_row_is_a_method():
    methods, temperatures, *_ = tables()
    assert list(methods) == list(METHODS), "in the order of the catalogue"
    assert set(temperatures) == set(TEMPERATURES)
    for row in (*methods.values(), *temperatures.values()):
        assert list(row) == COLUMNS
        assert all(row.values())


def test_the_training_column_is_what_the_classes_say():
    methods, *_ = tables()
    for name, cls in METHODS.items():
        kind = "from scratch" if cls.from_scratch else "recalibrated" if cls.trained else "free"
        assert methods[name]["training"].startswith(kind)


@pytest.mark.parametrize(
    ("file", "titles"),
    [("first-base-compare", ("Mean over tasks", "Perplexity")), ("compare-smollm2-135m", ("One needle",))],
)
def test_the_numbers_are_those_of_the_result_files(file, titles):
    results = Results.load(PAGE.parents[1] / "results" / f"{file}.json")
    blocks = [block for block in table(results).split("\n\n") if block.removeprefix("| ").startswith(titles)]
    assert len(blocks) == len(titles)
    assert all(block in PAGE.read_text(encoding="utf-8") for block in blocks)
