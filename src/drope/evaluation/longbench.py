"""LongBench (arXiv 2308.14508): its 21 sets, prompts cut in the middle, metrics of the 16 English and code sets.

Samples come from local `SET.jsonl` files, with the original's fields (context, input, answers, all_classes) or with the
prompt written out, or from the hub. Templates are read from the copies that lm-evaluation-harness ships.
"""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drope.errors import InputError
from drope.evaluation.scoring import Scorer

if TYPE_CHECKING:
    from drope.evaluation.tokens import Encoder
    from drope.evaluation.trials import Trial

_HUB = (
    "Xnhyacinth/LongBench"  # the original's samples, as lm-evaluation-harness reads them; `input` is `question` there
)


@dataclass(frozen=True)
class LongBenchTask:
    """One set. first_line: only the output's first line counts, as in the original; metric empty: run, not scored."""

    name: str
    budget: int
    metric: str
    first_line: bool = False
    grid: bool = field(default=False, init=False)

    @property
    def set(self) -> str:
        return self.name.removeprefix("longbench_")

    @property
    def scorer(self) -> str:
        return f"longbench:{self.metric}" + ("/line" if self.first_line else "")

    def identity(self) -> dict[str, Any]:
        """What the task's samples depend on, besides their prompts."""
        return {"name": self.name, "budget": self.budget}

    def make(self, rows: Sequence[Mapping[str, Any]], encode: Encoder, length: int, seed: int) -> Iterator[Trial]:
        """A trial of each row: prompt + answer budget within `length`, what is too long cut out of the middle."""
        import numpy as np

        from drope.evaluation.trials import Trial

        room = length - self.budget
        if room < 64:
            raise InputError(
                "lengths", length, f"at least {64 + self.budget} tokens for {self.name}",
                f"Its answers take up to {self.budget}.",
            )  # fmt: skip
        for index, row in enumerate(rows):
            prompt = cut_middle(_prompt(self.set, row), encode, room)
            extra = {"all_classes": list(row.get("all_classes") or [])}
            yield Trial(
                self.name, length, seed, index, prompt, tuple(row["answers"]), (), None, self.budget,
                np.asarray(encode(prompt), dtype=np.int32), self.scorer, extra,
            )  # fmt: skip


def _sets() -> Iterator[LongBenchTask]:
    line = {"trec", "triviaqa", "samsum", "lsht"}
    table = {
        "qa_f1": {"narrativeqa": 128, "qasper": 128, "multifieldqa_en": 64, "hotpotqa": 32, "2wikimqa": 32,
                  "musique": 32, "triviaqa": 32},
        "rouge_l": {"gov_report": 512, "qmsum": 512, "multi_news": 512, "samsum": 128},
        "classification": {"trec": 64},
        "count": {"passage_count": 32},
        "retrieval": {"passage_retrieval_en": 32},
        "code_sim": {"lcc": 64, "repobench-p": 64},
        "": {"multifieldqa_zh": 64, "dureader": 128, "vcsum": 512, "lsht": 64, "passage_retrieval_zh": 32},
    }  # fmt: skip
    for metric, budgets in table.items():
        for name, budget in budgets.items():
            yield LongBenchTask(f"longbench_{name}", budget, metric, name in line)


TASKS = {task.name: task for task in _sets()}
PAPER = tuple(f"longbench_{s}" for s in ("multifieldqa_en", "musique", "gov_report", "lcc"))


def load_rows(task: LongBenchTask, source: str, count: int) -> list[dict[str, Any]]:
    """The first `count` samples of a set, from a folder of `SET.jsonl` files or from the hub (`hub`).

    Raises
    ------
    InputError : no such file, an empty one, or a line that lacks what the set needs
    """
    if source == "hub":
        from datasets import load_dataset

        try:
            rows = list(load_dataset(_HUB, task.set, split="test").select(range(count)))
        except IndexError:
            rows = list(load_dataset(_HUB, task.set, split="test"))
        except Exception as error:
            hint = f"{type(error).__name__}: {error}. Give a folder of jsonl files with --longbench-data DIR."
            raise InputError("--longbench-data", "hub", f"{_HUB} within reach", hint) from error
    else:
        path = Path(source) / f"{task.set}.jsonl"
        if not path.is_file():
            there = sorted(p.stem for p in Path(source).glob("*.jsonl")) if Path(source).is_dir() else []
            sets = [s for s in there if f"longbench_{s}" in TASKS]
            raise InputError("--longbench-data", str(path), "a file", f"Sets there: {', '.join(sets) or 'none'}.")
        lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        if not lines:
            raise InputError("--longbench-data", str(path), "at least one sample", "The file is empty.")
        rows = [_parsed(line, i, path) for i, line in enumerate(lines[:count], 1)]
    return rows


def _parsed(line: str, number: int, path: Path) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError("--longbench-data", f"{path}, line {number}", "JSON", str(error)) from error
    if not isinstance(row, dict) or not row.get("answers") or not ("prompt" in row or "context" in row):
        raise InputError(
            "--longbench-data", f"{path}, line {number}", "a sample with answers, and with context and input or prompt"
        )
    if isinstance(row["answers"], str):
        row["answers"] = [row["answers"]]
    return row


def _prompt(name: str, row: Mapping[str, Any]) -> str:
    if row.get("prompt"):
        return row["prompt"]
    question = row.get("input", row.get("question", "")) or ""
    return templates()[name].replace("{context}", row["context"]).replace("{input}", question)


