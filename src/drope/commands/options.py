"""Flags that several subcommands share, and the types that read numbers as people write them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter, Token

from drope.quantities import parse_count, parse_tokens


def _reads(parse: Callable[[str, str], Any]) -> Callable[[Any, Sequence[Token]], Any]:
    def convert(_type: Any, tokens: Sequence[Token]) -> Any:
        token = tokens[0]
        return parse(token.value, (token.keyword or "value").strip("[]"))

    return convert


def _words(values: Sequence[Any]) -> str:
    return " ".join(str(value) for value in values) or "none"


Tokens = Annotated[int, Parameter(converter=_reads(parse_tokens), metavar="TOKENS")]
Length = Annotated[int, Parameter(converter=_reads(parse_count), metavar="LENGTH")]
Flag = Annotated[bool, Parameter(negative="", show_default=False)]
Several = Parameter(consume_multiple=True, negative_iterable=(), show_default=_words)  # `--lengths 1x 2x 4x`
Pair = Annotated[tuple[float, float], Parameter(negative_iterable=(), show_default=_words)]

_GENERAL = Group("General", sort_key=90)
_MODEL = Group("Loading the model", sort_key=80)


@dataclass(frozen=True)
class General:
    """How to run.

    Parameters
    ----------
    config
        YAML file with any of these settings; flags win over it.
    json
        Print the result as JSON on stdout, and nothing else there.
    verbose
        Show the log and, after an error, the traceback.
    """

    config: Path | None = None
    json: Flag = False
    verbose: Annotated[bool, Parameter(alias="-v", negative="", show_default=False)] = False


@dataclass(frozen=True)
class Loading:
    """How to load the model.

    Parameters
    ----------
    dtype
        Numbers to compute in; auto takes the checkpoint's own on a GPU and float32 on a CPU.
    device
        auto, cpu, cuda, cuda:1, mps, ...
    revision
        Branch, tag or commit on the hub.
    trust_remote_code
        Run model code that comes with the checkpoint.
    """

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    revision: str | None = None
    trust_remote_code: Flag = False

    def options(self) -> dict[str, Any]:
        """As keywords of `drope.models.load`."""
        return asdict(self)


GeneralFlags = Annotated[General, Parameter(name="*", group=_GENERAL)]
LoadingFlags = Annotated[Loading, Parameter(name="*", group=_MODEL)]
NO_GENERAL, NO_LOADING = General(), Loading()
