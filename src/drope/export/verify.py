"""Does an engine compute what the model does? Parity with transformers on a fixed prompt set, and a control.

The reference is the model with its rotary modules stopped in memory, which does not rest on the config that is being
checked. The control is the same model with its own rotation put back: an engine is passed only where it is near the
reference and much nearer than the control, so a comparison that could not tell the two apart fails as well.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drope.errors import DropeError, InputError
from drope.export import prompts
from drope.export.runners import (
    LlamaCppRunner,
    LogProbs,
    MlxRunner,
    OpenAIRunner,
    Runner,
    Step,
    TransformersRunner,
    installed,
)

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ENGINES = ("transformers", "llama.cpp", "mlx", "vllm")
TOLERANCES = {"f32": 0.01, "f16": 0.03, "bf16": 0.1, "q8_0": 0.15}  # RMS difference of log-probabilities, nats
_TOP = 10  # of the reference's tokens are compared
_CLEAR = 4  # how many times farther than the engine the control must be
_TOKENIZED = 12  # sentences whose tokens are compared


@dataclass(frozen=True)
class Parity:
    """One engine at one length.

    Parameters
    ----------
    length : tokens of the longest prompt
    cached : decoded from the cache, or each step from a whole forward
    difference : root mean square difference of the log-probabilities of the reference's likeliest tokens, nats
    control : the same distance from the reference for the model with its rotation put back
    agreement : share of steps with the same most likely token
    tolerance : allowed difference
    problem : why it failed, or empty
    """

    engine: str
    length: int
    cached: bool
    difference: float
    control: float
    agreement: float
    tolerance: float
    problem: str = ""

    @property
    def passed(self) -> bool:
        return not self.problem

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}


def verify(
    folder: str | Path,
    engines: Sequence[str] | None = None,
    *,
    reference: str | Path | None = None,
    base_url: str | None = None,
    served_model: str | None = None,
    lengths: Sequence[int] | None = None,
    tokens: int = 4,
    tolerance: float | None = None,
    precision: str = "f16",
    pre: str | None = None,
    vllm: str | None = None,
) -> list[Parity]:
    """Compare engines with transformers; every row says whether it passed.

    Parameters
    ----------
    folder : a position-free checkpoint, or what `export` wrote for llama.cpp (then `reference` is its checkpoint)
    engines : of `ENGINES`; by default all that are installed, or none where `base_url` is given
    base_url : an OpenAI server that serves `folder`, such as http://127.0.0.1:8000/v1
    served_model : its name for the model; asked for by default
    lengths : prompt lengths in tokens; by default half of C_train and 1.5 C_train
    tokens : steps compared at each length
    tolerance : nats; by default `TOLERANCES` for the engine's precision
    precision : of the GGUF file made for llama.cpp, where `folder` holds none
    vllm : Python of the environment that has vLLM, where it is not this one; vLLM is started as a server from there

    Raises
    ------
    InputError : not a position-free checkpoint, an engine that is not known or not installed, a silent server
    """
    import torch

    from drope.models import drop, load
    from drope.models.outliers import activation_outliers, advice
    from drope.models.shape import rope_shape, stops_rotation

    folder = Path(folder)
    ggufs = sorted(folder.glob("*.gguf")) if folder.is_dir() else []
    if ggufs and reference is None:
        raise InputError("--reference", None, "the checkpoint that the GGUF files were made from")
    loaded = load(reference or folder, dtype="float32", device="cpu")
    model = loaded.model
    if not stops_rotation(model.config):
        raise InputError("model", str(folder), "a position-free checkpoint", "It still rotates: run `drope convert`.")
    context = rope_shape(model.config).context
    limit = int(model.config.get_text_config(decoder=True).max_position_embeddings)
    lengths = list(lengths or dict.fromkeys((max(context // 2, tokens + 2), min(3 * context // 2, limit - tokens))))
    if min(lengths) <= tokens or max(lengths) + tokens > limit:
        raise InputError("--lengths", lengths, f"from {tokens + 1} to {limit - tokens} tokens")
    vocabulary = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[index]
    fixed = {length: prompts.prompt(loaded.tokenizer, length, vocabulary) for length in lengths}
    names = list(engines) if engines is not None else ([] if base_url else _default(ggufs))
    if vllm is not None and "vllm" not in names:
        names.append("vllm")
    for name in names:
        if name not in ENGINES:
            raise InputError("--engine", name, ", ".join(ENGINES) + "; servers by --base-url")
    references = _References(drop(model))
    if warning := advice(activation_outliers(model, torch.tensor([fixed[min(lengths)]]))):
        log.warning(warning)
    rows: list[Parity] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            made = _runners(name, folder, ggufs, loaded, max(lengths), precision, pre, Path(scratch), vllm)
            for label, make in made:
                allowed = tolerance if tolerance is not None else _allowed(label, loaded)
                rows += _compare(label, make, references, fixed, tokens, allowed, loaded.tokenizer)
        if base_url is not None:
            server = served_model or _served(base_url)
            make = lambda: OpenAIRunner(base_url, server, loaded.tokenizer)  # noqa: E731
            allowed = tolerance if tolerance is not None else _allowed("server", loaded)
            rows += _compare(base_url, make, references, fixed, tokens, allowed, loaded.tokenizer)
    return rows


def _default(ggufs: list[Path]) -> list[str]:
    return ["llama.cpp"] if ggufs else [name for name in ENGINES if installed(name)]


def _allowed(label: str, loaded: Any) -> float:
    for precision, value in TOLERANCES.items():
        if label.endswith(f"({precision})"):
            return value
    if label == "transformers":
        return TOLERANCES["f32"]
    return TOLERANCES[{"bfloat16": "bf16", "float16": "f16"}.get(_stored(loaded), "f32")]


def _stored(loaded: Any) -> str:
    """The precision that a checkpoint's config names."""
    from drope.models import load_config

    return str(getattr(load_config(loaded.source), "dtype", None) or "float32").removeprefix("torch.")


