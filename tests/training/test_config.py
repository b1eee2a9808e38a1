from __future__ import annotations

import pytest

from drope.errors import InputError
from drope.training import RECIPES, RecalibrationConfig


def test_amounts_as_people_write_them():
    config = RecalibrationConfig(data="stdlib", tokens="5B", batch_tokens="1M", context="2k")
    assert (config.tokens, config.batch_tokens, config.context) == (5_000_000_000, 1_000_000, 2048)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_recipes_are_configs(name):
    RecalibrationConfig(data="stdlib", tokens=1000, **RECIPES[name])


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("tokens", "many", "an amount of tokens"),
        ("schedule", "linear", "cosine, wsd, constant"),
        ("optimizer", "sgd", "adamw, muon"),
        ("precision", "fp16", "auto, bf16, float32"),
        ("fade", "highest_first", "lowest_first, linear, layers_top_first"),
        ("learning_rate", 0, "above 0"),
        ("learning_rate", float("nan"), "a number"),
        ("warmup", -1, "at least 0"),
        ("betas", (0.9, 1.0), "below 1"),
        ("betas", 0.9, "2 numbers"),
        ("distill", 1.5, "at most 1"),
        ("temperature", 0, "above 0"),
        ("fade_share", 1, "below 1"),
        ("micro_batch", 0, "auto, or a whole number of at least 1"),
        ("seed", "x", "a whole number"),
        ("training_arguments", [], "a mapping"),
    ],
)
def test_values_out_of_range_are_named(field, value, allowed):
    with pytest.raises(InputError, match=allowed) as caught:
        RecalibrationConfig(**({"data": "stdlib", "tokens": 1000} | {field: value}))
    assert caught.value.field == field


@pytest.mark.parametrize("other", [{"match_states": "both"}, {"fade": "layers_top_first"}], ids=str)
def test_layers_are_not_compiled_where_hooks_within_them_come_and_go(other):
    with pytest.raises(InputError, match="compile is True; allowed: false with match_states"):
        RecalibrationConfig(data="stdlib", tokens=1000, compile=True, **other)


def test_training_arguments_must_exist_and_be_free():
    RecalibrationConfig(data="stdlib", tokens=1000, training_arguments={"dataloader_num_workers": 1})
    with pytest.raises(InputError, match=r"Did you mean .*torch_compile"):
        RecalibrationConfig(data="stdlib", tokens=1000, training_arguments={"torch_compil": True})
    with pytest.raises(InputError, match="set by batch_tokens"):
        RecalibrationConfig(data="stdlib", tokens=1000, training_arguments={"gradient_accumulation_steps": 4})
    with pytest.raises(InputError, match="optimizer is muon"):
        RecalibrationConfig(data="stdlib", tokens=1000, optimizer="muon", training_arguments={"optim": "adafactor"})


def test_every_reserved_argument_exists_in_some_version():
    """A misspelt reservation would reserve nothing."""
    from dataclasses import fields

    from transformers import TrainingArguments

    from drope.training.config import _RESERVED

    known = {f.name for f in fields(TrainingArguments)}
    assert set(_RESERVED) - known <= {"warmup_ratio"}  # of earlier versions
