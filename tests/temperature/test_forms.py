"""Every form of temperature is found again after it was planted: text is sampled from the model that has it."""

from __future__ import annotations

import json
import math

import pytest
import torch

from drope.errors import DropeError, InputError
from drope.models import apply, restore, rope_shape, set_logit_scale
from drope.models.logit_scale import logit_scale
from drope.positions import Drope, Rope
from drope.positions.temperatures import (
    ConstantTemperature,
    HeadTemperature,
    PositionTemperature,
    ScalableSoftmaxTemperature,
    Tempered,
)
from drope.temperature import FormFit, TemperatureFit, fit, fit_form, read_fit
from drope.temperature.heads import Gradient

LENGTH = 48
FAST = Gradient(steps=60)


def divide_heads(model, values: list[list[float]]) -> None:
    """Take a factor of each head out of the query weights."""
    with torch.no_grad():
        for layer, row in zip(model.model.layers, values, strict=True):
            weight = layer.self_attn.q_proj.weight
            weight /= torch.tensor(row).repeat_interleave(weight.shape[0] // len(row))[:, None]


def test_head_scale_recovers_the_factor_of_each_head(make_sharp, letters, write):
    planted = [[1.0, 2.0, 1.4, 1.0]]
    model = make_sharp()
    text = write(model, 160, LENGTH)
    divide_heads(model, planted)
    got = fit_form(
        model, letters, "per_head", LENGTH, text=[text], max_tokens=160 * LENGTH, batch_tokens=40 * LENGTH,
        gradient=FAST,
    )  # fmt: skip
    assert isinstance(got.temperature, HeadTemperature)
    found = got.temperature.values[0]
    assert all(value >= 1 for value in found)  # the lower bound
    assert found == pytest.approx(planted[0], abs=0.25)
    assert found.index(max(found)) == 1
    assert got.loss_without - got.loss > 2 * got.gain_se > 0
    assert got.samples == 40  # those that were not fitted
    assert len(got.history) == 60
    again = fit_form(
        model, letters, "per_head", LENGTH, text=[text], max_tokens=160 * LENGTH, batch_tokens=40 * LENGTH,
        gradient=FAST,
    )  # fmt: skip
    assert again == got


def test_one_fit_of_per_head_log_is_head_scale_at_its_length_and_grows_with_the_logarithm(make_sharp, letters, write):
    model = make_sharp()
    text = write(model, 160, LENGTH)
    divide_heads(model, [[1.0, 2.0, 1.4, 1.0]])
    both = [
        fit_form(
            model, letters, form, LENGTH, text=[text], max_tokens=40 * LENGTH, batch_tokens=40 * LENGTH,
            gradient=Gradient(steps=10),
        )
        for form in ("per_head", "per_head_log")
    ]  # fmt: skip
    shape = rope_shape(model.config)
    curve = both[1].temperature
    assert curve.at(shape, LENGTH).values[0] == pytest.approx(both[0].temperature.values[0])
    assert both[1].loss == pytest.approx(both[0].loss, rel=1e-5)
    factor = both[0].temperature.values[0][1]
    s = math.sqrt(LENGTH / shape.context)  # half way on the logarithm
    assert curve.at(shape, round(s * shape.context)).values[0][1] == pytest.approx((1 + factor) / 2, abs=0.02)
    (row,) = both[1].rows()
    assert row["beta"] == pytest.approx(sum(both[0].temperature.values[0]) / 4)


def test_scalable_softmax_recovers_what_ln_n_does(make_sharp, letters, write):
    model = make_sharp()
    true = [[0.5, 0.3, 0.4, 0.3]]
    with apply(model, Tempered(Drope(), ScalableSoftmaxTemperature(true)), LENGTH):
        text = write(model, 160, LENGTH)
    got = fit_form(
        model, letters, "scalable_softmax", LENGTH, text=[text], max_tokens=160 * LENGTH, batch_tokens=40 * LENGTH,
        gradient=FAST,
    )  # fmt: skip
    assert got.temperature.s[0] == pytest.approx(true[0], abs=0.08)
    start = 1 / math.log(24)
    off = sum(abs(x - y) for x, y in zip(got.temperature.s[0], true[0], strict=True))
    assert off < 0.6 * sum(abs(start - y) for y in true[0])
    assert got.loss < got.loss_without


@pytest.mark.parametrize(
    ("form", "true"), [("constant", ConstantTemperature(1.5)), ("per_position", PositionTemperature(0.8))]
)
def test_one_number_forms(make_sharp, letters, write, form, true):
    model = make_sharp()
    with apply(model, Tempered(Drope(), true), LENGTH):
        text = write(model, 96, LENGTH)
    got = fit_form(model, letters, form, LENGTH, text=[text], max_tokens=96 * LENGTH, bounds=(0.5, 3.0))
    value = got.temperature.value if form == "constant" else got.temperature.a
    wanted = 1.5 if form == "constant" else 0.8
    assert got.value_se is not None
    assert abs(value - wanted) < 3 * got.value_se + 0.03
    assert got.loss < got.loss_without
    assert not got.at_bound
    if form == "constant":  # the same as the fit of β at one length
        [point] = fit(
            model, letters, [LENGTH], context=24, text=[text], max_tokens=96 * LENGTH, bounds=(0.5, 3.0)
        ).points
        assert got.loss == pytest.approx(point.loss, rel=1e-4)


def test_the_model_comes_back_as_it_was(make_sharp, letters, write):
    model = make_sharp()
    text = write(model, 8, LENGTH)
    ids = torch.arange(20)[None]
    set_logit_scale(model, 1.25)
    before = model(input_ids=ids).logits.detach()
    model.train()
    for form in ("constant", "per_position", "per_head", "per_head_log", "scalable_softmax"):
        fit_form(model, letters, form, LENGTH, text=[text], max_tokens=8 * LENGTH, gradient=Gradient(steps=2))
    assert model.training
    assert logit_scale(model) == 1.25
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert torch.equal(model.eval()(input_ids=ids).logits, before)


def test_a_rotating_model_is_fitted_with_its_rotation(make_sharp, letters, write):
    model = restore(make_sharp())
    text = write(model, 16, LENGTH)
    got = fit_form(model, letters, "constant", LENGTH, text=[text], max_tokens=16 * LENGTH)
    ids = torch.tensor([ord(c) - 0x4E00 for c in text]).reshape(-1, LENGTH)
    with apply(model, Rope(), LENGTH), torch.no_grad():
        logp = model(input_ids=ids).logits.log_softmax(-1)
    loss = -logp[:, :-1].gather(2, ids[:, 1:, None]).mean()
    assert got.loss_without == pytest.approx(loss.item(), rel=1e-5)
    dropped = fit_form(model, letters, "constant", LENGTH, text=[text], max_tokens=16 * LENGTH, method=Drope())
    assert dropped.loss_without > got.loss_without


def test_files_hold_either_kind(make_sharp, letters, write, tmp_path):
    model = make_sharp()
    text = write(model, 4, LENGTH)
    head = fit_form(
        model, letters, "per_head", LENGTH, text=[text], max_tokens=4 * LENGTH, gradient=Gradient(steps=1)
    )  # fmt: skip
    for made in (head, TemperatureFit(0.3, 24)):
        (tmp_path / "fit.json").write_text(json.dumps(made.to_dict()))
        assert read_fit(tmp_path / "fit.json") == made
    assert isinstance(read_fit(tmp_path / "fit.json"), TemperatureFit)
    for broken in (
        "{",
        '{"settings": {"form": "warm"}}',
        '{"settings": {"form": "constant", "value": 1}, "x": 1}',
        "3",
    ):
        (tmp_path / "fit.json").write_text(broken)
        with pytest.raises(InputError, match="temperature"):
            read_fit(tmp_path / "fit.json")
    with pytest.raises(InputError, match="a number above 0"):
        FormFit.from_dict({**head.to_dict(), "settings": {"form": "constant", "value": -1}})


@pytest.mark.parametrize(
    ("form", "length", "changed", "said"),
    [
        ("log", LENGTH, {}, "drope.temperature.fit"),
        ("warm", LENGTH, {}, "constant, per_position, per_head, per_head_log, scalable_softmax"),
        ("per_head", 24, {}, "a target above the context of 24"),
        ("per_position", 24, {}, "a target above the context of 24"),
        ("constant", 10, {}, "at least the context"),
        ("constant", LENGTH, {"bounds": (2.0, 1.0)}, "the lower first"),
        ("per_head", LENGTH, {"text": ["short"]}, "at least 48 tokens"),
    ],
)
def test_bad_input(make_sharp, letters, form, length, changed, said):
    settings = {"text": [chr(0x4E00) * 99]} | changed
    with pytest.raises(InputError, match=said):
        fit_form(make_sharp(), letters, form, length, **settings)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Gradient(steps=0),
        lambda: Gradient(steps=1.5),
        lambda: Gradient(learning_rate=(0.1, 0.0)),
        lambda: Gradient(learning_rate=(0.1,)),
        lambda: Gradient(least=0),
    ],
)
def test_bad_rules(make):
    with pytest.raises(InputError):
        make()


def test_a_loss_that_is_not_finite_is_said(make_sharp, letters, write):
    model = make_sharp()
    text = write(model, 4, LENGTH)
    with torch.no_grad():
        model.lm_head.weight[0] = math.nan
    with pytest.raises(DropeError, match="loss is nan"):
        fit_form(model, letters, "per_head", LENGTH, text=[text], max_tokens=4 * LENGTH, gradient=Gradient(steps=2))
