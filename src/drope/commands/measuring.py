"""The flags of everything that measures, and the models and methods to measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from drope.commands.catalogue import choose, with_factors
from drope.commands.options import Flag, Length, Loading, Several, Tokens
from drope.errors import InputError
from drope.quantities import parse_target
from drope.record import folded_beta, recalibrated_tokens

if TYPE_CHECKING:
    from drope.evaluation import Entry, EvaluationConfig
    from drope.positions.temperatures import Temperature

# What a model without recalibration is shown as; a position-free one has no positions to scale.
ROPE_METHODS = ("rope", "pi", "ntk", "dynamic_ntk", "yarn", "nope")


@dataclass(frozen=True)
class Measuring:
    """What is measured.

    Parameters
    ----------
    tasks
        Tasks or groups of them: needles (the default: single, multi_query, multi_key, multi_value), ruler, order,
        longbench, paper (the DroPE paper's four sets of LongBench), short (seven short-context tasks), or any task of
        lm-evaluation-harness; none: perplexity only.
    lengths
        Tokens of prompt and answer together, such as 2x or 16k.
    context
        For the mechanics: have methods scale from this many tokens, fewer than the model was trained at. Rows beyond it
        are marked, as they cannot be fair: the model knows such distances. By default the model's own.
    trials
        Trials per task and length.
    depths
        Depths of the single needle, from 0 (start) to 1 (end).
    multi_values
        Values under the key that multi_value asks for, of 4 needles.
    haystack
        Text around the needles: stdlib:heldout, a file, a folder or a hub dataset.
    repeat_haystack
        Repeat a haystack that is too short, instead of refusing it.
    max_new_tokens
        Room for the answer, part of the length.
    batch_tokens_eval
        Rows times length that one batch of the evaluation may hold.
    stop_at_newline
        Cut answers at their first newline.
    text
        Held-out text for perplexity.
    documents
        Documents for perplexity; 0 for none.
    perplexity_lengths
        Lengths of those documents; the longest of --lengths by default.
    perplexity_bins
        Stretches of positions that perplexity is reported for.
    longbench_data
        Folder of SET.jsonl files for LongBench; hub by default.
    task_data
        Folder of TASK.jsonl files for the tasks of lm-evaluation-harness, in place of the hub.
    documents_per_task
        Documents of each task of lm-evaluation-harness; all by default.
    """

    tasks: Annotated[tuple[str, ...], Several] = ("single", "multi_query", "multi_key", "multi_value")
    lengths: Annotated[tuple[str, ...], Several] = ("1x", "2x", "4x", "8x")
    context: Length | None = None
    trials: int = 500
    depths: Annotated[tuple[float, ...], Several] = tuple(i / 10 for i in range(11))
    multi_values: int = 2
    haystack: str = "stdlib:heldout"
    repeat_haystack: bool = True
    max_new_tokens: int = 48
    batch_tokens_eval: Tokens = 16384
    stop_at_newline: Flag = False
    text: str = "stdlib:heldout"
    documents: int = 16
    perplexity_lengths: Annotated[tuple[str, ...], Several] = ()
    perplexity_bins: int = 32
    longbench_data: str = "hub"
    task_data: str | None = None
    documents_per_task: int | None = None

    def counted(self, config: Any) -> int:
        """The context that methods scale from, in tokens, for a model of this configuration: declared, or its own."""
        from drope.models import declare_context, rope_shape

        declare_context(config, self.context)
        return rope_shape(config).context

    def config(self, context: int, seed: int) -> EvaluationConfig:
        """The evaluation's own settings, for a model of this context in tokens."""
        from drope.evaluation import EvaluationConfig

        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "context"}
        values["batch_tokens"] = values.pop("batch_tokens_eval")
        values["tasks"], values["harness_tasks"] = split_tasks(self.tasks, self.task_data)
        if values["harness_tasks"] and not values["tasks"] and self.documents == NO_MEASURING.documents:
            values["documents"] = 0  # who asks for these tasks alone does not wait for long documents
        for name in ("lengths", "perplexity_lengths"):
            field = f"--{name.replace('_', '-')}"
            values[name] = tuple(parse_target(text, context, field) for text in getattr(self, name))
        return EvaluationConfig(**values, seed=seed)


