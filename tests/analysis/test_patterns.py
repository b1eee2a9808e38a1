"""The functional on cases that can be computed by hand, and against its dense form."""

from __future__ import annotations

import pytest
import torch

from drope.analysis import DIAGONAL, PREVIOUS, Custom, Offset, centred, functional, offsets
from drope.errors import InputError

T = 12


def uniform(length: int = T) -> torch.Tensor:
    counts = torch.arange(1, length + 1, dtype=torch.float64)
    return (torch.ones(length, length, dtype=torch.float64) / counts[:, None]).tril()[None, None]


def one_hot(back: int, length: int = T) -> torch.Tensor:
    """Every query looks `back` tokens back; those that have none there look at the first."""
    alpha = torch.zeros(length, length, dtype=torch.float64)
    for i in range(length):
        alpha[i, max(0, i - back)] = 1
    return alpha[None, None]


def random_attention(batch: int = 2, heads: int = 3, length: int = T, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(batch, heads, length, length, generator=generator, dtype=torch.float64)
    later = torch.ones(length, length).triu(1).bool()
    return scores.masked_fill(later, -torch.inf).softmax(-1)


@pytest.mark.parametrize("pattern", [*offsets(4), centred(torch.randn(T, T))], ids=lambda p: p.name)
def test_uniform_attention_has_no_bias(pattern) -> None:
    assert functional(uniform(), pattern).abs().max() < 1e-12


def test_identity_attention_is_a_diagonal_head() -> None:
    # row 1 is 0 by centring, so T - 1 of T rows score 1
    assert functional(one_hot(0), DIAGONAL).item() == pytest.approx((T - 1) / T)
    # as a previous-token head it scores -1/(i-1) in each row from the second on
    expected = -sum(1 / (i - 1) for i in range(2, T + 1)) / T
    assert functional(one_hot(0), PREVIOUS).item() == pytest.approx(expected)


@pytest.mark.parametrize("back", [1, 2, 5])
def test_a_head_that_looks_back_has_the_offsets_bias(back: int) -> None:
    assert functional(one_hot(back), Offset(back)).item() == pytest.approx((T - back) / T)
    assert max(offsets(6), key=lambda p: functional(one_hot(back), p).item()) == Offset(back)


@pytest.mark.parametrize("pattern", [*offsets(5), centred(torch.randn(T, T))], ids=lambda p: p.name)
def test_every_pattern_agrees_with_its_dense_form(pattern) -> None:
    alpha = random_attention()
    c = pattern.dense(T)
    assert c.triu(1).abs().max() == 0
    assert c.sum(-1).abs().max() < 1e-9
    assert c.abs().max().item() == pytest.approx(pattern.largest, rel=1e-9)
    expected = torch.einsum("ij,bhij->h", c, alpha) / (T * len(alpha))
    torch.testing.assert_close(functional(alpha, pattern), expected)


def test_blocks_add_up() -> None:
    alpha = random_attention()
    for pattern in (DIAGONAL, Offset(3), centred(torch.randn(T, T))):
        parts = [pattern.rows(alpha[:, :, a:b, :b], a) for a, b in ((0, 5), (5, 6), (6, T))]
        torch.testing.assert_close(torch.cat(parts, -1), pattern.rows(alpha, 0))


def test_the_pattern_of_an_attention_gives_its_distance_from_uniform() -> None:
    """c = α − u: A^c = (1/T) Σ_i (Σ_j α² − 1/i), the quantity of Proposition 3.3."""
    alpha = random_attention(1, 1)
    c = Custom(alpha[0, 0] - uniform()[0, 0])
    counts = torch.arange(1, T + 1, dtype=torch.float64)
    expected = (alpha[0, 0].square().sum(-1) - 1 / counts).mean()
    assert functional(alpha, c).item() == pytest.approx(expected.item())
    assert expected > 0


@pytest.mark.parametrize(
    ("c", "word"),
    [
        (torch.zeros(3, 4), "square"),
        (torch.eye(4), "sum to 0"),
        (torch.ones(4, 4).triu(1), "after its query"),
        (torch.full((3, 3), float("nan")), "finite"),
    ],
)
def test_patterns_that_are_none(c: torch.Tensor, word: str) -> None:
    with pytest.raises(InputError, match=word):
        Custom(c)


def test_a_pattern_too_small_for_the_text() -> None:
    with pytest.raises(InputError, match="at least 12 rows"):
        functional(random_attention(), centred(torch.randn(6, 6)))
    with pytest.raises(InputError):
        Offset(-1)
