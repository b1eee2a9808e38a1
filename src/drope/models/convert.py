"""Dropping positions without loading weights: the files are linked or copied and the config says "no rotation"."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drope.errors import DropeError, InputError, VerificationError
from drope.files import check_free, fingerprint, resumable_folder, write_json, write_text
from drope.models.card import model_card
from drope.models.encoding import encode
from drope.models.files import INDEX, check_safetensors, weight_files
from drope.models.released import facts, refuse_norms
from drope.models.save import raise_tokenizer_limit, sidecar
from drope.models.stream import fold_edits, patch, refuse_missing
from drope.models.weights import Weights
from drope.record import local_folder, read_record

if TYPE_CHECKING:
    from drope.models.stream_norm import StreamedNorm

_KEPT = {".json", ".txt", ".model", ".jinja", ".md", ".tiktoken", ".vocab", ".merges"}
_LEGAL = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")
_REWRITTEN = {"config.json", "drope.json", "README.md"}
_HUB_FILES = ["*.safetensors", "*.safetensors.index.json", *(f"*{suffix}" for suffix in sorted(_KEPT)), *_LEGAL]
_LARGEST_SIDE_FILE = 200 * 1024**2  # bytes; tokenizers stay far below


def convert(
    source: str | Path,
    out: str | Path,
    *,
    target_length: int,
    overwrite: bool = False,
    link: bool = True,
    provenance: Mapping[str, Any] | None = None,
    encoding: str | None = None,
    revision: str | None = None,
    beta: float | None = None,
    qk_norm: StreamedNorm | None = None,
) -> Path:
    """Write a checkpoint of `source` without rotation to `out`, whatever its size, with no weights in memory.

    The safetensors files are checked against their headers and the index, then hard-linked (copied where the file
    system cannot, or with `link=False`). Config and tokenizer limit are rewritten; tokenizer, generation config and
    licence come along. The config is proven on a small random model of the same class (`drope.models.encoding`).

    What changes weights (β, QKNorm) streams over the files: no more than a piece of one tensor is in memory. When the
    process is stopped, the same call goes on from the files that are finished.

    A RoPE model converted this way has not been recalibrated: it is where training starts, not a model to use.

    Parameters
    ----------
    source : hub id, folder, or `bundled`
    target_length : tokens, above the trained context
    provenance, encoding : as for `drope.models.save`
    beta : softmax temperature to fold into the weights, in place of the one that the source's drope.json says is folded
    qk_norm : give a Llama-shaped model per-head QKNorm; it becomes Qwen3. See `drope.models.stream_norm`

    Raises
    ------
    InputError : `out` exists, the target is too short, a weight file is missing, truncated or damaged, not safetensors
    UnsupportedModelError : no rotation to drop, or no encoding for the family
    DropeError : the disk has no room
    """
    from transformers import AutoConfig

    from drope.models.shape import rope_shape

    _refuse_gguf(source)
    out = Path(out)
    check_free(out, overwrite)
    from drope.models.load import load_config

    config = load_config(source, revision=revision)
    if beta is not None and not (math.isfinite(beta) and beta > 0):
        raise InputError("beta", beta, "a finite number above 0")
    encoded = encode(config, target_length, prefer=encoding)
    folder = source_folder(source, revision)
    if folder.resolve() == out.resolve():
        raise InputError("--out", str(out), "a folder other than the source's")
    weights = weight_files(folder)
    for file in weights:
        check_safetensors(file)
    earlier = _earlier(folder)
    folded = float((earlier.get("temperature") or {}).get("beta", 1.0))
    given = beta
    if beta is None:
        beta = folded
    else:
        earlier.pop("temperature", None)
    released = facts(config)
    if released is not None:
        with closing(Weights(folder)) as opened:
            refuse_norms(config, opened, "converted")
        folded = released["beta"] ** -1  # not in the weights yet
        beta = 1.0 if given is None else given
        del encoded.config.drope_released
    if qk_norm is not None:
        qk_norm.refuse(config, folded)
        edits = {}
    else:
        edits = fold_edits(config, encoded.fold * beta / folded)
        refuse_missing(config, edits, weights)
    place = Path(source).expanduser()
    name = place.resolve().name if place.exists() else str(source)  # a hub id, or no more of a path than it takes
    record = sidecar(
        {"source": name} | earlier | dict(provenance or {}), original=config, encoded=encoded,
        context=rope_shape(config).context, target_length=target_length, beta=beta,
    )  # fmt: skip
    state = [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in weights]
    described = {name: edit.describe() for name, edit in edits.items()}
    key = fingerprint([state, described, link, record | {"versions": None}, qk_norm and qk_norm.describe()])
    with resumable_folder(out, key, overwrite) as partial:
        temporary = partial.folder
        for file in weights:
            if not (partial.done(file.name) and _same_layout(file, temporary / file.name)):
                if edits.keys() & check_safetensors(file).keys():
                    patch(file, temporary / file.name, edits)
                else:
                    (temporary / file.name).unlink(missing_ok=True)
                    _place(file, temporary / file.name, link)
                partial.mark(file.name)
        if qk_norm is not None:
            encoded = qk_norm.write(folder, temporary, config, encoded, encoded.fold * beta)
            record["qk_norm"] = qk_norm.report
        for file in side_files(folder):
            if qk_norm is not None and file.name == INDEX:
                continue  # written anew: it names the gains too
            name = "README.source.md" if file.name == "README.md" else file.name
            if file.name == "README.md" and earlier or file.name in _REWRITTEN - {"README.md"}:
                continue  # the card of an earlier conversion is written anew
            shutil.copyfile(file, temporary / name)
        plain = encoded.to_json()
        plain.pop("auto_map", None)  # points to code that does not come along, and is not needed
        write_json(temporary / "config.json", plain)
        raise_tokenizer_limit(temporary, target_length)
        write_json(temporary / "drope.json", record)
        write_text(temporary / "README.md", model_card(record))
        read = AutoConfig.from_pretrained(temporary)
        expected = encoded.config.get_text_config(decoder=True)
        if read.get_text_config(decoder=True).rope_parameters != expected.rope_parameters:
            raise VerificationError(f"The written config of {config.model_type!r} does not read back as meant.")
    return out


def _refuse_gguf(source: str | Path) -> None:
    path = Path(source).expanduser()
    only_gguf = path.is_dir() and any(path.glob("*.gguf")) and not any(path.glob("*.safetensors"))
    if path.suffix.lower() == ".gguf" or only_gguf:
        raise InputError(
            "model", str(source), "a hub id or a folder with safetensors files",
            "GGUF weights have to be unpacked first: load the file and save it "
            "(`drope convert` does so with --qk-norm; in Python: drope.load, drope.drop, drope.save).",
        )  # fmt: skip


def source_folder(source: str | Path, revision: str | None) -> Path:
    path = local_folder(source)
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=_HUB_FILES))
    except OSError as error:
        raise DropeError(f"{source} could not be fetched: {error}") from error


def _earlier(folder: Path) -> dict[str, Any]:
    """What the drope.json of a source that is itself a conversion says, less what is decided anew."""
    return {
        k: v
        for k, v in read_record(folder).items()
        if k not in ("schema", "versions", "encoding", "context", "target_length")
    }


def side_files(folder: Path) -> list[Path]:
    files = [f for f in sorted(folder.iterdir()) if f.is_file() and not f.name.startswith(".")]
    return [
        f
        for f in files
        if (f.suffix in _KEPT or f.name.upper().startswith(_LEGAL)) and f.stat().st_size <= _LARGEST_SIDE_FILE
    ]


def _same_layout(file: Path, written: Path) -> bool:
    """Whether what an earlier try wrote holds the same tensors and is whole; a power cut can undo a finished file."""
    try:
        return check_safetensors(written) == check_safetensors(file)
    except InputError:
        return False


def _place(file: Path, target: Path, link: bool) -> None:
    if link:
        try:
            os.link(file.resolve(), target)
            return
        except OSError:  # another file system, or one without hard links
            pass
    needed, free = file.stat().st_size, shutil.disk_usage(target.parent).free
    if needed > free:
        raise DropeError(
            f"There is no room to copy {file.name}: {needed:,} bytes needed, {free:,} free. "
            "Choose a folder on the source's file system, where files are linked, or free space."
        )
    shutil.copyfile(file, target)
