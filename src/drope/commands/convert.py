"""`drope convert`: a position-free checkpoint without training, or one of another positional method."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Group, Parameter

from drope.commands.checkpoints import add_norm
from drope.commands.options import NO_GENERAL, NO_LOADING, Flag, GeneralFlags, Loading, LoadingFlags, Tokens
from drope.commands.output import facts, session
from drope.quantities import format_count, parse_target
from drope.record import recalibrated_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from drope.models.stream_norm import StreamedNorm

app = App(
    name="convert",
    help_epilogue="""Examples:

  # rewrites the config and links the weights: seconds, whatever the size
  drope convert org/model --to 8x --out out/nope
  # with per-head QKNorm, gains fitted on your text
  drope convert org/model --to 128k --qk-norm --data text/ --out out/nope-qknorm
  # a fitted temperature, folded into the weights file by file
  drope convert out/model --to 32k --beta 1.2 --out out/model-32k
  # a stock checkpoint of another method of docs/methods.md, ready for an engine
  drope convert org/model --method yarn --to 4x --out out/yarn
  # a GGUF file, unpacked to safetensors
  drope convert model.gguf --to 32k --out out/nope""",
)


@dataclass(frozen=True)
class Conversion:
    """What to write.

    Parameters
    ----------
    to
        Context of the new checkpoint, such as 32k or 8x.
    out
        Folder for the new checkpoint.
    method
        What it is to do with positions: drope takes the rotation out; another method of docs/methods.md, such as yarn
        or pi, is written as far as a stock configuration can say it, and refused with the reason otherwise.
    qk_norm
        Add per-head query and key normalisation: Llama-shaped models become Qwen3.
    qk_norm_init
        Gains of that normalisation: fitted on some of --data, or ones as in the paper.
    data
        Text to fit the gains on: stdlib, a file, a folder or a hub dataset.
    fit_tokens
        How much of it.
    beta
        Softmax temperature to fold into the weights, in place of the one that is folded in already.
    stream
        With --qk-norm: fit the gains piece by piece, under 2 GB of memory for any size. Does not report the distance.
    copy
        Copy the weight files instead of hard-linking them.
    overwrite
        Replace the folder if it exists.
    """

    to: str
    out: Path
    method: str = "drope"
    qk_norm: Flag = False
    qk_norm_init: Literal["fitted", "ones"] = "fitted"
    data: str = "stdlib"
    fit_tokens: Tokens = 16384
    beta: float | None = None
    stream: Flag = False
    copy: Flag = False
    overwrite: Flag = False


@app.default
def convert(
    model: str,
    *,
    conversion: Annotated[Conversion, Parameter(name="*", group=Group("What to write", sort_key=20))],
    loading: LoadingFlags = NO_LOADING,
    general: GeneralFlags = NO_GENERAL,
) -> None:
    """Drop.

    Parameters
    ----------
    model
        Hub id, folder, GGUF file, or bundled.
    """
    with session(general) as output:
        from drope.models import convert as rewrite
        from drope.models import load_config, rope_shape

        config = load_config(model, revision=loading.revision, trust_remote_code=loading.trust_remote_code)
        context = rope_shape(config).context
        target = parse_target(conversion.to, context)
        report: dict[str, Any] = {}
        if conversion.method != "drope":
            report = _under_method(model, config, conversion, loading, target)
        elif conversion.qk_norm and not conversion.stream or model.endswith(".gguf"):
            report = _through_memory(model, conversion, loading, context, target)
        else:
            norm = _streamed_norm(model, conversion, loading, context) if conversion.qk_norm else None
            rewrite(
                model, conversion.out, target_length=target, overwrite=conversion.overwrite, link=not conversion.copy,
                revision=loading.revision, beta=conversion.beta, qk_norm=norm,
            )  # fmt: skip
            report = norm.report if norm is not None else {}
        rows = [
            ("source", model),
            ("context", f"{format_count(context)} trained, {format_count(target)} declared"),
            *((name.replace("_", " "), value) for name, value in report.items()),
            ("next", _next_step(model, conversion)),
        ]
        value = {"model": model, "out": str(conversion.out), "context": context, "target_length": target, **report}
        output.result(value, facts(f"Wrote {conversion.out}", rows))


def _next_step(model: str, options: Conversion) -> str:
    from drope.positions import get

    if options.method == "drope" and recalibrated_tokens(model):
        return f"drope evaluate {options.out}"
    if options.method == "drope":
        return f"drope recalibrate {model} --data ... --tokens ... --out ...  (nothing has been trained yet)"
    if get(options.method).trained:
        return f"train {options.out}: its weights were not recalibrated for {get(options.method).label}"
    return f"drope evaluate {options.out} --methods rope  (rope: as the checkpoint says)"


def _under_method(model: str, config: Any, options: Conversion, loading: Loading, target: int) -> dict[str, Any]:
    """Write a stock checkpoint that computes what the method does; what cannot be written is said before weights load.

    Gives back what to report.
    """
    from drope.commands.catalogue import Chosen, with_factors
    from drope.commands.measuring import short_name
    from drope.errors import InputError
    from drope.files import check_free
    from drope.models import load, save, stock_config
    from drope.models.shape import rope_shape, stops_rotation
    from drope.positions import get

    method = get(options.method)
    if options.qk_norm:
        raise InputError("--qk-norm", "given", "--method drope", f"{method.label} leaves the weights as they are.")
    if stops_rotation(config):
        raise InputError("--method", method.name, "drope", f"{model} has no rotary positions to change.")
    check_free(options.out, options.overwrite)
    context = rope_shape(config).context
    if target < context:
        raise InputError("--to", options.to, f"a length of at least the model's context, {context} tokens")
    if method.name not in ("nope", "longrope2"):  # one is what drope writes; the other's factors need the weights
        stock_config(config, method, target)
    loaded = load(model, **loading.options())
    if method.name == "longrope2":
        known = with_factors(Chosen([method], search=False), loaded.model, loaded.tokenizer, [target]).methods
        if not known:
            hint = f"drope longrope2 {model} --to {options.to} --checkpoint {options.out} searches them and writes it."
            raise InputError("--method", method.name, "a model whose factors for this length are known", hint)
        (method,) = known
    save(
        loaded.model, options.out, loaded.tokenizer, target_length=target, method=method, beta=options.beta or 1.0,
        provenance={"source": short_name(model), "tokens": 0}, overwrite=options.overwrite,
    )  # fmt: skip
    return {"method": method.name, "positions": method.label}


def _streamed_norm(model: str, options: Conversion, loading: Loading, context: int) -> StreamedNorm:
    from drope.models.stream_norm import StreamedNorm

    if options.qk_norm_init == "ones":
        return StreamedNorm("ones")
    import torch
    from transformers import AutoTokenizer

    from drope.data.packing import pack
    from drope.models.convert import source_folder

    tokenizer = AutoTokenizer.from_pretrained(source_folder(model, loading.revision))
    blocks = pack(options.data, tokenizer, context, tokens=max(options.fit_tokens, context))
    return StreamedNorm("fitted", [torch.as_tensor(row["input_ids"])[None] for row in blocks.dataset])


def _through_memory(model: str, options: Conversion, loading: Loading, context: int, target: int) -> dict[str, Any]:
    """Load, drop, normalise, prove and save; what add_qk_norm reports."""
    from drope.models import drop, load, save, verify

    loaded = load(model, **loading.options())
    dropped: PreTrainedModel = drop(loaded.model)
    report: dict[str, Any] = {}
    if options.qk_norm:
        dropped, report = add_norm(
            dropped, loaded.tokenizer, context, options.qk_norm_init, options.data, options.fit_tokens
        )
    verify(dropped)
    provenance = {"source": model, "method": "drop", "tokens": 0, **({"qk_norm": report} if report else {})}
    save(
        dropped, options.out, loaded.tokenizer, target_length=target, provenance=provenance,
        overwrite=options.overwrite, beta=options.beta or 1.0,
    )  # fmt: skip
    return report
