"""Answers from any OpenAI-compatible server (vLLM, SGLang, llama.cpp): many requests at once, none of them lost.

Prompts go to `/v1/completions` as text, greedy, with the trial's own answer budget. A request that fails for a passing
reason (no connection, time-out, 408, 409, 429, 5xx) is tried again, with waits that double; the client library does it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drope.errors import DropeError, InputError
from drope.evaluation import needles
from drope.evaluation.records import append
from drope.evaluation.trials import Trial
from drope.progress import track


@dataclass
class Server:
    """A model behind an OpenAI-compatible API.

    Parameters
    ----------
    base_url : such as http://localhost:8000/v1
    name : the model's name on the server; None: the only one that it serves
    api_key : None: the environment's OPENAI_API_KEY, else none
    concurrency : requests at once
    timeout : seconds for one request
    retries : further tries of a request that failed for a passing reason
    max_length : tokens of prompt and answer that the server takes; None: as it says itself (vLLM does)
    """

    base_url: str
    name: str | None = None
    api_key: str | None = None
    concurrency: int = 8
    timeout: float = 600.0
    retries: int = 5
    max_length: int | None = None

    def __post_init__(self) -> None:
        import os

        from drope.evaluation.harness import require

        if not self.base_url.startswith(("http://", "https://")):
            raise InputError("--base-url", self.base_url, "an address such as http://localhost:8000/v1")
        if self.concurrency < 1 or self.retries < 0 or self.timeout <= 0:
            raise InputError(
                "--concurrency", self.concurrency, "at least 1, with retries of at least 0 and a time-out > 0"
            )
        openai = require("openai", "server")
        self._errors = openai
        self._client = openai.OpenAI(
            base_url=self.base_url, api_key=self.api_key or os.environ.get("OPENAI_API_KEY") or "none",
            timeout=self.timeout, max_retries=self.retries,
        )  # fmt: skip
        self._find()

    def _find(self) -> None:
        """The model's name and the longest input, as far as the server says."""
        try:
            served = list(self._client.models.list())
        except self._errors.OpenAIError as error:
            raise self._unreachable(error) from error
        names = [m.id for m in served]
        if self.name is None and len(names) == 1:
            self.name = names[0]
        if self.name not in names:
            raise InputError("--served-model", str(self.name), ", ".join(names) or "a server that serves a model")
        limit = getattr(served[names.index(self.name)], "max_model_len", None)
        if self.max_length is None and isinstance(limit, int):
            self.max_length = limit

    @property
    def key(self) -> str:
        """Identifies the answers in the log: address and model. Other weights of the same name need another folder."""
        return hashlib.sha256(f"{self.base_url} {self.name}".encode()).hexdigest()[:16]

    def check(self, lengths: Sequence[int]) -> None:
        """Raise InputError if a length is more than the server takes."""
        for length in lengths:
            if self.max_length is not None and length > self.max_length:
                raise InputError(
                    "--lengths", length, f"up to {self.max_length} tokens, which is what {self.name} is served with",
                    "Serve it with a longer context, or ask for less.",
                )  # fmt: skip

    def answer(self, trial: Trial, stop_at_newline: bool = False) -> str:
        """The output for one prompt."""
        stop: dict[str, Any] = {"stop": ["\n"]} if stop_at_newline else {}
        done = self._client.completions.create(
            model=str(self.name), prompt=trial.prompt, max_tokens=trial.max_new_tokens, temperature=0, seed=0, **stop
        )
        if not done.choices:
            raise DropeError(f"The server answered without a choice for trial {trial.index} of {trial.task}.")
        return done.choices[0].text or ""

    def run_trials(
        self, trials: Sequence[Trial], log: Path, stop_at_newline: bool = False, title: str = "Needles"
    ) -> list[dict[str, Any]]:
        """As `needles.run_trials`: every answer is on disk as it comes, and what `log` holds is not asked again.

        Raises
        ------
        InputError : the server refuses a prompt (too long for it, say)
        DropeError : the server is gone; what is finished is kept
        """
        trials = list(trials)
        records, todo = needles.finished(trials, log)
        pool = ThreadPoolExecutor(self.concurrency)
        running: dict[Future[str], Trial] = {}
        failure: BaseException | None = None
        queue = iter(todo)
        try:
            with track(title, total=len(trials), unit="samples") as bar:
                bar.advance(len(records))
                while True:
                    while failure is None and len(running) < self.concurrency and (t := next(queue, None)) is not None:
                        running[pool.submit(self.answer, t, stop_at_newline)] = t
                    if not running:
                        break
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        trial = running.pop(future)
                        if error := future.exception():
                            failure = failure or error  # the others that are on their way are still waited for
                            continue
                        new = needles.record(trial, future.result())
                        append(log, [new])
                        records[new["index"]] = new
                        bar.advance(1, needles.progress_note(records))
        except BaseException:  # Ctrl-C above all: keep what has come, and wait for nothing that is still on its way
            come = [(f, t) for f, t in running.items() if f.done() and not f.cancelled() and f.exception() is None]
            append(log, [needles.record(t, f.result()) for f, t in come])
            pool.shutdown(wait=False, cancel_futures=True)
            self._client.close()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        if failure is not None:
            raise self._explained(failure, len(records), len(trials)) from failure
        return [records[t.index] for t in trials]

    def _explained(self, error: BaseException, finished: int, total: int) -> BaseException:
        kept = f"{finished} of {total} samples are finished and kept; the same command goes on from there."
        if isinstance(error, self._errors.APIStatusError) and error.status_code in (400, 404, 413, 422):
            return InputError("--base-url", self.base_url, "a server that takes these prompts", f"{error} {kept}")
        if isinstance(error, self._errors.OpenAIError):
            return self._unreachable(error, kept)
        return error

    def _unreachable(self, error: BaseException, kept: str = "") -> DropeError:
        tries = f"after {self.retries + 1} tries" if self.retries else "at the first try"
        return DropeError(f"No answer from {self.base_url} {tries}: {type(error).__name__}: {error} {kept}".strip())
