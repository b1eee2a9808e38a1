"""`--methods`: the whole catalogue, what it leaves out and why, and refusals before weights load."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drope.commands import main
from drope.commands.measuring import doublings
from drope.errors import InputError
from drope.evaluation.run import WINDOW
from drope.positions import METHODS

Drope = Callable[..., Any]
QUICK = ("--tasks", "single", "--trials", "1", "--depths", "0.5", "--max-new-tokens", "2", "--documents", "1",
         "--perplexity-bins", "2")  # fmt: skip
UNTRAINED = {"drope", "drop_layers", "partial_drop", "drope_swan", "alibi", "rnope_swa", "swan"}


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading weights fails the test."""
    from transformers import AutoModelForCausalLM

    def refuse(*args: Any, **kwargs: Any) -> None:
        pytest.fail("weights were loaded")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)


def test_all_is_the_catalogue_less_what_the_weights_were_not_trained_for(
    drope: Drope, tiny: str, tmp_path: Path
) -> None:
    found = drope("compare", tiny, *QUICK, "--methods", "all", "--lengths", "2x", "--out", tmp_path / "out")
    run = {m["method"] for m in found["measurements"]} - {WINDOW}
    skipped = found["meta"]["skipped"]
    assert run | set(skipped) == set(METHODS)
    assert set(skipped) == UNTRAINED | {"longrope2"}
    assert "recalibrated for it" in skipped["partial_drop"]
    assert "trained from scratch with it" in skipped["alibi"]
    assert "--methods longrope2 searches them" in skipped["longrope2"]
    assert json.loads((tmp_path / "out" / "results.json").read_text())["meta"]["skipped"] == skipped
    crop = [m["value"] for m in found["measurements"] if (m["method"], m["metric"]) == ("crop", "perplexity")]
    rope = [m["value"] for m in found["measurements"] if (m["method"], m["metric"]) == ("rope", "perplexity")]
    assert len(crop) == 1
    assert crop != rope


def test_all_on_a_position_free_model_is_drope(drope: Drope, tiny: str, tmp_path: Path) -> None:
    free = tmp_path / "free"
    drope("convert", tiny, "--to", "4x", "--out", free)
    found = drope("evaluate", free, *QUICK, "--methods", "all", "--lengths", "1x")
    assert {m["method"] for m in found["measurements"]} == {"drope"}
    assert set(found["meta"]["skipped"]) == set(METHODS) - {"drope"}


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        (("alibi",), ("alibi", "ALiBi is an architecture to train from scratch", "yarn")),
        (("rope", "swan"), ("swan", "trained")),
        (("all", "rope"), ("all rope", "names of methods")),
        (("self_extnd",), ("self_extnd", "Did you mean self_extend")),
    ],
)
def test_what_cannot_run_is_said_before_weights_load(
    methods: tuple[str, ...], words: tuple[str, ...], tiny: str, no_weights: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", tiny, *QUICK, "--lengths", "2x", "--methods", *methods]) == 2
    err = " ".join(capsys.readouterr().err.split())
    for word in words:
        assert word in err


def test_a_family_that_cannot_carry_a_method_is_refused_before_weights_load(
    tiny: str, tmp_path: Path, no_weights: None, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import Gemma2Config

    config = Gemma2Config(
        vocab_size=384, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=128,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    assert main(["evaluate", str(tmp_path), *QUICK, "--lengths", "2x", "--methods", "rerope"]) == 2
    err = " ".join(capsys.readouterr().err.split())
    for word in ("gemma2", "ReRoPE", "caps the scores", "llama"):
        assert word in err


def test_rotary_modules_that_do_not_scale_are_found_before_weights_load(
    tiny: str, tmp_path: Path, no_weights: None, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import Gemma4TextConfig

    config = Gemma4TextConfig(
        vocab_size=384, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, global_head_dim=8, hidden_size_per_layer_input=0, num_kv_shared_layers=0,
        layer_types=["sliding_attention", "full_attention"], sliding_window=16, max_position_embeddings=128,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    for file in Path(tiny).glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert main(["evaluate", str(tmp_path), *QUICK, "--lengths", "2x", "--methods", "pi"]) == 2
    assert "does not carry out PI" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("to", "lengths"),
    [("8x", "128 256 512 1024"), ("1k", "128 256 512 1024"), ("700", "128 256 512 700"), ("1x", "128")],
)
def test_to_measures_at_each_doubling(to, lengths):
    assert doublings(to, 128) == tuple(lengths.split())


def test_to_below_the_context_is_refused():
    with pytest.raises(InputError, match=r"--to is '64'; allowed: a length of at least the context, 128 tokens"):
        doublings("64", 128)
