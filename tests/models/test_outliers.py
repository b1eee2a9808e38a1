"""Layers with outlier queries or keys are found by weights and by activations, and kept in high precision."""

from __future__ import annotations

import families
import torch

from drope.models.outliers import activation_outliers, advice, weight_outliers

WEIGHT = "model.layers.1.self_attn.k_proj.weight"


def model_with_outlier(factor):
    model = families.model("Llama", num_hidden_layers=4)
    with torch.no_grad():
        model.get_parameter(WEIGHT).mul_(factor)
    return model


def test_the_layer_that_stands_out_is_named(tmp_path):
    model = model_with_outlier(100.0)
    model.save_pretrained(tmp_path)
    for found in (activation_outliers(model, families.tokens()), weight_outliers(tmp_path)):
        assert [outlier.weight for outlier in found] == [WEIGHT]
        assert found[0].norm > 8 * found[0].typical
        assert "model.layers.1.self_attn.k_proj" in advice(found)


def test_an_even_model_has_none(tmp_path):
    model = model_with_outlier(1.0)
    model.save_pretrained(tmp_path)
    assert activation_outliers(model, families.tokens()) == []
    assert weight_outliers(tmp_path) == []
    assert advice([]) == ""
