"""A loss that leaps or is no number: told from noise, and what a run does about it."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drope.errors import DropeError
from drope.files import write_json

if TYPE_CHECKING:
    from drope.training.config import RecalibrationConfig
    from drope.training.plan import Plan

_RECENT = 3  # steps whose mean is compared: one bad batch is no divergence
_BEFORE = 50  # steps that it is compared with
_FEWEST = 20  # steps before anything is judged
_MOST_ROLLBACKS = 3
_LOWER = 0.5


class Diverged(Exception):
    """Raised after the step that showed it.

    step : that step, from 1; good : checkpoints up to this step are from before
    """

    def __init__(self, step: int, good: int, before: float, now: float):
        super().__init__(step, good, before, now)
        self.step, self.good, self.before, self.now = step, good, before, now

    def advice(self, config: RecalibrationConfig, plan: Plan) -> str:
        """What happened and what to change, in a sentence each."""
        tokens = f"{self.step * plan.step_tokens:,} tokens"
        what = f"The loss is {self.now}" if not math.isfinite(self.now) else f"The loss leapt to {self.now:.2f}"
        was = f" (it was {self.before:.2f})" if math.isfinite(self.before) else ""
        return (
            f"{what} after {tokens}{was}. Start again, in another folder, with a lower learning_rate than "
            f"{plan.learning_rate:g} (try {plan.learning_rate * _LOWER:g}) or a longer warmup than {plan.warmup_steps} "
            "steps; or resume with --on-divergence rollback, which goes back to the last good checkpoint and lowers "
            "the rate by itself. A loss that is not finite in the first steps comes from the weights: check the model."
        )


class Watch:
    """Judges the loss of each step: raises `Diverged` where it is not finite, or where its mean over three steps is
    `spike` nats per token above the median of up to fifty before.

    Parameters
    ----------
    fade_steps : steps in which the rotation goes and the loss may rise; not judged, except for being finite
    """

    def __init__(self, spike: float, fade_steps: int):
        self.spike, self.fade_steps = spike, fade_steps
        self.losses: deque[float] = deque(maxlen=_BEFORE + _RECENT)

    def see(self, step: int, loss: float) -> None:
        """Take the loss of optimizer step `step`, counted from 1."""
        before = statistics.median(list(self.losses)[-_BEFORE:]) if self.losses else math.nan
        if not math.isfinite(loss):
            # The weights that gave this loss are those after the step before.
            raise Diverged(step, step - 2, before, loss)
        if step <= self.fade_steps:
            return
        self.losses.append(loss)
        losses = list(self.losses)
        if not self.spike or len(losses) < _FEWEST + _RECENT:
            return
        before, now = statistics.median(losses[:-_RECENT]), statistics.fmean(losses[-_RECENT:])
        if now > before + self.spike and min(losses[-_RECENT:]) > before + self.spike / 2:
            raise Diverged(step, step - _RECENT - 1, before, now)


@dataclass
class Rollbacks:
    """Where a run went back, kept in `rollbacks.json`, so that a resumed run has the same rates.

    entries : {diverged: step, to: step, loss, factor: of the rate from `to` on}
    """

    entries: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, out: Path) -> Rollbacks:
        path = out / "rollbacks.json"
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else cls()

    def wanted(self, config: RecalibrationConfig) -> bool:
        return config.on_divergence == "rollback"

    def factor(self, step: int) -> float:
        """What the learning rate of a step, from 0, is multiplied with."""
        return math.prod(e["factor"] for e in self.entries if step >= e["to"])

    def add(self, out: Path, run: str, diverged: Diverged, config: RecalibrationConfig, plan: Plan) -> Rollbacks:
        """Forget the checkpoints that the divergence may be in, note a lower rate, and say so.

        Raises
        ------
        DropeError : the run has gone back three times already
        """
        import logging

        from drope.training.checkpoints import checkpoints, newest_whole, step_of

        if len(self.entries) >= _MOST_ROLLBACKS:
            raise DropeError(f"Going back {_MOST_ROLLBACKS} times did not help. {diverged.advice(config, plan)}")
        folder = out / "checkpoints"
        for checkpoint in checkpoints(folder, run):
            if step_of(checkpoint) > diverged.good:
                shutil.rmtree(checkpoint)
        good = newest_whole(folder, run)
        to = step_of(good) if good else 0
        loss = diverged.now if math.isfinite(diverged.now) else None
        entry = {"diverged": diverged.step, "to": to, "loss": loss, "factor": _LOWER}
        after = Rollbacks([*self.entries, entry])
        write_json(out / "rollbacks.json", asdict(after))
        logging.getLogger(__name__).warning(
            "The loss went to %.2f at step %d: back to step %d, at %g times the learning rate.",
            *(diverged.now, diverged.step, to, after.factor(to)),
        )
        return after
