"""Running trials: greedy decoding in batches, each finished sample on disk at once; and what the records add up to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from drope.data.needles import join_words
from drope.errors import DropeError
from drope.evaluation.decoding import greedy, stop_ids
from drope.evaluation.losses import evaluating
from drope.evaluation.records import append, read_lines
from drope.evaluation.sharing import Trunk, can_reuse, common_beginning
from drope.evaluation.tasks import TASKS, Task
from drope.evaluation.trials import Trial
from drope.progress import track
from drope.results import Measurement, mean_interval, wilson

_FIELDS = {"index", "digest", "depth", "found", "hit"}
_WORTH_SHARING = 0.1  # of all prompt tokens
_DEPTH_BINS = 10
_MOST_DRAFTED = 4  # answers of one trial; longer lists are hardly ever said word for word


@dataclass(frozen=True)
class Decoding:
    """How answers are decoded (always greedy).

    batch_tokens : rows x (prompt + answer) tokens held in one batch
    stop_at_newline : end a row at the first newline after text. Off, as models that answer in a list would lose values
    share : prefill a beginning that many prompts share only once, and try right answers by teacher forcing
    """

    batch_tokens: int = 16384
    stop_at_newline: bool = False
    share: bool = True


def run_trials(
    model, tokenizer, trials: Iterable[Trial], log: Path, decoding: Decoding = Decoding(), title: str = "Needles"
):
    """Decode every trial that `log` does not hold yet, append each batch to it, and return all records by index.

    `log` is JSON lines: index, prompt (folded), digest, depths, depth, expected, output, found, hit. A record counts as
    finished only if its digest is that of the trial's prompt, so a log of other prompts is never mistaken for this one.
    """
    trials = list(trials)
    records, todo = finished(trials, log)
    reusable = decoding.share and can_reuse(model)
    with track(title, total=len(trials), unit="samples") as bar, evaluating(model):
        bar.advance(len(records))
        for batch, trunk, shared in _plan(todo, decoding.batch_tokens, reusable):
            outputs = answer(model, tokenizer, batch, decoding, trunk, shared, reusable)
            new = [record(t, o) for t, o in zip(batch, outputs, strict=True)]
            append(log, new)
            records.update((r["index"], r) for r in new)
            bar.advance(len(batch), progress_note(records))
    return [records[t.index] for t in trials]


def finished(trials: Sequence[Trial], log: Path) -> tuple[dict[int, dict], list[Trial]]:
    """Records of `log` that belong to these very prompts, by index; and the trials that are still to run."""
    digests = {t.index: t.digest for t in trials}
    records = {r["index"]: r for r in read_lines(log, _FIELDS) if digests.get(r["index"]) == r["digest"]}
    todo = sorted((t for t in trials if t.index not in records), key=lambda t: (-len(t.ids), t.index))
    return records, todo


def progress_note(records: dict[int, dict]) -> str:
    return f"success {sum(r['hit'] for r in records.values()) / len(records):.0%}"


def answer(
    model, tokenizer, batch: Sequence[Trial], decoding: Decoding = Decoding(), trunk: Trunk | None = None,
    shared: Sequence[int] = (), draft: bool = False,
) -> list[str]:  # fmt: skip
    """Output texts. Rows stop at EOS, at their budget, or once nothing that follows could change their score.

    trunk, shared : a beginning of prompts, and how many of its tokens each of these begins with
    draft : try each trial's answers by teacher forcing first (see `greedy`); the model's cache must allow it
    """

    def text(ids: list[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def done(row: int, ids: list[int]) -> bool:
        out = text(ids)
        listed = decoding.stop_at_newline and "\n" in out.lstrip()
        return len(ids) >= batch[row].max_new_tokens or listed or batch[row].decided(out)

    prompts = [t.ids for t in batch]
    drafts = None
    if draft and all(t.scorer == "all" and len(t.answers) <= _MOST_DRAFTED for t in batch):
        drafts = [ids[: t.max_new_tokens] for t, ids in zip(batch, _spoken(tokenizer, batch), strict=True)]
    try:
        generated = greedy(
            model,
            prompts,
            max(t.max_new_tokens for t in batch),
            stop_ids(model, tokenizer),
            done,
            drafts,
            trunk,
            shared,
        )
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise DropeError(
                f"One prompt of {len(prompts[0])} tokens does not fit in the device's memory. "
                "Evaluate shorter lengths, or load the model in a smaller dtype."
            ) from None
        half = len(batch) // 2
        first = answer(model, tokenizer, batch[:half], decoding, trunk, shared[:half], draft)
        return first + answer(model, tokenizer, batch[half:], decoding, trunk, shared[half:], draft)
    return [text(ids) for ids in generated]


def _spoken(tokenizer, batch: Sequence[Trial]) -> list[list[int]]:
    """Ids of each trial's answers as a list behind its prompt: of several keys as asked, of one key as they come up."""
    texts = []
    for t in batch:
        answers, task = list(t.answers), TASKS.get(t.task)
        if isinstance(task, Task) and task.keys == 1:
            answers.sort(key=t.prompt.find)
        texts.append(("" if t.prompt[-1:].isspace() else " ") + join_words(answers))
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]


