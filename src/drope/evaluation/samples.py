"""Token sequences whose ends count: the loss that fits of a temperature and searches for factors minimise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from drope.data.needles import join_words
from drope.evaluation.losses import token_losses

if TYPE_CHECKING:
    import torch

    from drope.evaluation.trials import Trials


@dataclass(frozen=True)
class Samples:
    """Sequences in batches without padding.

    batches : (ids (B, T) int64, number n of tokens at the end of each row whose loss counts)
    """

    batches: tuple[tuple[torch.Tensor, int], ...]

    def __len__(self) -> int:
        return sum(len(ids) for ids, _ in self.batches)

    def losses(self, model: Any) -> list[float]:
        """Mean nats per counted token of each sequence, given what precedes it."""
        return [x for batch in self.batches for x in batch_losses(model, batch).mean(1).tolist()]

    def split(self, share: float) -> tuple[Samples, Samples]:
        """The first `share` of the batches and the rest; both are all of them if there is only one."""
        if len(self.batches) < 2:
            return self, self
        cut = min(max(1, round(share * len(self.batches))), len(self.batches) - 1)
        return Samples(self.batches[:cut]), Samples(self.batches[cut:])


def batch_losses(model: Any, batch: tuple[torch.Tensor, int]) -> torch.Tensor:
    """Nats of each counted token of one batch, (B, n)."""
    ids, n = batch
    return token_losses(model, ids.to(model.get_input_embeddings().weight.device), last=n)


def text_samples(tokenizer: Any, documents: Iterable[str], length: int, count: int, *, batch_tokens: int) -> Samples:
    """At most `count` windows of running text; every token but the first counts.

    Raises
    ------
    InputError : the text does not fill one window
    """
    import torch

    from drope.evaluation.tokens import windows

    rows = torch.from_numpy(windows(tokenizer, documents, length, count))
    return Samples(tuple((part, length - 1) for part in rows.split(max(1, batch_tokens // length))))


def answer_samples(
    trials: Trials, tasks: Sequence[Any], length: int, count: int, *, batch_tokens: int, closing: str = "."
) -> Samples:
    """`count` trials of at most `length` tokens, the tasks in turn, each followed by its answer, which counts.

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
    for (_, n), group in groupby(samples, key=lambda s: (len(s[0]), s[1])):  # one shape a batch
        ids = torch.from_numpy(np.stack([ids for ids, _ in group]))
        batches += [(part, n) for part in ids.split(max(1, batch_tokens // length))]
    return Samples(tuple(batches))
