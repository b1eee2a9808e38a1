"""What watches a run: its history, its progress bar, and the signals that stop it."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from drope.files import write_text
from drope.training import processes
from drope.training.divergence import Rollbacks, Watch

if TYPE_CHECKING:
    from drope.progress import Bar
    from drope.training.config import RecalibrationConfig
    from drope.training.plan import Plan
    from drope.training.trainer import RecalibrationTrainer


_COLUMNS = ("loss", "objective", "divergence", "learning_rate", "tokens_per_second", "eval_loss")


class History(TrainerCallback):
    """One row per logged step, in memory and as JSON lines: see `RecalibrationResult.history`."""

    def __init__(self, path: Path, step_tokens: int, bar: Bar):
        self.path, self.step_tokens, self.bar = path, step_tokens, bar
        self.rows: list[dict[str, Any]] = read_history(path)
        self.trainer: RecalibrationTrainer | None = None  # set once it exists
        self._note = ""
        self._restart()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # What was logged after the checkpoint that a run goes on from is done again.
        self.rows = [row for row in self.rows if row["tokens"] <= state.global_step * self.step_tokens]
        self.bar.advance(state.global_step * self.step_tokens)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._seconds += time.perf_counter() - self._began
        self._steps += 1
        self.bar.advance(self.step_tokens, self._note)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if not logs or "learning_rate" not in logs:
            return  # the Trainer's closing summary
        assert self.trainer is not None
        row = self._row(state)
        row.update(self.trainer.mean_losses())
        row["learning_rate"] = logs["learning_rate"]
        row["tokens_per_second"] = round(self._steps * self.step_tokens / max(self._seconds, 1e-9), 1)
        self._note = f"loss {row['loss']:.3f}"
        self._restart()
        self._write(state)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
        self._row(state)["eval_loss"] = metrics["eval_loss"]
        self._write(state)

    def _row(self, state: Any) -> dict[str, Any]:
        tokens = state.global_step * self.step_tokens
        if not self.rows or self.rows[-1]["tokens"] != tokens:
            self.rows.append({"tokens": tokens, **dict.fromkeys(_COLUMNS)})
        return self.rows[-1]

    def _write(self, state: Any) -> None:
        if state.is_world_process_zero:  # rows are few: rewriting them whole keeps the file whole
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))

    def _restart(self) -> None:
        self._seconds, self._steps, self._began = 0.0, 0, time.perf_counter()


class DivergenceCallback(TrainerCallback):
    """Looks at the loss of every step, before its checkpoint is written; raises `Diverged`."""

    def __init__(self, config: RecalibrationConfig, plan: Plan, rollbacks: Rollbacks):
        self.watch, self.rollbacks, self.begun = Watch(config.spike, plan.fade_steps), rollbacks, False
        self.trainer: RecalibrationTrainer | None = None  # set once it exists

    def on_step_begin(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        if self.rollbacks.entries and not self.begun:  # a checkpoint brings the rate of its own time
            self.begun = True
            scheduler = objects["lr_scheduler"]
            for group, base, factor in zip(
                objects["optimizer"].param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
            ):
                group["lr"] = base * factor(scheduler.last_epoch)
            scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self.trainer is not None
        self.watch.see(state.global_step, self.trainer.step_loss())


class StopCallback(TrainerCallback):
    """Ends a run after the current step, with a checkpoint, once `requested` is set."""

    requested = False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        # Processes hear of a signal in different steps, and all must stop after the same one.
        if processes.any_of(self.requested) and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = True
        return control

    @contextmanager
    def listening(self) -> Iterator[None]:
        """SIGINT and SIGTERM ask for a stop; a second one acts as if nobody listened."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may set handlers
            return
        before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        def ask(number: int, frame: Any) -> None:
            self.requested = True
            restore()

        for number in before:
            signal.signal(number, ask)
        try:
            yield
        finally:
            restore()


def read_history(path: Path) -> list[dict[str, Any]]:
    """The rows of a history file; none if there is no such file yet."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
