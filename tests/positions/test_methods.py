"""The catalogue of methods, against the stock implementations and against the formulas written another way."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from drope import positions
from drope.errors import InputError
from drope.positions import METHODS, NTK, PI, DynamicNTK, Llama3, Requirements, Rope, RopeShape, Yarn, frequencies

SHAPES = [RopeShape(1e4, 16, 64), RopeShape(1e4, 64, 2048), RopeShape(5e5, 128, 8192), RopeShape(1e6, 64, 1024)]


def stock(shape: RopeShape, parameters: dict | None, length: int | None = None) -> tuple[torch.Tensor, float]:
    """Inverse frequencies and attention factor from transformers' own functions."""
    assert parameters is not None
    config = LlamaConfig(
        hidden_size=shape.head_dim * 2,
        num_attention_heads=2,
        max_position_embeddings=shape.context,
        rope_parameters=dict(parameters),
    )
    if parameters["rope_type"] == "default":
        d = shape.head_dim
        return parameters["rope_theta"] ** -(torch.arange(0, d, 2, dtype=torch.float64) / d), 1.0
    return ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, seq_len=length)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize(
    "method",
    [
        PI(), NTK(), DynamicNTK(), DynamicNTK(factor=2.0), Yarn(), Yarn(beta_fast=16, beta_slow=2), Llama3(),
        Llama3(low_freq_factor=2.0, high_freq_factor=16.0),
    ],
    ids=str,
)  # fmt: skip
def test_scaling_is_what_stock_modules_do(method, shape, factor):
    length = factor * shape.context
    parameters = method.requirements(shape, length).rope_parameters
    made, _ = stock(shape, parameters, length)
    own = frequencies.inverse_frequencies(shape) * frequencies.scaling(shape, method, length)
    torch.testing.assert_close(made.double(), own, rtol=2e-6, atol=0)


def test_yarn_uses_the_stock_attention_factor():
    shape = SHAPES[1]
    _, factor = stock(shape, Yarn().requirements(shape, 8 * shape.context).rope_parameters)
    assert factor == pytest.approx(0.1 * math.log(8) + 1)
    _, factor = stock(shape, Yarn(attention_factor=1.5).requirements(shape, 8 * shape.context).rope_parameters)
    assert factor == 1.5


def test_pi_equals_squeezed_positions():
    shape = SHAPES[0]
    distances = torch.arange(0, 256, 4)
    squeezed = frequencies.phases(shape, distances / 4)
    torch.testing.assert_close(frequencies.phases(shape, distances, PI(), 256), squeezed)


def test_ntk_keeps_the_fastest_pair_and_interpolates_the_slowest():
    gamma = NTK().scaling(SHAPES[2], 4 * SHAPES[2].context)
    assert gamma[0] == 1
    assert gamma[-1].item() == pytest.approx(1 / 4)
    assert (gamma.diff() < 0).all()


def test_yarn_extrapolates_fast_pairs_and_interpolates_slow_ones():
    shape = SHAPES[2]
    gamma = Yarn().scaling(shape, 8 * shape.context)
    turns = frequencies.rotations_in_context(shape)
    assert (gamma[turns > 40] == 1).all()
    assert torch.allclose(gamma[turns < 0.9], torch.tensor(1 / 8, dtype=torch.float64))
    assert ((gamma >= 1 / 8) & (gamma <= 1)).all()


SAME_AT_EVERY_LENGTH = ("nope", "drope", "p_rope", "drop_layers", "partial_drop", "drope_swan", "alibi", "rnope_swa")


@pytest.mark.parametrize("name", [name for name in METHODS if name != "swan"])
def test_within_the_trained_context_only_what_needs_no_length_acts(name):
    shape = RopeShape(1e4, 64, 2048, layers=8)
    for length in (1, shape.context // 2, shape.context):
        requirements = positions.get(name).requirements(shape, length)
        if name in SAME_AT_EVERY_LENGTH:
            assert requirements == positions.get(name).requirements(shape, 4 * shape.context) != Requirements()
        else:
            assert requirements == Rope().requirements(shape, length)
            assert (positions.get(name).scaling(shape, length) == 1).all()


def test_nope_and_drope_ask_for_the_same_and_differ_in_what_they_need():
    shape = SHAPES[0]
    nope, drope = positions.get("nope"), positions.get("drope")
    assert nope.requirements(shape, 512) == drope.requirements(shape, 512)
    assert (nope.scaling(shape, 512) == 0).all()
    assert (nope.trained, drope.trained) == (False, True)
    assert nope.label != drope.label


def test_get_takes_settings_and_other_spellings():
    assert positions.get("yarn", beta_fast=16.0) == Yarn(beta_fast=16.0)
    assert positions.get("Dynamic-NTK") == positions.get("dynamic") == DynamicNTK()
    assert positions.get("pi", factor=4.0).requirements(SHAPES[0], 64).rope_parameters == {
        "rope_type": "linear",
        "rope_theta": 1e4,
        "factor": 4.0,
    }


def test_unknown_names_get_near_matches_and_the_whole_set():
    with pytest.raises(InputError, match=r"'yran'.*rope, pi, ntk, dynamic_ntk, yarn, .*nope, drope.*Did you mean yarn"):
        positions.get("yran")
    with pytest.raises(InputError, match=r"setting of yarn is 'betafast'; allowed: factor, beta_fast"):
        positions.get("yarn", betafast=3)
    with pytest.raises(InputError, match="no settings"):
        positions.get("rope", factor=3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: PI(factor=0.5),
        lambda: NTK(factor=float("nan")),
        lambda: Yarn(beta_fast=1, beta_slow=2),
        lambda: Yarn(attention_factor=0),
        lambda: DynamicNTK(factor=0),
        lambda: RopeShape(1e4, 15, 64),
        lambda: RopeShape(0.5, 16, 64),
        lambda: RopeShape(1e4, 16, 0),
        lambda: RopeShape(1e4, 16, 64).factor(0),
    ],
)
def test_bad_values_are_refused(make):
    with pytest.raises(InputError):
        make()


def test_a_head_with_one_rotated_pair_has_no_base_to_change():
    shape = RopeShape(1e4, 2, 64)
    for method in (NTK(), DynamicNTK()):
        assert method.scaling(shape, 256).tolist() == [1]
        made = method.requirements(shape, 256).rope_parameters
        assert made is None or made == {"rope_type": "default", "rope_theta": 1e4}
