"""`--model drope` for lm-evaluation-harness: a model under any positional method and any temperature.

    drope-lm-eval run --model drope --model_args pretrained=org/model,method=yarn,length=8192 --tasks ruler_vt

`drope-lm-eval` is the harness's own command line with this model known to it. In Python, importing this module is
enough. The harness looks for models in its own registry only; an entry point `lm_eval.models` names this one besides.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from drope.errors import InputError


@register_model("drope")
class DropeLM(HFLM):
    """HFLM over `drope.load`.

    Parameters
    ----------
    pretrained : hub id, folder, GGUF file, or `bundled`
    method : name in the catalogue (`rope`, `yarn`, ...); by default `drope` for a position-free model, else `rope`
    length : tokens that prompts and answers may take, for which the method is applied; by default the trained context
    beta : softmax temperature, the factor on attention logits
    """

    def __init__(
        self,
        pretrained: str,
        method: str | None = None,
        length: int | str | None = None,
        beta: float | str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        revision: str | None = None,
        batch_size: int | str | None = 1,
        max_length: int | None = None,
        **settings: Any,
    ):
        import torch

        from drope.evaluation.losses import temperature_at
        from drope.models import apply, is_position_free, load, rope_shape
        from drope.positions import get
        from drope.quantities import parse_target

        if device is None or (str(device).startswith("cuda") and not torch.cuda.is_available()):
            device = "auto"  # the harness's command line says cuda:0 on any machine
        loaded = load(pretrained, dtype=dtype, device=device, revision=revision)
        if loaded.tokenizer is None:
            raise InputError("pretrained", pretrained, "a checkpoint with a tokenizer")
        context = rope_shape(loaded.model.config).context
        size = parse_target(length or max_length or context, context, "length")
        chosen = get(method or ("drope" if is_position_free(loaded.model) else "rope"))
        passed = {k: v for k, v in settings.items() if k in ("add_bos_token", "prefix_token_id", "truncation")}
        unknown = settings.keys() - passed.keys() - {"max_batch_size", "trust_remote_code"}
        if unknown:
            raise InputError("--model_args", ", ".join(sorted(unknown)), "pretrained, method, length, beta, dtype")
        self._states = ExitStack()  # open for the life of this object: the model is its own
        self._states.enter_context(apply(loaded.model, chosen, size))
        if beta is not None:
            self._states.enter_context(temperature_at(loaded.model, float(beta)))
        super().__init__(
            pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=batch_size, max_length=size, **passed
        )
        self.drope = {"source": Path(pretrained).name, "method": chosen.name, "length": size, "beta": beta}


def main() -> None:
    """The harness's command line."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
