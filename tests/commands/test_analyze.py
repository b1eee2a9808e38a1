"""`drope analyze` for real, on a random model of context 128."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from drope.analysis import PARTS, AnalysisConfig
from drope.commands import main
from drope.commands.analyze import Analysing

Drope = Callable[..., Any]
QUICK = ("--length", "120", "--initial-length", "32", "--depths", "0", "1", "--offsets", "2")


@pytest.fixture(scope="module")
def dropped(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("dropped") / "nope"
    assert main(["convert", tiny, "--to", "8x", "--out", str(out), "--json"]) == 0
    return str(out)


def finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(finite(v) for v in value.values())
    if isinstance(value, list):
        return all(finite(v) for v in value)
    return not isinstance(value, float) or math.isfinite(value)


def test_everything_against_a_dropped_model(drope: Drope, tiny: str, dropped: str, tmp_path: Path) -> None:
    out = tmp_path / "page"
    found = drope("analyze", tiny, "--against", dropped, *QUICK, "--beyond", "2x", "--out", out)
    assert set(PARTS) <= set(found["parts"])
    assert json.loads((out / "analysis.json").read_text()) == found
    assert finite(found)
    assert found["meta"]["command"].startswith(f"drope analyze {Path(tiny).name} --against nope --")
    assert str(tmp_path) not in (out / "analysis.json").read_text()
    heads = found["parts"]["heads"]["states"]
    assert list(heads) == ["rope", "pi", "ntk", "yarn", "nope", "drope"]
    # nothing was trained: the dropped checkpoint is the dropped model, and no weight moved
    for a, b in zip(heads["nope"]["strongest"], heads["drope"]["strongest"], strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    drift = found["parts"]["changes"]["drift"]
    assert all(v == 0 for values in drift["parts"].values() for v in values)
    assert found["parts"]["constant"]["nope"]["uniformity"] == pytest.approx([0, 0], abs=1e-3)
    assert all(row["holds"] for row in found["parts"]["theory"]["theorem"])
    page = (out / "analysis.html").read_text(encoding="utf-8")
    assert page.count("<figcaption>") >= 10
    assert page.count("<section") == 12


def test_frequencies_alone_read_no_weights(drope: Drope, tiny: str, tmp_path: Path) -> None:
    import shutil

    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(Path(tiny) / "config.json", bare / "config.json")
    found = drope("analyze", bare, "--parts", "frequencies", "--factor", "4", "--out", tmp_path / "page")
    assert set(found["parts"]) == {"frequencies"}
    assert (tmp_path / "page" / "analysis.html").exists()
    yarn = [m for m in found["parts"]["frequencies"]["methods"] if m["method"] == "yarn"]
    assert [m["length"] for m in yarn] == [512, 1024, 2048]


def test_a_position_free_model_alone(drope: Drope, dropped: str, tmp_path: Path) -> None:
    parts = ("--parts", "frequencies", "initial", "heads", "crop", "spread", "changes", "entropy")
    found = drope("analyze", dropped, *parts, *QUICK, "--beyond", "2x", "--out", tmp_path / "page")
    assert list(found["parts"]["heads"]["states"]) == ["drope"]
    assert "crop" not in found["parts"]
    assert set(found["parts"]["initial"]["gradients"]) == {"rope", "nope"}  # its rotation is on record
    assert any("YaRN" in note for note in found["notes"])
    entropy = found["parts"]["entropy"]
    assert entropy["reference"] == 128
    assert "256" in entropy["states"]["drope"]["betas"]


def test_the_fitted_temperature_stands_beside_the_predicted_one(
    drope: Drope, tiny: str, dropped: str, tmp_path: Path
) -> None:
    fit = tmp_path / "fit.json"
    drope("temperature", dropped, "--to", "2x", "--max-tokens", "512", "--tolerance", "0.2", "--out", fit)
    found = drope("analyze", dropped, "--parts", "entropy", *QUICK, "--beyond", "2x", "--temperature", fit)
    assert found["parts"]["entropy"]["fitted"]["a"] == pytest.approx(json.loads(fit.read_text())["a"], rel=1e-5)


def test_along_a_run(drope: Drope, tiny: str, tmp_path: Path) -> None:
    from drope.models import load

    model = load(tiny).model
    for step in (1, 2, 3):
        model.lm_head.weight.data.mul_(1.1)
        model.save_pretrained(tmp_path / "run" / f"checkpoint-{step}")
    found = drope("analyze", tiny, "--parts", "initial", *QUICK, "--along", tmp_path, "--out", tmp_path / "page")
    command = found["meta"]["command"]
    assert " --parts initial " in command
    assert f" --along {tmp_path.name} " in command
    rows = found["parts"]["along"]
    assert {r["method"] for r in rows} == {"rope", "nope"}
    assert list(dict.fromkeys(r["checkpoint"] for r in rows)) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    assert "Gradients along training" in (tmp_path / "page" / "analysis.html").read_text(encoding="utf-8")


def test_for_people(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyze", tiny, "--parts", "frequencies", "heads", *QUICK]) == 0
    out = capsys.readouterr().out
    for text in ("YaRN", "Positional and semantic heads", "Nothing was kept"):
        assert text in out


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (("--length", "4k"), ("--length", "4096", "128")),
        (("--length", "4"), ("--length", "16")),
        (("--beyond", "1x"), ("--beyond", "128")),
        (("--parts", "head"), ("--parts", "head", "heads")),
        (("--factor", "1"), ("--factor",)),
        (("--depths", "2"), ("--depths", "0")),
        (("--along", "no/such/run"), ("--along", "no/such/run")),
        (("--temperature", "no/such/fit.json"), ("--temperature", "no/such/fit.json")),
        (("--parts", "frequencies", "--against", "bundled"), ("--against",)),
        (("--parts", "spread", "--text", "no/such/text.txt"), ("no/such/text.txt",)),
        (("--length", "24", "--parts", "heads"), ("--length", "needle")),
    ],
)
def test_bad_input(
    argv: tuple[str, ...], named: tuple[str, ...], tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyze", tiny, *argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    said = [line for line in captured.err.splitlines() if line.startswith("drope:")]
    assert len(said) == 1
    assert "Traceback" not in captured.err
    for word in named:
        assert word in said[0]


def test_another_architecture_is_refused(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyze", tiny, "--against", "bundled", "--parts", "changes"]) == 2
    err = capsys.readouterr().err
    assert "--against" in err
    assert "same architecture" in err


def test_families_without_rotation_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    small = GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=64, n_positions=32)
    GPT2LMHeadModel(small).save_pretrained(tmp_path / "gpt2")
    assert main(["analyze", str(tmp_path / "gpt2")]) == 2
    err = capsys.readouterr().err
    assert "GPT2LMHeadModel" in err
    assert "learned position" in err


def test_the_flags_are_those_of_the_analysis() -> None:
    ours = {f.name for f in fields(Analysing)} - {"along"} | {"seed"}
    assert ours == {f.name for f in fields(AnalysisConfig)}
    assert Analysing().config(2048, seed=0) == AnalysisConfig()
    assert Analysing().config(256, seed=0).beyond == 1024
    assert Analysing(parts=PARTS) == Analysing()
