"""LongRoPE2's factors against the stock implementation, and the critical dimension against its definition."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from drope import positions
from drope.errors import InputError
from drope.positions import NTK, LongRoPE2, Requirements, RopeShape, frequencies
from drope.positions.longrope2 import compose, critical_pair

SHAPE = RopeShape(1e4, 16, 64)
FACTORS = (1.0, 1.1, 1.5, 2.0, 4.0, 4.5, 5.0, 8.0)


def stock(parameters, length: int, shape: RopeShape = SHAPE) -> tuple[torch.Tensor, float]:
    config = LlamaConfig(
        hidden_size=2 * shape.head_dim, num_attention_heads=2, max_position_embeddings=shape.context,
        rope_parameters=parameters,
    )  # fmt: skip
    return ROPE_INIT_FUNCTIONS["longrope"](config, seq_len=length)


def test_scaling_is_what_stock_modules_do():
    method = LongRoPE2({256: FACTORS})
    own = frequencies.inverse_frequencies(SHAPE) / torch.tensor(FACTORS, dtype=torch.float64)
    for length in (10, 256):  # in memory a method serves one length: what precedes C_train is rescaled as well
        made, attention = stock(method.requirements(SHAPE, 256).rope_parameters, length)
        torch.testing.assert_close(made.double(), own, rtol=1e-6, atol=0)
        assert attention == 1.0
    torch.testing.assert_close(frequencies.scaling(SHAPE, method, 256), own / frequencies.inverse_frequencies(SHAPE))


def test_a_checkpoint_keeps_its_own_rotation_within_the_context():
    parameters = LongRoPE2({256: FACTORS}).stock_parameters(SHAPE, 256)
    plain = frequencies.inverse_frequencies(SHAPE)
    torch.testing.assert_close(stock(parameters, 64)[0].double(), plain, rtol=1e-6, atol=0)
    rescaled = plain / torch.tensor(FACTORS, dtype=torch.float64)
    torch.testing.assert_close(stock(parameters, 65)[0].double(), rescaled, rtol=1e-6, atol=0)


def test_the_stock_attention_factor_on_request():
    parameters = LongRoPE2({256: FACTORS}, attention_factor=None).stock_parameters(SHAPE, 256)
    assert stock(parameters, 256)[1] == pytest.approx(math.sqrt(1 + math.log(4) / math.log(64)))
    assert stock(LongRoPE2({256: FACTORS}, 1.2).stock_parameters(SHAPE, 256), 256)[1] == 1.2


def test_each_length_takes_the_factors_of_the_target_at_or_above_it():
    twice, four = (1.0,) * 4 + (2.0,) * 4, (1.0,) * 4 + (4.0,) * 4
    method = LongRoPE2({256: four, 128: twice})
    assert method.targets == (128, 256)
    assert method.requirements(SHAPE, 64) == Requirements()
    assert [1 / method.scaling(SHAPE, n)[-1] for n in (65, 128, 129, 256, 999)] == [2, 2, 4, 4, 4]
    assert positions.get("longrope2", **method.settings()) == method
    assert hash(method) == hash(LongRoPE2(method.factors))


@pytest.mark.parametrize(
    ("shape", "pair"),
    [(RopeShape(1e4, 96, 2048), 31), (RopeShape(5e5, 128, 8192), 35)],  # Phi3-mini and LLaMA3-8B, sections 2.1 and 3.2
)
def test_theoretical_critical_dimensions_of_the_paper(shape, pair):
    assert critical_pair(shape) == pair


@pytest.mark.parametrize("periods", [1, 3, 10])
@pytest.mark.parametrize(
    "shape", [SHAPE, RopeShape(1e4, 64, 2048), RopeShape(5e5, 128, 8192), RopeShape(1e6, 64, 1024)]
)
def test_critical_pair_by_its_definition(shape, periods):
    longer = [
        m
        for m in range(shape.pairs)
        if periods * 2 * math.pi * shape.theta ** (2 * m / shape.head_dim) >= shape.context
    ]
    assert critical_pair(shape, periods) == longer[0]


def test_critical_pair_stays_among_the_pairs():
    assert critical_pair(RopeShape(100.0, 16, 10**6)) == 7  # all pairs turn many times
    assert critical_pair(RopeShape(1e4, 16, 3)) == 0  # none completes a turn
    assert critical_pair(RopeShape(1e4, 2, 64)) == 0


def test_below_the_critical_pair_the_base_is_changed():
    above = [5.0, 5.5, 6.0]
    made = compose(SHAPE, 5, above)
    base = (above[0] * SHAPE.theta ** (2 * 5 / 16)) ** (16 / (2 * 5))  # gives pair 5 the angle of its factor
    m = torch.arange(5, dtype=torch.float64)
    torch.testing.assert_close(made[:5], (base / SHAPE.theta) ** (2 * m / 16))
    assert made[5:].tolist() == above
    assert compose(SHAPE, 5, above, below="none")[:5].tolist() == [1.0] * 5
    assert compose(SHAPE, 0, FACTORS).tolist() == list(FACTORS)
    ntk = 1 / NTK().scaling(SHAPE, 256)  # NTK is the case whose critical pair is the last
    torch.testing.assert_close(compose(SHAPE, 7, [4.0]), ntk)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LongRoPE2({256: (1.0, 2.0, 1.5)}), "1.5 after 2 at pair 2'; allowed: never one below the last"),
        (lambda: LongRoPE2({256: (0.5, 1.0)}), "finite numbers of at least 1"),
        (lambda: LongRoPE2({256: (1.0, math.nan)}), "finite numbers of at least 1"),
        (lambda: LongRoPE2({256: ()}), "finite numbers of at least 1"),
        (lambda: LongRoPE2({}), "at least one target length"),
        (lambda: LongRoPE2({"far": (1.0,)}), "a mapping of target lengths"),  # type: ignore[dict-item]
        (lambda: LongRoPE2((1.0, 2.0)), "a mapping of target lengths"),
        (lambda: LongRoPE2(((256, (1.0,)), (256, (2.0,)))), "each target length once"),
        (lambda: LongRoPE2(attention_factor=0), "a number above 0"),
        (lambda: LongRoPE2().requirements(SHAPE, 256), "drope longrope2"),
        (lambda: LongRoPE2({256: (1.0, 2.0)}).scaling(SHAPE, 256), "one for each of the 8 rotated pairs"),
        (lambda: compose(SHAPE, 8, []), "a pair from 0 to 7"),
        (lambda: compose(SHAPE, 3, [1.0]), "a pair from 0 to 7"),
        (lambda: compose(SHAPE, 7, [1.0], below="all"), "ntk or none"),
    ],
)
def test_bad_settings(make, said):
    with pytest.raises(InputError, match=said):
        make()
