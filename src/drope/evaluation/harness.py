"""lm-evaluation-harness in process: any of its tasks on any method, from the hub or from local files."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from drope.errors import InputError
from drope.results import Measurement

SHORT = ("arc_easy", "arc_challenge", "hellaswag", "openbookqa", "piqa", "winogrande", "lambada_openai")
TASKS_DIR = Path(__file__).parent / "lm_eval_tasks"

# How a local file of `query`, `choices` and `gold` is asked; llm-foundry's fields. Other files are asked as they are.
_QUERY = {"arc_easy": "{{query}}\nAnswer:", "arc_challenge": "{{query}}\nAnswer:", "piqa": "{{query}}Answer:"}
_ALSO = {"open_book_qa": "openbookqa", "openbook_qa": "openbookqa", "lambada": "lambada_openai"}


def require(module: str, extra: str = "lm-eval") -> ModuleType:
    """Import what an extra brings."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        hint = f"pip install 'drope-llm[{extra}]' brings it."
        raise InputError("package", module, "an installed package", hint) from error


def installed() -> bool:
    """Whether lm-evaluation-harness is there."""
    return importlib.util.find_spec("lm_eval") is not None


def short_tasks(data: str | Path | None = None) -> tuple[str, ...]:
    """The short-context tasks; with a folder of files, those that it has (InputError if none)."""
    if data is None:
        return SHORT
    found = tuple(name for name in SHORT if name in local_tasks(data))
    if not found:
        raise InputError("--task-data", str(data), f"a folder with some of {', '.join(f'{n}.jsonl' for n in SHORT)}")
    return found


def local_tasks(folder: str | Path) -> dict[str, Path]:
    """Task names and files of a folder of jsonl files: the file's name is the task's."""
    files = sorted(Path(folder).glob("*.jsonl"))
    return {_ALSO.get(path.stem, path.stem): path for path in files}


