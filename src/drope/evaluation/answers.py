"""Loss of the answers to needle trials, for fits and searches that mind retrieval rather than running text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from drope.data.needles import join_words
from drope.evaluation.losses import token_losses

if TYPE_CHECKING:
    import torch

    from drope.evaluation.tasks import Task
    from drope.evaluation.trials import Trials


@dataclass(frozen=True)
class Answers:
    """Prompts followed by their answers, grouped so that nothing is padded.

    batches : (ids (B, T) int64, number n of answer tokens at the end of each row)
    """

    batches: tuple[tuple[torch.Tensor, int], ...]

    def __len__(self) -> int:
        return sum(len(ids) for ids, _ in self.batches)

    def losses(self, model) -> list[float]:
        """Mean nats per token of each answer, given what precedes it."""
        device = model.get_input_embeddings().weight.device
        return [x for ids, n in self.batches for x in token_losses(model, ids.to(device), last=n).mean(1).tolist()]


def make_answers(
    trials: Trials, tasks: Sequence[Task], length: int, count: int, *, batch_tokens: int, closing: str = "."
) -> Answers:
    """`count` trials of at most `length` tokens, the tasks in turn, each with its answer after it.

    Parameters
    ----------
    batch_tokens : tokens of one batch, at least one trial
    closing : what follows the values in the answer
    """
    import numpy as np
    import torch

    samples = []
    for i in range(count):
        trial = trials.make(tasks[i % len(tasks)], length, i)
        answer = trials.encode.plain([f" {join_words(trial.answers)}{closing}"])[0]
        samples.append((np.concatenate([trial.ids, answer]).astype(np.int64), len(answer)))
    samples.sort(key=lambda s: (len(s[0]), s[1]))
    batches: list[tuple[torch.Tensor, int]] = []
    for (_, n), group in groupby(samples, key=lambda s: (len(s[0]), s[1])):
        ids = torch.from_numpy(np.stack([ids for ids, _ in group]))
        batches += [(part, n) for part in ids.split(max(1, batch_tokens // length))]
    return Answers(tuple(batches))
