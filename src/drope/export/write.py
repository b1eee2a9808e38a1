"""A position-free checkpoint for one engine, whole or not at all, with the command that serves it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drope.errors import InputError, UnsupportedModelError
from drope.export.engines import Engine, engine
from drope.files import new_folder, write_json, write_text
from drope.models.card import model_card
from drope.models.outliers import advice, weight_outliers
from drope.record import read_record

log = logging.getLogger(__name__)


def export(
    source: str | Path,
    out: str | Path,
    name: str,
    *,
    precision: Sequence[str] = ("f16", "q8_0"),
    pre: str | None = None,
    keep: Sequence[str] = (),
    length_temperature: float | None = None,
    evaluation: Sequence[Mapping[str, Any]] = (),
    overwrite: bool = False,
    revision: str | None = None,
) -> Path:
    """Write the position-free checkpoint `source` to the folder `out` for the engine `name`.

    Parameters
    ----------
    source : folder or hub id of what `convert`, `recalibrate` or `extend` wrote; its β stays folded in
    name : transformers, vllm, sglang, llama.cpp or mlx
    precision : GGUF files to write, of f16, q8_0 and f32
    pre : llama.cpp's name of the tokenizer's splitting rule, where it is not recognised
    keep : weights that stay in float16 in a q8_0 file, besides those that stand out (`drope.models.outliers`)
    length_temperature : c of a temperature 1 + c·ln(1 + ⌊position / C_train⌋) in place of the constant one; the model
        becomes a Ministral3, which transformers, vLLM and mlx-lm read

    evaluation : results for the card, rows as for `drope.models.card.model_card`

    Raises
    ------
    InputError : the source still rotates, or `out` exists
    UnsupportedModelError : not proven for this engine; the message says why
    """
    from drope.models import load_config
    from drope.models.convert import source_folder
    from drope.models.files import check_folder
    from drope.models.shape import stops_rotation

    target = engine(name)
    config = load_config(source, revision=revision)
    if not stops_rotation(config):
        raise InputError("model", str(source), "a position-free checkpoint", "It still rotates: run `drope convert`.")
    folder = source_folder(source, revision)
    out = Path(out)
    if out.exists() and out.resolve() == folder.resolve():
        raise InputError("--out", str(out), "a folder other than the source's")
    check_folder(folder)
    length = int(config.get_text_config(decoder=True).max_position_embeddings)
    with new_folder(out, overwrite) as temporary:
        if length_temperature is not None:
            from drope.export.ministral import write_ministral

            _refuse(name, target, "ministral3")
            write_ministral(folder, config, temporary, length_temperature)
        elif name == "llama.cpp":
            outliers = weight_outliers(folder)
            if outliers and "q8_0" in precision:
                log.warning("%s (kept in float16 here)", advice(outliers))
            kept = frozenset([*keep, *(o.weight for o in outliers)])
            _gguf(folder, config, temporary, precision, length, pre, kept)
        else:
            _stock(folder, config, temporary, name, target, length)
        record = read_record(folder) | {"engine": name}
        if length_temperature is not None:
            record["temperature"] = {"beta": 1.0, "length": length, "per_position": length_temperature}
        write_json(temporary / "drope.json", record)
        if evaluation and "original" in record:
            write_text(temporary / "README.md", model_card(record, {"evaluation": evaluation, "numbers": evaluation}))
        write_text(temporary / "README.md", readme(folder, name, target, length, out.name, temporary, record))
    return out


def _refuse(name: str, target: Engine, kind: str) -> None:
    if target.families is not None and kind not in target.families or name == "llama.cpp":
        raise UnsupportedModelError(f"{name} has no temperature that grows with position that drope has proven.")


def _gguf(
    folder: Path, config: Any, out: Path, precision: Sequence[str], length: int, pre: str | None, keep: frozenset[str]
) -> None:
    from drope.export.gguf_file import PRECISIONS, write_gguf

    for one in precision:
        if one not in PRECISIONS:
            raise InputError("--precision", one, ", ".join(PRECISIONS))
        write_gguf(folder, config, out / f"model-{one}.gguf", precision=one, length=length, pre=pre, keep=keep)


def _stock(folder: Path, config: Any, out: Path, name: str, target: Engine, length: int) -> None:
    from drope.models import convert

    if reason := target.refusal(config):
        raise UnsupportedModelError(
            f"{config.model_type!r} is not exported for {name}: {reason}. The folder itself may still work: "
            "serve it and run `drope verify --base-url`."
        )
    if name in ("vllm", "sglang"):
        _refuse_output_bias(folder, config, name)
    reasons = []
    for encoding in target.encodings or (None,):
        inner = out / "checkpoint"
        try:
            convert(folder, inner, target_length=length, encoding=encoding)
        except UnsupportedModelError as error:
            reasons.append(str(error))
            continue
        for file in inner.iterdir():
            file.rename(out / file.name)
        inner.rmdir()
        return
    raise UnsupportedModelError(f"{config.model_type!r} is not exported for {name}: {' '.join(reasons)}")


def _refuse_output_bias(folder: Path, config: Any, name: str) -> None:
    """Their Qwen3 has no bias after attention; transformers' has one where `attention_bias` is on."""
    if config.model_type != "qwen3" or not config.attention_bias:
        return
    from safetensors import safe_open

    from drope.models.files import weight_files

    for file in weight_files(folder):
        with safe_open(file, "pt") as opened:
            for key in opened.keys():
                if key.endswith("o_proj.bias") and bool(opened.get_tensor(key).any()):
                    raise UnsupportedModelError(
                        f"{name}'s Qwen3 has no bias after attention and would leave out {key} in silence."
                    )


def readme(
    folder: Path, name: str, target: Engine, length: int, place: str, out: Path, record: dict[str, Any]
) -> str:  # fmt: skip
    """README.md: the checkpoint's card, or a short one, and how to serve this folder."""
    card = next((f for f in (out / "README.md", folder / "README.md") if f.exists()), None)
    text = card.read_text(encoding="utf-8").rstrip() if card is not None else f"# {place}"
    lines = [text, "", f"## Serving with {name}", "", "```", target.serve.format(name=place, length=length), "```", ""]
    for file in sorted(out.glob("*.gguf")):
        lines.append(f"- `{file.name}`: {file.stat().st_size:,} bytes")
    lines += ["", target.notes] if target.notes else []
    if (c := (record.get("temperature") or {}).get("per_position")) is not None:
        lines += ["", f"The softmax temperature is 1 + {c:g}·ln(1 + ⌊position / {record['context']}⌋)."]
    command = "drope verify CHECKPOINT --base-url http://127.0.0.1:8000/v1"
    if name == "llama.cpp":
        command = f"drope verify {place} --reference CHECKPOINT"
    elif name in ("transformers", "mlx"):
        command = f"drope verify {place} --engine {name}"
    lines += ["", "That it computes what the model does is checked with", "", "```", command, "```", ""]
    return "\n".join(lines)
