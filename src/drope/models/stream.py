"""Changing a few weights of a checkpoint of any size: files are copied as bytes, but for the tensors that change.

Nothing but a piece of one tensor is in memory. Used to fold a temperature into the weights that make q.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drope.errors import DropeError, InputError, UnsupportedModelError, VerificationError
from drope.models.files import INDEX, check_safetensors

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

_PIECE = 256 * 1024  # bytes of a tensor that are in memory at a time: few enough to stay in the processor's cache
_COPIED = 64 * 1024**2  # bytes that the kernel copies at a time, so that an interrupt is heeded
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Edit:
    """new = factor · (old + shift) − shift, in the given output rows or in all; computed in float32 or wider."""

    factor: float
    shift: float = 0.0
    rows: torch.Tensor | None = None  # bool, (output rows,)

    def describe(self) -> list[Any]:
        """As JSON."""
        return [self.factor, self.shift, None if self.rows is None else int(self.rows.sum())]


def fold_edits(config: PretrainedConfig, factor: float) -> dict[str, Edit]:
    """What folding a temperature changes, by weight: see `drope.models.fold`. The model is built without weights.

    The same is tried on a small random model against a temperature that acts in its attention modules.

    Raises
    ------
    UnsupportedModelError : the query is made in a way not known; names the family and the module
    VerificationError : folding does not do what a temperature does in this family
    """
    import torch
    from transformers import AutoModelForCausalLM

    from drope.models.encoding import text_config
    from drope.models.fold import fold_target
    from drope.models.logit_scale import attention_modules
    from drope.models.save import prove_fold
    from drope.models.tiny import tiny_model

    if factor == 1.0:
        return {}
    prove_fold(config, factor)
    small = tiny_model(text_config(config))
    shifts = _norm_shifts(small)
    with torch.device("meta"):
        shell = AutoModelForCausalLM.from_config(config)
    edits = {}
    for name, attention in attention_modules(shell).items():
        kind, attribute, rows = fold_target(shell, attention, name)
        for key, _ in getattr(attention, attribute).named_parameters():
            weight = kind == "norm" and key.split(".")[-1] == "weight"
            shift = shifts[type(attention).__name__] if weight else 0.0
            edits[f"{name}.{attribute}.{key}"] = Edit(factor, shift, rows)
    return edits


def _norm_shifts(small: Any) -> dict[str, float]:
    """1 for attention classes whose norm on q multiplies by 1 + w, else 0; read from what folding does to them."""
    from drope.models.fold import fold
    from drope.models.logit_scale import attention_modules

    found: dict[str, float] = {}
    for name, attention in attention_modules(small).items():
        for key, new in fold(small, {name: 2.0}).items():
            if key.endswith("weight") and "norm" in key:
                old = small.get_parameter(key)
                found[type(attention).__name__] = round(float((new - 2 * old).detach().float().mean()))
    return found


def missing(edits: Mapping[str, Edit], files: list[Path]) -> list[str]:
    """Weights that should change and that the files do not hold."""
    held = {key for file in files for key in check_safetensors(file)}
    return sorted(set(edits) - held)


def refuse_missing(config: PretrainedConfig, edits: Mapping[str, Edit], files: list[Path]) -> None:
    """Raise where the checkpoint names its weights otherwise than the model does."""
    if absent := missing(edits, files):
        raise UnsupportedModelError(
            f"{config.model_type!r}: the temperature goes into {absent[0]}, which the files name otherwise or do not "
            "hold. Load the model, drop it and save it instead: `save` folds in memory."
        )


def patch(source: Path, target: Path, edits: Mapping[str, Edit]) -> None:
    """Write `source` to `target` with the tensors named in `edits` changed; `target` appears whole or not at all.

    Shapes and precision stay, so the header and all other tensors are copied as bytes, inside the kernel where it can.

    Raises
    ------
    UnsupportedModelError : a tensor to be changed is in a quantised format
    VerificationError : a changed weight is beyond its format
    DropeError : the disk has no room
    """
    header = check_safetensors(source)
    named = {key: edit for key, edit in edits.items() if key in header}
    for key in named:
        if header[key]["dtype"] not in _DTYPES:
            raise UnsupportedModelError(f"{key} is stored as {header[key]['dtype']}, which cannot be scaled exactly.")
    size, free = source.stat().st_size, shutil.disk_usage(target.parent).free
    if size > free:
        raise DropeError(f"There is no room for {target.name}: {size:,} bytes needed, {free:,} free.")
    temporary = target.with_name(f".{target.name}.writing")
    with source.open("rb", buffering=0) as old, temporary.open("wb", buffering=0) as new:
        start = 8 + int.from_bytes(old.read(8), "little")
        at = 0
        for key in sorted(named, key=lambda key: header[key]["data_offsets"]):
            first, last = (start + offset for offset in header[key]["data_offsets"])
            _copy_range(old, new, at, first)
            _patch_tensor(old, new, first, header[key], named[key])
            at = last
        _copy_range(old, new, at, size)
    os.replace(temporary, target)


def _copy_range(old: Any, new: Any, first: int, last: int) -> None:
    """Bytes [first, last) of one open file to the same place in another."""
    inside = getattr(os, "copy_file_range", None)  # Linux
    while first < last:
        count = min(_COPIED, last - first)
        if inside is not None:
            try:
                if done := inside(old.fileno(), new.fileno(), count, first, first):
                    first += done
                    continue
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise
            inside = None  # another file system, or one that cannot
        old.seek(first)
        new.seek(first)
        piece = old.read(min(_PIECE, count))
        if not piece:
            raise InputError("weights", old.name, "a whole file", "It became shorter while it was read.")
        _write(new, piece)
        first += len(piece)


def _patch_tensor(old: Any, new: Any, offset: int, entry: dict[str, Any], edit: Edit) -> None:
    import torch

    dtype = getattr(torch, _DTYPES[entry["dtype"]])
    rows = entry["shape"][0] if entry["shape"] else 1
    width = (entry["data_offsets"][1] - entry["data_offsets"][0]) // max(rows, 1)  # bytes
    step = max(1, _PIECE // max(width, 1))
    old.seek(offset)
    new.seek(offset)
    for first in range(0, rows, step):
        count = min(step, rows - first)
        raw: Any = bytearray(count * width)
        if old.readinto(raw) != len(raw):
            raise InputError("weights", old.name, "a whole file", "It became shorter while it was read.")
        if edit.rows is None or bool(edit.rows[first : first + count].any()):
            values = torch.frombuffer(raw, dtype=dtype).reshape(count, -1)
            wide = values if dtype == torch.float64 else values.float()
            wide = (wide + edit.shift) * edit.factor - edit.shift if edit.shift else wide * edit.factor
            result = wide.to(dtype)
            if edit.rows is not None:
                result = torch.where(edit.rows[first : first + count, None], result, values)
            if result.numel() and not all(math.isfinite(float(end)) for end in result.aminmax()):
                raise VerificationError("A weight overflows its format when the temperature is folded in.")
            raw = result.contiguous().view(torch.uint8).numpy().data
        _write(new, raw)


def _write(file: Any, data: Any) -> None:
    left = memoryview(data).cast("B")
    while left:  # a write call may take a part only
        left = left[file.write(left) :]


def write_index(folder: Path) -> None:
    """An index over the safetensors files of a folder; two or more files need one."""
    weight_map, total = {}, 0
    for file in sorted(folder.glob("*.safetensors")):
        for key, entry in check_safetensors(file).items():
            weight_map[key] = file.name
            total += entry["data_offsets"][1] - entry["data_offsets"][0]
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
