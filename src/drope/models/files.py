"""Looking at a checkpoint's files before they are read: whole, complete, and no pickles."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

from drope.errors import InputError

_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U8": 8, "BOOL": 8}
INDEX = "model.safetensors.index.json"


def check_folder(place: str | Path, gguf_file: str | None = None) -> None:
    """Refuse a local checkpoint whose weights are missing, truncated or damaged, or not in safetensors. Hub ids pass.

    Raises
    ------
    InputError : names the file and what is wrong with it
    """
    folder = Path(place)
    if gguf_file or not folder.is_dir():
        return
    for file in weight_files(folder):
        check_safetensors(file)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, in the order of its index.

    Raises
    ------
    InputError : there are none, or the index names files that are missing
    """
    index = folder / INDEX
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise InputError("model", str(index), "a safetensors index with a weight_map", "It is damaged.") from error
        missing = [name for name in names if not (folder / name).exists()]
        if missing:
            raise InputError(
                "model",
                str(folder),
                f"a folder with all {len(names)} weight files of its index",
                f"Missing: {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}. Download the model again.",
            )
        return [folder / name for name in names]
    single = folder / "model.safetensors"
    if single.exists():
        return [single]
    pickles = sorted(p.name for p in folder.glob("*.bin")) + sorted(p.name for p in folder.glob("*.pt"))
    hint = (
        f"It has {pickles[0]}, a pickle, which drope does not open: convert it to safetensors first."
        if pickles
        else "It has no model.safetensors."
    )
    raise InputError("model", str(folder), "a folder with safetensors weights", hint)


def _covered(tensors: dict[str, dict]) -> int:
    """Bytes of data that a header names; ValueError where tensors overlap, leave gaps or are not of their shape."""
    end = 0
    for entry in sorted(tensors.values(), key=lambda entry: entry["data_offsets"]):
        first, last = entry["data_offsets"]
        bits = _BITS.get(entry["dtype"])
        if first != end or last < first or bits is not None and (last - first) * 8 != math.prod(entry["shape"]) * bits:
            raise ValueError(entry)
        end = last
    return end


def check_safetensors(file: Path) -> dict[str, dict]:
    """Read a safetensors header and hold it against the file's size. Returns the header's tensors.

    Raises
    ------
    InputError : truncated, or not a safetensors file
    """
    size = file.stat().st_size
    damaged = "It is damaged: download or write it again."
    with file.open("rb") as f:
        head = f.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
        if not 0 < length <= size - 8:
            raise InputError(
                "weights", str(file), "a whole safetensors file", f"Its header is cut off or wrong. {damaged}"
            )
        try:
            header = json.loads(f.read(length))
            tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
            end = 8 + length + _covered(tensors)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                "weights", str(file), "a whole safetensors file", f"Its header is unreadable. {damaged}"
            ) from error
    if size != end:
        kind = "truncated" if size < end else "longer than it should be"
        raise InputError("weights", str(file), f"a file of {end:,} bytes", f"It is {kind}: {size:,} bytes. {damaged}")
    return tensors
