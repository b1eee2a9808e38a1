"""The fit finds a temperature that is known, because the text was sampled from the model at that temperature."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from drope.data import stdlib
from drope.errors import InputError
from drope.models import drop, set_logit_scale
from drope.models.logit_scale import logit_scale
from drope.temperature import TemperatureFit, TemperaturePoint, fit
from drope.temperature.length import _least_squares

VOCABULARY = 32
LENGTHS = (48, 96)
BETA = 1.5


@pytest.fixture(scope="module")
def letters() -> PreTrainedTokenizerFast:
    """One token per character, so that sampled ids survive the way through text."""
    raw = Tokenizer(models.WordLevel({chr(0x4E00 + i): i for i in range(VOCABULARY)}, unk_token=chr(0x4E00)))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=raw)


@pytest.fixture(scope="module")
def sharp() -> LlamaForCausalLM:
    """A position-free model in which attention matters, and with it the temperature."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=32, initializer_range=0.35, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return drop(LlamaForCausalLM(config).eval())


@pytest.fixture(scope="module")
def texts(sharp) -> dict[int, str]:
    """For each length, text that is the model's own: windows sampled from it one after another."""
    generator = torch.Generator().manual_seed(1)
    out = {}
    with torch.no_grad():
        for length in LENGTHS:
            ids = torch.randint(0, VOCABULARY, (96, 1), generator=generator)
            cache = None
            for _ in range(length - 1):
                step = sharp(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True)
                cache = step.past_key_values
                ids = torch.cat([ids, torch.multinomial(step.logits[:, -1].softmax(-1), 1, generator=generator)], 1)
            out[length] = "".join(chr(0x4E00 + i) for i in ids.flatten().tolist())
    return out


@pytest.mark.parametrize("length", LENGTHS)
def test_recovers_the_factor_that_was_divided_out(sharp, letters, texts, length):
    weight = sharp.model.layers[0].self_attn.q_proj.weight
    with torch.no_grad():
        weight /= BETA
    try:
        got = fit(sharp, letters, [length], context=24, text=[texts[length]], max_tokens=96 * length, bounds=(0.5, 3.0))
    finally:
        with torch.no_grad():
            weight *= BETA
    [point] = got.points
    assert point.samples == 96
    assert point.beta_se is not None
    assert point.beta_se < 0.15  # the data do say where it is
    assert abs(point.beta - BETA) < 3 * point.beta_se + 0.02
    assert point.loss < point.loss_without
    assert point.loss_without - point.loss > 2 * point.gain_se
    assert point.evaluations <= 15
    assert not point.at_bound
    assert got.a == pytest.approx((point.beta - 1) / math.log(length / 24))


def test_no_temperature_where_none_is_missing(sharp, letters, texts):
    [point] = fit(sharp, letters, [48], context=24, text=[texts[48]], max_tokens=96 * 48).points
    assert point.beta_se is not None
    assert abs(point.beta - 1) < 3 * point.beta_se + 0.02


def test_losses_are_those_of_the_model(sharp, letters, texts):
    [point] = fit(sharp, letters, [48], context=24, text=[texts[48]], max_tokens=10 * 48, batch_tokens=100).points
    ids = torch.tensor([ord(c) - 0x4E00 for c in texts[48]]).reshape(-1, 48)[:10]
    for beta, loss, se in ((1.0, point.loss_without, point.loss_without_se), (point.beta, point.loss, point.loss_se)):
        set_logit_scale(sharp, beta)
        with torch.no_grad():
            logp = sharp(input_ids=ids).logits.double().log_softmax(-1)
        set_logit_scale(sharp, 1.0)
        each = -logp[:, :-1].gather(2, ids[:, 1:, None])[..., 0].mean(1).numpy()
        assert loss == pytest.approx(each.mean(), rel=1e-5)
        assert se == pytest.approx(each.std(ddof=1) / 10**0.5, rel=1e-3)


def test_model_comes_back_as_it_was(sharp, letters, texts):
    ids = torch.arange(20)[None]
    before = sharp(input_ids=ids).logits.detach()
    sharp.train()
    set_logit_scale(sharp, 1.25)
    fit(sharp, letters, [48], context=24, text=[texts[48]], max_tokens=4 * 48)
    assert logit_scale(sharp) == pytest.approx(1.25)
    assert sharp.training
    set_logit_scale(sharp, 1.0)
    assert torch.equal(sharp.eval()(input_ids=ids).logits, before)


def test_an_optimum_outside_is_said_to_be(sharp, letters, texts):
    [point] = fit(sharp, letters, [48], context=24, text=[texts[48]], max_tokens=96 * 48, bounds=(1.8, 2.5)).points
    assert point.at_bound
    assert 1.8 <= point.beta < 1.9
    assert point.loss > point.loss_without