def measurements(
    records: Sequence[dict], task: str, method: str, length: int, details: dict[str, Any]
) -> list[Measurement]:
    """Success over all records, then per grid depth (details["depth"]) where the task has one. Wilson 95% intervals."""

    def one(part: Sequence[dict], **more: Any) -> Measurement:
        hits, n = sum(r["hit"] for r in part), len(part)
        share = sum(r["found"] for r in part) / n
        low, high = wilson(hits, n)
        return Measurement(task, method, length, "success", hits / n, low, high, n, {**details, "found": share, **more})

    depths = sorted({r["depth"] for r in records if r["depth"] is not None})
    return [one(records), *(one([r for r in records if r["depth"] == d], depth=d) for d in depths)]


def places(records: Sequence[dict], task: str, method: str, length: int, details: dict[str, Any]) -> list[Measurement]:
    """Success by where the answer lay: single needles of tasks without a grid by depth, in tenths; or by distance.

    A needle counts by itself here, also where its trial asks for several: n is the number of needles, and those of one
    trial are not independent.
    """
    cells: dict[tuple[str, float], list[bool]] = {}
    for r in records:
        for axis, value in (r.get("place") or {}).items():
            cells.setdefault((axis, value), []).append(bool(r["hit"]))
        if r["depth"] is not None or len(r["depths"]) != len(r["expected"]):
            continue
        alone = len(r["expected"]) == 1
        for depth, expected in zip(r["depths"], r["expected"], strict=True):
            tenth = (min(int(depth * _DEPTH_BINS), _DEPTH_BINS - 1) + 0.5) / _DEPTH_BINS
            hit = bool(r["hit"]) if alone else expected.lower() in r["output"].lower()
            cells.setdefault(("depth", tenth), []).append(hit)
    rows = []
    for (axis, value), hits in sorted(cells.items()):
        low, high = wilson(sum(hits), len(hits))
        more = {**details, axis: value, "unit": "needles"} if axis == "depth" else {**details, axis: value}
        rows.append(Measurement(task, method, length, "success", sum(hits) / len(hits), low, high, len(hits), more))
    return rows


def score_row(records: Sequence[dict], task: str, method: str, length: int, details: dict[str, Any]) -> Measurement:
    """Mean score (0 to 1) with the 95% interval of Student's t: RULER's share of answers, LongBench's metrics."""
    mean, low, high, se = mean_interval([r["found"] for r in records])
    more = {**details, "se": se}
    return Measurement(task, method, length, "score", mean, max(0.0, low), min(1.0, high), len(records), more)


def record(trial: Trial, output: str) -> dict[str, Any]:
    """What the log holds of a finished sample."""
    score: float | None = trial.score(output)
    if score is not None and math.isnan(score):  # a set that is run and not scored
        score = None
    return {
        "index": trial.index, "prompt": trial.folded, "digest": trial.digest, "tokens": len(trial.ids),
        "depths": list(trial.depths), "depth": trial.depth, "expected": list(trial.answers), "output": output,
        "found": score, "hit": score == 1.0, **({"place": dict(trial.place)} if trial.place else {}),
    }  # fmt: skip


def _plan(
    todo: Sequence[Trial], batch_tokens: int, reusable: bool
) -> Iterator[tuple[list[Trial], Trunk | None, list[int]]]:
    """Batches, with the beginning that many prompts share where enough is shared, and how much of it each row has.

    Rows that share least come first, so that the beginning grows as it is used.
    """
    if reusable and len(todo) > 1:
        ids, shared = common_beginning([t.ids for t in todo])
        if sum(shared) - len(ids) >= _WORTH_SHARING * sum(len(t.ids) for t in todo):
            trunk, begun = Trunk(ids), {t.index: n for t, n in zip(todo, shared, strict=True)}
            for batch in _batches(sorted(todo, key=lambda t: (begun[t.index], t.index)), batch_tokens):
                yield batch, trunk, [begun[t.index] for t in batch]
            return
    for batch in _batches(todo, batch_tokens):
        yield batch, None, []


def _batches(trials: Sequence[Trial], batch_tokens: int) -> Iterator[list[Trial]]:
    """Trials in their order, in batches of rows x (longest prompt + answer) <= `batch_tokens`."""
    batch: list[Trial] = []
    longest = 0
    for trial in trials:
        longest = max(longest, len(trial.ids) + trial.max_new_tokens)
        if batch and (len(batch) + 1) * longest > batch_tokens:
            yield batch
            batch, longest = [], len(trial.ids) + trial.max_new_tokens
        batch.append(trial)
    if batch:
        yield batch
