"""LongBench: metrics against the original's definitions, written out here a second time, on outputs that are tricky."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import string
from collections import Counter
from pathlib import Path

import pytest

from drope.errors import InputError
from drope.evaluation import longbench as L
from drope.evaluation.needles import record
from drope.evaluation.scoring import scorer
from drope.evaluation.tasks import expand, get_task
from drope.evaluation.tokens import Encoder

DATA = Path(os.environ.get("DROPE_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data")) / "longbench"
TRICKY = [
    "", " ", "\n\n", "the", "The Cat", "cat, the!", "a an the", "A cat sat; the CAT sat.", "Paragraph 3", "3", "33",
    "paragraph 3 and Paragraph 3 or 4", "no 3.5", "１２", "x = 1  # comment\ny = 2", "```python\nx = 1\n```",
    "// c\n\nreturn x", "\n\nreturn x + 1\nmore", "Question\nType: x", "yes\nno", "über naïve café", "don't stop",
    "Abbreviation expanded", "Abbreviation", "Human", "Human group", "...", "a. b. c.", "One. Two. One.", "word " * 40,
]  # fmt: skip


def reference(metric: str, output: str, answer: str, classes: list[str]) -> float:
    """The original's code, in its own shape."""

    def normalize(s):
        def remove_articles(text):
            return re.sub(r"\b(a|an|the)\b", " ", text)

        def remove_punc(text):
            exclude = set(string.punctuation)
            return "".join(ch for ch in text if ch not in exclude)

        return " ".join(remove_articles(remove_punc(s.lower())).split())

    if metric == "qa_f1":
        p, g = normalize(output).split(), normalize(answer).split()
        common = Counter(p) & Counter(g)
        same = sum(common.values())
        if same == 0:
            return 0
        precision, recall = 1.0 * same / len(p), 1.0 * same / len(g)
        return (2 * precision * recall) / (precision + recall)
    if metric in ("count", "retrieval"):
        right = re.findall(r"Paragraph (\d+)", answer)[0] if metric == "retrieval" else answer
        numbers = re.findall(r"\d+", output)
        hits = 0
        for number in numbers:
            if str(number) == str(right):
                hits += 1
        return 0.0 if len(numbers) == 0 else hits / len(numbers)
    if metric == "classification":
        matches = []
        for class_name in classes:
            if class_name in output:
                matches.append(class_name)
        for term in matches:
            if term in answer and term != answer:
                matches.remove(term)
        return 1.0 / len(matches) if answer in matches else 0.0
    if metric == "code_sim":
        from difflib import SequenceMatcher

        line = ""
        for candidate in output.lstrip("\n").split("\n"):
            if ("`" not in candidate) and ("#" not in candidate) and ("//" not in candidate):
                line = candidate
                break
        if line == answer:  # fuzzywuzzy's decorators, in their order: equal, then empty
            return 1.0
        if len(line) == 0 or len(answer) == 0:
            return 0.0
        return round(100 * SequenceMatcher(None, line, answer).ratio()) / 100
    from rouge import Rouge

    try:
        return Rouge().get_scores([output], [answer], avg=True)["rouge-l"]["f"]
    except Exception:
        return 0.0


@pytest.mark.parametrize("metric", L.METRICS)
def test_metrics_are_the_originals(metric):
    if metric == "rouge_l":
        pytest.importorskip("rouge")
    answers = ["Paragraph 3"] if metric == "retrieval" else [t for t in TRICKY if t.strip()] + ["3", "Human"]
    classes = ["Abbreviation", "Abbreviation expanded", "Human", "Human group", "group", "Type: x"]
    seen = set()
    for output, answer in itertools.product(TRICKY, answers):
        got = L.METRICS[metric](output, answer, classes)
        assert got == pytest.approx(reference(metric, output, answer, classes), abs=1e-12), (output, answer)
        seen.add(round(got, 3))
    assert len(seen) > 1


def test_known_scores():
    """By hand, from the definitions."""
    assert L.qa_f1("The cat, sat!", "a cat") == pytest.approx(2 / 3)
    assert L.count("There are 3 or 4, so 3", "3") == pytest.approx(2 / 3)
    assert L.retrieval("paragraph 7", "Paragraph 7") == 1
    assert (
        L.classification("Human group", "Human group", ["Human", "group", "Human group"]) == 0.5
    )  # `group` is skipped
    assert L.code_sim("# note\nreturn a", "return b") == 0.88
    assert L.code_sim("", "return b") == 0


