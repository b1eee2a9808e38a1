import pytest

from drope.errors import InputError
from drope.quantities import format_count, format_tokens, parse_count, parse_factor, parse_target, parse_tokens


@pytest.mark.parametrize(("text", "n"), [("16k", 16384), ("4096", 4096), (" 1M ", 1 << 20), ("1.5k", 1536), (7, 7)])
def test_lengths_are_binary(text, n):
    assert parse_count(text) == n


@pytest.mark.parametrize(
    ("text", "n"), [("5B", 5 * 10**9), ("31.5M", 31_500_000), ("1e6", 10**6), ("2_000", 2000), (3, 3)]
)
def test_amounts_are_decimal(text, n):
    assert parse_tokens(text) == n


@pytest.mark.parametrize("text", ["", "k", "-4", "0", "1.5", "12q", "1e-3", "nan", True])
def test_what_is_no_length_is_named(text):
    with pytest.raises(InputError, match="--to"):
        parse_count(text, "--to")


def test_targets_are_factors_or_lengths():
    assert parse_target("8x", 256) == 2048
    assert parse_target("2k", 256) == 2048
    assert parse_factor("1.5x") == 1.5
    for wrong in ("0.5x", "x", "infx"):
        with pytest.raises(InputError):
            parse_target(wrong, 256)


@pytest.mark.parametrize("n", [1, 999, 1024, 4096, 1 << 20])
def test_lengths_survive_the_way_out_and_in(n):
    assert parse_count(format_count(n)) == n


def test_amounts_are_shown_short():
    assert [format_tokens(n) for n in (5_000_000_000, 31_500_000, 120)] == ["5B", "31.5M", "120"]
