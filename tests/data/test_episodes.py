import random
import re

import numpy as np
import pytest

from drope.data import needles as N
from drope.data import stdlib
from drope.data.episodes import ANSWER, NEEDLE, Episodes
from drope.models import load

BLOCK = 128


@pytest.fixture(scope="module")
def episodes():
    tokenizer = load("bundled", weights=False).tokenizer
    return Episodes(tokenizer, stdlib.sentences(stdlib.prose("train"))[:200], BLOCK)


def test_blocks_are_exact_and_seeded(episodes):
    first, again, other = (next(episodes.blocks(seed)) for seed in (0, 0, 1))
    assert first.shape == (BLOCK,)
    assert first.dtype == np.int32
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_every_answer_is_in_the_text_before_it(episodes):
    stream = episodes.annotated_blocks(seed=5)
    for _ in range(50):
        ids, kinds = next(stream)
        text = episodes.tokenizer.decode(ids[kinds != ANSWER])
        for number in re.findall(r"\d{7}", episodes.tokenizer.decode(ids[kinds == ANSWER])):
            assert f"is: {number}." in text


def test_each_document_opens_with_the_separator(episodes):
    stream = episodes.blocks(seed=6)
    assert all(next(stream)[0] == episodes.eos for _ in range(20))


def test_needles_are_marked(episodes):
    ids, kinds = next(episodes.annotated_blocks(seed=7))
    assert "special magic" in episodes.tokenizer.decode(ids[kinds == NEEDLE])


def test_some_documents_begin_with_a_needle_as_a_text_does(episodes):
    stream = episodes.blocks(seed=8)
    blocks = [episodes.tokenizer.decode(next(stream)).split("<|endoftext|>") for _ in range(200)]
    documents = [document for block in blocks for document in block if document]
    share = sum(d.startswith("One of the special") for d in documents) / len(documents)
    assert 0.3 < share < 0.6


def test_words_of_needles():
    rng = random.Random(0)
    key, number = N.random_key(rng), N.random_number(rng)
    adjectives, nouns = N.key_words()
    assert any(key == f"{a}-{key[len(a) + 1 :]}" and key[len(a) + 1 :] in nouns for a in adjectives)
    assert re.fullmatch(r"[1-9]\d{6}", number)
    assert len(set(N.distinct(N.random_key, 50, rng))) == 50
    assert [N.join_words("abc"[:n]) for n in (1, 2, 3)] == ["a", "a and b", "a, b, and c"]


def test_training_never_sees_heldout_prose():
    def long_sentences(split):
        return {s for s in stdlib.sentences(stdlib.prose(split)) if len(s) > 60}

    train, heldout = long_sentences("train"), long_sentences("heldout")
    assert len(heldout) > 200
    assert len(train) > 3 * len(heldout)
    assert len(train & heldout) < 0.02 * len(heldout)  # a sentence that recurs inside different paragraphs
    assert len(set(stdlib.prose())) == len(stdlib.prose())
