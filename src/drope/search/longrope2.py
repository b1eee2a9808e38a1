"""The search of LongRoPE2 (Shang et al., arXiv 2502.20082): rescale factors that let a model find a distant needle.

Candidates are judged by the perplexity of the needle's own tokens, asked for at the end of documents of the target
length that begin with the needle. They are evolved (differential evolution) from the paper's initial population:
for each possible critical pair, factors between s and 2s from it on, NTK scaling below.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drope.errors import InputError
from drope.files import fingerprint, write_json
from drope.positions import NTK, PI, Yarn
from drope.positions.base import Method, RopeShape
from drope.positions.longrope2 import LongRoPE2
from drope.search.config import SearchConfig
from drope.search.evolve import Candidates, evolve

if TYPE_CHECKING:
    from drope.evaluation.samples import Samples

_VERSION = 1  # raise when the search itself changes, so that old factors are not taken
_SEED = -1_000_000  # seeds of needles from here down: neither evaluations nor temperature fits use them


@dataclass(frozen=True)
class SearchResult:
    """Factors for one model and target length.

    target, context : L and C_train in tokens
    factors : λ of each pair, never decreasing
    critical, theoretical : the real critical pair that was found, and the first whose period exceeds C_train
    loss : nats per needle token at these factors; the needle-driven perplexity is its exponential
    baselines : the same for PI, NTK and YaRN at this length
    history : best loss of the first population and after each generation
    evaluations : different candidates that were measured
    settings : the search's own
    """

    target: int
    context: int
    factors: tuple[float, ...]
    critical: int
    theoretical: int
    loss: float
    baselines: dict[str, float] = field(default_factory=dict)
    history: list[float] = field(default_factory=list)
    evaluations: int = 0
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)

    def method(self) -> LongRoPE2:
        """The method with these factors."""
        return LongRoPE2({self.target: self.factors}, self.settings.get("attention_factor", 1.0))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> SearchResult:
        """What `to_dict` wrote.

        Raises
        ------
        InputError : fields are missing or unknown, or the factors are no factors
        """
        try:
            result = cls(**{**value, "factors": tuple(value["factors"])})
            result.method()
            return result
        except (TypeError, KeyError, AttributeError) as error:
            known = ", ".join(f.name for f in fields(cls))
            raise InputError("factors", str(value)[:80], f"the fields {known}", str(error)) from error


def search_longrope2(
    model: Any,
    tokenizer: Any,
    length: int,
    config: SearchConfig | None = None,
    *,
    cache_dir: str | Path | None = None,
    search: bool = True,
) -> SearchResult:
    """Search the factors of LongRoPE2 for one model and target length; the model comes back as it was.

    Found factors are kept on disk under the model's weights, the target and the settings, and taken from there the
    next time without running the model. An interrupted search goes on where it stopped.

    Without `config` the most thorough factors that are kept for this model and target serve, whatever the settings
    they were searched with; where there are none, the paper's settings are used.

    Parameters
    ----------
    length : target L in tokens, above the model's C_train
    cache_dir : by default the folder `longrope2` of drope's cache
    search : False takes kept factors only, and raises where there are none

    Raises
    ------
    InputError : a target within the context, a haystack too short, a model without rotation
    """
    from drope.data.haystack import haystack
    from drope.data.packing import default_cache
    from drope.evaluation.run import weights_key
    from drope.models import is_position_free, rope_shape

    if is_position_free(model):
        raise InputError("model", type(model).__name__, "a model that rotates", "Without rotation nothing is rescaled.")
    shape = rope_shape(model.config)
    if length <= shape.context:
        raise InputError("length", length, f"a target above the model's context of {shape.context} tokens")
    folder = Path(cache_dir) if cache_dir else default_cache() / "longrope2"
    own = fingerprint([_VERSION, weights_key(model), asdict(shape), _scale(model), _vocabulary(tokenizer)])
    if config is None and (known := _most_thorough(folder, f"{own}-{length}-*.json", shape)) is not None:
        return known
    config = config or SearchConfig()
    settings = {f.name: getattr(config, f.name) for f in fields(config) if f.name != "batch_tokens"}
    key = f"{own}-{length}-{fingerprint([settings, haystack(config.haystack)])}"
    path = folder / f"{key}.json"
    if (kept := _kept(path, shape)) is not None:
        return kept
    if not search:
        raise InputError("longrope2", f"no factors for {length} tokens", "a model whose factors were searched before")
    result = _search(model, tokenizer, shape, length, config, folder / f"{key}.candidates.jsonl")
    write_json(path, result.to_dict())
    return result


def longrope2_method(
    model: Any,
    tokenizer: Any,
    lengths: list[int] | tuple[int, ...],
    config: SearchConfig | None = None,
    *,
    cache_dir: str | Path | None = None,
    search: bool = True,
) -> LongRoPE2:
    """LongRoPE2 with factors for each of `lengths` beyond the model's context, searched or taken from the cache."""
    from drope.models import rope_shape

    beyond = sorted({n for n in lengths if n > rope_shape(model.config).context})
    found = [search_longrope2(model, tokenizer, n, config, cache_dir=cache_dir, search=search) for n in beyond]
    factors = {result.settings.get("attention_factor", 1.0) for result in found}
    if len(factors) > 1:
        raise InputError("attention_factor", sorted(map(str, factors)), "one for all lengths", "Search them anew.")
    return LongRoPE2({r.target: r.factors for r in found} or None, *factors)


