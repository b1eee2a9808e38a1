"""Writing a model as a stock checkpoint of a positional method."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drope.errors import InputError, VerificationError
from drope.files import new_folder, write_json, write_text

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from drope.positions import Method

_MOST_TOKENS = 256  # of the check


def save_method(
    model: PreTrainedModel,
    out: str | Path,
    method: Method,
    tokenizer: Any = None,
    *,
    target_length: int,
    beta: float = 1.0,
    provenance: Mapping[str, Any] | None = None,
    card: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a model as a checkpoint that computes what `apply(model, method, target_length)` does.

    Called by `drope.models.save`. The written checkpoint is loaded and its logits are
    compared, also of decoding from the cache, before `out` appears.

    Raises
    ------
    UnsupportedModelError : no stock configuration says what the method does; the message names what can run it
    VerificationError : what was written does not compute what the model does under the method
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    from drope.models.applicable import check_method
    from drope.models.apply import apply
    from drope.models.card import model_card
    from drope.models.encoding import Encoding, config_json
    from drope.models.fold_heads import heads_folded, prove_heads
    from drope.models.rotary import is_position_free
    from drope.models.save import raise_tokenizer_limit, save, shell, sidecar
    from drope.models.shape import rope_shape
    from drope.models.stock import stock_config
    from drope.positions import Requirements
    from drope.positions.temperatures import HeadLogTemperature, HeadTemperature, Tempered

    if isinstance(method, Tempered) and isinstance(method.temperature, HeadLogTemperature):
        method = Tempered(method.method, method.temperature.at(rope_shape(model.config), target_length))
    requirements = check_method(model.config, method, target_length)
    provenance = dict(provenance or {}) | {"method": method.name}
    if isinstance(method, Tempered) and isinstance(method.temperature, HeadTemperature):
        values, inner = method.temperature.values, method.method
        prove_heads(model, method, inner, values, target_length)
        provenance["temperature"] = dict(provenance.get("temperature") or {}) | {"heads": values}
        with heads_folded(model, values):
            return save(
                model, out, tokenizer, target_length=target_length, beta=beta, provenance=provenance, card=card,
                overwrite=overwrite, method=inner,
            )  # fmt: skip
    if requirements == Requirements(rotation="none", logit_scale=requirements.logit_scale):
        with apply(model, method, target_length):
            return save(
                model, out, tokenizer, target_length=target_length, beta=beta * requirements.logit_scale,
                provenance=provenance, card=card, overwrite=overwrite,
            )  # fmt: skip
    config = stock_config(model.config, method, target_length)
    if is_position_free(model):
        raise InputError("model", type(model).__name__, "a model with its rotation", "Call restore(model) before save.")
    text: Any = config.get_text_config(decoder=True)
    encoded = Encoding(str(dict(text.rope_parameters).get("rope_type", "by layer type")), config)
    record = sidecar(
        provenance, original=model.config, encoded=encoded,
        context=rope_shape(model.config).context, target_length=target_length, beta=beta,
    )  # fmt: skip
    record["positions"] = {"label": method.label, "settings": method.settings()}
    factor = beta * requirements.logit_scale
    kind = type(model) if type(config) is type(model.config) else MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with new_folder(Path(out), overwrite) as folder:
        written = shell(model, encoded, factor, kind=kind)
        written.save_pretrained(folder)
        for file in folder.glob("*.safetensors"):
            file.chmod(0o644)
        write_json(folder / "config.json", config_json(written.config))
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        raise_tokenizer_limit(folder, target_length)
        write_json(folder / "drope.json", record)
        write_text(folder / "README.md", model_card(record, card))
        del written
        _prove(model, folder, method, target_length, beta)
    return Path(out)


def _prove(model: PreTrainedModel, folder: Path, method: Method, length: int, beta: float) -> None:
    """Compare the written checkpoint with the model under the method, in one pass and from the cache."""
    import torch
    from transformers import AutoModelForCausalLM

    from drope.models.apply import apply
    from drope.models.checks import measure
    from drope.models.encoding import softmax_scalings
    from drope.models.logit_scale import logit_scale, set_logit_scale
    from drope.models.save import tolerance
    from drope.models.shape import rope_shape

    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    tokens = min(length, 2 * rope_shape(model.config).context, _MOST_TOKENS)
    ids = torch.randint(0, vocabulary, (1, tokens), generator=torch.Generator().manual_seed(0)).to(model.device)
    before, training = (logit_scale(model) if softmax_scalings(model) else None), model.training
    try:
        model.eval()
        if before is not None:
            set_logit_scale(model, beta)
        with apply(model, method, tokens if hasattr(method, "stock_parameters") else length):
            expected = _logits(model, ids)
    finally:
        if before is not None:
            set_logit_scale(model, before)
        model.train(training)
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype)
    loaded = loaded.to(model.device)
    difference = float((_logits(loaded, ids) - expected).abs().max() / expected.abs().max().clamp_min(1e-6))
    allowed = tolerance(model.dtype, folded=beta != 1)
    report = measure(loaded, ids[:, : min(tokens, 48, rope_shape(loaded.config).context)])
    if not (difference <= allowed and report.cached <= report.cached_tolerance):
        raise VerificationError(
            f"The written checkpoint's logits differ from the model's under {method.label} by {difference:.2g} of "
            f"their size (allowed: {allowed:.2g}), and from its cache by {report.cached:.2g}. Nothing was kept."
        )


def _logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    import torch

    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits.float()
