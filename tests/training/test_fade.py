from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from drope import models
from drope.training.fade import FadeCallback, fade_factors, rotating_layers


@pytest.mark.parametrize("kind", ["linear", "lowest_first"])
def test_from_all_to_nothing_and_never_back(kind):
    steps = [fade_factors(8, p, kind) for p in (0, 0.1, 0.37, 0.5, 0.9, 1)]
    assert torch.equal(steps[0], torch.ones(8))
    assert torch.equal(steps[-1], torch.zeros(8))
    for before, after in zip(steps, steps[1:], strict=False):
        assert (after <= before).all()
        assert after.sum() < before.sum()
    assert steps[3].mean() == pytest.approx(0.5)


def test_the_lowest_frequencies_go_first():
    assert fade_factors(4, 0.5, "lowest_first").tolist() == [1, 1, 0, 0]
    assert fade_factors(4, 0.375, "lowest_first").tolist() == [1, 1, 0.5, 0]
    assert fade_factors(4, 0.25, "linear").tolist() == [0.75] * 4


def test_the_rotation_of_a_step_hangs_on_its_number_alone(make_model):
    model = make_model()
    own = model.model.rotary_emb.inv_freq.clone()  # high to low
    fade = FadeCallback(model, "lowest_first", 10)
    fade.on_step_begin(None, SimpleNamespace(global_step=5), None)
    half = model.model.rotary_emb.inv_freq.clone()
    assert torch.equal(half[:4], own[:4])
    assert (half[4:] == 0).all()
    fade.on_step_begin(None, SimpleNamespace(global_step=10), None)
    assert models.is_position_free(model)
    fade.on_step_begin(None, SimpleNamespace(global_step=5), None)
    assert torch.equal(model.model.rotary_emb.inv_freq, half)
    models.restore(model)
    assert torch.equal(model.model.rotary_emb.inv_freq, own)


def test_layers_go_one_after_the_other(make_model):
    assert rotating_layers(4, 0, "layers_top_first") == [True] * 4
    assert rotating_layers(4, 0.5, "layers_top_first") == [True, True, False, False]
    assert rotating_layers(4, 0.5, "layers_bottom_first") == [False, False, True, True]
    assert rotating_layers(4, 1, "layers_bottom_first") == [False] * 4

    ids, model = torch.arange(1, 31)[None], make_model()

    def attention_of(number):
        """What a layer's attention returns for hidden states of its own."""
        x = torch.randn(1, 8, 32, generator=torch.Generator().manual_seed(0))
        rotation = model.model.rotary_emb(x, torch.arange(8)[None])
        return model.model.layers[number].self_attn(hidden_states=x, position_embeddings=rotation)[0]

    with torch.no_grad():
        rotated = [attention_of(i) for i in (0, 1)]
        models.drop(model)
        still = [attention_of(i) for i in (0, 1)]
        models.restore(model)
        fade = FadeCallback(model, "layers_top_first", 10)
        fade.set(5)
        assert torch.equal(attention_of(0), rotated[0])
        assert torch.equal(attention_of(1), still[1])
        fade.set(10)
        assert torch.equal(attention_of(0), still[0])
        fade.close()
        models.restore(model)
        assert torch.equal(attention_of(1), rotated[1])
        assert model(input_ids=ids).logits.isfinite().all()


def test_a_run_that_fades_by_layer_ends_position_free(make_model, tokenizer, text, tmp_path):
    from drope.training import RecalibrationConfig, recalibrate

    config = RecalibrationConfig(
        data=str(text), tokens=12 * 128, batch_tokens=128, learning_rate=1e-2, eval_blocks=2, precision="float32",
        micro_batch=4, fade="layers_bottom_first", fade_share=0.5,
    )  # fmt: skip
    result = recalibrate(make_model(), tokenizer, config, tmp_path / "run")
    assert models.is_position_free(result.model)
    assert not any(layer.self_attn._forward_pre_hooks for layer in result.model.model.layers)
    assert result.history[-1]["eval_loss"] < result.history[0]["eval_loss"]
