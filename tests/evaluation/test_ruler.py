"""RULER's prompts, read back from their text alone and held against the published definitions."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from drope.data.needles import NOISE, RULER_DEPTHS
from drope.errors import InputError
from drope.evaluation.tasks import NEEDLES, RULER, expand, get_task
from drope.evaluation.trials import Trials
from drope.evaluation.written import largest

NUMBER, WORD = r"\d{7}", r"[^\s]+-[^\s]+"
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
TABLE = {  # name: haystack, key, value, unit, keys, values, queries
    "niah_single_1": ("noise", WORD, NUMBER, "number", 1, 1, 1),
    "niah_single_2": ("essay", WORD, NUMBER, "number", 1, 1, 1),
    "niah_single_3": ("essay", WORD, UUID, "uuid", 1, 1, 1),
    "niah_multikey_1": ("essay", WORD, NUMBER, "number", 4, 1, 1),
    "niah_multikey_2": ("needles", WORD, NUMBER, "number", 1, 1, 1),
    "niah_multikey_3": ("needles", UUID, UUID, "uuid", 1, 1, 1),
    "niah_multivalue": ("essay", WORD, NUMBER, "number", 1, 4, 1),
    "niah_multiquery": ("essay", WORD, NUMBER, "number", 4, 1, 4),
}


def split(prompt: str, unit: str, plural: bool) -> tuple[str, str]:
    """The haystack and the keys asked for; fails unless everything around them is RULER's, to the letter."""
    some, are, all_are, s = ("Some", "are", "are all", "s") if plural else ("A", "is", "is", "")
    head = (
        f"{some} special magic {unit}{s} {are} hidden within the following text. Make sure to memorize it. "
        f"I will quiz you about the {unit}{s} afterwards.\n"
    )
    assert prompt.startswith(head)
    tail = re.search(
        rf"\nWhat {all_are} the special magic {unit}{s} for (.+) mentioned in the provided text\? "
        rf"The special magic {unit}{s} for (.+) mentioned in the provided text {are}$",
        prompt,
    )
    assert tail
    assert tail[1] == tail[2]
    return prompt[len(head) : tail.start()], tail[1]


@pytest.mark.parametrize("name", TABLE)
def test_needle_prompts_are_rulers(name, tokenizer, sentences):
    haystack, key, value, unit, keys, values, queries = TABLE[name]
    needle = re.compile(rf"One of the special magic {unit}s for ({key}) is: ({value})\.")
    words = " ".join(" ".join(sentences).split())
    for index in range(6):
        trial = Trials(tokenizer, sentences).make(get_task(name), 1200, index)
        text, asked = split(trial.prompt, unit, plural=values * queries > 1)
        pairs = needle.findall(text)
        assert trial.max_new_tokens == 128
        if haystack == "needles":
            assert all(needle.fullmatch(line) for line in text.split("\n"))
            assert [v for k, v in pairs if k == asked] == list(trial.answers)
            assert len(pairs) > 5
            continue
        assert len(pairs) == keys * values
        assert Counter(Counter(k for k, _ in pairs).values()) == {values: keys}
        wanted = re.split(r", and |, | and ", asked)
        assert len(wanted) == queries
        assert [v for k in wanted for p, v in pairs if p == k].sort() == list(trial.answers).sort()
        rest = needle.sub("", text)
        if haystack == "noise":
            assert set(rest.split("\n")) <= {NOISE, ""}
        else:
            assert words.startswith(re.sub(r"\s+", " ", rest).strip())  # the corpus from its beginning


@pytest.mark.parametrize("name", RULER)
@pytest.mark.parametrize("kind", ["digits", "metaspace"])
def test_largest_that_fits(name, kind, tokenizers, sentences):
    """prompt + budget <= length by the tokenizer, and one unit more would not fit: checked with a bigger budget."""
    task, trials = get_task(name), Trials(tokenizers[kind], sentences)
    for length in (2100, 3000):
        trial = trials.make(task, length, 0)
        assert len(trial.ids) + task.budget <= length
        slack = {"needles": 130, "noise": 90}.get(getattr(task, "haystack", ""), 90 if name == "vt" else 40)
        assert len(trial.ids) + task.budget > length - slack
        direct = tokenizers[kind](trial.prompt)["input_ids"]
        assert list(trial.ids) == direct[: len(trial.ids)]


def test_same_needles_at_every_length(tokenizer, sentences):
    trials = Trials(tokenizer, sentences, seed=4)
    for name in TABLE:
        short, long = (trials.make(get_task(name), n, 3) for n in (1000, 2000))
        assert short.answers == long.answers
        assert len(short.ids) < len(long.ids)
        assert max(abs(a - b) for a, b in zip(short.depths, long.depths, strict=True)) < 0.25


