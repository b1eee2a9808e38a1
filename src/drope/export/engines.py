"""What each serving engine can be given, and how it is started. Every claim here was run or read: docs/serving.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from drope.errors import InputError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_LLAMA_SHAPED = ("llama", "mistral", "qwen2", "qwen3", "granite")


@dataclass(frozen=True)
class Engine:
    """A serving engine.

    Parameters
    ----------
    encodings : rope types of `drope.models.encoding.CANDIDATES` that it reads as "no rotation", best first; empty for
        engines that get a GGUF file
    families : model types whose rotation is known to stop that way; None where the conversion itself proves it
    serve : command that serves a folder; `{name}` is the folder, `{length}` the context in tokens
    notes : for the README
    """

    encodings: tuple[str, ...]
    families: tuple[str, ...] | None
    serve: str
    notes: str = ""

    def refusal(self, config: PretrainedConfig) -> str | None:
        """Why a config cannot be served by this engine, or None."""
        kind = config.model_type
        if self.families is not None and kind not in self.families:
            return (
                f"{kind!r} is none of the families that were proven to stop rotating there: {', '.join(self.families)}"
            )
        return None


ENGINES: dict[str, Engine] = {
    "transformers": Engine((), None, "transformers serve {name}"),
    "vllm": Engine(
        ("llama3",), (*_LLAMA_SHAPED, "ministral3"), "vllm serve {name} --max-model-len {length}",
        "Do not pass `--rope-scaling` or `--hf-overrides` for it: both put a rotation back.",
    ),
    "sglang": Engine(
        ("llama3",), _LLAMA_SHAPED,
        "python -m sglang.launch_server --model-path {name} --context-length {length}",
        "Do not override `rope_scaling` in `--json-model-override-args`: it puts a rotation back.",
    ),
    "llama.cpp": Engine(
        (), None, "llama-server -m {name}/model-f16.gguf -c {length}",
        "Do not pass `--rope-scaling`, `--rope-freq-scale`, `--rope-freq-base` or any `--yarn` flag: "
        "each puts a rotation back.",
    ),
    "mlx": Engine(("llama3", "linear"), (*_LLAMA_SHAPED, "ministral3"), "mlx_lm.server --model {name}"),
}  # fmt: skip


def engine(name: str) -> Engine:
    if name not in ENGINES:
        raise InputError("--engine", name, ", ".join(ENGINES))
    return ENGINES[name]
