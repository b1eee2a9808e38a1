"""The subcommands for real, on a random model of context 128."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from drope.commands import main
from drope.commands.measuring import Measuring
from drope.commands.options import General
from drope.commands.output import session
from drope.commands.recalibrating import Recalibrating
from drope.evaluation import EvaluationConfig
from drope.training import RECIPES, RecalibrationConfig

Drope = Callable[..., Any]
QUICK = ("--tasks", "single", "--trials", "2", "--depths", "0", "1", "--max-new-tokens", "8", "--documents", "2")


@pytest.fixture(scope="module")
def dropped(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("dropped") / "nope"
    assert main(["convert", tiny, "--to", "8x", "--out", str(out), "--json"]) == 0
    return str(out)


def test_inspect_reports_what_the_config_says(drope: Drope, tiny: str) -> None:
    found = drope("inspect", tiny, "--to", "2x", "1k")
    assert (found["context"], found["layers"], found["heads"], found["kv_heads"]) == (128, 2, 2, 1)
    assert [t["length"] for t in found["targets"]] == [256, 1024]
    assert found["convertible"]


def test_inspect_for_people(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", tiny]) == 0
    out = capsys.readouterr().out
    for text in ("LlamaForCausalLM", "128 tokens", "2 heads, 1 of keys and values", "can be dropped"):
        assert text in out
    assert "Traceback" not in out


def test_convert_writes_a_checkpoint_that_transformers_loads_without_positions(tiny: str, dropped: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(dropped)
    assert model.config.max_position_embeddings == 8 * 128
    ids = torch.arange(20)[None]
    with torch.no_grad():
        near, far = model(ids).logits, model(ids, position_ids=torch.arange(20)[None] * 37).logits
        rope = AutoModelForCausalLM.from_pretrained(tiny)(ids).logits
    torch.testing.assert_close(near, far)
    assert (near - rope).abs().max() > 1e-3


def test_convert_with_qk_norm_reports_the_distance(drope: Drope, tiny: str, tmp_path: Path) -> None:
    out = tmp_path / "norm"
    found = drope(
        "convert", tiny, "--to", "2x", "--out", out, "--qk-norm", "--fit-tokens", "256", "--data", "stdlib:prose"
    )
    assert found["init"] == "fitted"
    assert found["kl"] >= 0
    assert json.loads((out / "config.json").read_text())["architectures"] == ["Qwen3ForCausalLM"]


def test_an_existing_folder_is_left_alone(tiny: str, dropped: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted((p.name, p.stat().st_mtime_ns) for p in Path(dropped).iterdir())
    assert main(["convert", tiny, "--to", "8x", "--out", dropped]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert sorted((p.name, p.stat().st_mtime_ns) for p in Path(dropped).iterdir()) == before


def test_a_target_below_the_context(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", tiny, "--to", "64", "--out", str(tmp_path / "x")]) == 2
    err = capsys.readouterr().err
    assert "64" in err
    assert "128" in err
    assert not (tmp_path / "x").exists()


def test_temperature_fits_and_keeps_the_fit(drope: Drope, dropped: str, tmp_path: Path) -> None:
    out = tmp_path / "temperature.json"
    found = drope("temperature", dropped, "--to", "2x", "--max-tokens", "512", "--tolerance", "0.2", "--out", out)
    assert json.loads(out.read_text()) == found
    assert [p["length"] for p in found["points"]] == [256]
    assert found["points"][0]["loss"] <= found["points"][0]["loss_without"]


def test_temperature_counts_from_a_shorter_context_where_told_to(
    drope: Drope, dropped: str, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ("--max-tokens", "256", "--tolerance", "0.5")
    found = drope("temperature", dropped, "--context", "32", "--to", "2x", *quick)
    assert (found["context"], [p["length"] for p in found["points"]]) == (32, [64])
    assert main(["temperature", dropped, "--context", "256", "--to", "2x", *quick]) == 2
    assert "1 to 128 tokens" in capsys.readouterr().err


def test_evaluate_runs_the_methods_asked_for(drope: Drope, tiny: str, tmp_path: Path) -> None:
    out = tmp_path / "results"
    found = drope("evaluate", tiny, *QUICK, "--methods", "rope", "yarn", "--lengths", "2x", "--out", out)
    assert {m["method"] for m in found["measurements"]} == {"rope", "yarn", "sliding_window"}
    assert {m["length"] for m in found["measurements"]} == {256}
    assert found["model"] == "tiny-rope"
    assert str(tmp_path) not in (out / "results.json").read_text()
    page = drope("report", out / "results.json")["report"]
    assert "<html" in Path(page).read_text()


def test_evaluate_refuses_scaling_of_positions_that_are_gone(dropped: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", dropped, "--methods", "yarn", *QUICK]) == 2
    err = capsys.readouterr().err
    for word in ("--methods", "yarn", "drope"):
        assert word in err


def test_compare_names_models_and_writes_a_page(drope: Drope, tiny: str, dropped: str, tmp_path: Path) -> None:
    out = tmp_path / "compare"
    found = drope(
        "compare", f"base={tiny}", f"long={dropped}", *QUICK, "--methods", "rope", "--lengths", "1x", "--out", out
    )  # fmt: skip
    assert {(m["details"]["model"], m["method"]) for m in found["measurements"]} == {
        ("base", "rope"),
        ("long", "drope"),
    }
    assert (out / "report.html").stat().st_size > 1000


def test_compare_wants_different_names(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", tiny, tiny, "--out", str(tmp_path / "x")]) == 2
    assert "different names" in capsys.readouterr().err


def test_results_for_people_are_tables(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", tiny, *QUICK, "--methods", "rope", "--lengths", "1x"]) == 0
    captured = capsys.readouterr()
    assert "single: success, % [95% interval], n = 2" in captured.out
    assert "128 (1x)" in captured.out
    assert "Nothing was kept" in captured.out


def test_the_flags_are_those_of_the_evaluation() -> None:
    ours = {f.name for f in fields(Measuring)} - {"batch_tokens_eval", "context"} | {
        "batch_tokens",
        "seed",
        "harness_tasks",
        "sliding_window",
    }
    assert ours == {f.name for f in fields(EvaluationConfig)}
    assert Measuring().config(128, seed=0) == EvaluationConfig(lengths=(128, 256, 512, 1024))


def test_a_process_prints_json_alone_on_stdout(process: Drope, tiny: str) -> None:
    done = process("evaluate", tiny, *QUICK, "--methods", "rope", "--lengths", "1x", "--json")
    out, err = done.communicate()
    assert done.returncode == 0, err
    assert json.loads(out)["context"] == 128


def test_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "./no/such/model"]) == 2
    assert "./no/such/model" in capsys.readouterr().err


# Recalibration -------------------------------------------------------------------------------------------------------
TRAIN = (
    "--data",
    "stdlib:prose",
    "--tokens",
    "4k",
    "--batch-tokens",
    "512",
    "--micro-batch",
    "2",
    "--eval-blocks",
    "2",
)


def test_the_flags_are_those_of_the_training() -> None:
    ours = {f.name for f in fields(Recalibrating)} - {"recipe", "set", "distill_temperature"}
    others = {"training_arguments", "temperature", "seed", "mixed_window", "skip"}
    assert ours | others == {f.name for f in fields(RecalibrationConfig)}


@pytest.mark.parametrize(
    ("flags", "taught", "recipe"),
    [({}, True, "fast"), ({}, False, "paper"), ({"fsdp": True}, True, "paper"), ({"recipe": "paper"}, True, "paper"),
     ({"recipe": "fast"}, False, "fast")],
)  # fmt: skip
def test_the_default_recipe_is_the_one_that_can_work(flags: dict, taught: bool, recipe: str) -> None:
    changes = {k: v for k, v in flags.items() if k != "recipe"}
    expected = RecalibrationConfig("stdlib", 1000, **RECIPES[recipe], **changes)
    assert Recalibrating("stdlib", 1000, **flags).config(0, taught) == expected


def test_a_recipe_gives_way_to_flags() -> None:
    config = Recalibrating(
        "stdlib", 1000, recipe="fast", fade="none", distill=0.0, set=("dataloader_pin_memory=false",)
    )
    assert config.config(0, taught=True).fade is None
    assert config.config(0, taught=True).distill == 0
    assert config.config(0, taught=True).optimizer == RECIPES["fast"]["optimizer"]
    assert config.config(0, taught=True).training_arguments == {"dataloader_pin_memory": False}


def test_recalibrate_writes_a_position_free_checkpoint(drope: Drope, tiny: str, tmp_path: Path) -> None:
    found = drope("recalibrate", tiny, *TRAIN, "--out", tmp_path / "out")
    assert found["tokens"] == 3584  # 4,000 in whole steps
    assert found["history"][-1]["tokens"] == found["tokens"]
    from drope.models import is_position_free, load

    assert is_position_free(load(found["model"]).model)
    record = (tmp_path / "out/model/drope.json").read_text()
    assert str(tmp_path) not in record
    settings = json.loads(record)["recalibration"]
    assert (settings["optimizer"], settings["distill"], settings["match"]) == ("muon", 0.7, 1.0)


def test_the_control_keeps_its_rotation(drope: Drope, tiny: str, tmp_path: Path) -> None:
    found = drope("recalibrate", tiny, *TRAIN, "--control", "--out", tmp_path / "out")
    from drope.models import is_position_free, load

    assert found["method"] == "rope"
    assert not is_position_free(load(found["model"]).model)


def test_a_finished_folder_is_refused_and_resumed(
    drope: Drope, tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = drope("recalibrate", tiny, *TRAIN, "--out", tmp_path / "out")
    assert main(["recalibrate", tiny, *TRAIN, "--out", str(tmp_path / "out")]) == 2
    assert "--resume" in capsys.readouterr().err
    again = drope("recalibrate", tiny, *TRAIN, "--out", tmp_path / "out", "--resume")
    assert again["tokens"] == first["tokens"]
    assert (
        main(["recalibrate", tiny, *TRAIN, "--schedule", "constant", "--out", str(tmp_path / "out"), "--resume"]) == 2
    )
    assert "schedule" in capsys.readouterr().err


def test_an_interrupted_run_says_how_to_go_on(process: Drope, tiny: str, tmp_path: Path) -> None:
    """SIGINT in the middle of training: exit code 130, the hint, and nothing on stdout."""
    many = ("--data", "stdlib:prose", "--tokens", "400k", "--batch-tokens", "512", "--save-every", "5k")
    out = tmp_path / "out"
    run = process("recalibrate", tiny, *many, "--micro-batch", "2", "--eval-blocks", "0", "--out", out)
    while run.poll() is None and not list(out.glob("run/checkpoints/checkpoint-*")):
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    stdout, stderr = run.communicate(timeout=120)
    assert run.returncode == 130, stderr
    assert "--resume" in stderr
    assert "Traceback" not in stderr
    assert stdout == ""


def test_extend_from_a_file_end_to_end(drope: Drope, tiny: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "data: stdlib:prose\ntokens: 100k\nbatch_tokens: 512\nmicro_batch: 2\neval_blocks: 2\nto: 4x\n"
        "tasks: [single]\ntrials: 500\ndepths: [0, 1]\nmax_new_tokens: 8\ndocuments: 2\nlengths: [1x, 2x]\n"
        "methods: [rope, yarn]\ntemperature_tokens: 512\nnotes: [a note]\n"
    )
    found = drope("extend", tiny, "--config", recipe, "--tokens", "4k", "--trials", "2", "--out", tmp_path / "out")
    assert {m["method"] for m in found["results"]["measurements"]} == {"rope", "yarn", "drope", "sliding_window"}
    assert (tmp_path / "out/report.html").exists()
    assert json.loads((tmp_path / "out/checkpoint/drope.json").read_text())["target_length"] == 512
    again = drope("extend", tiny, "--config", recipe, "--tokens", "4k", "--trials", "2", "--out", tmp_path / "out")
    assert again["results"]["measurements"] == found["results"]["measurements"]


def test_an_interrupted_comparison_goes_on_with_the_same_command(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("drope.evaluation.compare", stop)
    assert main(["compare", tiny, *QUICK, "--out", str(tmp_path / "out")]) == 130
    assert "same command goes on" in capsys.readouterr().err


def test_numbers_that_json_lacks_become_null(capsys: pytest.CaptureFixture[str]) -> None:
    with session(General(json=True)) as output:
        output.result({"a": [float("nan"), 1.0], "b": float("inf")})
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.0], "b": None}


def test_what_libraries_print_stays_out_of_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    with session(General()) as output:
        print("noise")
        output.result({}, "the result")
    captured = capsys.readouterr()
    assert captured.out.strip() == "the result"
    assert "noise" in captured.err
