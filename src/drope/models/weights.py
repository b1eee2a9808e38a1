"""Reading pieces of tensors out of safetensors files, without mapping the files into memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drope.errors import UnsupportedModelError
from drope.models.files import check_safetensors, weight_files

if TYPE_CHECKING:
    import torch

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class Weights:
    """The tensors of a checkpoint in a folder, read piece by piece and given in float32."""

    def __init__(self, folder: Path):
        self._entries: dict[str, tuple[int, int, dict[str, Any]]] = {}
        self._handles: list[int] = []
        for file in weight_files(folder):
            entries = check_safetensors(file)
            handle = os.open(file, os.O_RDONLY)
            self._handles.append(handle)
            start = 8 + int.from_bytes(os.pread(handle, 8, 0), "little")
            for key, entry in entries.items():
                self._entries[key] = (handle, start + entry["data_offsets"][0], entry)

    def close(self) -> None:
        while self._handles:
            os.close(self._handles.pop())

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def names(self) -> list[str]:
        return sorted(self._entries)

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._entry(key)[2]["shape"])

    def dtype(self, key: str) -> torch.dtype:
        import torch

        name = self._entry(key)[2]["dtype"]
        if name not in _DTYPES:
            raise UnsupportedModelError(f"{key} is stored as {name}: quantised checkpoints cannot be read here.")
        return getattr(torch, _DTYPES[name])

    def rows(self, key: str, first: int = 0, last: int | None = None) -> torch.Tensor:
        """Rows [first, last) of a tensor; of a vector, elements."""
        shape = self.shape(key)
        last = shape[0] if last is None else min(last, shape[0])
        width = self._width(key)
        return self._read(key, first * width, (last - first) * width).reshape(last - first, *shape[1:])

    def columns(self, key: str, first: int, last: int) -> torch.Tensor:
        """Columns [first, last) of a matrix."""
        import torch

        rows, columns = self.shape(key)
        size = self.dtype(key).itemsize
        pieces = [self._bytes(key, (r * columns + first) * size, (last - first) * size) for r in range(rows)]
        joined = torch.frombuffer(bytearray(b"".join(pieces)), dtype=self.dtype(key))
        return joined.reshape(rows, last - first).float()

    def chosen_rows(self, key: str, indices: Sequence[int]) -> torch.Tensor:
        """Single rows, in the order asked for."""
        import torch

        return torch.cat([self.rows(key, i, i + 1) for i in indices])

    def row_pieces(self, key: str, megabytes: int = 128) -> Iterator[tuple[int, torch.Tensor]]:
        """Consecutive rows, in pieces of at most so many megabytes in float32, with the first row's number."""
        rows = self.shape(key)[0]
        step = max(1, megabytes * 2**20 // max(1, 4 * self._width(key) // self.dtype(key).itemsize))
        for first in range(0, rows, step):
            yield first, self.rows(key, first, first + step)

    def _entry(self, key: str) -> tuple[int, int, dict[str, Any]]:
        if key not in self._entries:
            raise UnsupportedModelError(f"The checkpoint holds no {key}: its weights are not named as expected.")
        return self._entries[key]

    def _width(self, key: str) -> int:
        """Bytes of a row."""
        entry = self._entry(key)[2]
        return (entry["data_offsets"][1] - entry["data_offsets"][0]) // max(1, entry["shape"][0])

    def _bytes(self, key: str, offset: int, count: int) -> bytes:
        handle, start, _ = self._entry(key)
        found = b""
        while len(found) < count:  # a read call returns at most 2 GiB
            more = os.pread(handle, count - len(found), start + offset + len(found))
            if not more:
                raise UnsupportedModelError(f"{key} is cut off.")
            found = found + more if found else more
        return found

    def _read(self, key: str, offset: int, count: int) -> torch.Tensor:
        import torch

        return torch.frombuffer(bytearray(self._bytes(key, offset, count)), dtype=self.dtype(key)).float()
