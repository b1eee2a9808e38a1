"""`--context`: methods scale from fewer tokens than the model was trained at, and what is not fair is said."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from drope.commands import main
from drope.commands.tables import result_tables
from drope.report.build import render
from drope.results import Results

Drope = Callable[..., Any]
QUICK = ("--tasks", "single", "--trials", "1", "--depths", "0.5", "--max-new-tokens", "2", "--documents", "1",
         "--perplexity-bins", "2")  # fmt: skip


def test_methods_scale_from_the_declared_context(drope: Drope, tiny: str, tmp_path: Path) -> None:
    """Declared 64 of 128, perplexity at 128: PI squeezes twofold, which at its own context it does not at all."""
    flags = ("--methods", "rope", "pi", "--tasks", "none", "--documents", "1", "--perplexity-bins", "2")
    own = drope("compare", tiny, *flags, "--lengths", "1x", "--out", tmp_path / "own")
    declared = drope("compare", tiny, *flags, "--lengths", "2x", "--context", "64", "--out", tmp_path / "declared")
    assert (own["context"], declared["context"]) == (128, 64)

    def perplexity(found: dict[str, Any], method: str) -> float:
        rows = [m for m in found["measurements"] if (m["method"], m["metric"]) == (method, "perplexity")]
        [value] = [m["value"] for m in rows if "position_start" not in m["details"]]
        return value

    assert perplexity(own, "pi") == pytest.approx(perplexity(own, "rope"))
    assert perplexity(declared, "rope") == pytest.approx(perplexity(own, "rope"))
    assert perplexity(declared, "pi") != pytest.approx(perplexity(own, "pi"), rel=1e-4)


def test_rows_beyond_it_are_marked_everywhere(drope: Drope, tiny: str, tmp_path: Path) -> None:
    found = drope(
        "evaluate", tiny, *QUICK, "--methods", "rope", "--lengths", "120", "128", "--context", "120", "--out", tmp_path
    )
    assert found["meta"]["declared_context"] == {"tokens": 120, "trained": {"tiny-rope": 128}}
    [note] = found["meta"]["notes"]
    assert "cannot be fair" in note
    for m in found["measurements"]:
        assert m["details"].get("trained_context") == (128 if m["length"] > 120 else None)
    results = Results.load(tmp_path / "results.json")
    assert note.split("; ")[0].split(":")[0] in render(results)
    console = Console(file=io.StringIO(), width=160)
    for item in result_tables(results.measurements, results.context):
        console.print(item)
    assert console.file.getvalue().count("* [") == 3  # the needles, and both perplexities at 128


def test_without_it_nothing_is_marked(drope: Drope, tiny: str) -> None:
    found = drope("evaluate", tiny, *QUICK, "--methods", "rope", "yarn", "--lengths", "1x", "2x")
    assert not {"declared_context", "notes", "not_recalibrated"} & set(found["meta"])
    assert all("trained_context" not in m["details"] for m in found["measurements"])


@pytest.mark.parametrize("command", ["evaluate", "compare"])
@pytest.mark.parametrize(
    ("given", "said"),
    [("129", "1 to 128 tokens"), ("16k", "1 to 128 tokens"), ("0", "at least 1"), ("x", "a length such as")],
)
def test_impossible_contexts_are_refused(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, given: str, said: str
) -> None:
    assert main([command, tiny, *QUICK, "--context", given, "--out", str(tmp_path / "x")]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("name", ["drop_layers", "partial_drop", "drope_swan", "drope", "nope"])
def test_methods_on_weights_without_their_training_are_named(drope: Drope, tiny: str, name: str) -> None:
    found = drope("evaluate", tiny, *QUICK, "--methods", "rope", name, "--lengths", "1x")
    assert found["meta"].get("not_recalibrated") == (None if name == "nope" else [name])  # nope is the control of that
    if name != "nope":
        [note] = found["meta"]["notes"]
        assert note.startswith(f"Not recalibrated: {name}.")


def test_a_position_free_checkpoint_is_taken_at_its_word(drope: Drope, tiny: str, tmp_path: Path) -> None:
    drope("convert", tiny, "--to", "2x", "--out", tmp_path / "free")
    found = drope("evaluate", tmp_path / "free", *QUICK, "--lengths", "1x")
    assert "not_recalibrated" not in found["meta"]


def test_models_that_were_not_trained_alike_are_named(drope: Drope, tiny: str, tmp_path: Path) -> None:
    """As their drope.json tells: on none, on 1M and on as many."""
    for name in ("long", "other"):
        drope("convert", tiny, "--to", "2x", "--out", tmp_path / name)
        record = tmp_path / name / "drope.json"
        record.write_text(json.dumps(json.loads(record.read_text()) | {"tokens": 1_000_000}))
    flags = ("--tasks", "none", "--documents", "1", "--perplexity-bins", "2", "--lengths", "1x", "--methods", "rope")
    mixed = drope("compare", tiny, tmp_path / "long", *flags, "--out", tmp_path / "mixed")
    assert mixed["meta"]["recalibrated_tokens"] == {"tiny-rope": 0, "long": 1_000_000}
    assert "not matched: tiny-rope on none, long on 1M" in mixed["meta"]["notes"][0]
    alike = drope("compare", tmp_path / "long", tmp_path / "other", *flags, "--out", tmp_path / "alike")
    assert alike["meta"]["recalibrated_tokens"] == {"long": 1_000_000, "other": 1_000_000}
    assert "notes" not in alike["meta"]