def needle_documents(tokenizer: Any, length: int, config: SearchConfig) -> Samples:
    """Documents of `length` tokens that begin with a needle and end with its value (section 3.2, appendix C)."""
    from drope.data.haystack import haystack
    from drope.data.needles import ASK_KEY
    from drope.evaluation.samples import answer_samples
    from drope.evaluation.tasks import Task
    from drope.evaluation.trials import Trials

    task = Task("longrope2", ASK_KEY, pairs=1, grid=True)  # a name of its own: no evaluation has these needles
    trials = Trials(tokenizer, haystack(config.haystack), seed=_SEED - config.seed, depths=(0.0,))
    only = ""  # after the value: the needle's tokens and nothing else count
    return answer_samples(trials, [task], length, config.documents, batch_tokens=config.batch_tokens, closing=only)


def needle_loss(model: Any, documents: Samples, method: Method, length: int) -> float:
    """Mean nats per needle token under a method: the logarithm of the needle-driven perplexity."""
    from drope.evaluation.losses import evaluating
    from drope.models import apply

    with apply(model, method, length), evaluating(model):
        losses = documents.losses(model)
    counts = [n for ids, n in documents.batches for _ in range(len(ids))]
    return math.fsum(x * n for x, n in zip(losses, counts, strict=True)) / sum(counts)


def _search(model: Any, tokenizer: Any, shape: RopeShape, length: int, config: SearchConfig, log: Path) -> SearchResult:
    from drope.progress import track

    documents = needle_documents(tokenizer, length, config)
    candidates = Candidates(shape, shape.factor(length), config.largest, config.below)
    passes = config.population * (config.generations + 1)
    with track(f"LongRoPE2 factors for {length} tokens", passes, "candidates") as bar:

        def loss(factors: tuple[float, ...]) -> float:
            return needle_loss(model, documents, LongRoPE2({length: factors}, config.attention_factor), length)

        measured = _remembered(loss, log)
        baselines = {m.name: needle_loss(model, documents, m, length) for m in (PI(), NTK(), Yarn())}
        best = evolve(measured, candidates, config, lambda low: bar.advance(1, f"perplexity {math.exp(low):.2f}"))
    settings = asdict(config)
    return SearchResult(
        length, shape.context, best.factors, best.critical, candidates.theoretical, best.loss, baselines, best.history,
        best.evaluations, settings,
    )  # fmt: skip


def _remembered(loss: Callable[[tuple[float, ...]], float], log: Path) -> Callable[[tuple[float, ...]], float]:
    """Every loss is logged; what an interrupted search measured is read back. Not finite ones count as very bad."""
    from drope.evaluation.records import append, read_lines

    known = {tuple(r["factors"]): float(r["loss"]) for r in read_lines(log, {"factors", "loss"})}

    def measure(factors: tuple[float, ...]) -> float:
        if factors not in known:
            value = loss(factors)
            known[factors] = value if math.isfinite(value) else 1e9
            append(log, [{"factors": list(factors), "loss": known[factors]}])
        return known[factors]

    return measure


def _kept(path: Path, shape: RopeShape) -> SearchResult | None:
    try:
        result = SearchResult.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, InputError):
        return None  # not there, or damaged: it is searched again
    return result if len(result.factors) == shape.pairs else None


def _most_thorough(folder: Path, pattern: str, shape: RopeShape) -> SearchResult | None:
    """Of the kept results that match, the one that measured most candidates on most documents."""
    found = [kept for path in sorted(folder.glob(pattern)) if (kept := _kept(path, shape)) is not None]
    return max(found, key=lambda r: r.evaluations * int(r.settings.get("documents", 1)), default=None)


def _scale(model: Any) -> float:
    """The temperature that is set on the model, which factors depend on."""
    from drope.errors import UnsupportedModelError
    from drope.models.logit_scale import logit_scale

    try:
        return logit_scale(model)
    except UnsupportedModelError:
        return 1.0


def _vocabulary(tokenizer: Any) -> str:
    return fingerprint(sorted(tokenizer.get_vocab().items()))