def _runners(
    name: str, folder: Path, ggufs: list[Path], loaded: Any, longest: int, precision: str, pre: str | None,
    scratch: Path, vllm: str | None,
) -> list[tuple[str, Any]]:  # fmt: skip
    """Labels of an engine's variants and what makes their runners."""
    from drope.export.runners import need
    from drope.export.vllm_server import VllmRunner, interpreter

    if name == "vllm":
        python = interpreter(vllm)
        dtype = "float32" if _stored(loaded) == "float32" else "auto"
        length = min(longest + 64, int(loaded.model.config.get_text_config(decoder=True).max_position_embeddings))
        return [(name, lambda: VllmRunner(folder, loaded.tokenizer, python=python, length=length, dtype=dtype))]
    need(name)
    if name == "transformers":
        return [(name, lambda: TransformersRunner(folder))]
    if name == "mlx":
        return [(name, lambda: MlxRunner(folder))]

    def start(file: Path | None) -> Runner:
        if file is None:
            from drope.export.gguf_file import write_gguf

            config = loaded.model.config
            file = scratch / "model.gguf"
            write_gguf(folder, config, file, precision=precision, length=config.max_position_embeddings, pre=pre)  # type: ignore[arg-type]
        rows = int(loaded.model.get_input_embeddings().weight.shape[0])
        return LlamaCppRunner(file, longest + 64, rows, _plain_token(loaded.tokenizer))

    if ggufs:
        return [(f"{name} ({_precision(file)})", lambda file=file: start(file)) for file in ggufs]
    return [(f"{name} ({precision})", lambda: start(None))]


def _precision(file: Path) -> str:
    import gguf

    kind = gguf.GGUFReader(file).get_field("general.file_type")
    names = {gguf.LlamaFileType.ALL_F32: "f32", gguf.LlamaFileType.MOSTLY_Q8_0: "q8_0"}
    return names.get(gguf.LlamaFileType(int(kind.contents())), "f16") if kind is not None else "f16"