def test_best_answer_and_first_line():
    qa, line = scorer("longbench:qa_f1"), scorer("longbench:qa_f1/line")
    assert qa.score(["red fox", "blue"], "blue", {}) == 1
    assert qa.score(["blue"], "blue\nred", {}) < 1
    assert line.score(["blue"], "\n\nblue\nred", {}) == 1
    assert line.decided(["blue"], "\nblue\n", {})
    assert not line.decided(["blue"], "\n\nblue", {})
    assert not qa.decided(["blue"], "blue\nred\n", {})
    code = scorer("longbench:code_sim")
    for text in ("# a\nreturn x\n# b", "\n\nx\ny", "```\n\nz"):
        cut = next(n for n in range(len(text) + 1) if code.decided(["x"], text[:n], {}))
        assert code.score(["x"], text[:cut], {}) == code.score(["x"], text, {})


def test_twenty_one_sets():
    assert len(expand(("longbench",))) == 21
    assert sum(bool(t.metric) for t in L.TASKS.values()) == 16
    assert expand(("paper",)) == (
        "longbench_multifieldqa_en", "longbench_musique", "longbench_gov_report", "longbench_lcc",
    )  # fmt: skip
    for task in L.TASKS.values():
        assert math.isnan(scorer(task.scorer).score(["Paragraph 1"], "x", {})) == (not task.metric)
    with pytest.raises(InputError, match="Did you mean longbench_musique"):
        get_task("longbench_musiqu")


@pytest.mark.parametrize("kind", ["digits", "bos", "metaspace"])
def test_cut_in_the_middle(kind, tokenizers):
    encode = Encoder(tokenizers[kind])
    prompt = " ".join(f"word{i}" for i in range(400))
    assert L.cut_middle(prompt, encode, 10**6) == prompt
    for room in (64, 101, 300):
        cut = L.cut_middle(prompt, encode, room)
        assert room - 8 <= len(encode(cut)) <= room
        assert prompt.startswith(cut[: len(cut) // 2 - 20].strip())
        assert prompt.endswith(cut[-len(cut) // 2 + 20 :].strip())


def test_local_files(tmp_path, tokenizer):
    pytest.importorskip("lm_eval")
    task = get_task("longbench_trec")
    row = {"context": "Question: who\nType: Human", "input": "Question: what\nType:", "answers": ["Entity"],
           "all_classes": ["Human", "Entity"]}  # fmt: skip
    (tmp_path / "trec.jsonl").write_text(json.dumps(row) + "\n\n")
    [loaded] = L.load_rows(task, str(tmp_path), 5)
    [trial] = task.make([loaded], Encoder(tokenizer), 400, 0)
    assert trial.prompt.endswith("Type: Human\nQuestion: what\nType:")
    assert trial.score(" Entity\nHuman") == 1
    assert record(trial, " Entity\nHuman")["hit"]
    zh = get_task("longbench_dureader")
    [trial] = zh.make([{"prompt": "问", "answers": ["答"]}], Encoder(tokenizer), 400, 0)
    assert record(trial, "答")["found"] is None


@pytest.mark.parametrize(
    ("text", "says"), [("", "at least one sample"), ("{", "line 1"), ('{"answers": ["x"]}', "with context and input")]
)
def test_bad_files(text, says, tmp_path):
    (tmp_path / "lcc.jsonl").write_text(text)
    with pytest.raises(InputError, match=says):
        L.load_rows(get_task("longbench_lcc"), str(tmp_path), 5)
    with pytest.raises(InputError, match="Sets there: lcc"):
        L.load_rows(get_task("longbench_trec"), str(tmp_path), 5)


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the shared development data")
def test_templates_are_the_originals():
    pytest.importorskip("lm_eval")
    assert L.templates() == json.loads((DATA / "dataset2prompt.json").read_text())
    assert {t.set: t.budget for t in L.TASKS.values()} == json.loads((DATA / "dataset2maxlen.json").read_text())
    for name in ("lcc", "qmsum", "2wikimqa", "multifieldqa_en"):
        for row in L.load_rows(get_task(f"longbench_{name}"), str(DATA), 100):
            assert L._prompt(name, {k: v for k, v in row.items() if k != "prompt"}) == row["prompt"]


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="needs the shared development data")
def test_real_samples(tmp_path):
    """All samples at hand of the four sets, on the bundled model, cut to 4x its context: runs, and says how many."""
    from drope.evaluation import Entry, EvaluationConfig, compare
    from drope.models import load
    from drope.positions import get

    loaded = load("bundled")
    names = {"longbench_lcc": 26, "longbench_qmsum": 6, "longbench_2wikimqa": 13, "longbench_multifieldqa_en": 7}
    config = EvaluationConfig(tasks=tuple(names), lengths=(1024,), documents=0, longbench_data=str(DATA))
    methods = [get("rope"), get("yarn")]
    results = compare({"bundled": Entry(loaded.model, loaded.tokenizer, methods)}, config, tmp_path, reference="rope")
    assert {m.task: m.n for m in results.measurements} == names
    assert all(m.metric == "score" and 0 <= m.low <= m.value <= m.high <= 1 for m in results.measurements)
    assert {r["method"] for r in results.meta["paired"]} == {"yarn"}
