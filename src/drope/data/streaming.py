"""Blocks of corpora too large to tokenise first: read from shards as a run goes, from any position.

The shards of a dataset are dealt to lanes; block i of a run is the next block of lane i mod `lanes`. A lane reads its
shards in their order, so shuffle large corpora when they are written, as those of the hub are. Each lane notes where it
stood every few blocks (`datasets`' own state of a streamed dataset, and the tokens left over): a resumed run, on any
number of processes, goes on from the nearest note with the same blocks. A process reads only the lanes that it needs.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drope.data.packing import Tokenising
from drope.data.sources import FileSource, HubSource, Source
from drope.errors import InputError
from drope.files import fingerprint

_log = logging.getLogger(__name__)
_NOTE_EVERY = 64  # blocks
_MOST_LANES = 64
_DOCUMENTS = 64  # tokenised at once
_READERS = {".jsonl": "json", ".jsonl.gz": "json", ".parquet": "parquet"}


@dataclass
class StreamedBlocks:
    """A map-style dataset over lanes: `len()`, `[i]` -> {"input_ids": (context,), "trained": (context,)}.

    tokens : in all; epochs : None, since nobody has counted the corpus
    fingerprint : digest of the source, the tokenizer, the context and the order of lanes
    """

    lanes: list[_Lane]
    length: int
    context: int
    fingerprint: str
    epochs: float | None = None
    skip: int = 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> dict[str, Any]:
        import torch

        if not 0 <= i < self.length:
            raise IndexError(i)
        i += self.skip
        ids = self.lanes[i % len(self.lanes)].block(i // len(self.lanes))
        return {"input_ids": torch.from_numpy(ids.astype(np.int64)), "trained": torch.ones(len(ids), dtype=torch.bool)}

    @property
    def dataset(self) -> StreamedBlocks:
        return self

    @property
    def tokens(self) -> int:
        return self.length * self.context


def stream(
    source: Source,
    tokenising: Tokenising,
    context: int,
    *,
    tokens: int,
    notes: Path,
    lanes: int | None = None,
    skip: int = 0,
) -> StreamedBlocks:
    """Blocks of `context` tokens from the shards of `source`, tokenised when they are asked for.

    Parameters
    ----------
    tokens : in all, rounded down to whole blocks
    notes : folder for the positions of the lanes
    skip : blocks to leave out before the first
    lanes : default: one a shard, at most 64; another number is another order

    Raises
    ------
    InputError : not a hub dataset nor a folder of .jsonl or .parquet files, or a single shard
    """
    data, size = _shards(source)
    lanes = lanes or min(size - 1, _MOST_LANES)
    if size < 2:
        raise InputError("data", source.spec, "at least two shards to stream: one of them is held out")
    field_name = getattr(source, "text_field", "text")
    identity = {"source": source.identity(), "tokens": tokenising.digest, "context": context, "lanes": lanes}
    digest = fingerprint(identity)
    notes = notes / digest
    notes.mkdir(parents=True, exist_ok=True)
    # The last shard is for the held-out loss.
    made = [
        _Lane(j, data, range(j, size - 1, lanes), size, tokenising, context, field_name, notes) for j in range(lanes)
    ]
    return StreamedBlocks(made, tokens // context, context, digest, skip=skip)


@dataclass(frozen=True)
class LastShard(Source):
    """The documents that `stream` leaves out, for the held-out loss."""

    whole: Source

    @property
    def spec(self) -> str:  # type: ignore[override]
        return self.whole.spec

    def documents(self) -> Iterator[str]:
        data, size = _shards(self.whole)
        name = getattr(self.whole, "text_field", "text")
        yield from (row[name] for row in data.shard(num_shards=size, index=size - 1) if row[name])

    def identity(self) -> dict[str, Any]:
        return {"last shard": self.whole.identity()}


class _Lane:
    def __init__(
        self,
        number: int,
        data: Any,
        shards: range,
        size: int,
        tokenising: Tokenising,
        context: int,
        text_field: str,
        notes: Path,
    ):
        self.number, self.data, self.shards, self.size = number, data, list(shards), size
        self.tokenising, self.context, self.text_field = tokenising, context, text_field
        self.notes = notes
        self.next = -1  # the block that the reader will give next; -1: no reader yet
        self.reader: Iterator[np.ndarray] | None = None
        self.last: tuple[int, np.ndarray] | None = None

    def block(self, n: int) -> np.ndarray:
        """Block n of this lane, shape (context,)."""
        if self.last is not None and self.last[0] == n:
            return self.last[1]
        if self.reader is None or n < self.next or n - self.next > 4 * _NOTE_EVERY:
            self.next, state = self._nearest_note(n)
            self.reader = self._read(self.next, state)
        while True:
            ids = next(self.reader)
            self.next += 1
            if self.next == n + 1:
                self.last = (n, ids)
                return ids

    def _read(self, first: int, state: dict[str, Any]) -> Iterator[np.ndarray]:
        """Blocks from `first` on, without end: the shards begin again when they are through."""
        place, position = state["place"], state["position"]
        rest, n, noted, seen = np.asarray(state["rest"], dtype=np.int32), first, first, False
        while True:
            shard = self.data.shard(num_shards=self.size, index=self.shards[place % len(self.shards)])
            if position is not None:
                shard.load_state_dict(position)
            rows = iter(shard)
            while True:
                if n - noted >= _NOTE_EVERY:
                    self._note(n, {"place": place, "position": position, "rest": rest.tolist()})
                    noted = n
                texts = [self._text(row) for row in itertools.islice(rows, _DOCUMENTS)]
                if not texts:
                    break
                position = shard.state_dict()
                rest = np.concatenate([rest, *self.tokenising.batches(texts)])
                seen = seen or len(rest) > 0
                while len(rest) >= self.context:
                    n += 1
                    block, rest = rest[: self.context], rest[self.context :]
                    yield block
            place, position = place + 1, None
            if place % len(self.shards) == 0:
                if not seen:
                    raise InputError("data", f"shards {self.shards}", "shards with text in them")
                _log.warning("Lane %d has gone through its shards and begins again.", self.number)

    def _text(self, row: dict[str, Any]) -> str:
        text = row.get(self.text_field)
        if not isinstance(text, str):
            raise InputError("--text-field", self.text_field, f"a text column: {', '.join(row)}")
        return text

    def _note(self, n: int, state: dict[str, Any]) -> None:
        with self._path(os.environ.get("RANK", "0")).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"block": n, **state}) + "\n")

    def _nearest_note(self, n: int) -> tuple[int, dict[str, Any]]:
        best: tuple[int, dict[str, Any]] = (0, {"place": 0, "position": None, "rest": []})
        for path in self.notes.glob(f"lane-{self.number}.*.jsonl"):
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    note = json.loads(line)
                except ValueError:
                    continue  # a kill cut it short
                if best[0] < note["block"] <= n:
                    best = (note["block"], note)
        return best

    def _path(self, process: str) -> Path:
        return self.notes / f"lane-{self.number}.{process}.jsonl"


def _shards(source: Source) -> tuple[Any, int]:
    """The source as a streamed `datasets` dataset, and how many shards it has."""
    from datasets import load_dataset

    if isinstance(source, HubSource):
        data = source.rows()
    elif isinstance(source, FileSource):
        kinds = {next((k for f, k in _READERS.items() if p.name.lower().endswith(f)), "") for p in source.paths}
        if len(kinds) > 1 or "" in kinds:
            raise InputError("data", source.spec, "files of one kind to stream, all .jsonl or all .parquet")
        data = load_dataset(kinds.pop(), data_files=[str(p) for p in source.paths], split="train", streaming=True)
    else:
        raise InputError("data", source.spec, "a hub dataset, or a folder of .jsonl or .parquet files, to stream")
    return data, data.num_shards