def _plain_token(tokenizer: Any) -> int:
    """A token that is whole text on its own."""
    for i in range(len(tokenizer)):
        text = tokenizer.decode([i])
        if text.isascii() and text.strip().isalpha() and i not in tokenizer.all_special_ids:
            return i
    return 0


class _References:
    """Log-probabilities of the position-free model, and of the same model with its rotation put back."""

    def __init__(self, model: PreTrainedModel):
        self.model = model

    def rows(self, ids: Sequence[int], tokens: int, rotating: bool) -> list[LogProbs]:
        from drope.models import apply
        from drope.positions import get

        runner = TransformersRunner(Path(), self.model)
        if not rotating:
            steps = runner.steps(ids, tokens, cached=False)
        else:
            with apply(self.model, get("rope"), len(ids)):
                steps = runner.steps(ids, tokens, cached=False)
        return [step.logprobs for step in steps]


def _compare(
    label: str, make: Any, references: _References, fixed: dict[int, list[int]], tokens: int, allowed: float,
    tokenizer: Any,
) -> list[Parity]:  # fmt: skip
    try:
        runner: Runner = make()
    except DropeError as error:
        return [Parity(label, 0, False, math.nan, math.nan, math.nan, allowed, str(error))]
    try:
        rows = []
        for length, ids in fixed.items():
            for cached in (False, True):
                rows.append(_judge(label, runner.steps(ids, tokens, cached), references, length, cached, allowed))
        if problem := _tokens_differ(runner, tokenizer):
            rows.append(Parity(label, 0, False, math.nan, math.nan, math.nan, allowed, problem))
        return rows
    except DropeError as error:
        return [Parity(label, 0, False, math.nan, math.nan, math.nan, allowed, str(error))]
    finally:
        runner.close()


def _judge(label: str, steps: list[Step], references: _References, length: int, cached: bool, allowed: float) -> Parity:
    longest = steps[-1].prefix
    expected = references.rows(longest, len(steps), rotating=False)
    rotated = references.rows(longest, len(steps), rotating=True)
    squares, controls, same = [], [], 0
    for step, reference, other in zip(steps, expected, rotated, strict=True):
        top = sorted(reference, key=reference.__getitem__, reverse=True)[:_TOP]
        compared = [t for t in top if t in step.logprobs]
        squares += [(step.logprobs[t] - reference[t]) ** 2 for t in compared] or [math.inf]
        controls += [(other[t] - reference[t]) ** 2 for t in compared or top]
        best = max(step.logprobs, key=step.logprobs.__getitem__)
        same += best == top[0] or reference[top[0]] - reference.get(best, -math.inf) <= 2 * allowed
    difference, control = (math.sqrt(sum(values) / len(values)) for values in (squares, controls))
    problem = ""
    if not difference <= allowed:
        looks = " The model with its rotation put back is that far away too." if 2 * difference > control else ""
        problem = f"log-probabilities are off by {difference:.3g} nats (allowed: {allowed:g}).{looks}"
    elif same < len(steps):
        problem = "the most likely token differs"
    elif control < _CLEAR * max(difference, allowed):
        problem = f"cannot tell: with its rotation put back the model is only {control:.3g} nats away"
    return Parity(label, length, cached, difference, control, same / len(steps), allowed, problem)


def _tokens_differ(runner: Runner, tokenizer: Any) -> str:
    for seed in range(3):
        text = prompts.text(_TOKENIZED, seed)
        found = runner.tokenize(text)
        if found is None:
            return ""
        expected = list(tokenizer(text).input_ids)
        if found != expected:
            at = next((i for i, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]), 0)
            pair = f"{found[at : at + 3]}, not {expected[at : at + 3]}"
            return f"its tokens differ from the tokenizer's, from token {at} on: {pair}"
    return ""


def _served(base_url: str) -> str:
    from drope.export.runners import post

    models = post(f"{base_url.rstrip('/')}/models", None).get("data") or []
    if not models:
        raise InputError("--base-url", base_url, "a server that serves a model")
    return str(models[0]["id"])
