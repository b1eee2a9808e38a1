from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from drope import models
from drope.training.fade import FadeCallback, fade_factors


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
