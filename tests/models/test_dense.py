"""What methods compute, against a dense float64 model that shares no code with them."""

from __future__ import annotations

import math

import dense
import pytest
import torch
from catalogue import EVERY, INSTANCES, LENGTH, MORE, SHAPE, hidden, llama
from families import CONTEXT, tokens

from drope import models
from drope.positions import METHODS, frequencies
from drope.positions.alibi import slopes

LAYERS = 4
ONE, ZERO = torch.ones(SHAPE.pairs), torch.zeros(SHAPE.pairs)
QUARTER = CONTEXT // 4


def log_scale(a: float) -> torch.Tensor:
    """1 + a ln(n / C) for the query that sees n tokens, where n > C."""
    return torch.tensor([1 + a * math.log(n / CONTEXT) if n > CONTEXT else 1.0 for n in range(1, LENGTH + 1)])


def alibi_bias() -> torch.Tensor:
    """Slopes of four heads as the paper lists them for powers of two: 2^-2, 2^-4, 2^-6, 2^-8."""
    apart = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)[None, :]
    return -torch.tensor([1 / 4, 1 / 16, 1 / 64, 1 / 256]).double()[:, None, None] * apart


def swan(window: int, a: float) -> dict:
    return {
        "gamma": [ZERO, ONE, ONE, ONE],
        "windows": [None, window, window, window],
        "sharpness": [log_scale(a), 1.0, 1.0, 1.0],
    }


# layouts written out by hand for four layers; the frequencies of scaling methods come from the methods themselves,
# whose formulas tests/positions holds against the stock ones
EXPECTED = {
    "alibi": {"gamma": [ZERO] * 4, "bias": alibi_bias()},
    "rnope_swa": {"gamma": [ONE, ONE, ONE, ZERO], "windows": [QUARTER, QUARTER, QUARTER, None]},
    "rnope_swa wide": {"gamma": [ONE, ONE, ZERO, ONE], "windows": [CONTEXT, CONTEXT, None, CONTEXT]},
    "swan": swan(QUARTER, 1 / math.log(CONTEXT)),
    "swan steep": swan(7, 0.5),
    "drope_swan": {"gamma": [ZERO, ONE, ONE, ONE], "windows": [None, QUARTER, QUARTER, QUARTER]},
    "drope_swan narrow": {"gamma": [ZERO, ONE, ZERO, ONE], "windows": [None, 5, None, 5]},
    "drop_layers": {"gamma": [ONE, ONE, ONE, ZERO]},
    "drop_layers (0, 2)": {"gamma": [ZERO, ONE, ZERO, ONE]},
    "p_rope": {"gamma": [torch.tensor([1.0, 1, 1, 0])] * 4},
    "p_rope 0": {"gamma": [ZERO] * 4},
    "partial_drop": {"gamma": [torch.tensor([1.0, 1, 0, 0])] * 4},  # 64 tokens: 10.2, 1.02, 0.1 and 0.01 turns
    "partial_drop 1": {"gamma": [torch.tensor([1.0, 1, 1, 0])] * 4},
    "crop": {"gamma": [ONE] * 4, "start": LENGTH - CONTEXT},
    "crop 40": {"gamma": [ONE] * 4, "start": LENGTH - 40},
    "yarn": {"gamma": [EVERY["yarn"].scaling(SHAPE, LENGTH)] * 4, "factor": 0.1 * math.log(2) + 1},
    "yarn 3": {"gamma": [MORE["yarn 3"].scaling(SHAPE, LENGTH)] * 4, "factor": 0.1 * math.log(3) + 1},
    **{
        name: {"gamma": [INSTANCES[name].scaling(SHAPE, LENGTH)] * 4}
        for name in ("rope", "pi", "ntk", "dynamic_ntk", "llama3", "llama3 wide", "nope", "drope", "longrope2")
    },
}
REMAPPED = {"self_extend", "dual_chunk", "rerope"}  # against the matrix of distances in test_remapping.py


def test_every_method_is_held_against_a_dense_model():
    assert set(METHODS) - REMAPPED <= set(EXPECTED)
    assert set(INSTANCES) - REMAPPED == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_logits_are_those_of_the_dense_model(name):
    method = INSTANCES[name]
    made, ids = llama(method), tokens(LENGTH)
    with models.apply(made, method, LENGTH), torch.no_grad():
        found = made(input_ids=ids, use_cache=False).logits[0].double()
    expected = dense.logits(made, ids[0], **EXPECTED[name])
    seen = slice(hidden(method), None)
    torch.testing.assert_close(found[seen], expected[seen], rtol=1e-3, atol=1e-3)
    if name != "rope":
        other = dense.logits(made, ids[0], gamma=[ONE] * 4)[seen]
        assert (expected[seen] - other).abs().max() > 0.05  # the method is not lost in the tolerance


@pytest.mark.parametrize("heads", [1, 2, 4, 8, 16, 12, 14, 6])
def test_alibi_slopes_are_the_papers(heads):
    made = slopes(heads).tolist()
    power = 2 ** int(math.log2(heads))
    for h in range(power):
        assert made[h] == pytest.approx((2 ** (-8 / power)) ** (h + 1))
    if heads == 12:  # as BLOOM and MPT have them: 8 of 8 heads, then every second one of 16
        assert made[8:] == pytest.approx([2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5])
    assert len(set(made)) == heads


def test_crop_is_a_shorter_input():
    made, ids = llama(), tokens(LENGTH)
    with torch.no_grad():
        short = made(input_ids=ids[:, -CONTEXT:], use_cache=False).logits
        with models.apply(made, EVERY["crop"], LENGTH):
            found = made(input_ids=ids, use_cache=False).logits[:, -CONTEXT:]
    torch.testing.assert_close(found, short, rtol=1e-4, atol=1e-4)


def test_partial_drop_stops_what_leaves_its_range():
    stopped = (EVERY["partial_drop"].scaling(SHAPE, LENGTH) == 0).sum()
    assert stopped == frequencies.out_of_range(SHAPE, LENGTH)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_alibi_with_flex_attention_is_alibi_in_blocks():
    from drope.models.attention import Mask, alibi
    from drope.positions import schemes

    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 150, 16, generator=generator) for heads in (4, 2, 2))
    blocks = alibi.attend(schemes.Alibi(), q, k, v, mask=Mask(), scaling=0.25)
    flex = alibi.flex(q, k, v, slopes(4).float(), 0.25)  # on a GPU it is compiled; the function is the same
    torch.testing.assert_close(flex, blocks, rtol=1e-4, atol=1e-5)
