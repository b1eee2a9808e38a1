"""`drope longrope2`: search the rescale factors of LongRoPE2 for one model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Group, Parameter

from drope.commands.options import NO_GENERAL, NO_LOADING, Flag, GeneralFlags, Length, LoadingFlags, Several, Tokens
from drope.commands.output import facts, session, table
from drope.errors import InputError
from drope.quantities import format_count, parse_target

if TYPE_CHECKING:
    from rich.console import RenderableType

    from drope.search import SearchResult

app = App(
    name="longrope2",
    help_epilogue="""Examples:

  # the paper's search, for one target; compare --methods longrope2 takes the factors from the cache afterwards
  drope longrope2 org/model --to 8x
  # a small search for each of several lengths, the factors also as a file
  drope longrope2 bundled --to 2x 4x 8x --population 16 --generations 10 --documents 4 --out factors.json
  # a stock checkpoint with them: its own rotation within the context, rescaled beyond
  drope longrope2 org/model --to 8x --checkpoint out/longrope2""",
)


@dataclass(frozen=True)
class Searching:
    """How to search. The defaults are the paper's, and take population × (generations + 1) × documents forward passes.

    Parameters
    ----------
    to
        Target lengths, such as 8x or 16k; each has factors of its own.
    context
        For the mechanics, as in compare: count this many tokens as the trained context. By default the model's own.
    population
        Candidates of a generation.
    generations
        Rounds of mutation.
    mutation
        Probability that a coordinate of a candidate is mutated.
    largest
        Factors lie between s = length / context and this times s from the critical frequency on.
    documents
        Needle documents that a candidate is judged by.
    below
        Frequencies above the critical one: ntk scales the base to meet its factor, none leaves them alone.
    attention_factor
        Multiplies cos and sin; the paper has none.
    haystack
        Text of the documents: stdlib:heldout, a file, a folder or a hub dataset.
    seed
        Seed of candidates and needles.
    batch_tokens
        Tokens held on the device at once.
    """

    to: Annotated[tuple[str, ...], Several]
    context: Length | None = None
    population: int = 64
    generations: int = 40
    mutation: float = 0.3
    largest: float = 2.0
    documents: int = 10
    below: Literal["ntk", "none"] = "ntk"
    attention_factor: float = 1.0
    haystack: str = "stdlib:heldout"
    seed: int = 0
    batch_tokens: Tokens = 16384


@app.default
def longrope2(
    model: str,
    *,
    searching: Annotated[Searching, Parameter(name="*", group=Group("How to search", sort_key=20))],
    out: Path | None = None,
    checkpoint: Path | None = None,
    overwrite: Flag = False,
    loading: LoadingFlags = NO_LOADING,
    general: GeneralFlags = NO_GENERAL,
) -> None:
    """Search.

    Parameters
    ----------
    model
        A model that rotates: hub id, folder, GGUF file, or bundled.
    out
        File for the factors, as JSON.
    checkpoint
        Folder for a stock checkpoint with the factors of the longest target.
    overwrite
        Replace that folder.
    """
    with session(general) as output:
        from drope.files import write_json
        from drope.models import declare_context, load, load_config, rope_shape
        from drope.search import SearchConfig, search_longrope2

        settings = {f.name: getattr(searching, f.name) for f in fields(searching) if f.name not in ("to", "context")}
        config = SearchConfig(**settings)
        known = load_config(model, revision=loading.revision, trust_remote_code=loading.trust_remote_code)
        if declare_context(known, searching.context) is not None and checkpoint:
            hint = "A context that was only declared is for measuring."
            raise InputError("--checkpoint", str(checkpoint), "the model's own context, without --context", hint)
        context = rope_shape(known).context
        lengths = sorted({parse_target(text, context) for text in searching.to})
        if lengths[0] <= context:
            raise InputError("--to", lengths[0], f"lengths above the model's context of {context} tokens")
        _free(checkpoint, overwrite)
        loaded = load(model, **loading.options())
        declare_context(loaded.model.config, searching.context)
        if loaded.tokenizer is None:
            raise InputError("model", model, "a checkpoint with a tokenizer")
        results = [search_longrope2(loaded.model, loaded.tokenizer, length, config) for length in lengths]
        value = {"context": context, "targets": [result.to_dict() for result in results]}
        lines: list[RenderableType] = [_summary(results), *map(_factors, results)]
        if out:
            write_json(out, value)
            lines.append(f"Wrote {out}")
        if checkpoint:
            _save(loaded, model, results[-1], checkpoint, overwrite)
            lines.append(f"Wrote {checkpoint}")
        output.result(value, *lines)


def _free(checkpoint: Path | None, overwrite: bool) -> None:
    """Refuse a folder that is taken before hours of search."""
    if checkpoint and checkpoint.exists() and not overwrite:
        hint = "Choose another, or pass --overwrite."
        raise InputError("--checkpoint", str(checkpoint), "a folder that does not exist yet", hint)


def _save(loaded: Any, source: str, result: SearchResult, folder: Path, overwrite: bool) -> None:
    from drope.commands.measuring import short_name
    from drope.models import save

    provenance = {"source": short_name(source), "search": asdict(result)}
    save(
        loaded.model, folder, loaded.tokenizer, target_length=result.target, method=result.method(),
        provenance=provenance, overwrite=overwrite,
    )  # fmt: skip


def _summary(results: list[SearchResult]) -> RenderableType:
    """Needle-driven losses of what was found and of methods without a search; critical pair found, and in theory."""
    rows = [
        (
            f"{format_count(r.target)} ({r.target / r.context:.3g}x)",
            *(f"{r.baselines[name]:.4f}" for name in ("pi", "ntk", "yarn")),
            f"{r.history[0]:.4f}" if r.history else "",
            f"{r.loss:.4f}",
            f"{r.critical} of {r.theoretical}",
            r.evaluations,
        )
        for r in results
    ]
    head = ("length", "PI", "NTK", "YaRN", "start", "found", "pair", "tried")  # start: the best of the first population
    return table("LongRoPE2: loss of the needle's tokens (nats per token)", head, rows)


def _factors(result: SearchResult) -> RenderableType:
    shown = "  ".join(f"{x:.3g}" for x in result.factors)
    return facts(f"Factors for {format_count(result.target)}", [("λ, fastest pair first", shown)])
