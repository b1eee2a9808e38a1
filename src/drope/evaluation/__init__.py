"""Needle tasks and perplexity by position, measured on the same trials for every method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from drope.evaluation.config import EvaluationConfig
from drope.evaluation.tasks import TASKS, Task, get_task
from drope.evaluation.trials import Trial, Trials

if TYPE_CHECKING:
    from drope.evaluation.run import Entry, compare, evaluate


def __getattr__(name: str) -> Any:
    if name in ("Entry", "compare", "evaluate"):  # these import torch
        from drope.evaluation import run

        return getattr(run, name)
    raise AttributeError(name)


__all__ = ["TASKS", "Entry", "EvaluationConfig", "Task", "Trial", "Trials", "compare", "evaluate", "get_task"]
