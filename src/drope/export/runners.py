"""Asking an engine for the log-probabilities of next tokens, each through its own public interface."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from drope.errors import DropeError, InputError, UnsupportedModelError

LogProbs = dict[int, float]  # token id -> log-probability, of all tokens or of the most likely


@dataclass(frozen=True)
class Step:
    """What an engine says comes after `prefix`."""

    prefix: tuple[int, ...]
    logprobs: LogProbs


class Runner(Protocol):
    """An engine with a model in it."""

    def steps(self, ids: Sequence[int], tokens: int, cached: bool) -> list[Step]:
        """Log-probabilities after the last `tokens` prefixes of `ids`: decoded one by one from the cache, or each
        from a whole new forward. A server may go on from its own tokens instead of those of `ids`."""
        ...

    def tokenize(self, text: str) -> list[int] | None:
        """The engine's own tokens of a text; None where it takes the checkpoint's tokenizer."""
        ...

    def close(self) -> None: ...


class TransformersRunner:
    """Stock `AutoModelForCausalLM`, as anyone would load the folder."""

    def __init__(self, folder: Path, model: Any = None):
        import torch
        from transformers import AutoModelForCausalLM

        self.model: Any = model or AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def steps(self, ids: Sequence[int], tokens: int, cached: bool) -> list[Step]:
        import torch

        tensor = torch.tensor([list(ids)], device=self.model.device)
        mask = torch.ones_like(tensor)
        start = len(ids) - tokens
        rows, cache = [], None
        with torch.no_grad():
            if not cached:
                rows = list(self._rows(tensor, mask, None, False)[0][0, start:])
            else:
                for begin, end in ((0, start + 1), *((i, i + 1) for i in range(start + 1, len(ids)))):
                    out, cache = self._rows(tensor[:, begin:end], mask[:, :end], cache, True)
                    rows.append(out[0, -1])
        return [
            Step(tuple(ids[: start + i + 1]), dict(enumerate(row.float().log_softmax(-1).tolist())))
            for i, row in enumerate(rows)
        ]

    def _rows(self, ids: Any, mask: Any, cache: Any, use_cache: bool) -> tuple[Any, Any]:
        out = self.model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=use_cache)
        return out.logits, out.past_key_values

    def tokenize(self, text: str) -> list[int] | None:
        return None

    def close(self) -> None:
        pass


class MlxRunner:
    """mlx-lm, with the checkpoint as its own loader reads it."""

    def __init__(self, folder: Path):
        need("mlx")
        from mlx_lm.utils import load_model

        try:
            self.model: Any = load_model(folder)[0]
        except ValueError as error:
            raise UnsupportedModelError(f"mlx-lm cannot load {folder}: {error}") from error

    def steps(self, ids: Sequence[int], tokens: int, cached: bool) -> list[Step]:
        import mlx.core as mx
        from mlx_lm.models.cache import make_prompt_cache

        start = len(ids) - tokens
        rows = []
        if not cached:
            logits = self.model(mx.array([list(ids)]))
            rows = [logits[0, i] for i in range(start, len(ids))]
        else:
            cache = make_prompt_cache(self.model)
            for begin, end in ((0, start + 1), *((i, i + 1) for i in range(start + 1, len(ids)))):
                rows.append(self.model(mx.array([list(ids[begin:end])]), cache=cache)[0, -1])
        found = []
        for i, row in enumerate(rows):
            values = row.astype(mx.float32)
            values = values - mx.logsumexp(values)
            found.append(Step(tuple(ids[: start + i + 1]), dict(enumerate(values.tolist()))))
        return found

    def tokenize(self, text: str) -> list[int] | None:
        return None

    def close(self) -> None:
        self.model = None


class LlamaCppRunner:
    """llama.cpp's own server, in this process."""

    def __init__(self, file: Path, length: int, vocabulary: int, plain_token: int):
        need("llama.cpp")
        import xllamacpp

        settings = xllamacpp.CommonParams()
        settings.model.path = str(file)
        settings.n_ctx, settings.n_parallel = length, 1
        settings.n_gpu_layers, settings.warmup, settings.fit_params, settings.verbosity = 0, False, False, -1
        # As many threads as this process may use: more would only wait for one another.
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
        self.vocabulary, self.plain_token = vocabulary, plain_token
        try:
            self.server: Any = xllamacpp.Server(settings)
        except RuntimeError as error:
            raise UnsupportedModelError(f"llama.cpp cannot load {file}: {error}") from error

    def steps(self, ids: Sequence[int], tokens: int, cached: bool) -> list[Step]:
        start = len(ids) - tokens
        if cached:
            self._ask(ids[:start], False)  # fills the cache; each later request decodes one token from it
        return [self._ask(ids[: i + 1], cached) for i in range(start, len(ids))]

    def _ask(self, prefix: Sequence[int], cached: bool) -> Step:
        answer = self.server.handle_completions(
            {
                "prompt": list(prefix),
                "max_tokens": 1,
                "temperature": 0,
                "cache_prompt": cached,
                "n_probs": self.vocabulary,
                # What is drawn does not matter, but a token that is no whole character would come without numbers.
                "logit_bias": [[self.plain_token, 1e4]],
            }
        )
        answer = json.loads(answer) if isinstance(answer, str) else answer
        if "choices" not in answer:
            raise DropeError(f"llama.cpp answered: {str(answer)[:300]}")
        usage = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        if cached and len(prefix) > 1 and not usage:
            raise DropeError("llama.cpp did not decode from its cache, so cached decoding could not be compared.")
        top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        return Step(tuple(prefix), {entry["id"]: float(entry["logprob"]) for entry in top})

    def tokenize(self, text: str) -> list[int] | None:
        body = {"content": text, "add_special": True}
        return [int(t) for t in post(f"{self.server.listening_address}/tokenize", body)["tokens"]]

    def close(self) -> None:
        self.server = None


