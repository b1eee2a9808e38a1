"""Theorem 3.4 and Propositions 3.2 and 3.3 at several widths, depths and lengths, and checks that can fail."""

from __future__ import annotations

import dataclasses

import families
import pytest
import torch

from drope.analysis import (
    DIAGONAL,
    PREVIOUS,
    Check,
    Stack,
    constant_input,
    proposition_32,
    proposition_33,
    spread,
    theorem_34,
    uniform_embeddings,
)
from drope.analysis.propositions import forward
from drope.analysis.theorem import _attention_checks, gaussian_norm
from drope.errors import InputError
from drope.models import drop

SIZES = [(8, 1, 1, 4), (16, 2, 2, 16), (32, 4, 4, 48), (48, 3, 6, 24), (32, 2, 2, 160)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("epsilon", [0.0, 1e-5, 1e-2, 1.0, 10.0])
def test_theorem_34(size: tuple[int, int, int, int], epsilon: float) -> None:
    width, heads, depth, length = size
    found = theorem_34(Stack(width, heads, depth), length, epsilon, (DIAGONAL, PREVIOUS))
    broken = [(c.name, c.measured, c.bound) for c in found.checks if not c.holds]
    assert not broken
    assert len(found.layers) == depth


@pytest.mark.parametrize("initial", [0.02, 0.5])
@pytest.mark.parametrize("mlp", [0, 4])
def test_theorem_34_with_other_weights(initial: float, mlp: int) -> None:
    assert theorem_34(Stack(32, 4, 3, initial=initial, mlp=mlp), 32, 0.1).holds


def test_measured_values_fall_with_epsilon_and_do_not_grow_with_the_length() -> None:
    def bias(length: int, epsilon: float) -> float:
        return theorem_34(Stack(32, 2, 2), length, epsilon).worst("‖α − u‖₁").measured

    small, large = bias(32, 1e-4), bias(32, 1e-2)
    assert large / small == pytest.approx(100, rel=0.1)
    assert bias(256, 1e-2) < 3 * large


def test_rotation_breaks_the_bound_that_nope_keeps() -> None:
    """The check can fail: with RoPE attention does not become uniform as the embeddings do."""
    stack = Stack(32, 2, 1, theta=1e4)
    x = stack.norm(uniform_embeddings(32, 32, 1e-4))
    checks, _ = _attention_checks(stack, stack.weights[0], x, spread(x), 1e-4, (DIAGONAL,))
    broken = {c.name for c in checks if not c.holds}
    assert {"|s − s̄|", "‖α − u‖₁", "|A^c|"} <= broken
    with pytest.raises(InputError, match="without positions"):
        theorem_34(stack, 32, 1e-4)


def test_spread_by_hand_and_against_loops() -> None:
    # h = 0, 3: prefix means 0, 1.5; the largest distance is 1.5
    assert spread(torch.tensor([[0.0], [3.0]], dtype=torch.float64)) == pytest.approx(1.5)
    h = torch.randn(40, 7, dtype=torch.float64)
    expected = max((h[: i + 1].mean(0) - h[j]).norm().item() for i in range(40) for j in range(i + 1))
    assert spread(h) == pytest.approx(expected)
    assert spread(h, block=7) == pytest.approx(expected)


@pytest.mark.parametrize("epsilon", [0.0, 1e-6, 0.3])
def test_the_premise(epsilon: float) -> None:
    assert spread(uniform_embeddings(16, 50, epsilon)) <= epsilon + 1e-12


def test_gaussian_matrices_stay_below_their_norm() -> None:
    for seed in range(20):
        w = 0.3 * torch.randn(24, 48, generator=torch.Generator().manual_seed(seed))
        assert torch.linalg.matrix_norm(w, 2) <= gaussian_norm(24, 48, 0.3)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_proposition_32(size: tuple[int, int, int, int]) -> None:
    width, heads, depth, length = size
    found = proposition_32(Stack(width, heads, depth), length)
    assert [c.name for c in found.checks if not c.holds] == []


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_proposition_33(size: tuple[int, int, int, int]) -> None:
    width, heads, depth, length = size
    found = proposition_33(Stack(width, heads, depth, theta=1e4), length)
    assert [c.name for c in found.checks if not c.holds] == []
    assert all(c.measured > 0 for c in found.checks if c.name == "A^c")


def test_a_degenerate_head_has_no_bias() -> None:
    """Proposition 3.3 needs scores that vary in a row: W_Q = 0 leaves it nothing, and the statement says so."""
    stack = Stack(16, 2, 1, theta=1e4)
    stack.weights[0]["q"].zero_()
    found = proposition_33(stack, 16)
    assert not found.holds
    assert {c.name for c in found.checks if not c.holds} == {"A^c", "lower bound of the gradient"}


def test_propositions_ask_for_their_premise() -> None:
    with pytest.raises(InputError, match="without positions"):
        proposition_32(Stack(16, 2, 1, theta=1e4), 8)
    with pytest.raises(InputError, match="RoPE"):
        proposition_33(Stack(16, 2, 1), 8)
    with pytest.raises(InputError, match="multiple"):
        Stack(10, 4, 1)


def test_the_stack_is_a_transformer() -> None:
    """Its attention against torch's own, and its rotation against complex numbers."""
    stack = Stack(16, 2, 1, mlp=0)
    r = uniform_embeddings(16, 10, 3.0)
    x, w = stack.norm(r), stack.weights[0]
    q, k, v = ((x @ w[n].T).unflatten(-1, (2, 8)).transpose(0, 1)[None] for n in "qkv")
    z = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)[0]
    torch.testing.assert_close(forward(stack, w, r)[0], r + z.transpose(0, 1).flatten(1) @ w["o"].T)
    rotating = Stack(16, 2, 1, theta=100.0)
    y = torch.randn(2, 10, 8, dtype=torch.float64)
    turns = torch.polar(torch.ones(10, 4, dtype=torch.float64), torch.outer(torch.arange(10.0).double(),
                        100.0 ** (-torch.arange(4.0).double() / 4)))  # fmt: skip
    turned = torch.complex(y[..., :4], y[..., 4:]) * turns
    torch.testing.assert_close(rotating._rotate(y), torch.cat([turned.real, turned.imag], -1))


def test_check_and_statement() -> None:
    assert Check("a", 1.0, 2.0).holds
    assert not Check("a", 2.1, 2.0).holds
    assert not Check("a", 1.0, 2.0, at_least=True).holds
    assert not Check("a", float("nan"), 2.0).holds
    found = theorem_34(Stack(16, 2, 2), 8, 0.1)
    layer = tuple(dataclasses.replace(c, measured=c.bound * 2 + 1) for c in found.layers[0])
    assert not dataclasses.replace(found, layers=(layer, found.layers[1])).holds
    assert found.to_dict()["holds"] is True


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "GPT-NeoX", "OLMo2"])
def test_constant_input_on_real_families(family: str) -> None:
    model = families.model(family)
    rope = constant_input(model, 7, 16)
    drop(model)
    nope = constant_input(model, 7, 16)
    assert min(rope.uniformity) > 1e-2
    assert min(rope.bias) > 1e-5
    assert min(min(row) for row in rope.gradient) > 1e-4
    assert max(nope.uniformity) < 1e-4
    assert max(abs(b) for b in nope.bias) < 1e-6
    assert max(max(row) for row in nope.gradient) < 1e-5