def split_tasks(names: Sequence[str], data: str | None = None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Our own tasks and groups, and those left to lm-evaluation-harness (`short` written out)."""
    from drope.evaluation import harness
    from drope.evaluation.harness_names import refuse_unknown
    from drope.evaluation.tasks import GROUPS, LONGBENCH, TASKS, get_task

    known = {*TASKS, *LONGBENCH, *GROUPS}
    ours: list[str] = []
    others: list[str] = []
    for name in () if tuple(names) == ("none",) else names:
        plain = name if name in known else name.replace("-", "_")
        if plain in known:
            ours.append(plain)
        elif name == "short":
            others += harness.short_tasks(data)
        elif harness.installed():
            others.append(name)
        else:
            get_task(plain)  # raises, with the nearest names
    if set(others) - set(harness.SHORT):
        refuse_unknown(others, harness.local_tasks(data) if data else ())
    return tuple(ours), tuple(dict.fromkeys(others))


def measured_lengths(config: EvaluationConfig, context: int) -> list[int]:
    """Every length in tokens at which methods will run."""
    _, lengths, documents = config.resolved(context)
    return sorted({*(lengths if config.tasks else ()), *documents, *([context] if config.harness_tasks else [])})


def doublings(to: str, context: int) -> tuple[str, ...]:
    """The context, twice it and so on below the length `to`, then that: lengths as people write them."""
    last = parse_target(to, context, "--to")
    if last < context:
        raise InputError("--to", to, f"a length of at least the context, {context} tokens")
    below = (context << k for k in range(last.bit_length()))
    return (*(str(n) for n in below if n < last), str(last))


MeasuringFlags = Annotated[Measuring, Parameter(name="*", group=Group("What to measure", sort_key=20))]
NO_MEASURING = Measuring()


def short_name(source: str) -> str:
    """The last part of a path or hub id."""
    return source.rstrip("/").rsplit("/", 1)[-1].removesuffix(".gguf")


def entry(
    source: str,
    loading: Loading,
    temperature: Path | None,
    rotating: tuple[str, ...],
    lengths: Sequence[int],
    free: tuple[str, ...] = ("drope",),
    context: int | None = None,
) -> tuple[Entry, dict[str, str]]:
    """Load one model with the methods to run on it: `rotating` if it has rotary positions, `free` if it has none.

    What cannot be run is found out from the configuration, before the weights load. Returns also what of `all` is left
    out, name -> reason.

    context : declared in place of the model's own, in tokens
    """
    from drope.evaluation import Entry
    from drope.models import declare_context, is_position_free, load, load_config
    from drope.positions.temperatures import Temperature, Tempered

    config = load_config(source, revision=loading.revision, trust_remote_code=loading.trust_remote_code)
    trained = declare_context(config, context)
    architecture = partial(_architecture, source, loading, context)
    chosen = choose(source, config, rotating, lengths, free, architecture)
    if not chosen.methods:
        raise InputError("--methods", " ".join(rotating), "a method that this model can run", str(chosen.skipped))
    loaded = load(source, **loading.options())
    declare_context(loaded.model.config, context)
    if loaded.tokenizer is None:
        raise InputError("model", source, "a checkpoint with a tokenizer")
    bare = is_position_free(loaded.model)
    chosen = with_factors(chosen, loaded.model, loaded.tokenizer, lengths)
    methods, fit = chosen.methods, fitted(temperature, source) if temperature and bare else None
    if isinstance(fit, Temperature):  # of position or head: part of the method
        methods, fit = [Tempered(method, fit) for method in methods], None
    return Entry(loaded.model, loaded.tokenizer, methods, fit, trained, recalibrated_tokens(source)), chosen.skipped


def _architecture(source: str, loading: Loading, context: int | None) -> Any:
    """The model without its weights."""
    from drope.models import declare_context, load

    model = load(source, **loading.options(), weights=False).model
    declare_context(model.config, context)
    return model


@dataclass(frozen=True)
class Fitted:
    """β(length) of a fit, over what is folded into a checkpoint's weights already."""

    fit: Any
    folded: float = 1.0

    def beta(self, length: int) -> float:
        return self.fit.beta(length) / self.folded


def fitted(path: Path, source: str) -> Fitted | Temperature:
    """The fit that `drope temperature --out` wrote, for the checkpoint `source`: β(length), or another form."""
    from drope.temperature import FormFit, read_fit

    fit, folded = read_fit(path), folded_beta(source)
    if not isinstance(fit, FormFit):
        return Fitted(fit, folded)
    if folded != 1:
        allowed = f"a fit of β(s) for a checkpoint with a temperature in its weights (β = {folded:.3g})"
        raise InputError("--temperature", fit.form, allowed, "Take the model that it was made from, which has none.")
    return fit.temperature