@dataclass
class OpenAIRunner:
    """Any server with OpenAI's completions: vLLM, SGLang, llama-server, ...

    Cached decoding goes on from the server's own greedy tokens.
    """

    base_url: str
    model: str
    tokenizer: Any
    top: int = 5
    _ids: dict[str, int] = field(default_factory=dict)

    def steps(self, ids: Sequence[int], tokens: int, cached: bool) -> list[Step]:
        start = len(ids) - tokens
        if not cached:
            return [self._complete(ids[: i + 1], 1)[0] for i in range(start, len(ids))]
        return self._complete(ids[: start + 1], tokens)

    def _complete(self, prompt: Sequence[int], tokens: int) -> list[Step]:
        body = {"model": self.model, "prompt": list(prompt), "max_tokens": tokens, "temperature": 0,
                "logprobs": self.top, "ignore_eos": True, "return_tokens_as_token_ids": True}  # fmt: skip
        answer = post(f"{self.base_url.rstrip('/')}/completions", body)
        found = (answer.get("choices") or [{}])[0].get("logprobs")
        if not found:
            raise DropeError(f"{self.base_url} gives no log-probabilities, so it cannot be compared.")
        prefix = list(prompt)
        steps = []
        for chosen, logprobs in self._entries(found):
            steps.append(Step(tuple(prefix), logprobs))
            prefix.append(chosen)
        return steps

    def _entries(self, found: dict[str, Any]) -> list[tuple[int, LogProbs]]:
        if "content" in found:  # llama-server
            return [(e["id"], {t["id"]: t["logprob"] for t in e["top_logprobs"]}) for e in found["content"]]
        return [
            (self._id(token), {self._id(text): value for text, value in top.items()})
            for token, top in zip(found["tokens"], found["top_logprobs"], strict=True)
        ]

    def _id(self, text: str) -> int:
        if text.startswith("token_id:"):
            return int(text.removeprefix("token_id:"))
        if not self._ids:
            for i in range(len(self.tokenizer)):
                self._ids.setdefault(self.tokenizer.decode([i]), i)
        if text not in self._ids:
            raise DropeError(f"The server names a token {text!r} that the tokenizer does not have.")
        return self._ids[text]

    def tokenize(self, text: str) -> list[int] | None:
        return None

    def close(self) -> None:
        pass


_MODULES = {"llama.cpp": ("xllamacpp", "llama-cpp"), "mlx": ("mlx_lm", "mlx"), "transformers": ("transformers", ""),
            "vllm": ("vllm", "")}  # fmt: skip


def installed(engine: str) -> bool:
    """Whether an engine can be run in this process."""
    return engine in _MODULES and find_spec(_MODULES[engine][0]) is not None


def need(engine: str) -> None:
    """Raise an `InputError` that names the extra, where an engine is not installed."""
    if not installed(engine):
        extra = _MODULES[engine][1]
        raise InputError("--engine", engine, "an installed engine", f"Install it: pip install 'drope-llm[{extra}]'.")


def post(url: str, body: dict[str, Any] | None) -> dict[str, Any]:
    """Ask a server for JSON; None is a GET."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        raise DropeError(f"{url} answered {error.code}: {error.read()[:300].decode(errors='replace')}") from error
    except (urllib.error.URLError, TimeoutError, ValueError) as error:
        raise InputError(
            "--base-url", url, "a server with OpenAI's completions", f"It does not answer: {error}"
        ) from error