# What the harness's copies of the original templates lost: their last character, or one of two newlines.
_ENDINGS = {"passage_count": " ", "passage_retrieval_en": " ", "lcc": "\n", "repobench-p": "\n"}
_BLANK_LINE = ("triviaqa", "samsum")


@cache
def templates() -> dict[str, str]:
    """The original prompt of each set, with {context} and {input}."""
    import yaml

    from drope.evaluation.harness import require

    folder = Path(require("lm_eval").__path__[0]) / "tasks" / "longbench"

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    out = {}
    for task in TASKS.values():
        text = yaml.load((folder / f"{task.set}.yaml").read_text(encoding="utf-8"), Loader)["doc_to_text"]
        text = re.sub(r"\{\{\s*(?:question|input)\s*\}\}", "{input}", text).replace("{{context}}", "{context}")
        if task.set in _BLANK_LINE and "{context}\n\n" not in text:
            text = text.replace("{context}\n", "{context}\n\n")
        end = _ENDINGS.get(task.set, "")
        out[task.set] = text if text.endswith(end) else text + end
    return out


def cut_middle(prompt: str, encode: Encoder, room: int) -> str:
    """The prompt, or its first and last halves of `room` tokens in all, as in the original."""
    ids = encode.plain([prompt])[0]
    if len(ids) + len(encode.prefix) <= room:
        return prompt
    half = (room - len(encode.prefix)) // 2
    while half > 0:
        cut = encode.decode(ids[:half]) + encode.decode(ids[-half:])
        if len(encode(cut)) <= room:  # a text does not always have as many tokens as the ids that it was decoded from
            return cut
        half -= max(1, (len(encode(cut)) - room + 1) // 2)
    raise InputError("lengths", room, "room for some tokens of the prompt")


def normalise(text: str) -> str:
    """Lower case, without punctuation, articles and repeated white space (SQuAD's normalisation)."""
    text = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def qa_f1(output: str, answer: str, classes: Sequence[str] = ()) -> float:
    """F1 of the bags of normalised words."""
    said, truth = normalise(output).split(), normalise(answer).split()
    same = sum((Counter(said) & Counter(truth)).values())
    if not same:
        return 0.0
    precision, recall = same / len(said), same / len(truth)
    return 2 * precision * recall / (precision + recall)


def rouge_l(output: str, answer: str, classes: Sequence[str] = ()) -> float:
    """ROUGE-L F of the package that the original uses (`rouge`); texts that it cannot take score 0, as there."""
    from drope.evaluation.harness import require

    rouge = require("rouge").Rouge()
    try:
        return float(rouge.get_scores([output], [answer], avg=True)["rouge-l"]["f"])
    except Exception:  # as broad as the original's
        return 0.0


def classification(output: str, answer: str, classes: Sequence[str] = ()) -> float:
    """1 over the number of classes that the output names, if the right one is among them.

    The original takes classes whose name is a part of the right one off the list while it walks along it, and so leaves
    out every second of a run of them: kept, as scores must be comparable.
    """
    named = [c for c in classes if c in output]
    for name in named:
        if name in answer and name != answer:
            named.remove(name)
    return 1.0 / len(named) if answer in named else 0.0


def count(output: str, answer: str, classes: Sequence[str] = ()) -> float:
    """Share of the output's numbers that are the right one."""
    numbers = re.findall(r"\d+", output)
    return sum(n == str(answer) for n in numbers) / len(numbers) if numbers else 0.0


def retrieval(output: str, answer: str, classes: Sequence[str] = ()) -> float:
    """Share of the output's numbers that are the right paragraph's."""
    return count(output, re.findall(r"Paragraph (\d+)", answer)[0])


def code_sim(output: str, answer: str, classes: Sequence[str] = ()) -> float:
    """Edit similarity (fuzzywuzzy's `ratio`, in whole percent) of the first line that is no comment and no fence."""
    from difflib import SequenceMatcher

    line = next((x for x in output.lstrip("\n").split("\n") if not _is_remark(x)), "")
    if line == answer:
        return 1.0
    if not line or not answer:
        return 0.0
    return round(100 * SequenceMatcher(None, line, answer).ratio()) / 100


def _is_remark(line: str) -> bool:
    return "`" in line or "#" in line or "//" in line


METRICS: dict[str, Callable[[str, str, Sequence[str]], float]] = {
    "qa_f1": qa_f1, "rouge_l": rouge_l, "classification": classification, "count": count, "retrieval": retrieval,
    "code_sim": code_sim,
}  # fmt: skip


def scorers() -> dict[str, Scorer]:
    """A scorer for each metric, of whole outputs and of their first lines: the best over the answers."""
    out: dict[str, Scorer] = {}
    for name, metric in METRICS.items():
        for line in (False, True):

            def score(answers: Sequence[str], output: str, extra: Mapping[str, Any], metric=metric, line=line) -> float:
                text = output.lstrip("\n").split("\n")[0] if line else output
                return max((metric(text, a, extra.get("all_classes", ())) for a in answers), default=0.0)

            def decided(answers, output: str, extra, name=name, line=line) -> bool:
                whole = output.lstrip("\n").split("\n")[:-1]  # lines that nothing can be added to
                return bool(whole) and (line or (name == "code_sim" and not all(map(_is_remark, whole))))

            out[f"longbench:{name}" + ("/line" if line else "")] = Scorer(score, decided)
    nothing = Scorer(lambda answers, output, extra: float("nan"), lambda answers, output, extra: False)
    return {**out, "longbench:": nothing, "longbench:/line": nothing}
