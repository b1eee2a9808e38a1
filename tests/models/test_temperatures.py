"""Temperatures under `apply` against a dense model in float64, in one pass and token by token."""

from __future__ import annotations

import math

import pytest
import torch
from families import CONTEXT, logits, model, tokens

from drope import models
from drope.errors import InputError, UnsupportedModelError
from drope.positions import NTK, Drope, Rope, RopeShape, Yarn
from drope.positions.scales import LogPosition
from drope.positions.temperatures import (
    TEMPERATURES,
    ConstantTemperature,
    HeadLogTemperature,
    HeadTemperature,
    LogTemperature,
    NoTemperature,
    PositionTemperature,
    Product,
    ScalableSoftmaxTemperature,
    Tempered,
    get_temperature,
)

LENGTH = CONTEXT + 16
HEADS = ((1.0, 1.5, 2.0, 1.2), (1.7, 1.0, 1.1, 3.0))  # the tiny models have 2 layers of 4 heads
FORMS = [
    NoTemperature(), ConstantTemperature(1.3), LogTemperature(0.4), PositionTemperature(0.9), HeadTemperature(HEADS),
    HeadLogTemperature(HEADS), ScalableSoftmaxTemperature(0.3), ScalableSoftmaxTemperature(),
    ScalableSoftmaxTemperature(HEADS),
]  # fmt: skip


def factor(temperature, i: int, layer: int, head: int) -> float:
    """What multiplies the query at position i, written out."""
    name, seen = temperature.name, i + 1
    if name == "constant":
        return temperature.value
    if name == "log":
        return 1 + temperature.a * math.log(LENGTH / CONTEXT)
    if name == "per_position":
        return 1 + temperature.a * math.log(seen / CONTEXT) if seen > CONTEXT else 1.0
    if name == "per_head":
        return temperature.values[layer][head]
    if name == "per_head_log":
        return 1 + temperature.a[layer][head] * math.log(LENGTH / CONTEXT)
    if name == "scalable_softmax":
        s = 1 / math.log(CONTEXT) if temperature.s is None else temperature.s
        return (s if isinstance(s, float) else s[layer][head]) * math.log(seen)
    return 1.0


def dense(made, ids: torch.Tensor, temperature, rotate: bool) -> torch.Tensor:
    """Llama in float64, one query at a time. ids (T,); logits (T, V)."""
    config, w = made.config, {k: v.double() for k, v in made.state_dict().items()}
    heads, kv, tokens_ = config.num_attention_heads, config.num_key_value_heads, len(ids)
    width = config.hidden_size // heads

    def norm(x, weight):
        return x / (x.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * weight

    def turn(x, i):  # x (width,)
        if not rotate:
            return x
        angle = i * 1e4 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        a, b = x.chunk(2)
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()])

    x = w["model.embed_tokens.weight"][ids]
    for n in range(config.num_hidden_layers):
        p = f"model.layers.{n}."
        h = norm(x, w[p + "input_layernorm.weight"])
        q, k, v = (h @ w[p + f"self_attn.{c}_proj.weight"].T for c in "qkv")
        q, k, v = q.view(tokens_, heads, width), k.view(tokens_, kv, width), v.view(tokens_, kv, width)
        out = torch.zeros(tokens_, heads, width, dtype=torch.float64)
        for head in range(heads):
            group = head // (heads // kv)
            keys = torch.stack([turn(k[j, group], j) for j in range(tokens_)])
            for i in range(tokens_):
                scores = keys[: i + 1] @ turn(q[i, head], i) / width**0.5 * factor(temperature, i, n, head)
                out[i, head] = scores.softmax(0) @ v[: i + 1, group]
        x = x + out.flatten(1) @ w[p + "self_attn.o_proj.weight"].T
        h = norm(x, w[p + "post_attention_layernorm.weight"])
        gate = torch.nn.functional.silu(h @ w[p + "mlp.gate_proj.weight"].T)
        x = x + (gate * (h @ w[p + "mlp.up_proj.weight"].T)) @ w[p + "mlp.down_proj.weight"].T
    return norm(x, w["model.norm.weight"]) @ w["lm_head.weight"].T


@pytest.mark.parametrize("method", [Rope(), Drope()], ids=["rope", "drope"])
@pytest.mark.parametrize("temperature", FORMS, ids=lambda t: t.name)
def test_every_form_equals_a_dense_model(temperature, method):
    made, ids = model("Llama"), tokens(LENGTH)[:1]
    before = logits(made, ids)
    with models.apply(made, Tempered(method, temperature), LENGTH):
        found = logits(made, ids)
    expected = dense(made, ids[0], temperature, rotate=method.name == "rope")
    torch.testing.assert_close(found[0].double(), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(made, ids), before)


