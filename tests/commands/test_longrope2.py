"""Factors of LongRoPE2 and temperatures of every form, from the command line on a random model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drope.commands import main

Drope = Callable[..., Any]
SMALL = ("--population", "5", "--generations", "1", "--documents", "1")
RUN = ("recalibrate", "TINY", "--data", "stdlib", "--tokens", "1k", "--out", "X")
QUICK = ("--tasks", "single", "--trials", "1", "--max-new-tokens", "2", "--documents", "1", "--perplexity-bins", "2")


@pytest.fixture(scope="module")
def dropped(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("dropped") / "nope"
    assert main(["convert", tiny, "--to", "4x", "--out", str(out), "--json"]) == 0
    return str(out)


def test_search_keeps_factors_for_compare_and_writes_a_checkpoint(drope: Drope, tiny: str, tmp_path: Path) -> None:
    found = drope(
        "longrope2", tiny, "--to", "2x", *SMALL, "--out", tmp_path / "f.json", "--checkpoint", tmp_path / "long"
    )  # fmt: skip
    assert json.loads((tmp_path / "f.json").read_text()) == found
    [target] = found["targets"]
    assert (target["target"], target["context"], len(target["factors"])) == (256, 128, 8)
    parameters = json.loads((tmp_path / "long" / "config.json").read_text())["rope_parameters"]
    assert parameters["rope_type"] == "longrope"
    assert parameters["long_factor"] == target["factors"]
    assert parameters["short_factor"] == [1.0] * 8
    compared = drope(
        "compare", tiny, "--methods", "rope", "longrope2", "--lengths", "2x", *QUICK, "--out", tmp_path / "compare"
    )  # fmt: skip
    [settings, *_] = [s for m in compared["measurements"] if (s := m["details"].get("settings", {})).get("factors")]
    assert settings["factors"] == {"256": target["factors"]}  # taken from the cache, not searched anew


def test_factors_for_a_declared_context_are_found_again(drope: Drope, tiny: str, tmp_path: Path) -> None:
    [target] = drope("longrope2", tiny, "--context", "119", "--to", "2x", *SMALL)["targets"]
    assert (target["target"], target["context"]) == (238, 119)
    flags = ("--methods", "longrope2", "--lengths", "2x", *QUICK)
    found = drope("compare", tiny, *flags, "--context", "119", "--out", tmp_path / "compare")
    factors = [m["details"]["settings"]["factors"] for m in found["measurements"] if "settings" in m["details"]]
    assert factors[0] == {"238": target["factors"]}


@pytest.mark.parametrize("form", ["constant", "per_position", "per_head", "per_head_log", "scalable_softmax"])
def test_every_form_is_fitted_and_measured(drope: Drope, dropped: str, tmp_path: Path, form: str) -> None:
    fit = tmp_path / "fit.json"
    quick = ("--max-tokens", "512", "--tolerance", "0.3", "--steps", "2")
    found = drope("temperature", dropped, "--to", "2x", "--form", form, *quick, "--out", fit)
    assert found["settings"]["form"] == form
    assert json.loads(fit.read_text()) == found
    measured = drope("evaluate", dropped, *QUICK, "--lengths", "2x", "--temperature", fit)["measurements"]
    assert {m["method"] for m in measured} == {"drope"}
    whole = [m["details"] for m in measured if not {"depth", "position_start"} & m["details"].keys()]
    assert whole
    assert all(details["settings"]["temperature"] == found["settings"] for details in whole)


def test_mixed_windows_train_a_control_and_write_a_stock_checkpoint(drope: Drope, tiny: str, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"The number after {i} is {i + 1}." for i in range(900)), encoding="utf-8")
    run = (
        "recalibrate", tiny, "--data", str(text), "--tokens", "1k", "--batch-tokens", "256", "--eval-blocks", "0",
        "--to", "2x", "--precision", "float32", "--mixed-window", "yarn", "--short-share", "0.5",
    )  # fmt: skip
    found = drope(*run, "--control", "--out", tmp_path / "run")
    assert found["method"] == "yarn"
    assert found["recalibration"]["mixed_window"]["target"] == 256
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["rope_parameters"]["rope_type"] == "yarn"
    assert config["max_position_embeddings"] == 256
    assert main([*run, "--out", str(tmp_path / "other")]) == 2
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("longrope2", "TINY", "--to", "1x"), "lengths above the model's context of 128"),
        (("longrope2", "TINY", "--to", "2x", "--context", "129"), "1 to 128 tokens"),
        (("longrope2", "TINY", "--to", "2x", "--context", "64", "--checkpoint", "X"), "without --context"),
        (("longrope2", "TINY", "--to", "2x", "--population", "1"), "population is 1"),
        (("longrope2", "TINY", "--to", "2x", "--mutation", "2"), "mutation is 2"),
        (("longrope2", "TINY", "--to", "2x", "--checkpoint", "TINY"), "--checkpoint"),
        (("longrope2", "DROPPED", "--to", "4x", *SMALL), "a model that rotates"),
        (("temperature", "DROPPED", "--to", "2x", "4x", "--form", "per_head"), "one length with --form per_head"),
        (("temperature", "DROPPED", "--to", "2x", "--form", "per_head", "--steps", "0"), "steps is 0"),
        (("temperature", "DROPPED", "--to", "2x", "--form", "warm"), "per_head"),
        (
            (*RUN, "--mixed-window", "yarn"),
            "--control",
        ),
        (
            (*RUN, "--control", "--mixed-window", "yarn", "--short-share", "1"),
            "short_share",
        ),
    ],
)
def test_what_cannot_be_is_refused(
    tiny: str, dropped: str, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], said: str
) -> None:
    assert main([{"TINY": tiny, "DROPPED": dropped}.get(a, a) for a in argv]) == 2
    assert said in capsys.readouterr().err
