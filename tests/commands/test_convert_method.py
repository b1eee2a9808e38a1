"""`drope convert --method`: stock checkpoints of other methods, and refusals before weights load."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from drope.commands import main
from drope.models import apply, load
from drope.positions import METHODS, get

Drope = Callable[..., Any]
SERVED = {"rope", "pi", "ntk", "dynamic_ntk", "yarn", "llama3", "p_rope", "drop_layers", "partial_drop", "drope_swan"}
DROPPED = {"drope", "nope"}
SEARCHED = {"longrope2"}


def logits(folder: str | Path, tokens: int) -> torch.Tensor:
    """Of a checkpoint as transformers alone reads it."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.arange(1, tokens + 1)[None]).logits


@pytest.mark.parametrize("name", sorted(SERVED))
def test_what_is_written_computes_the_method_without_drope(
    drope: Drope, tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    out = tmp_path / "out"
    found = drope("convert", tiny, "--method", name, "--to", "2x", "--out", out)
    assert (found["method"], found["target_length"]) == (name, 256)
    loaded = load(tiny).model
    with apply(loaded, get(name), 256), torch.no_grad():
        expected = loaded(torch.arange(1, 201)[None]).logits
    torch.testing.assert_close(logits(out, 200), expected, rtol=1e-3, atol=1e-3)
    card = (out / "README.md").read_text(encoding="utf-8")
    assert ("It has not been recalibrated" in card) == METHODS[name].trained


def test_yarn_is_stock_yarn(drope: Drope, tiny: str, tmp_path: Path) -> None:
    drope("convert", tiny, "--method", "yarn", "--to", "4x", "--out", tmp_path / "yarn")
    config = json.loads((tmp_path / "yarn" / "config.json").read_text())
    assert config["rope_parameters"]["rope_type"] == "yarn"
    assert config["rope_parameters"]["factor"] == 4
    assert config["max_position_embeddings"] == 512
    assert json.loads((tmp_path / "yarn" / "tokenizer_config.json").read_text())["model_max_length"] == 512


def test_nope_is_what_dropping_writes(drope: Drope, tiny: str, tmp_path: Path) -> None:
    drope("convert", tiny, "--method", "nope", "--to", "2x", "--out", tmp_path / "nope")
    drope("convert", tiny, "--to", "2x", "--out", tmp_path / "drope")
    torch.testing.assert_close(logits(tmp_path / "nope", 100), logits(tmp_path / "drope", 100))


@pytest.mark.parametrize("name", sorted(set(METHODS) - SERVED - DROPPED - SEARCHED))
def test_what_no_stock_configuration_says_is_refused_before_weights_load(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: pytest.fail("weights were loaded"))
    assert main(["convert", tiny, "--method", name, "--to", "2x", "--out", str(tmp_path / "x")]) != 0
    err = " ".join(capsys.readouterr().err.split())
    if METHODS[name].from_scratch:
        assert "trained from scratch" in err or "train from scratch" in err
    else:
        assert "cannot be saved as a stock checkpoint" in err
        assert "drope.apply" in err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--method", "yran", "--to", "2x"), "Did you mean yarn"),
        (("--method", "yarn", "--to", "64"), "at least the model's context, 128 tokens"),
        (("--method", "yarn", "--to", "2x", "--qk-norm"), "--qk-norm"),
        (("--method", "longrope2", "--to", "2x"), "searches them and writes it"),
    ],
)
def test_what_cannot_be_is_refused(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], said: str
) -> None:
    assert main(["convert", tiny, *argv, "--out", str(tmp_path / "x")]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_position_free_model_has_nothing_to_scale(
    drope: Drope, tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drope("convert", tiny, "--to", "2x", "--out", tmp_path / "free")
    assert main(["convert", str(tmp_path / "free"), "--method", "pi", "--to", "4x", "--out", str(tmp_path / "x")]) == 2
    assert "no rotary positions to change" in " ".join(capsys.readouterr().err.split())


def test_the_next_step_after_a_recalibrated_source_is_to_measure_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bundled:recalibrating", "--to", "4x", "--beta", "1.1", "--out", str(tmp_path / "out")]
    assert main(["convert", *arguments]) == 0
    shown = capsys.readouterr().out
    assert "drope evaluate" in shown
    assert "nothing has been trained" not in shown