def test_depths_are_rulers_forty(tokenizer, sentences):
    assert len(RULER_DEPTHS) == 40
    assert (RULER_DEPTHS[0], RULER_DEPTHS[1], RULER_DEPTHS[-1]) == (0.0, 0.03, 1.0)
    seen = {d for i in range(24) for d in Trials(tokenizer, sentences).make(get_task("niah_single_1"), 900, i).depths}
    assert len(seen) > 6  # of 24 trials; few lines fit, so depths coincide
    assert min(seen) < 0.1
    assert max(seen) > 0.9


def test_variable_tracking(tokenizer, sentences):
    for index in range(4):
        trial = Trials(tokenizer, sentences).make(get_task("vt"), 2000, index)
        solved, task = trial.prompt.split("\n\n\n", 1)[0], trial.prompt.rsplit("Memorize and track", 1)[1]
        value = re.search(r"assigned the value (\d{5}) in the text above\.", task)
        assert value
        chain = dict(re.findall(r"VAR ([A-Z]{5}) = (?:VAR )?([A-Z]{5}|\d{5})", task))
        reached = [k for k in chain if _end(chain, k) == value[1]]
        assert sorted(reached) == sorted(trial.answers)
        assert len(reached) == 5
        places = [task.index(f"VAR {v} =") for v in trial.answers]
        assert places == sorted(places)  # assigned in order
        assert task.endswith(f"5 variables are assgined the value {value[1]}, they are: ")
        assert re.search(r"they are:  ?(?:[A-Z]{3} ?){5}$", solved.rstrip())
        assert len(tokenizer(solved)["input_ids"]) <= 520  # five lines of noise at least


def _end(chain: dict[str, str], name: str) -> str:
    while name in chain:
        name = chain[name]
    return name


@pytest.mark.parametrize(("length", "often", "seldom"), [(3000, 6, 1), (6000, 30, 3)])
def test_common_words(length, often, seldom, tokenizer, sentences):
    trial = Trials(tokenizer, sentences).make(get_task("cwe"), length, 1)
    listed = re.findall(
        r"(\d+)\. (.+?)(?= \d+\. |\n|$)", trial.prompt.rsplit("most often.\n", 1)[1].split("\nQuest")[0]
    )
    assert [int(i) for i, _ in listed] == list(range(1, len(listed) + 1))
    counts = Counter(w for _, w in listed)
    assert {w for w, n in counts.items() if n == often} == set(trial.answers)
    assert {n for w, n in counts.items() if w not in trial.answers} <= {seldom}
    assert len(trial.answers) == 10


def test_frequent_words(tokenizer, sentences):
    trial = Trials(tokenizer, sentences).make(get_task("fwe"), 3000, 1)
    text = trial.prompt.split("coded words. ", 1)[1].split("\nQuestion")[0].split(" ")
    common = Counter(text).most_common(4)
    assert common[0][0] == "..."
    assert [w for w, _ in common[1:]] == list(trial.answers)
    assert common[1][1] == pytest.approx(common[0][1] / 4, abs=1)  # zeta with α = 2


def test_too_short_a_length_says_what_is_needed(tokenizer, sentences):
    with pytest.raises(InputError, match=r"at least (\d+) tokens for cwe") as error:
        Trials(tokenizer, sentences).make(get_task("cwe"), 300, 0)
    least = int(re.findall(r"at least (\d+)", str(error.value))[0])
    assert Trials(tokenizer, sentences).make(get_task("niah_single_1"), least, 0)
    with pytest.raises(InputError, match="haystack is 'about"):
        Trials(tokenizer, sentences[:3], repeat=False).make(get_task("niah_single_2"), 3000, 0)
    repeated = Trials(tokenizer, sentences[:3]).make(get_task("niah_single_2"), 3000, 0)
    assert repeated.prompt.count(" ".join(sentences[1].split())) > 3


@pytest.mark.parametrize("base", [0, 5])
@pytest.mark.parametrize("rate", [1, 7, 0.3])
def test_largest_is_the_largest(base, rate):
    for room in (5, 6, 40, 1000, 99999):
        calls: list[int] = []

        def count(n: int, room=room, calls=calls) -> int:
            calls.append(n)
            return base + int(rate * n) + (3 if n > 100 else 0)

        found = largest(count, room, 0, 5000)
        assert found == max(n for n in range(5001) if count(n) <= room)
        assert len(calls) < 5001 + 30
    assert largest(lambda n: n + 10, 9, 0, 50) is None


def test_groups():
    assert expand(("needles", "vt")) == (*NEEDLES, "vt")
    assert len(RULER) == 11
    assert expand(("ruler", "vt", "needles")) == (*RULER, *NEEDLES)
