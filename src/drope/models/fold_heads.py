"""Folding a factor for each head into the query projections, which stock checkpoints then carry (HeadScale)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from drope.errors import InputError, UnsupportedModelError, VerificationError
from drope.models.fold import fold_target
from drope.models.logit_scale import attention_modules

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from drope.positions import Method

_MOST_TOKENS = 128  # of the check


@contextmanager
def heads_folded(model: PreTrainedModel, values: Sequence[Sequence[float]]) -> Iterator[PreTrainedModel]:
    """The model with the query rows of head h in layer l multiplied by `values[l][h]`, while the block runs.

    Other parameters take the place of the projections' own, which are back on exit, also after an exception.

    Raises
    ------
    UnsupportedModelError : a norm follows the projection, or it is fused with k and v: no factor of a head fits in
    InputError : not one value for each head of each layer
    """
    import torch

    heads = model.config.get_text_config(decoder=True).num_attention_heads
    modules = attention_modules(model)
    if len(values) != len(modules) or any(len(row) != heads for row in values):
        shape = f"{len(values)} layers of {', '.join(sorted({str(len(row)) for row in values}))} heads"
        raise InputError("values", shape, f"{len(modules)} layers of {heads} heads")
    places = []
    for name, attention in modules.items():
        kind, attribute, rows = fold_target(model, attention, name)
        if kind != "projection" or rows is not None:
            why = "a norm, whose gain all heads share, follows the query" if kind == "norm" else "q, k and v are fused"
            raise UnsupportedModelError(
                f"A factor for each head cannot be folded into {model.config.model_type!r}: {why} ({name}). In this "
                "library it runs under drope.apply, with drope.positions.temperatures.Tempered."
            )
        places.append((getattr(attention, attribute), values[int(attention.layer_idx)]))  # type: ignore[arg-type]
    kept = [(module, dict(module._parameters)) for module, _ in places]
    try:
        for module, row in places:
            for name, parameter in module.named_parameters(recurse=False):
                scale = torch.tensor(row, device=parameter.device).repeat_interleave(parameter.shape[0] // heads)
                scaled = parameter.detach().float() * scale.view(-1, *[1] * (parameter.ndim - 1))
                module._parameters[name] = torch.nn.Parameter(scaled.to(parameter.dtype), parameter.requires_grad)
        yield model
    finally:
        for module, parameters in kept:
            module._parameters.update(parameters)


def prove_heads(model: PreTrainedModel, method: Method, inner: Method, values: Any, length: int) -> None:
    """Compare the folded model under `inner` with the model under `method`, which has the factors.

    Raises
    ------
    VerificationError : their logits differ by more than rounding
    """
    import torch

    from drope.models.apply import apply
    from drope.models.save import tolerance

    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    ids = torch.randint(0, vocabulary, (1, min(length, _MOST_TOKENS)), generator=torch.Generator().manual_seed(0))
    with apply(model, method, length):
        expected = _logits(model, ids.to(model.device))
    with heads_folded(model, values), apply(model, inner, length):
        found = _logits(model, ids.to(model.device))
    difference = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-6))
    if not difference <= (allowed := tolerance(model.dtype, folded=True)):
        raise VerificationError(
            f"Folding a factor for each head changed the logits by {difference:.2g} of their size (allowed: "
            f"{allowed:.2g}). Nothing was written."
        )


def _logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    import torch

    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return model(input_ids=ids, use_cache=False).logits.float()
    finally:
        model.train(training)