@dataclass
class Harness:
    """Tasks that are known to exist, ready to run. See `opened`."""

    manager: Any
    tasks: tuple[str, ...]
    local: bool

    def run(
        self, model, tokenizer, *, label: str, max_length: int, batch_tokens: int = 16384, limit: int | None = None,
        details: dict[str, Any] | None = None, seed: int = 0,
    ) -> tuple[list[Measurement], dict[str, dict[int, float]]]:  # fmt: skip
        """Run the tasks on a model as it stands.

        Parameters
        ----------
        max_length : tokens of prompt and answer; longer prompts lose their beginning, as the harness does it
        limit : documents of each task; all by default

        Returns
        -------
        one measurement for each task and metric, with the harness's standard error (its interval: 1.96 of these); and
        of each task the accuracy of every document (`TASK`, `TASK/acc_norm`), for paired comparisons
        """
        from lm_eval.evaluator import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        _quiet()
        if tokenizer.eos_token_id is None and tokenizer.bos_token_id is None:
            raise InputError(
                "tokenizer", type(tokenizer).__name__, "one with an EOS or BOS token",
                "The harness puts it before texts that have no context. Set it in tokenizer_config.json: eos_token.",
            )  # fmt: skip
        size = max(1, min(64, batch_tokens // max_length))
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size, max_length=max_length)
        try:
            found = simple_evaluate(
                model=lm, tasks=list(self.tasks), task_manager=self.manager, limit=limit, bootstrap_iters=1000,
                random_seed=seed, numpy_random_seed=seed, torch_random_seed=seed, fewshot_random_seed=seed,
                log_samples=True,
            )  # fmt: skip
        except OSError as error:  # no connection, no such data set, offline
            raise InputError(
                "tasks", ", ".join(self.tasks), "tasks whose data can be read",
                f"{type(error).__name__}: {error} Give a folder of TASK.jsonl files with --task-data DIR.",
            ) from error  # fmt: skip
        harness = f"lm_eval {require('lm_eval').__version__}"
        common = {**(details or {}), "harness": harness, **({"data": "local files"} if self.local else {})}
        rows: list[Measurement] = []
        documents: dict[str, dict[int, float]] = {}
        for task, metrics in found["results"].items():
            samples = found.get("samples", {}).get(task, [])
            if samples:  # else a group, for which its tasks stand
                rows += _measured(task, metrics, len(samples), label, max_length, common)
                for metric, name in (("acc", task), ("acc_norm", f"{task}/acc_norm")):
                    if metric in samples[0]:
                        documents[name] = {int(s["doc_id"]): float(s[metric]) for s in samples}
        return rows, documents


def _measured(
    task: str, metrics: dict[str, Any], n: int, label: str, length: int, details: dict[str, Any]
) -> Iterator[Measurement]:
    for key, value in metrics.items():
        metric, comma, kind = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
            se = metrics.get(f"{metric}_stderr,{kind}")
            se = float(se) if isinstance(se, int | float) and math.isfinite(se) else 0.0
            low, high = value - 1.96 * se, value + 1.96 * se
            yield Measurement(task, label, length, metric, float(value), low, high, n, {**details, "se": se})


@contextmanager
def opened(tasks: Sequence[str], data: str | Path | None = None) -> Iterator[Harness]:
    """The harness with these tasks, from the hub or, where `data` is a folder of jsonl files, from these.

    Raises
    ------
    InputError : the harness is not installed; a task that neither it nor the folder knows; a file that cannot be read
    """
    from drope.evaluation.harness_names import refuse_unknown
    from drope.evaluation.tasks import TASKS, unknown_task

    local = local_tasks(data) if data is not None else {}
    if data is not None and not local:
        raise InputError("--task-data", str(data), "a folder of TASK.jsonl files")
    refuse_unknown(tasks, local)
    require("lm_eval")
    import yaml
    from lm_eval.tasks import TaskManager

    _quiet()
    ours = {f"drope_{name}" for name in TASKS}
    with tempfile.TemporaryDirectory() as scratch:
        for name in local.keys() & set(tasks):
            text = yaml.safe_dump(_local_yaml(name, local[name]))
            (Path(scratch) / f"{name}.yaml").write_text(text, encoding="utf-8")
        everything = not set(tasks) <= local.keys() | ours  # reading all of the harness's tasks takes a while
        manager = TaskManager(include_path=[str(TASKS_DIR), scratch], include_defaults=everything)
        for name in tasks:
            if name not in manager.all_tasks:
                raise unknown_task(name, [*TASKS, *local], manager.all_tasks)
        yield Harness(manager, tuple(tasks), data is not None)


def _local_yaml(name: str, path: Path) -> dict[str, Any]:
    """A task of the harness over a local file, by the fields of its first line."""
    import json

    lines = path.read_text(encoding="utf-8").split("\n", 1)
    try:
        first = json.loads(lines[0])
    except ValueError as error:
        raise InputError("--task-data", str(path), "JSON lines", "The file is empty or no JSON.") from error
    mean = {"aggregation": "mean", "higher_is_better": True}
    task: dict[str, Any] = {
        "task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(path.resolve())}},
        "test_split": "test", "metadata": {"version": 0},
    }  # fmt: skip
    if {"query", "choices", "gold"} <= set(first):
        return task | {
            "output_type": "multiple_choice", "doc_to_text": _QUERY.get(name, "{{query}}"), "doc_to_choice": "choices",
            "doc_to_target": "gold", "metric_list": [{"metric": "acc", **mean}, {"metric": "acc_norm", **mean}],
        }  # fmt: skip
    if {"context_options", "continuation", "gold"} <= set(first):  # two contexts, one continuation: WinoGrande
        return task | {
            "output_type": "multiple_choice", "doc_to_text": "gold", "doc_to_choice": "context_options",
            "doc_to_target": "{{continuation}}", "metric_list": [{"metric": "acc", **mean}],
        }  # fmt: skip
    if {"context", "continuation"} <= set(first):
        perplexity = {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}
        return task | {
            "output_type": "loglikelihood", "doc_to_text": "{{context}}", "doc_to_target": "{{' ' + continuation}}",
            "target_delimiter": "", "metric_list": [{"metric": "acc", **mean}, perplexity],
        }  # fmt: skip
    raise InputError(
        "--task-data", f"{path}: {', '.join(first)}",
        "the fields query, choices, gold; or context, continuation; or context_options, continuation, gold",
    )  # fmt: skip


def _quiet() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("lm_eval", "lm-eval"):
        logging.getLogger(name).setLevel(logging.ERROR)
