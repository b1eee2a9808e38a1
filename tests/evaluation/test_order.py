"""The probes of order: each prompt holds what its answer says, and a bag of its words would not."""

from __future__ import annotations

import re

import pytest

from drope.evaluation.needles import places, record
from drope.evaluation.scoring import scorer
from drope.evaluation.tasks import ORDER, get_task
from drope.evaluation.trials import Trials


def make(name, tokenizer, sentences, n=10, length=700):
    return list(Trials(tokenizer, sentences).batch(get_task(name), length, n))


def test_induction(tokenizer, sentences):
    trials = make("induction", tokenizer, sentences, 12)
    assert {t.place["distance"] for t in trials} == {16, 32, 64, 128, 256, 512}
    for trial in trials:
        words = trial.prompt.split("\n", 1)[1].split(" ")
        [first, last] = [i for i, w in enumerate(words) if w == words[-1]]
        assert last == len(words) - 1
        assert (words[first + 1],) == trial.answers
        assert words.count(trial.answers[0]) == 1
        back = len(tokenizer(" " + " ".join(words[first:last]))["input_ids"])
        assert trial.place["distance"] - 12 < back <= trial.place["distance"]


def test_digit_copy(tokenizer, sentences):
    for trial in make("digit_copy", tokenizer, sentences):
        assert re.findall(r"The secret code is (\d{16})\.", trial.prompt) == list(trial.answers)
        assert trial.prompt.endswith("\nThe secret code is")


def test_recency(tokenizer, sentences):
    for trial in make("recency", tokenizer, sentences):
        values = re.findall(r"The magic number for \S+ is now (\d{7})\.", trial.prompt)
        assert values == [*trial.extra["rejects"], *trial.answers]
        assert trial.score(f" {values[-1]}, not {values[0]}") == 1
        assert trial.score(f" {values[0]} and {values[-1]}") == 0  # listing them all is not knowing the last


def test_counting(tokenizer, sentences):
    trials = make("counting", tokenizer, sentences, 18)
    assert {t.answers[0] for t in trials} == {str(i) for i in range(1, 10)}
    for trial in trials:
        assert trial.prompt.count("A bell rang in the tower.") == int(trial.answers[0])


def test_sorted_lookup(tokenizer, sentences):
    for trial in make("sorted_lookup", tokenizer, sentences):
        listed = trial.prompt.split(":\n", 1)[1].rsplit("\n", 1)[0].split("\n")
        asked = re.search(r"right after (\S+) is$", trial.prompt)
        assert asked
        assert listed == sorted(listed)
        assert trial.answers == (listed[listed.index(asked[1]) + 1],)


def test_word_order(tokenizer, sentences):
    for i, trial in enumerate(make("word_order", tokenizer, sentences)):
        told = re.search(r"Yesterday (\w+) (\w+) (\w+)\.", trial.prompt)
        assert told
        assert trial.answers == (told[3] if i % 2 else told[1],)
        assert trial.extra["rejects"] == [told[1] if i % 2 else told[3]]
        assert trial.prompt.endswith(
            ("was " if i % 2 else "who ") + told[2] + (" yesterday is" if i % 2 else " somebody yesterday is")
        )


@pytest.mark.parametrize("name", ORDER)
def test_fits_and_repeats(name, tokenizer, sentences):
    one, other = make(name, tokenizer, sentences, 3), make(name, tokenizer, sentences, 3)
    assert [t.digest for t in one] == [t.digest for t in other]
    assert len({t.digest for t in one}) == 3
    assert all(len(t.ids) + t.max_new_tokens <= 700 for t in one)


@pytest.mark.parametrize(
    ("name", "answers", "output", "extra", "score"),
    [
        ("first_named", ["Anna"], " Annabel and Anna", {"rejects": ["Boris"]}, 1),
        ("first_named", ["Anna"], " Boris thanked Anna", {"rejects": ["Boris"]}, 0),
        ("first_named", ["Anna"], " nobody", {"rejects": ["Boris"]}, 0),
        ("first_word", ["prey"], ' "Prey", of course', {}, 1),
        ("first_word", ["prey"], " praying", {}, 0),
        ("first_word", ["prey"], "", {}, 0),
        ("first_number", ["7"], " seven times", {}, 1),
        ("first_number", ["7"], ": 7, not 8", {}, 1),
        ("first_number", ["7"], " 17", {}, 0),
        ("first_number", ["1"], " stone 1", {}, 1),  # no number inside a word
    ],
)
def test_scorers(name, answers, output, extra, score):
    assert scorer(name).score(answers, output, extra) == score


@pytest.mark.parametrize("name", ["all", "first_named", "first_word", "first_number"])
def test_decided_means_that_nothing_can_change(name):
    """Cut every output where it counts as decided: the score of the rest of it is the same."""
    texts = [
        " 12 and 13",
        " seven, 8",
        " Anna. Boris",
        " Boris Anna",
        " 1234567, 12",
        " prey-like prey",
        " x 12 Anna 7",
    ]
    extra = {"rejects": ["Boris", "13"]}
    seen = 0
    for answers in (["12"], ["7"], ["Anna"], ["prey"], ["12", "Anna"]):
        for text in texts:
            for n in range(1, len(text) + 1):
                if scorer(name).decided(answers, text[:n], extra):
                    seen += 1
                    assert scorer(name).score(answers, text[:n], extra) == scorer(name).score(answers, text, extra)
    assert seen


def test_rows_by_place(tokenizer, sentences):
    trials = make("induction", tokenizer, sentences, 12)
    records = [record(t, " " + t.answers[0] if t.place["distance"] < 100 else " none") for t in trials]
    rows = places(records, "induction", "rope", 700, {})
    assert {m.details["distance"]: m.value for m in rows} == {16: 1, 32: 1, 64: 1, 128: 0, 256: 0, 512: 0}
    assert all(m.n == 2 and 0 <= m.low < m.high <= 1 for m in rows)
    asked = list(Trials(tokenizer, sentences).batch(get_task("multi_query"), 700, 20))
    half = [record(t, f" {t.answers[0]}") for t in asked]  # the first of two values only
    rows = places(half, "multi_query", "rope", 700, {})
    assert sum(m.n for m in rows) == 40
    assert sum(m.value * m.n for m in rows) == pytest.approx(20)
    assert all(0 < m.details["depth"] < 1 for m in rows)
