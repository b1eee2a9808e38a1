"""The rotary geometry that a configuration tells, against the modules that transformers builds from it."""

from __future__ import annotations

import pytest
import torch
from families import CONTEXT, FAMILIES, config, model

from drope import models
from drope.models.rotary import frequencies, rotary_modules
from drope.positions.frequencies import inverse_frequencies


@pytest.mark.parametrize("family", FAMILIES)
def test_the_shape_gives_the_frequencies_of_the_module(family):
    made = model(family)
    shape = models.rope_shape(made.config)
    assert shape.context == CONTEXT
    if made.config.rope_parameters.get("rope_type", "default") != "default":
        return  # the module's frequencies are scaled ones
    module = next(iter(rotary_modules(made).values()))
    found = frequencies(module)
    buffer = found.get("full_attention_inv_freq", next(iter(found.values())))
    buffer = buffer[buffer != 0]  # Gemma 4 writes a partial rotation as frequencies of 0
    torch.testing.assert_close(buffer.double(), inverse_frequencies(shape), rtol=1e-5, atol=0)


def test_partial_rotation_counts_only_the_rotated_width():
    assert models.rope_shape(config("GPT-NeoX")).head_dim == 4  # half of 8
    assert models.rope_shape(config("Llama")).head_dim == 8
    assert models.rope_shape(config("DeepSeek-V3")).head_dim == 8  # qk_rope_head_dim, not the whole head


@pytest.mark.parametrize(
    ("parameters", "context"),
    [
        ({"rope_type": "linear", "factor": 2.0}, 64),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}, 16),
        (
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
             "original_max_position_embeddings": 32},
            32,
        ),
        (
            {"rope_type": "llama3", "factor": 1e20, "low_freq_factor": 32, "high_freq_factor": 64,
             "original_max_position_embeddings": 32},
            32,
        ),
    ],
)  # fmt: skip
def test_trained_context_is_the_original_one_where_the_configuration_scales(parameters, context):
    made = config("Llama", rope_parameters={"rope_theta": 1e4, **parameters})
    assert models.rope_shape(made).context == context
