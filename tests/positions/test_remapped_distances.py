"""Self-Extend, Dual Chunk Attention and ReRoPE as descriptions: defaults from context and length, bounds, refusals."""

from __future__ import annotations

import pytest
from remapping import farthest, schemes_of

from drope import positions
from drope.errors import InputError
from drope.positions import DualChunk, Requirements, ReRope, RopeShape, SelfExtend, schemes

SHAPE = RopeShape(1e4, 16, 64)
METHODS = [SelfExtend(), DualChunk(), ReRope()]


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("context", [2, 3, 7, 64, 1000])
@pytest.mark.parametrize("factor", [1.01, 2, 4, 8, 33])
def test_by_default_no_distance_leaves_the_trained_range(method, context, factor):
    shape = RopeShape(1e4, 16, context)
    length = int(context * factor) + 1
    scheme = method.requirements(shape, length).attention
    assert 0 <= farthest(scheme, min(length, 600), step=max(1, length // 40)) < context
    assert 0 <= farthest(scheme, length, only_last=True) < context


def test_the_default_group_is_the_smallest_that_fits():
    for length in (65, 100, 200, 256, 500, 1000):
        scheme = SelfExtend().requirements(SHAPE, length).attention
        assert isinstance(scheme, schemes.SelfExtend)
        smaller = schemes.SelfExtend(scheme.group - 1, scheme.window)
        assert farthest(smaller, length, only_last=True) >= 64 > farthest(scheme, length, only_last=True)


def test_default_settings():
    assert SelfExtend().requirements(SHAPE, 256).attention == schemes.SelfExtend(group=6, window=16)
    assert DualChunk().requirements(SHAPE, 256).attention == schemes.DualChunk(chunk=48, local=16)
    assert ReRope().requirements(SHAPE, 256).attention == schemes.ReRope(window=32)
    assert DualChunk(chunk=40).requirements(SHAPE, 256).attention == schemes.DualChunk(chunk=40, local=24)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_within_the_context_nothing_is_asked_for(method):
    for length in (1, 63, 64):
        assert method.requirements(SHAPE, length) == Requirements()
        assert (method.scaling(SHAPE, length) == 1).all()


@pytest.mark.parametrize("length", [65, 100, 128, 300])
@pytest.mark.parametrize("method", schemes_of(), ids=str)
def test_scaling_is_the_mapped_distance_of_the_last_token_over_the_true_one(method, length):
    scheme = method.requirements(SHAPE, length).attention
    gamma = method.scaling(SHAPE, length)
    assert gamma.shape == (8,)
    assert gamma.tolist() == pytest.approx([farthest(scheme, length, only_last=True) / (length - 1)] * 8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SelfExtend(group=0), "group is 0; allowed: a whole number of tokens, 1 or more"),
        (lambda: SelfExtend(window=0), "window is 0; allowed: a whole number of tokens, 1 or more"),
        (lambda: SelfExtend(group=2.5), "group is 2.5; allowed: a whole number"),
        (lambda: ReRope(window=-1), "window is -1; allowed"),
        (lambda: DualChunk(chunk=0), "chunk is 0; allowed"),
        (lambda: DualChunk(local=-1), "local is -1; allowed: a whole number of tokens, 0 or more"),
        (lambda: SelfExtend(window=64).requirements(SHAPE, 256), "window is 64; allowed: .* from 1 to 63, within the"),
        (lambda: SelfExtend(window=64).requirements(SHAPE, 32), "window is 64; allowed: .* from 1 to 63, within the"),
        (lambda: ReRope(window=65).requirements(SHAPE, 256), "window is 65; allowed: .* from 1 to 63, within the"),
        (lambda: ReRope(window=65).scaling(SHAPE, 256), "window is 65; allowed: .* from 1 to 63, within the"),
        (lambda: DualChunk(chunk=65).requirements(SHAPE, 256), "chunk is 65; allowed: .* from 1 to 64, within the"),
        (lambda: DualChunk(chunk=60, local=5).requirements(SHAPE, 256), "local is 5; allowed: .* from 0 to 4, within"),
        (lambda: positions.get("self-extend", groups=2), "setting of self_extend is 'groups'; allowed: group, window"),
    ],
)
def test_impossible_settings_are_refused_with_what_would_do(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_names():
    assert positions.get("selfextend", group=4) == SelfExtend(group=4)
    assert positions.get("dca") == positions.get("dual-chunk") == DualChunk()
    assert positions.get("ReRoPE", window=8) == ReRope(window=8)
