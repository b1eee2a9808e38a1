"""The flags of a server that answers in place of a model in this process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter

from drope.errors import InputError

if TYPE_CHECKING:
    from drope.commands.options import Loading
    from drope.evaluation import Entry, EvaluationConfig


@dataclass(frozen=True)
class Serving:
    """Where the model runs, if not here.

    Parameters
    ----------
    base_url
        Address of an OpenAI-compatible server (vLLM, SGLang, llama.cpp), such as http://localhost:8000/v1. MODEL then
        names the tokenizer and the context only.
    served_model
        The model's name there; the only one by default. The key comes from the environment: OPENAI_API_KEY.
    concurrency
        Requests at once.
    timeout
        Seconds for one request.
    retries
        Further tries of a request that failed for a passing reason.
    """

    base_url: str | None = None
    served_model: str | None = None
    concurrency: int = 8
    timeout: float = 600.0
    retries: int = 5


ServingFlags = Annotated[Serving, Parameter(name="*", group=Group("A server", sort_key=70))]
NO_SERVING = Serving()


def served_entry(source: str, serving: Serving, loading: Loading, config: EvaluationConfig) -> Entry:
    """The server as an entry, with the tokenizer and the method that MODEL's files tell of. No weights are read."""
    from drope.evaluation import Entry
    from drope.evaluation.server import Server
    from drope.models import load_config
    from drope.models.load import load_tokenizer
    from drope.models.shape import stops_rotation
    from drope.positions import get

    if config.documents:
        raise InputError("--documents", config.documents, "0 with --base-url", "Servers do not score given text.")
    assert serving.base_url is not None
    server = Server(
        serving.base_url, serving.served_model, concurrency=serving.concurrency, timeout=serving.timeout,
        retries=serving.retries,
    )  # fmt: skip
    free = stops_rotation(load_config(source, revision=loading.revision, trust_remote_code=loading.trust_remote_code))
    tokenizer = load_tokenizer(source, revision=loading.revision, trust_remote_code=loading.trust_remote_code)
    return Entry(server, tokenizer, [get("drope" if free else "rope")])