@pytest.mark.parametrize(
    "temperature", [PositionTemperature(0.9), HeadTemperature(HEADS), ScalableSoftmaxTemperature()]
)
def test_tokens_one_by_one_through_the_cache(temperature):
    made, ids = model("Llama"), tokens(LENGTH)[:1]
    with models.apply(made, Tempered(Drope(), temperature), LENGTH), torch.no_grad():
        whole = made(input_ids=ids, use_cache=False).logits
        step = made(input_ids=ids[:, : CONTEXT - 3], use_cache=True)
        for i in range(CONTEXT - 3, LENGTH):  # over the border of the context
            step = made(input_ids=ids[:, i : i + 1], past_key_values=step.past_key_values, use_cache=True)
            torch.testing.assert_close(step.logits[:, 0], whole[:, i], rtol=1e-4, atol=1e-4)
        settings = {"max_new_tokens": 6, "do_sample": False}
        assert torch.equal(made.generate(ids, **settings), made.generate(ids, use_cache=False, **settings))


def test_padding_on_the_left_does_not_count_as_position():
    made, ids = model("Llama"), tokens(LENGTH)[:1]
    padded = torch.cat([torch.zeros(1, 9, dtype=torch.long), ids], 1)
    mask = torch.ones_like(padded)
    mask[:, :9] = 0
    with models.apply(made, Tempered(Drope(), PositionTemperature(0.9)), LENGTH), torch.no_grad():
        found = made(input_ids=padded, attention_mask=mask).logits[:, 9:]
        torch.testing.assert_close(found, made(input_ids=ids).logits, rtol=1e-4, atol=1e-4)


def test_fitted_forms_leave_inputs_within_the_context_alone():
    made, ids = model("Llama"), tokens(CONTEXT)
    before = logits(made, ids)
    for temperature in (NoTemperature(), LogTemperature(0.4), PositionTemperature(0.9), HeadTemperature(HEADS)):
        with models.apply(made, Tempered(NTK(), temperature), CONTEXT):
            assert torch.equal(logits(made, ids), before)


def test_a_method_keeps_its_name_and_what_it_asks_for():
    method = Tempered(Yarn(), PositionTemperature(0.5))
    shape = RopeShape(1e4, 16, 64, 2)
    assert (method.name, method.trained, method.from_scratch) == ("yarn", False, False)
    assert method.label == "YaRN, 1 + a ln(i/C)"
    asked = method.requirements(shape, 256)
    assert asked.rope_parameters == Yarn().requirements(shape, 256).rope_parameters
    assert asked.query_scale == LogPosition(0.5, 64)
    assert method.settings() == Yarn().settings() | {"temperature": {"form": "per_position", "a": 0.5}}
    twice = Tempered(method, HeadTemperature(HEADS)).requirements(shape, 256).query_scale
    assert isinstance(twice, Product)
    positions = torch.tensor([[0, 100]])
    both = twice.factors(positions, 1, 4)
    assert both.shape == (1, 4, 2)
    assert both[0, 3, 1].item() == pytest.approx(3.0 * (1 + 0.5 * math.log(101 / 64)))
    folded = Tempered(Tempered(Drope(), LogTemperature(0.4)), ConstantTemperature(1.5)).requirements(shape, 256)
    assert folded.logit_scale == pytest.approx(1.5 * (1 + 0.4 * math.log(4)))
    assert folded.query_scale is None


def test_every_form_comes_back_from_its_settings():
    for temperature in FORMS:
        assert get_temperature(**temperature.settings()) == temperature
    assert {t.name for t in FORMS} == set(TEMPERATURES)
    assert get_temperature("per-position", a=0.1) == PositionTemperature(0.1)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: get_temperature("warm"), "none, constant, log, per_position, per_head, per_head_log, scalable"),
        (lambda: get_temperature("logs", a=1), "Did you mean log"),
        (lambda: get_temperature("log", b=1), "setting of log is 'b'; allowed: a"),
        (lambda: get_temperature("log"), "settings of log is 'none'; allowed: a"),
        (lambda: ConstantTemperature(0), "a number above 0"),
        (lambda: ConstantTemperature(math.inf), "a finite number"),
        (lambda: LogTemperature("0.4"), "a finite number"),
        (lambda: PositionTemperature(math.nan), "a finite number"),
        (lambda: HeadTemperature(((1.0, 0.0),)), "a number above 0"),
        (lambda: HeadTemperature(()), "one number for each head"),
        (lambda: HeadTemperature(3), "one number for each head"),
        (lambda: ScalableSoftmaxTemperature(-0.1), "a number above 0"),
        (lambda: LogTemperature(-1.0).beta(RopeShape(1e4, 16, 64), 256), "above 0 at 256 tokens"),
        (lambda: HeadTemperature(HEADS).query_scale(RopeShape(1e4, 16, 64, 3), 256), "factors for 3 layers"),
    ],
)
def test_bad_settings(make, said):
    with pytest.raises(InputError, match=said):
        make()


def test_factors_for_other_heads_or_families_are_refused():
    three = HeadTemperature(((1.0, 1.0, 1.0),) * 2)
    with (
        pytest.raises(InputError, match="each of the 4 heads"),
        models.apply(model("Llama"), Tempered(Rope(), three), LENGTH) as made,
    ):
        logits(made, tokens(LENGTH))
    with pytest.raises(UnsupportedModelError, match="its own attention function"):
        models.apply(model("Gemma3"), Tempered(Rope(), PositionTemperature(0.3)), LENGTH).__enter__()