def point(length: int, beta: float, se: float | None) -> TemperaturePoint:
    return TemperaturePoint(length, beta, 1.0, 1.1, se, 0.1, 0.1, 0.01, 8, 12, False)


def test_least_squares():
    exact = [point(n, 1 + 0.412 * math.log(n / 1024), 0.1) for n in (1024, 2048, 4096, 8192)]
    assert _least_squares(exact, 1024, 0.01)[0] == pytest.approx(0.412)
    rough = [point(1024, 7.0, 0.001), point(2048, 1.4, 0.02), point(4096, 1.3, 0.2), point(8192, 2.2, 0.05)]
    a, se = _least_squares(rough, 1024, 0.01)
    x = np.log([2.0, 4.0, 8.0])
    sigma = np.sqrt(np.array([0.02, 0.2, 0.05]) ** 2 + 0.01**2)
    solved = np.linalg.lstsq((x / sigma)[:, None], (np.array([1.4, 1.3, 2.2]) - 1) / sigma, rcond=None)[0][0]
    assert a == pytest.approx(solved)
    assert se == pytest.approx(1 / np.linalg.norm(x / sigma))
    unknown = [replace(p, beta_se=None) for p in rough]
    assert _least_squares(unknown, 1024, 0.01) == (pytest.approx(x @ [0.4, 0.3, 1.2] / (x @ x)), None)
    assert _least_squares(rough[:1], 1024, 0.01) == (0.0, None)


def test_fit_as_a_function_and_as_json():
    got = TemperatureFit(0.412, 1024, [point(2048, 1.3, None)], 0.05)
    assert [round(got.beta(n), 3) for n in (512, 1024, 2048, 4096, 8192)] == [1, 1, 1.286, 1.571, 1.857]
    assert TemperatureFit.from_dict(json.loads(json.dumps(got.to_dict()))) == got
    assert got.rows()[0]["a"] == 0.412
    assert got.rows()[0]["length"] == 2048
    broken: Any
    for broken in ({"a": 1.0}, {**got.to_dict(), "b": 2}, {**got.to_dict(), "points": [{"length": 3}]}, []):
        with pytest.raises(InputError, match="temperature"):
            TemperatureFit.from_dict(broken)


@pytest.mark.parametrize(
    ("field", "changed"),
    [("lengths", {"lengths": [10]}), ("lengths", {"lengths": []}), ("bounds", {"bounds": (2.0, 1.0)}),
     ("bounds", {"bounds": (0.0, 1.0)}), ("objective", {"objective": "f1"}), ("max_tokens", {"max_tokens": 0}),
     ("text", {"text": ["short"]})],
)  # fmt: skip
def test_bad_input(sharp, letters, field, changed):
    settings = {"lengths": [48], "context": 24, "text": [chr(0x4E00) * 99]} | changed
    with pytest.raises(InputError, match=field):
        fit(sharp, letters, settings.pop("lengths"), **settings)


def test_needle_objective_is_the_loss_of_the_answers():
    """Against a computation by hand on the very trials, which come from a seed that no evaluation can have."""
    from drope.evaluation.tasks import get_task
    from drope.evaluation.trials import Trials

    raw = Tokenizer(models.WordLevel({chr(i): i for i in range(256)}, unk_token="?"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    characters = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="?")
    torch.manual_seed(0)
    small = LlamaConfig(
        vocab_size=256, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        initializer_range=0.5,
    )  # fmt: skip
    model = drop(LlamaForCausalLM(small).eval())
    documents = stdlib.prose("heldout")[:5]
    got = fit(model, characters, [700], context=350, text=documents, max_tokens=1, objective="needles", tolerance=0.2)
    trials = Trials(characters, stdlib.sentences(documents), seed=-1)
    losses = []
    for i, name in enumerate(("multi_query", "multi_key")):
        trial = trials.make(get_task(name), 700, i)
        answer = " " + " and ".join(trial.answers) + "."
        ids = torch.tensor([[ord(c) if ord(c) < 256 else ord("?") for c in trial.prompt + answer]])
        assert ids.shape[1] <= 700
        with torch.no_grad():
            logp = model(input_ids=ids).logits.double().log_softmax(-1)[0, :-1]
        losses.append(-logp[-len(answer) :].gather(1, ids[0, -len(answer) :, None]).mean().item())
    assert got.objective == "needles"
    assert got.points[0].loss_without == pytest.approx(np.mean(losses), rel=1e-5)
    assert got.points[0].samples == 2
