"""Leaving the rotation out of position-free attention changes no number, and no other model."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, logits, model, tokens

from drope import models
from drope.models.unrotated import unrotated


def gradients(made):
    made.zero_grad()
    made(input_ids=tokens(12), labels=tokens(12)).loss.backward()
    return [p.grad.clone() for p in made.parameters() if p.grad is not None]


@pytest.mark.parametrize("family", FAMILIES)
def test_same_numbers_for_every_family(family):
    made = models.drop(model(family))
    before = logits(made)
    with unrotated(made):
        assert torch.equal(logits(made), before)
    assert torch.equal(logits(made), before)
    assert not any("forward" in vars(module) for module in made.modules())


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_llama_shaped_models_skip_it_in_every_layer(family):
    made = models.drop(model(family)).train()
    before = gradients(made)
    with unrotated(made) as skipping:
        assert skipping == made.config.num_hidden_layers
        # the product is gone, not hidden: what a rotary module returns makes no difference any more
        made.model.rotary_emb.register_forward_hook(lambda *_: (torch.full((1, 1, 1), float("nan")),) * 2)
        assert all(torch.equal(a, b) for a, b in zip(gradients(made), before, strict=True))


def test_a_model_that_rotates_is_left_as_it_is():
    made, other = model("Llama"), models.drop(model("Llama"))
    before = logits(made)
    with unrotated(made) as skipping:
        assert skipping == 0
    with unrotated(other) as skipping:
        assert skipping > 0
        assert torch.equal(logits(made), before)


def test_given_back_after_an_error():
    made = models.drop(model("Llama"))
    with pytest.raises(KeyboardInterrupt), unrotated(made):
        raise KeyboardInterrupt
    models.restore(made)
    assert (logits(made) - logits(models.drop(model("Llama")))).abs().max() > 1e-4
