import random
import re
from statistics import fmean

import pytest

from drope.data import needles as N
from drope.data.keys import Keys
from drope.models import load


@pytest.fixture(scope="module")
def tokenizer():
    return load("bundled", weights=False).tokenizer


def test_keys_differ_and_are_seeded(tokenizer):
    keys = Keys(tokenizer)
    first, again = ([keys.draw(6, random.Random(seed)) for seed in range(200)] for _ in range(2))
    assert first == again
    assert all(len(set(draw)) == 6 for draw in first)
    adjectives, nouns = N.key_words()
    for key in first[0]:
        assert any(key == f"{a}-{key[len(a) + 1 :]}" and key[len(a) + 1 :] in nouns for a in adjectives)


def test_length_in_tokens_seldom_tells_keys_apart(tokenizer):
    """Counted on whole needles, as the evaluation writes them."""
    rng, keys = random.Random(0), Keys(tokenizer)

    def length(key):
        return len(tokenizer(" " + N.NEEDLE.format(key=key, value="1234567"))["input_ids"])

    def alike(draws):
        """How often another key has the first one's length."""
        return fmean(length(other) == length(first) for first, *others in draws for other in others)

    random_draws = alike([N.distinct(N.random_key, 4, rng) for _ in range(300)])
    assert random_draws < 0.3
    assert alike([keys.draw(4, rng) for _ in range(300)]) > random_draws + 0.25


def test_some_keys_share_a_word(tokenizer):
    rng, keys = random.Random(0), Keys(tokenizer)
    draws = [keys.draw(2, rng) for _ in range(500)]
    words = [[set(re.split("-", key)) for key in draw] for draw in draws]
    assert 0.1 < fmean(bool(a & b) for a, b in words) < 0.3


def test_one_key(tokenizer):
    assert len(Keys(tokenizer).draw(1, random.Random(0))) == 1
