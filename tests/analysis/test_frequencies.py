"""The table of frequencies, against the formulas written out here."""

from __future__ import annotations

import math

import pytest

from drope.analysis import frequency_table
from drope.positions import METHODS, NTK, PI, Crop, Nope, Rope, RopeShape, Yarn

LLAMA2 = RopeShape(1e4, 128, 4096)
S = 4


def rows(shape: RopeShape = LLAMA2, lengths: tuple[int, ...] = (S * 4096,), methods=None):
    table = frequency_table(shape, lengths, methods)
    return table, {(m.method, m.length): m for m in table.methods}


def test_gamma_by_method() -> None:
    _, found = rows(methods=[Rope(), PI(), NTK(), Yarn(), Nope()])
    d = LLAMA2.head_dim
    gamma = {name: found[name, S * 4096].gamma for name in ("rope", "pi", "ntk", "yarn", "nope")}
    assert gamma["rope"] == [1.0] * 64
    assert gamma["pi"] == pytest.approx([1 / S] * 64)
    assert gamma["ntk"] == pytest.approx([S ** (-2 * m / (d - 2)) for m in range(64)])
    assert gamma["nope"] == [0.0] * 64
    assert gamma["yarn"][0] == 1.0
    assert gamma["yarn"][-1] == pytest.approx(1 / S)
    assert gamma["yarn"] == sorted(gamma["yarn"], reverse=True)


def test_phases_and_out_of_range_pairs_are_counted_directly() -> None:
    table, found = rows(methods=[Rope(), PI(), NTK(), Yarn(), Nope()])
    omega = [1e4 ** (-2 * m / 128) for m in range(64)]
    assert table.omega == pytest.approx(omega)
    assert table.trained == pytest.approx([w * 4096 for w in omega])
    for (_, length), row in found.items():
        phase = [g * w * length for g, w in zip(row.gamma, omega, strict=True)]
        assert row.phase == pytest.approx(phase)
        new = [
            m for m in range(64) if omega[m] * 4096 < 2 * math.pi and phase[m] > omega[m] * 4096 * (1 + 1e-6)
        ]  # fmt: skip
        assert row.out_of_range == new
    assert len(found["rope", S * 4096].out_of_range) > 0
    assert found["pi", S * 4096].out_of_range == []
    assert found["yarn", S * 4096].out_of_range == []
    assert found["nope", S * 4096].out_of_range == []


def test_nothing_is_out_of_range_within_the_context() -> None:
    _, found = rows(lengths=(4096,), methods=[Rope(), NTK()])
    assert all(row.out_of_range == [] for row in found.values())


def test_the_catalogue_by_default() -> None:
    table, found = rows()
    names = {name for name, _ in found}
    assert {"rope", "pi", "ntk", "dynamic_ntk", "yarn", "nope"} <= names
    assert names | set(table.left_out) | {"drope"} == set(METHODS)
    assert "crop" in table.left_out  # it shortens the input: its frequencies are RoPE's
    assert frequency_table(LLAMA2, [8192], [Crop()]).methods == []
