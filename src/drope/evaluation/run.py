"""Evaluate one method, or compare many on the same trials. Everything finished is on disk and never run twice."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from drope.data.haystack import haystack
from drope.data.sources import open_source
from drope.errors import InputError, UnsupportedModelError
from drope.evaluation import harness, needles, perplexity
from drope.evaluation.config import EvaluationConfig
from drope.evaluation.longbench import LongBenchTask, load_rows
from drope.evaluation.losses import temperature_at
from drope.evaluation.paired import mcnemar_rows, score_rows
from drope.evaluation.remarks import beyond_declared, remarks
from drope.evaluation.server import Server
from drope.evaluation.tasks import ORDER, RULER, AnyTask
from drope.evaluation.tokens import windows
from drope.evaluation.trials import Trials
from drope.files import fingerprint, write_json
from drope.models import apply, rope_shape
from drope.models.logit_scale import logit_scale
from drope.positions import Method
from drope.quantities import format_count
from drope.results import Measurement, Results, describe_run

_PARTS = {"depth", "distance", "position_start"}  # details that make a row a part of another
WINDOW = "sliding_window"  # the unchanged model, shown only its trained context


class Temperature(Protocol):
    """What a fit of the softmax temperature offers: see `drope.temperature.TemperatureFit`."""

    def beta(self, length: int) -> float: ...


@dataclass
class Entry:
    """One model and the methods to run on it. `temperature` gives β(length) to its position-free methods.

    trained : context in tokens that the weights were trained at, where `models.declare_context` declared less
    tokens : that the weights were recalibrated on, to say where models are not compared at as many; None: not known
    key : identifies the weights in the cache; by default a hash of them all
    """

    model: Any
    tokenizer: Any
    methods: Sequence[Method]
    temperature: Temperature | None = None
    trained: int | None = None
    tokens: int | None = None
    key: str | None = field(default=None, repr=False)


def evaluate(
    model,
    tokenizer,
    config: EvaluationConfig,
    *,
    method: Method,
    context: int | None = None,
    temperature: Temperature | None = None,
    samples_dir: str | Path | None = None,
) -> list[Measurement]:
    """Measure one method on one model.

    Parameters
    ----------
    context : C_train in tokens, for the default lengths (by default the model's own)
    samples_dir : where each sample is logged and found again on a second run; None keeps no samples
    """
    entry = Entry(model, tokenizer, [method], temperature)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch if samples_dir is None else samples_dir)
        return _run(
            {"model": entry}, config, folder, _context({"model": entry}, context), keep=samples_dir is not None
        )[0]


def compare(
    models: Mapping[str, Entry | tuple],
    config: EvaluationConfig,
    out: str | Path,
    *,
    context: int | None = None,
    reference: str = "drope",
    model_name: str | None = None,
    command: str = "drope evaluate",
    skipped: Mapping[str, str] | None = None,
) -> Results:
    """Measure every method of every entry on the same trials and write `out/results.json` and `out/samples/`.

    Methods keep their catalogue names. Where a later entry repeats a name it is told apart by the entry: its RoPE bears
    the entry's own name (`control`), its other methods `control_yarn`.

    Parameters
    ----------
    models : name -> Entry, or (model, tokenizer, methods[, temperature])
    skipped : methods that were asked for but not run, with the reason; kept in meta["skipped"]
    reference : method that all others are tested against, pairwise by trial (McNemar, exact); rows in meta["paired"]
    """
    entries = {name: e if isinstance(e, Entry) else Entry(*e) for name, e in models.items()}
    if not entries:
        raise InputError("models", "none", "at least one model with a method")
    context, out = _context(entries, context), Path(out)
    measured, hits, scores = _run(entries, config, out / "samples", context, keep=True)
    settings = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(config).items()}
    meta = {**describe_run(command, config.seed), "evaluation": settings, "paired": mcnemar_rows(hits, reference)}
    meta["paired"] += score_rows(scores, reference)
    meta |= {"skipped": dict(skipped)} if skipped else {}
    meta |= remarks(entries, list(_named(entries)), context)
    results = Results(model_name or next(iter(entries)), context, measured, meta=meta)
    results.save(out / "results.json")
    return results


def _run(entries: dict[str, Entry], config: EvaluationConfig, folder: Path, context: int, keep: bool):
    with ExitStack() as stack:
        names = config.harness_tasks
        tasks = stack.enter_context(harness.opened(names, config.task_data)) if names else None
        return _run_all(entries, config, folder, context, keep, tasks)


def _run_all(
    entries: dict[str, Entry], config: EvaluationConfig, folder: Path, context: int, keep: bool,
    others: harness.Harness | None,
):  # fmt: skip
    """Cell by cell, all methods on one cell before the next, so that only one cell's trials are held."""
    tasks, lengths, document_lengths = config.resolved(context)
    plan = list(_named(entries))
    generators = _generators(entries, config) if tasks else {}
    rows = {t.name: load_rows(t, config.longbench_data, config.trials) for t in tasks if isinstance(t, LongBenchTask)}
    for entry in entries.values():
        if isinstance(entry.model, Server):
            entry.model.check(lengths if tasks else [])
    for length in lengths if tasks else ():  # impossible lengths fail before hours of work
        for generator in generators.values():
            for task in tasks:
                generator.check(task, length, config.count(task), rows.get(task.name))
    documents = {
        (id(entry.tokenizer), length): windows(entry.tokenizer, heldout_texts(config.text), length, config.documents)
        for length in document_lengths for entry in entries.values()
    }  # fmt: skip
    keys = {name: _key(entry) for name, entry in entries.items()}
    decoding = needles.Decoding(config.batch_tokens, config.stop_at_newline)
    measured: list[Measurement] = []
    hits: dict[tuple[str, int], dict[str, dict[str, bool]]] = {}
    scores: dict[tuple[str, int], dict[str, dict[str, float]]] = {}

    for length in lengths if tasks else ():
        for task in tasks:
            trials = {
                i: list(g.batch(task, length, config.count(task), rows.get(task.name))) for i, g in generators.items()
            }
            for label, name, entry, method in plan:
                title = f"{label} {task.name} {format_count(length)}"
                with _applied(entry, method, length) as details:
                    key = fingerprint([keys[name], method.name, method.settings(), details, task.identity(), length,
                                       config.seed, config.max_new_tokens, config.stop_at_newline])  # fmt: skip
                    log = folder / f"{label}-{task.name}-{length}-{key}.jsonl"
                    mine = trials[id(entry.tokenizer)]
                    if isinstance(entry.model, Server):
                        records = entry.model.run_trials(mine, log, config.stop_at_newline, title)
                    else:
                        records = needles.run_trials(entry.model, entry.tokenizer, mine, log, decoding, title)
                details |= {"model": name, "trials": len(mine)} | beyond_declared(entry, length, context)
                details |= {"samples": log.name} if keep else {}
                measured += _rows(task, records, label, length, details)
                seen = scores if isinstance(task, LongBenchTask) else hits
                found = {r["digest"]: r["found"] for r in records if r["found"] is not None}
                if seen is hits:
                    found = {r["digest"]: bool(r["hit"]) for r in records}
                seen.setdefault((task.name, length), {})[label] = found

    for length in document_lengths:
        for label, name, entry, method in _with_window(plan, length, context, config):
            ids = documents[id(entry.tokenizer), length]
            crop = context if label == WINDOW else method.requirements(rope_shape(entry.model.config), length).crop
            with _applied(entry, method, crop or length) as details:
                key = fingerprint([keys[name], method.name, method.settings(), details, length, config.perplexity_bins])
                records = perplexity.run_documents(
                    entry.model, ids, folder / f"{label}-perplexity-{length}-{key}.jsonl", bins=config.perplexity_bins,
                    batch_tokens=config.batch_tokens, title=f"{label} perplexity {format_count(length)}",
                    crop=crop,
                )  # fmt: skip
            details |= {"model": name, "documents": "held-out texts, concatenated"}
            details |= beyond_declared(entry, length, context)
            measured += perplexity.measurements(records, label, length, config.perplexity_bins, details)

    if others:
        measured += _run_harness(others, plan, config, context, folder, keys, scores)
    for m in measured:
        if _PARTS & m.details.keys():
            m.details.pop("settings", None)  # the row of the whole has them
    return measured, hits, scores


def _run_harness(
    tasks: harness.Harness, plan, config: EvaluationConfig, context: int, folder: Path, keys, scores
) -> list[Measurement]:
    """The harness's tasks at the context, method by method; a method that is finished is read back from `folder`."""
    measured: list[Measurement] = []
    for label, name, entry, method in plan:
        if isinstance(entry.model, Server):
            raise InputError(
                "tasks", tasks.tasks[0], "drope's own tasks on a server",
                "The harness runs its own there: lm_eval --model local-completions.",
            )  # fmt: skip
        with _applied(entry, method, context) as details:
            key = fingerprint([keys[name], method.name, method.settings(), details, list(tasks.tasks), context,
                               config.task_data, config.documents_per_task, config.seed])  # fmt: skip
            kept = folder / f"{label}-harness-{context}-{key}.json"
            if kept.exists():
                raw = json.loads(kept.read_text(encoding="utf-8"))
                rows = [Measurement(**m) for m in raw["measurements"]]
                documents = {t: {int(i): v for i, v in d.items()} for t, d in raw["documents"].items()}
            else:
                rows, documents = tasks.run(
                    entry.model, entry.tokenizer, label=label, max_length=context, details=details,
                    batch_tokens=config.batch_tokens, limit=config.documents_per_task, seed=config.seed,
                )  # fmt: skip
                write_json(kept, {"measurements": [asdict(m) for m in rows], "documents": documents})
        for m in rows:
            m.details["model"] = name
        measured += rows
        for task, values in documents.items():
            scores.setdefault((task, context), {})[label] = {str(i): v for i, v in values.items()}
    return measured


def _with_window(plan, length: int, context: int, config: EvaluationConfig):
    """The plan, and after the first plain RoPE the same model with a sliding window, where the text is longer."""
    for label, name, entry, method in plan:
        yield label, name, entry, method
        if label == "rope" and config.sliding_window and length > context:
            yield WINDOW, name, entry, method


def _rows(task: AnyTask, records: list[dict], label: str, length: int, details: dict[str, Any]) -> list[Measurement]:
    """Success, by place where the task has places, and the mean score of tasks that are published with one."""
    if task.name in ORDER:
        details = {**details, "probe": "order", "chance": getattr(task, "chance", 0.0)}
    if isinstance(task, LongBenchTask):
        scored = [r for r in records if r["found"] is not None]
        return [needles.score_row(scored, task.name, label, length, details)] if scored else []
    rows = needles.measurements(records, task.name, label, length, details)
    rows += needles.places(records, task.name, label, length, details)
    if task.name in RULER:
        rows.append(needles.score_row(records, task.name, label, length, details))
    return rows


@contextmanager
def _applied(entry: Entry, method: Method, length: int) -> Iterator[dict[str, Any]]:
    """The method on the model for inputs of `length`, with the fitted temperature if it has no positions."""
    details: dict[str, Any] = {"settings": method.settings()} if method.settings() else {}
    if isinstance(entry.model, Server):
        yield details | {"server": True}
        return
    with apply(entry.model, method, length):
        free = method.requirements(rope_shape(entry.model.config), length).rotation == "none"
        if entry.temperature is None or not free:
            yield details | _scale_that_is_set(entry.model)
            return
        with temperature_at(entry.model, float(entry.temperature.beta(length))):
            yield details | {"beta": float(entry.temperature.beta(length))}


def _scale_that_is_set(model) -> dict[str, float]:
    try:
        beta = logit_scale(model)
    except UnsupportedModelError:
        return {}
    return {} if beta == 1 else {"beta": beta}


def _named(entries: dict[str, Entry]) -> Iterator[tuple[str, str, Entry, Method]]:
    """(name in the results, entry's name, entry, method), names made unique."""
    taken: set[str] = set()
    for name, entry in entries.items():
        own: set[str] = set()
        for method in entry.methods:
            if method.name in own:
                raise InputError(f"methods of {name}", method.name, "each method once per model")
            own.add(method.name)
            label = method.name
            if label in taken:
                label = name if method.name == "rope" else f"{name}_{method.name}"
            if label in taken:
                raise InputError(
                    "models", name, f"a name that no method bears, since its {method.name} is shown under it"
                )
            taken.add(label)
            yield label, name, entry, method


def method_labels(entries: Mapping[str, Entry]) -> list[str]:
    """What `compare` names the methods of these entries, in order."""
    return [label for label, *_ in _named(dict(entries))]


def _generators(entries: dict[str, Entry], config: EvaluationConfig) -> dict[int, Trials]:
    sentences = haystack(config.haystack)
    return {
        id(tokenizer): Trials(
            tokenizer, sentences, seed=config.seed, depths=config.depths, max_new_tokens=config.max_new_tokens,
            repeat=config.repeat_haystack,
        )
        for tokenizer in {id(e.tokenizer): e.tokenizer for e in entries.values()}.values()
    }  # fmt: skip


def heldout_texts(spec: str) -> Iterable[str]:
    """The held-out documents of a source; all of them where it has no split of its own."""
    source = open_source(spec)
    heldout = source.heldout_documents()
    return source.documents() if heldout is None else heldout


def _context(entries: dict[str, Entry], context: int | None) -> int:
    if context is None and any(isinstance(e.model, Server) for e in entries.values()):
        raise InputError("context", "none", "the trained context in tokens, which a server does not tell")
    return context or rope_shape(next(iter(entries.values())).model.config).context


def _key(entry: Entry) -> str:
    return entry.model.key if isinstance(entry.model, Server) else entry.key or weights_key(entry.model)


def weights_key(model) -> str:
    """A digest of every parameter and of the architecture: the same weights share cached samples, others never do."""
    import torch

    digest = hashlib.sha256(type(model).__name__.encode())
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        flat = parameter.detach().reshape(-1).contiguous().view(torch.uint8)
        for part in flat.split(2**26):
            digest.update(part.cpu().numpy().tobytes())
    config = {k: v for k, v in model.config.to_dict().items() if not k.startswith("_") and k != "transformers_version"}
    digest.update(fingerprint(config).encode())
    return digest.hexdigest()[:16]
