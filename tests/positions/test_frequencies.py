"""Frequencies, phases and out-of-range pairs, against direct counting."""

from __future__ import annotations

import math

import torch

from drope.positions import RopeShape, Yarn, frequencies

LLAMA2 = RopeShape(1e4, 128, 4096)


def test_frequencies_follow_the_zero_indexed_formula():
    omega = frequencies.inverse_frequencies(LLAMA2)
    assert omega.shape == (64,)
    assert omega[0] == 1
    for m in (1, 17, 63):
        assert math.isclose(omega[m].item(), 1e4 ** (-2 * m / 128), rel_tol=1e-12)


def test_phases_are_angles_of_a_rotation():
    """Rotating step by step through Δ tokens must end at φ(Δ)."""
    shape = RopeShape(100.0, 8, 32)
    step = torch.polar(torch.ones(4, dtype=torch.float64), frequencies.inverse_frequencies(shape))
    walked = torch.ones(4, dtype=torch.complex128)
    for _ in range(11):
        walked = walked * step
    phase = frequencies.phases(shape, [11])[0]
    torch.testing.assert_close(torch.polar(torch.ones(4, dtype=torch.float64), phase), walked)


def test_rotations_are_counted_turns():
    shape = RopeShape(1e4, 16, 64)
    turns = frequencies.rotations_in_context(shape)
    angle = frequencies.phases(shape, [shape.context])[0]
    torch.testing.assert_close(turns * 2 * math.pi, angle)


def test_out_of_range_counts_pairs_that_meet_new_angles():
    """Directly: a pair is out of range if the angles beyond C_train are not among those within it."""
    for shape in (LLAMA2, RopeShape(1e4, 16, 64), RopeShape(1e6, 64, 1024)):
        angle_at_context = frequencies.phases(shape, [shape.context])[0]
        new = int((angle_at_context < 2 * math.pi).sum())
        assert frequencies.out_of_range(shape, 2 * shape.context) == new > 0
        assert frequencies.out_of_range(shape, shape.context) == 0


def test_yarn_keeps_out_of_range_pairs_within_trained_angles():
    length = 8 * LLAMA2.context
    trained = frequencies.phases(LLAMA2, [LLAMA2.context])[0]
    slow = trained < 2 * math.pi
    assert (frequencies.phases(LLAMA2, [length])[0][slow] > trained[slow]).all()
    assert (frequencies.phases(LLAMA2, [length], Yarn(), length)[0][slow] <= trained[slow] + 1e-9).all()
