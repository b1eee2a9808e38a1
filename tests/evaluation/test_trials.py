from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from drope.errors import InputError
from drope.evaluation.tasks import NEEDLES, TASKS, found, get_task, is_success
from drope.evaluation.trials import Trials

NEEDLE = re.compile(r"One of the special magic numbers for ([^\s]+) is: (\d{7})\.")
ENDINGS = {
    "single": r"The special magic number for (\S+) mentioned in the provided text is:",
    "multi_key": r"The special magic number for (\S+) mentioned in the provided text is:",
    "multi_query": r"The special magic numbers for (\S+) and (\S+) mentioned in the provided text are:",
    "multi_value": r"What are all the special magic numbers for (\S+) mentioned in the provided text\?",
}


@pytest.mark.parametrize("task", NEEDLES)
def test_prompt_is_the_papers(task, tokenizer, sentences):
    """Read back from the prompt alone: four pairs (one for single), the ending, the answers that follow."""
    for index in range(12):
        trial = Trials(tokenizer, sentences).make(get_task(task), 400, index)
        text, question = trial.prompt.rsplit("\n", 1)
        pairs = NEEDLE.findall(text)
        asked = re.fullmatch(ENDINGS[task], question)
        assert asked
        assert len(pairs) == len({v for _, v in pairs}) == (1 if task == "single" else 4)
        expected = [v for key in asked.groups() for k, v in pairs if k == key]
        assert sorted(expected) == sorted(trial.answers)
        assert len(trial.answers) == {"single": 1, "multi_key": 1, "multi_query": 2, "multi_value": 2}[task]
        assert len({k for k, _ in pairs}) == {"single": 1, "multi_value": 3}.get(task, 4)


@pytest.mark.parametrize("kind", ["digits", "bos", "metaspace"])
@pytest.mark.parametrize("length", [300, 700])
def test_size_fills_the_length(kind, length, tokenizers, sentences):
    tokenizer = tokenizers[kind]
    trials = Trials(tokenizer, sentences, max_new_tokens=40)
    words = " ".join(" ".join(s.split()) for s in sentences)
    for task in NEEDLES:
        for trial in trials.batch(get_task(task), length, 6):
            room = length - trial.max_new_tokens
            assert len(trial.ids) <= room
            text = re.sub(r"\s+", " ", NEEDLE.sub(" ", trial.prompt.rsplit("\n", 1)[0])).strip()
            before = words[: words.index(text)].split(" ")[-2]  # one more word of the haystack would be too much
            assert len(tokenizer(f"{before} {trial.prompt}")["input_ids"]) >= room - 3
            direct = tokenizer(trial.prompt)["input_ids"]
            closing = kind == "metaspace"  # its EOS must not stand between question and answer
            assert list(trial.ids) == direct[: len(direct) - closing]
            assert (trial.ids[0] == 0) == (kind != "digits")


def test_haystack_is_one_excerpt(tokenizer, sentences):
    whole = " ".join(" ".join(s.split()) for s in sentences)
    starts = set()
    for index in range(8):
        trial = Trials(tokenizer, sentences).make(get_task("multi_key"), 500, index)
        excerpt = re.sub(r"\s+", " ", NEEDLE.sub(" ", trial.prompt.rsplit("\n", 1)[0])).strip()
        assert excerpt in whole
        starts.add(whole.index(excerpt))
    assert len(starts) == 8


def test_pairing_is_independent_of_everything_else(tokenizers, sentences):
    tokenizer, task = tokenizers["digits"], get_task("multi_query")
    first = list(Trials(tokenizer, sentences, seed=5).batch(task, 300, 6))
    again = Trials(tokenizer, sentences, seed=5)
    assert [again.make(task, 300, i) for i in (5, 3, 1)] == [
        first[i] for i in (5, 3, 1)
    ]  # order and count do not matter
    assert len({t.digest for t in first}) == 6
    longer = Trials(tokenizer, sentences, seed=5).make(task, 600, 2)
    assert longer.answers == first[2].answers
    assert len(longer.ids) > len(first[2].ids)
    other = Trials(tokenizer, sentences, seed=6).make(task, 300, 0)
    assert not set(other.answers) & set(first[0].answers)
    assert Trials(tokenizers["bos"], sentences, seed=5).make(task, 300, 0).answers == first[0].answers


