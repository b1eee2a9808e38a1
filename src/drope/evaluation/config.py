"""What an evaluation measures. Light to import: the command line reads its defaults from here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from drope.errors import InputError
from drope.evaluation.tasks import NEEDLES, TASKS, AnyTask, expand, get_task


@dataclass
class EvaluationConfig:
    """What is measured.

    tasks : names in `drope.evaluation.TASKS`, sets of LongBench (`longbench_lcc`), or the groups needles (the default),
        ruler, order, longbench (21 sets) and paper (the DroPE paper's four of these)
    lengths : tokens of prompt + answer; empty for 1x, 2x, 4x and 8x the context
    trials : per task and length; `single` rounds up, so that each depth has equally many
    depths : grid of the single needle, 0 (start) to 1 (end)
    multi_values : values under the key that `multi_value` asks for, of 4 needles (the paper does not say how many)
    haystack : source of the haystack; repeat_haystack: a short one is repeated, else refused
    max_new_tokens : answer budget, part of the length: an eighth of it at most, but always the answers and 16 tokens
    batch_tokens : rows x length held on the device at once
    stop_at_newline : cut outputs at the first newline after text
    text : source of held-out text for perplexity; documents: how many (0: no perplexity), concatenated to its lengths
    perplexity_lengths : tokens; empty for the longest of `lengths`. perplexity_bins: stretches of positions
    sliding_window : with the unchanged model, also the perplexity of the same model shown only its trained context
    longbench_data : folder of `SET.jsonl` files, or `hub`
    harness_tasks : tasks of lm-evaluation-harness, run at the context; task_data: folder of `TASK.jsonl` files to read
        them from in place of the hub; documents_per_task: the first so many; None for all
    seed : of all trials, 0 or more (the temperature fit draws from negative seeds)
    """

    tasks: Sequence[str] = NEEDLES
    lengths: Sequence[int] = ()
    trials: int = 500
    depths: Sequence[float] = tuple(i / 10 for i in range(11))
    multi_values: int = 2
    haystack: str = "stdlib:heldout"
    repeat_haystack: bool = True
    max_new_tokens: int = 48
    batch_tokens: int = 16384
    stop_at_newline: bool = False
    text: str = "stdlib:heldout"
    documents: int = 16
    perplexity_lengths: Sequence[int] = ()
    perplexity_bins: int = 32
    sliding_window: bool = True
    longbench_data: str = "hub"
    harness_tasks: Sequence[str] = ()
    task_data: str | None = None
    documents_per_task: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        self.tasks = expand(self.tasks)
        for name in self.tasks:
            get_task(name, self.multi_values)
        for name, least in (
            ("trials", 1), ("max_new_tokens", 1), ("batch_tokens", 1), ("documents", 0), ("perplexity_bins", 1),
            ("seed", 0),
        ):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InputError(name, value, f"a whole number of at least {least}")
        if not self.depths or not all(0 <= d <= 1 for d in self.depths):
            raise InputError("depths", list(self.depths), "numbers from 0 (start of the text) to 1 (end)")
        for name in ("lengths", "perplexity_lengths"):
            if any(not isinstance(v, int) or v < 2 for v in getattr(self, name)):
                raise InputError(name, list(getattr(self, name)), "lengths in tokens, such as 2048")
        if self.documents_per_task is not None and self.documents_per_task < 1:
            raise InputError(
                "documents_per_task", self.documents_per_task, "a whole number of at least 1, or None for all"
            )
        if not self.tasks and not self.documents and not self.harness_tasks:
            raise InputError("tasks", "empty", f"some of {', '.join(TASKS)}, or documents > 0 for perplexity")

    def resolved(self, context: int) -> tuple[list[AnyTask], list[int], list[int]]:
        """Tasks, needle lengths and perplexity lengths, the defaults filled in."""
        lengths = sorted(set(self.lengths)) or [factor * context for factor in (1, 2, 4, 8)]
        documents = sorted(set(self.perplexity_lengths)) or [lengths[-1]]
        return [get_task(t, self.multi_values) for t in self.tasks], lengths, documents if self.documents else []

    def count(self, task: AnyTask) -> int:
        """Trials of a task."""
        return -(-self.trials // len(self.depths)) * len(self.depths) if task.grid else self.trials
