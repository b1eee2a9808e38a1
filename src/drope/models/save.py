"""Writing a position-free model as an ordinary checkpoint, whole or not at all, and proving what was written."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drope.errors import InputError, UnsupportedModelError, VerificationError
from drope.files import new_folder, write_json, write_text
from drope.models.adapters import carries_adapter
from drope.models.card import model_card
from drope.models.encoding import Encoding, config_json, encode, softmax_scalings
from drope.record import read_record

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

    from drope.positions import Method

SCHEMA = 1
_CHECK_TOKENS = 32
_EXACT = ("torch.float32", "torch.float64")  # precise enough for logits to show whether β was folded rightly


def save(
    model: PreTrainedModel,
    out: str | Path,
    tokenizer: Any = None,
    *,
    target_length: int,
    beta: float = 1.0,
    provenance: Mapping[str, Any] | None = None,
    card: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    encoding: str | None = None,
    method: Method | None = None,
) -> Path:
    """Write a dropped model as a stock checkpoint in `out`, or any model under a method. The model is not changed.

    The config says "no rotation" (`drope.models.encoding`), β is folded into the weights that make q, and the folder
    holds safetensors, tokenizer, generation config, README.md and drope.json. Before `out` appears, the checkpoint is
    loaded with `AutoModelForCausalLM.from_pretrained`, checked as every conversion is, and its logits are compared with
    the model's under `set_logit_scale(beta)`.

    Parameters
    ----------
    target_length : tokens; becomes `max_position_embeddings` and the tokenizer's `model_max_length`
    beta : softmax temperature for that length, multiplies q·k/√d; a temperature set on the model is not saved
    provenance : goes into drope.json: `source`, `method`, `tokens`, `temperature`, `data`, and whatever else is JSON
    card : see `drope.models.card.model_card`
    encoding : a name of `drope.models.encoding.CANDIDATES` instead of the first that works
    method : a positional method to write the model with, which then need not be dropped; where no stock configuration
        says what the method does, the error says what can run it

    Raises
    ------
    InputError : the model still rotates and there is no method, `out` exists, `beta` or `target_length` cannot be used
    UnsupportedModelError : no encoding for this family, or β cannot be folded; the message says why
    VerificationError : what was written does not compute what the model does; nothing is left behind
    """
    from drope.models.rotary import is_position_free
    from drope.models.shape import rope_shape

    if not (math.isfinite(beta) and beta > 0):
        raise InputError("beta", beta, "a finite number above 0")
    _refuse_quantised(model)
    if method is not None:
        from drope.models.save_method import save_method

        return save_method(
            model, out, method, tokenizer, target_length=target_length, beta=beta, provenance=provenance, card=card,
            overwrite=overwrite,
        )  # fmt: skip
    if not is_position_free(model):
        raise InputError("model", type(model).__name__, "a model without rotation", "Call drop(model) before save.")
    encoded = encode(model.config, target_length, prefer=encoding)
    record = sidecar(
        provenance, original=model.config, encoded=encoded, context=rope_shape(model.config).context,
        target_length=target_length, beta=beta,
    )  # fmt: skip
    if beta != 1 and str(model.dtype) not in _EXACT:
        prove_fold(model.config, beta)  # rounding would hide a wrong fold in the comparison of the written checkpoint
    with new_folder(Path(out), overwrite) as folder:
        written = shell(model, encoded, beta)
        written.save_pretrained(folder)
        for file in folder.glob("*.safetensors"):
            file.chmod(0o644)  # safetensors makes them private; a checkpoint is not
        write_json(folder / "config.json", config_json(written.config))
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        raise_tokenizer_limit(folder, target_length)
        write_json(folder / "drope.json", record)
        write_text(folder / "README.md", model_card(record, card))
        del written
        _prove(model, folder, beta)
    return Path(out)


def _refuse_quantised(model: PreTrainedModel) -> None:
    if any(type(module).__name__ == "NormedProjection" for module in model.modules()):
        raise UnsupportedModelError(
            "This model normalises q or k over all heads jointly, which no stock class of its shape does: it can be "
            "run, but not saved as an ordinary checkpoint."
        )
    if getattr(model, "hf_quantizer", None) is not None or carries_adapter(model):
        raise UnsupportedModelError(
            "Quantised models and models with adapters: dequantise or merge them before saving."
        )


def sidecar(
    provenance: Mapping[str, Any] | None,
    *,
    original: Any,
    encoded: Encoding,
    context: int,
    target_length: int,
    beta: float,
) -> dict[str, Any]:
    """The contents of drope.json."""
    from drope.models.shape import stops_rotation

    given = dict(provenance or {})
    text = original.get_text_config(decoder=True)
    first = given.pop("original", None) or {}
    if stops_rotation(original):  # the rotation is on record only: in the drope.json that the model came with
        first = first or _recorded_original(original)
    else:
        own = {"rope_parameters": text.rope_parameters, "max_position_embeddings": text.max_position_embeddings}
        first = own | first
    temperature = {"beta": beta, "length": target_length} | dict(given.pop("temperature", None) or {})
    record = {
        "schema": SCHEMA,
        "source": given.pop("source", None),
        "method": given.pop("method", "drope"),
        "tokens": given.pop("tokens", 0),
        "data": given.pop("data", None),
        "context": context,
        "target_length": target_length,
        "temperature": temperature,
        "encoding": encoded.name,
        "original": first,
        "versions": given.pop("versions", None) or versions(),
        **given,
    }
    return json.loads(json.dumps(record))


def versions() -> dict[str, str]:
    """Versions of the libraries that a checkpoint was made with."""
    found = {}
    for package, name in (("drope-llm", "drope"), ("transformers", "transformers"), ("torch", "torch")):
        try:
            found[name] = version(package)
        except PackageNotFoundError:
            found[name] = "source"
    return found


def raise_tokenizer_limit(folder: Path, target_length: int) -> None:
    """Set the tokenizer's `model_max_length`: some engines take the smaller of it and the model's."""
    path = folder / "tokenizer_config.json"
    if path.exists():
        settings = json.loads(path.read_text(encoding="utf-8"))
        if settings.get("model_max_length") != target_length:
            path.unlink()  # it may be a hard link to the source's
            write_json(path, settings | {"model_max_length": target_length})


def _recorded_original(config: Any) -> dict[str, Any]:
    return read_record(getattr(config, "_name_or_path", "") or ".").get("original", {})


def shell(model: PreTrainedModel, encoded: Encoding, beta: float, kind: Any = None) -> PreTrainedModel:
    """A model with the new config that shares the model's tensors, except those that take β.

    kind : its class, if it is not the model's own; the weights bear the same names in both
    """
    import torch

    from drope.models.fold import fold

    config = copy.deepcopy(encoded.config)
    with torch.device("meta"):
        made = (kind or type(model))(config)
    new = softmax_scalings(made)
    factors = {name: beta * own / new[name] for name, own in softmax_scalings(model).items()}
    if beta != 1 and not factors:
        raise UnsupportedModelError(
            f"The temperature cannot be folded into {config.model_type!r}: its attention scaling is out of reach. "
            "Save with beta=1."
        )
    state = dict(model.state_dict()) | fold(model, {k: v for k, v in factors.items() if abs(v - 1) > 1e-9})
    made.load_state_dict(state, assign=True)
    made.tie_weights()
    if kind is None and hasattr(model, "_weight_conversions"):
        made._weight_conversions = model._weight_conversions
    if model.can_generate():
        made.generation_config = copy.deepcopy(model.generation_config)
        if getattr(made.generation_config, "temperature", None) not in (None, 1.0):
            made.generation_config.do_sample = True  # transformers refuses to write a temperature without sampling
    return made


def _prove(model: PreTrainedModel, folder: Path, beta: float) -> None:
    """Load what was written and compare it with the model in memory; raises VerificationError."""
    import torch
    from transformers import AutoModelForCausalLM

    from drope.models.checks import verify
    from drope.models.logit_scale import logit_scale, set_logit_scale

    size = model.config.get_text_config(decoder=True).vocab_size
    ids = torch.randint(0, size, (2, _CHECK_TOKENS), generator=torch.Generator().manual_seed(0)).to(model.device)
    before, training = (logit_scale(model) if softmax_scalings(model) else None), model.training
    try:
        model.eval()
        if before is not None:
            set_logit_scale(model, beta)
        expected = _logits(model, ids)
    finally:
        if before is not None:
            set_logit_scale(model, before)
        model.train(training)
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype)
    loaded = loaded.to(model.device)
    verify(loaded, ids)
    found = _logits(loaded, ids)
    allowed = tolerance(model.dtype, folded=beta != 1)
    difference = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-6))
    if not difference <= allowed:
        raise VerificationError(
            f"The written checkpoint's logits differ from the model's by {difference:.2g} of their size "
            f"(allowed: {allowed:.2g}). Nothing was kept."
        )


def prove_fold(config: PretrainedConfig, beta: float) -> None:
    """Fold β into a small float32 model of the same class and compare it with β applied to its attention."""
    import torch

    from drope.models.encoding import text_config
    from drope.models.fold import fold
    from drope.models.logit_scale import set_logit_scale
    from drope.models.rotary import drop
    from drope.models.tiny import VOCABULARY, tiny_model

    small = drop(tiny_model(text_config(config)))
    changed = fold(small, dict.fromkeys(softmax_scalings(small), beta))
    ids = torch.randint(0, VOCABULARY, (2, _CHECK_TOKENS), generator=torch.Generator().manual_seed(0))
    arguments = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    with torch.no_grad():
        found = torch.func.functional_call(small, changed, (), arguments).logits
    set_logit_scale(small, beta)
    expected = _logits(small, ids)
    difference = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-6))
    if not difference <= tolerance(torch.float32, folded=True):
        raise VerificationError(
            f"Folding β into a small {config.model_type!r} changed its logits by {difference:.2g} of their size. "
            "Nothing was written."
        )


def tolerance(dtype: torch.dtype, *, folded: bool) -> float:
    """Largest difference of logits, as a share of the largest logit, that rounding explains in a dtype."""
    import torch

    if str(dtype) in _EXACT:
        return 1e-4
    eps = torch.finfo(dtype).eps
    return (16 if folded else 4) * eps  # folding rounds the weights of q once more


def _logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    import torch

    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits.float()