def test_depths(tokenizer, sentences):
    trials = Trials(tokenizer, sentences, depths=(0.0, 0.5, 1.0))
    for index, trial in enumerate(trials.batch(get_task("single"), 900, 9)):
        text = trial.prompt.rsplit("\n", 1)[0]
        place = next(NEEDLE.finditer(text))
        before, after = place.start(), len(text) - place.end()
        assert trial.depth == (0.0, 0.5, 1.0)[index % 3]
        assert trial.depths[0] == pytest.approx(before / max(1, before + after), abs=0.01)
        assert abs(trial.depths[0] - trial.depth) < 0.2  # the nearest boundary between sentences
        assert trial.depth != 0 or before == 0
        assert trial.depth != 1 or after == 0
    random = [d for t in trials.batch(get_task("multi_query"), 600, 40) for d in t.depths]
    assert min(random) < 0.15
    assert max(random) > 0.85
    assert 0.4 < np.mean(random) < 0.6


def test_number_of_values(tokenizer, sentences):
    trial = Trials(tokenizer, sentences).make(get_task("multi_value", values=4), 400, 0)
    assert len(trial.answers) == 4
    with pytest.raises(InputError, match="values per asked key is 5"):
        get_task("multi_value", values=5)
    assert get_task("multi_key", values=4).values == 1


def test_short_haystack_repeats_or_is_refused(tokenizer, sentences):
    short = sentences[:3]
    trial = Trials(tokenizer, short).make(get_task("single"), 900, 0)
    assert 900 - len(trial.ids) - trial.max_new_tokens <= 12
    with pytest.raises(InputError, match="haystack is 'about"):
        Trials(tokenizer, short, repeat=False).make(get_task("single"), 900, 0)
    with pytest.raises(InputError, match="haystack"):
        Trials(tokenizer, ["", "  "])


def test_impossible_length_says_how_much_is_needed(tokenizer, sentences):
    trials = Trials(tokenizer, sentences)
    with pytest.raises(InputError, match=r"lengths is 100; allowed: at least \d+ tokens for multi_query") as error:
        trials.make(get_task("multi_query"), 100, 0)
    least = int(re.findall(r"at least (\d+)", str(error.value))[0])
    assert trials.make(get_task("multi_query"), least, 0).length == least  # what the message promises is true
    with pytest.raises(InputError):
        trials.make(get_task("multi_query"), least - 1, 0)
    with pytest.raises(InputError) as error:  # one of many may need more: known before any is built
        trials.check(get_task("multi_query"), 100, 20)
    most = int(re.findall(r"at least (\d+)", str(error.value))[0])
    assert most > least
    trials.check(get_task("multi_query"), most, 20)
    assert len(list(trials.batch(get_task("multi_query"), most, 20))) == 20


def test_unknown_task_names_the_nearest():
    with pytest.raises(InputError, match="Did you mean multi_query"):
        get_task("multi-queri")
    with pytest.raises(InputError, match="allowed: single, multi_query, multi_key, multi_value"):
        get_task("zebra")


def test_budget_grows_with_the_tokenizer(tokenizer, sentences):
    trial = Trials(tokenizer, sentences, max_new_tokens=1).make(get_task("multi_query"), 400, 0)
    spoken = tokenizer(f" {trial.answers[0]} and {trial.answers[1]}.")["input_ids"]
    assert trial.max_new_tokens > len(spoken)


@pytest.mark.parametrize(
    ("answers", "output", "share"),
    [
        (["1234567"], " 1234567.", 1),
        (["1234567"], "", 0),
        (["1234567"], "123456", 0),
        (["1234567"], "123 4567", 0),
        (["1234567"], "1,234,567", 0),
        (["1234567", "7654321"], "7654321 and 1234567.", 1),  # order does not matter
        (["1234567", "7654321"], "1234567, 1234567", 0.5),  # one value twice is one value
        (["1234567", "7654321"], "12345677654321", 1),  # RULER matches substrings
        (["1234567", "2345678"], "12345678", 1),  # and lets them overlap
        (["AbC"], "xabcx", 1),  # case-insensitive
        (["1234567"], "I do not know.\nThe number is\n\n1234567", 1),
        (["1", "2", "3"], "3 2", 2 / 3),
    ],
)
def test_score(answers, output, share):
    assert found(answers, output) == pytest.approx(share)
    assert is_success(answers, output) == (share == 1)


def test_task_refuses_more_than_it_hides():
    with pytest.raises(InputError):
        replace(TASKS["multi_query"], keys=3, values=2)


@pytest.mark.parametrize(("length", "budget"), [(1024, 48), (384, 48), (320, 40)])
def test_budget_is_a_small_part_of_a_short_length(length, budget, tokenizers, sentences):
    trial = Trials(tokenizers["digits"], sentences).make(get_task("single"), length, 0)
    assert trial.max_new_tokens == budget
