"""`drope verify`: whether engines compute what the model does. Exit code 1 where one does not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Group, Parameter

from drope.commands.options import NO_GENERAL, GeneralFlags, Length, Several
from drope.commands.output import session, table
from drope.errors import ParityError

if TYPE_CHECKING:
    from drope.export import Parity

_SERVER = Group("Server", sort_key=30)

app = App(
    name="verify",
    help_epilogue="""Examples:

  # every engine that is installed here: transformers, llama.cpp (xllamacpp), mlx-lm
  drope verify out/model
  drope verify out/model --engine llama.cpp --precision q8_0
  # GGUF files against the checkpoint that they were made from
  drope verify out/model-gguf --reference out/model
  # vLLM from its own environment, started for the comparison
  drope verify out/model-vllm --engine vllm --vllm ~/vllm/bin/python
  # a running server: vLLM, SGLang, llama-server
  drope verify out/model --base-url http://127.0.0.1:8000/v1""",
)


@app.default
def verify(
    model: str,
    *,
    engine: Annotated[tuple[Literal["transformers", "llama.cpp", "mlx", "vllm"], ...], Several] = (),
    reference: Annotated[str | None, Parameter(show_default=False)] = None,
    base_url: Annotated[str | None, Parameter(show_default=False, group=_SERVER)] = None,
    served_model: Annotated[str | None, Parameter(show_default=False, group=_SERVER)] = None,
    lengths: Annotated[tuple[Length, ...], Several] = (),
    tokens: int = 4,
    tolerance: float | None = None,
    precision: Literal["f16", "q8_0", "f32"] = "f16",
    pre_tokenizer: str | None = None,
    vllm: Annotated[str | None, Parameter(show_default=False)] = None,
    general: GeneralFlags = NO_GENERAL,
) -> None:
    """Compare engines with transformers.

    Parameters
    ----------
    model
        Folder of a position-free checkpoint, or of what `drope export` wrote for llama.cpp.
    engine
        Engines to run here; all that are installed by default.
    reference
        The checkpoint that GGUF files were made from.
    base_url
        An OpenAI server that serves the model.
    served_model
        The server's name for it.
    lengths
        Prompt lengths; half and one and a half times the trained context by default.
    tokens
        Steps compared at each length, from the cache and without it.
    tolerance
        Allowed root mean square difference of log-probabilities in nats; by precision by default.
    precision
        Of the GGUF file that is made for llama.cpp.
    pre_tokenizer
        llama.cpp's name of the tokenizer's splitting rule.
    vllm
        Python of the environment that vLLM is installed in, where it is not this one.
    """
    with session(general) as output:
        from drope.export import verify as compare

        rows = compare(
            Path(model).expanduser(), engine or None, reference=reference, base_url=base_url, served_model=served_model,
            lengths=lengths or None, tokens=tokens, tolerance=tolerance, precision=precision, pre=pre_tokenizer,
            vllm=vllm,
        )  # fmt: skip
        passed = bool(rows) and all(row.passed for row in rows)
        shown = table(
            "Log-probabilities against transformers without rotation, nats", _HEAD, [_row(row) for row in rows], left=3
        )
        problems = [f"{row.engine}: {row.problem}" for row in rows if row.problem]
        output.result({"passed": passed, "rows": [row.to_dict() for row in rows]}, shown, *dict.fromkeys(problems))
        if not passed:
            raise ParityError("Verification failed: " + "; ".join(dict.fromkeys(problems) or ["nothing was run"]))


_HEAD = ("engine", "decoding", "verdict", "tokens", "off by", "allowed", "with RoPE")


def _row(row: Parity) -> tuple[str, ...]:
    verdict = "passed" if row.passed else "FAILED"
    engine = row.engine.split("://")[-1].removesuffix("/v1")  # a server by host and port: columns are narrow
    if math.isnan(row.difference):
        return (engine, "", verdict, "", "", "", "")
    decoding = "cached" if row.cached else "whole"
    numbers = (f"{row.difference:.2g}", f"{row.tolerance:g}", f"{row.control:.2g}")
    return (engine, decoding, verdict, str(row.length), *numbers)
