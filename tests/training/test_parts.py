from __future__ import annotations

from functools import partial

import pytest
import torch

from drope import models
from drope.errors import InputError
from drope.training import recalibrate
from drope.training.matching import mismatch, outputs_of
from drope.training.norms import add_joint_norm


@pytest.fixture
def config(small_run):
    return partial(small_run, tokens=12 * 128)


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_attention_alone_changes_and_all_can_train_afterwards(make_model, tokenizer, config, tmp_path):
    model = make_model()
    before = weights(model)
    result = recalibrate(model, tokenizer, config(train="attention"), tmp_path / "run")
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == ("self_attn" not in name), name
    assert all(p.requires_grad for p in model.parameters())
    assert result.history[-1]["eval_loss"] < result.history[0]["eval_loss"]


def test_a_control_has_no_help_that_it_does_not_need(make_model, tokenizer, config, tmp_path):
    helped = {"distill": 0.7, "match": 1.0, "fade": "linear", "virtual_length": 4}
    plain = recalibrate(make_model(), tokenizer, config(), tmp_path / "plain", control=True)
    given = recalibrate(make_model(), tokenizer, config(**helped), tmp_path / "given", control=True)
    for (name, a), b in zip(plain.model.named_parameters(), given.model.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert given.history[-1]["objective"] == given.history[-1]["loss"]


def test_low_rank_additions_are_merged(make_model, tokenizer, config, tmp_path):
    model = make_model()
    before = weights(model)
    result = recalibrate(model, tokenizer, config(lora=4), tmp_path / "run")
    assert {n: type(m) for n, m in model.named_modules()} == {n: type(m) for n, m in make_model().named_modules()}
    for name, p in model.named_parameters():
        change = p.detach() - before[name]
        if name.endswith("_proj.weight"):
            assert 1 <= torch.linalg.matrix_rank(change, rtol=1e-4) <= 4, name
        else:
            assert not change.any(), name
    assert result.history[-1]["eval_loss"] < result.history[0]["eval_loss"]
    ids = torch.arange(20)[None]
    models.save(model, tmp_path / "model", tokenizer, target_length=64)
    loaded = models.load(tmp_path / "model").model
    torch.testing.assert_close(loaded(input_ids=ids).logits, model(input_ids=ids).logits)


def test_low_rank_runs_resume(make_model, tokenizer, config, tmp_path, monkeypatch):
    from drope.training.callbacks import StopCallback

    whole = recalibrate(make_model(), tokenizer, config(lora=2), tmp_path / "whole")

    class Killed(BaseException):
        pass

    def die(self, args, state, control, **kwargs):
        if state.global_step == 7:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(StopCallback, "on_step_begin", die)
        with pytest.raises(Killed):
            recalibrate(make_model(), tokenizer, config(lora=2), tmp_path / "run")
    resumed = recalibrate(make_model(), tokenizer, config(lora=2), tmp_path / "run", resume=True)
    for ours, theirs in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_matching_brings_the_hidden_states_near(make_model, tokenizer, config, tmp_path):
    ids = torch.arange(1, 31)[None]

    def distance(model):
        with outputs_of(model, "layers") as ours, outputs_of(original, "layers") as theirs, torch.no_grad():
            model(input_ids=ids), original(input_ids=ids)
        direct = []
        for a, b in zip(ours, theirs, strict=True):
            direct.append(((a - b).norm() / b.norm()).square())
        torch.testing.assert_close(mismatch(ours, theirs), torch.stack(direct).mean())
        return direct[0].item()

    original = make_model()
    plain = recalibrate(make_model(), tokenizer, config(), tmp_path / "plain")
    matched = recalibrate(make_model(), tokenizer, config(match=1.0), tmp_path / "matched")
    assert distance(matched.model) < distance(plain.model)
    heavy = recalibrate(make_model(), tokenizer, config(match=1.0, match_weight=10.0), tmp_path / "heavy")
    assert distance(heavy.model) < distance(matched.model)
    assert matched.history[1]["objective"] > matched.history[1]["loss"]
    phase = recalibrate(make_model(), tokenizer, config(match=0.5), tmp_path / "phase")
    assert phase.history[-1]["objective"] == pytest.approx(phase.history[-1]["loss"])


@pytest.mark.parametrize("which", ["qk", "q", "k"])
def test_joint_norms_normalise_the_whole_width(make_model, tokenizer, config, tmp_path, which):
    model = add_joint_norm(make_model(), which)
    attention, x = model.model.layers[0].self_attn, torch.randn(1, 4, 32)
    for letter in "qk":
        found = getattr(attention, f"{letter}_proj")(x)
        rms = found.square().mean(-1).sqrt()
        assert torch.allclose(rms, torch.ones(1, 4), atol=1e-3) == (letter in which)
    result = recalibrate(model, tokenizer, config(), tmp_path / "run")
    assert result.history[-1]["eval_loss"] < result.history[0]["eval_loss"]


def test_bad_input(make_model, tokenizer, config, tmp_path):
    with pytest.raises(InputError, match="lora is 4"):
        config(lora=4, train="attention")
    with pytest.raises(InputError, match="train is 'mlp'; allowed: all, attention"):
        config(train="mlp")
    with pytest.raises(InputError, match="qk, q, k"):
        add_joint_norm(make_model(), "v")


def test_matching_attention_brings_it_near(make_model, tokenizer, config, tmp_path):
    ids = torch.arange(1, 31)[None]
    original = make_model()

    def distance(model):
        with outputs_of(model, "attention") as ours, outputs_of(original, "attention") as theirs, torch.no_grad():
            model(input_ids=ids), original(input_ids=ids)
        assert len(ours) == model.config.num_hidden_layers
        return mismatch(ours, theirs).item()

    plain = recalibrate(make_model(), tokenizer, config(), tmp_path / "plain")
    settings = config(match=1.0, match_weight=10.0, match_states="attention")
    matched = recalibrate(make_model(), tokenizer, settings, tmp_path / "matched")
    assert distance(matched.model) < distance(plain.model)
    with outputs_of(original, "both") as found, torch.no_grad():
        original(input_ids=ids)
    assert len(found) == 2 * original.config.num_hidden_layers
    with pytest.raises(InputError, match="match_states"):
        config(match_states="logits")
