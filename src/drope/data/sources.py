"""Where training text comes from, behind one spec.

    stdlib                     the standard library's prose, docstrings and sources (prose alone: `stdlib:prose`)
    stdlib:heldout             the prose that training never sees
    episodes                   documents with needles in them (`drope.data.episodes`)
    notes.txt, corpus/         a file or a folder: .txt .md .jsonl .jsonl.gz .parquet
    org/name, org/name:config  a dataset of the Hugging Face hub, split `train`, streamed
    episodes=0.85+stdlib=0.15  a mixture; weights are shares of blocks, equal where none is given

A source yields its documents in a fixed order.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import platform
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from drope.data import episodes, keys, needles, stdlib
from drope.errors import InputError

FORMATS = (".txt", ".md", ".jsonl", ".jsonl.gz", ".parquet")
_ALLOWED = "stdlib, stdlib:prose, stdlib:heldout, episodes, a file or folder of .txt .md .jsonl .parquet, or a hub id"
_HUB = re.compile(r"(?:hub:)?([\w.-]+/[\w.-]+)(?::([\w.-]+))?")
_STDLIB_TEXTS = 64 << 20  # bytes: an upper bound, small enough to be packed whole


class Source(ABC):
    """A stream of documents."""

    spec: str

    @abstractmethod
    def documents(self) -> Iterator[str]:
        """The documents that training may see, in a fixed order."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What a cache must compare: as JSON, changed whenever the documents change."""

    def heldout_documents(self) -> list[str] | None:
        """Documents apart from `documents()`; None where the source has no split of its own."""
        return None

    def size(self) -> int | None:
        """Bytes of text at most; None where nobody knows."""
        return None


@dataclass(frozen=True)
class StdlibSource(Source):
    """Text that every Python carries. Its held-out split is one topic in five of the language reference."""

    spec: str

    def documents(self) -> Iterator[str]:
        if self.spec == "stdlib:heldout":
            yield from stdlib.prose("heldout")
            return
        yield from stdlib.prose("train")
        if self.spec == "stdlib":
            yield from stdlib.docstrings()
            yield from stdlib.sources()

    def heldout_documents(self) -> list[str] | None:
        return None if self.spec == "stdlib:heldout" else stdlib.prose("heldout")

    def identity(self) -> dict[str, Any]:
        return {"stdlib": self.spec, "python": platform.python_version(), "code": _code(stdlib)}

    def size(self) -> int:
        return _STDLIB_TEXTS


@dataclass(frozen=True)
class EpisodeSource(Source):
    """Needles in prose, generated in blocks (`drope.data.episodes.Episodes`): endless, so they need an amount."""

    spec: str = "episodes"

    def documents(self) -> Iterator[str]:
        raise InputError("data", self.spec, "a source of documents here", "Episodes exist as packed blocks only.")

    def identity(self) -> dict[str, Any]:
        return {"python": platform.python_version(), "code": [_code(m) for m in (episodes, keys, needles, stdlib)]}

    def sentences(self, heldout: bool = False) -> list[str]:
        """The prose that hides the needles."""
        return stdlib.sentences(stdlib.prose("heldout") if heldout else stdlib.prose("train") + stdlib.docstrings())


@dataclass(frozen=True)
class FileSource(Source):
    """Files of text. A .txt or .md file is one document; a row of .jsonl or .parquet is one."""

    spec: str
    root: Path
    paths: tuple[Path, ...]
    text_field: str = "text"

    def documents(self) -> Iterator[str]:
        # A fixed shuffle of the files, so that a part of a large folder is a fair sample of it.
        for path in random.Random(0).sample(self.paths, len(self.paths)):
            yield from _read(path, self.text_field)

    def identity(self) -> dict[str, Any]:
        stats = [(str(p.relative_to(self.root.parent)), p.stat().st_size, p.stat().st_mtime_ns) for p in self.paths]
        return {"files": stats, "field": self.text_field}

    def size(self) -> int:
        # Compressed formats hold several times their bytes.
        return sum(p.stat().st_size * (1 if _format(p) in (".txt", ".md", ".jsonl") else 4) for p in self.paths)


@dataclass(frozen=True)
class HubSource(Source):
    """A dataset of the hub, streamed: only what a run needs is downloaded."""

    spec: str
    name: str
    config: str | None = None
    text_field: str = "text"

    def documents(self) -> Iterator[str]:
        with _hub_errors(self.spec):
            for row in self.rows():
                if not isinstance(row.get(self.text_field), str):
                    raise InputError("--text-field", self.text_field, f"a text column of {self.name}: {', '.join(row)}")
                yield row[self.text_field]

    def rows(self) -> Any:
        """The streamed dataset itself."""
        from datasets import load_dataset

        with _hub_errors(self.spec):
            return load_dataset(self.name, self.config, split="train", streaming=True)

    def identity(self) -> dict[str, Any]:
        from datasets import load_dataset_builder

        with _hub_errors(self.spec):
            builder = load_dataset_builder(self.name, self.config)
        return {"hub": self.name, "config": self.config, "revision": builder.hash, "field": self.text_field}


@dataclass(frozen=True)
class Mixture(Source):
    """Several sources, each with its share of the blocks; `packing` packs each by itself."""

    spec: str
    parts: tuple[tuple[Source, float], ...]

    def documents(self) -> Iterator[str]:
        for source, _ in self.parts:
            yield from source.documents()

    def identity(self) -> dict[str, Any]:
        return {"mixture": [[source.identity(), share] for source, share in self.parts]}


def open_source(spec: str | Path, *, text_field: str = "text") -> Source:
    """The source that `spec` names (see the head of this module).

    Raises
    ------
    InputError : nothing has this name, or the files hold no text that can be read
    """
    spec = str(spec).strip()
    if spec in ("stdlib", "stdlib:prose", "stdlib:heldout"):
        return StdlibSource(spec)
    if spec == "episodes":
        return EpisodeSource()
    path = Path(spec).expanduser()
    if path.exists():
        return _open_path(spec, path, text_field)
    if "+" in spec or re.search(r"=[\d.]+$", spec):
        return _open_mixture(spec, text_field)
    looks_local = spec.startswith((".", "/", "~")) or spec.lower().endswith(FORMATS)
    if (match := _HUB.fullmatch(spec)) and not looks_local:
        return HubSource(spec, match[1], match[2], text_field)
    raise InputError("data", spec, _ALLOWED, "No such file or folder." if looks_local or "/" in spec else "")


def _open_path(spec: str, path: Path, text_field: str) -> FileSource:
    if path.is_file():
        if not _format(path):
            raise InputError("data", spec, f"a file ending in {', '.join(FORMATS)}")
        return FileSource(spec, path.resolve(), (path.resolve(),), text_field)
    root = path.resolve()
    paths = tuple(sorted(p for p in root.rglob("*") if p.is_file() and _format(p)))
    if not paths:
        raise InputError("data", spec, f"a folder with files ending in {', '.join(FORMATS)}")
    return FileSource(spec, root, paths, text_field)


def _open_mixture(spec: str, text_field: str) -> Source:
    names, weights = [], []
    for part in spec.split("+"):
        name, _, weight = part.rpartition("=")
        if not name:
            name, weight = part, ""
        names.append(name.strip())
        try:
            weights.append(float(weight) if weight else None)
        except ValueError:
            raise InputError("data", spec, "weights that are numbers, such as episodes=0.85+stdlib=0.15") from None
    given = [w for w in weights if w is not None]
    if given and (len(given) < len(weights) or min(given) <= 0 or sum(given) == float("inf")):
        raise InputError("data", spec, "a weight above 0 for every part, or for none: episodes=0.85+stdlib=0.15")
    shares = [w / sum(given) for w in given] if given else [1 / len(names)] * len(names)
    if len(set(names)) < len(names):
        raise InputError("data", spec, "a mixture of different sources")
    if any(not name or "=" in name for name in names):
        raise InputError("data", spec, _ALLOWED)
    return Mixture(spec, tuple((open_source(n, text_field=text_field), s) for n, s in zip(names, shares, strict=True)))


def _code(module: ModuleType) -> str:
    """Digest of a module's source: text that it makes changes when it does."""
    return hashlib.sha256(Path(str(module.__file__)).read_bytes()).hexdigest()[:16]


def _format(path: Path) -> str:
    return next((f for f in FORMATS if path.name.lower().endswith(f)), "")


def _read(path: Path, field: str) -> Iterator[str]:
    kind = _format(path)
    if kind == ".parquet":
        yield from _read_parquet(path, field)
        return
    try:
        if kind in (".txt", ".md"):
            yield path.read_text(encoding="utf-8-sig")
            return
        with gzip.open(path, "rt", encoding="utf-8") if kind == ".jsonl.gz" else path.open(encoding="utf-8-sig") as f:
            for number, line in enumerate(f, 1):
                if line.strip():
                    yield _json_row(path, number, line, field)
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
        raise InputError("data", path.name, "UTF-8 text", str(error)) from error


def _json_row(path: Path, number: int, line: str, field: str) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError("data", f"{path.name}, line {number}", "one JSON object a line", str(error)) from error
    if not isinstance(row, dict) or not isinstance(row.get(field), str):
        found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise InputError("--text-field", field, f"a text field of {path.name}; line {number} has: {found}")
    return row[field]


def _read_parquet(path: Path, field: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise InputError("data", path.name, "a readable parquet file", str(error)) from error
    if field not in file.schema_arrow.names:
        raise InputError("--text-field", field, f"a column of {path.name}: {', '.join(file.schema_arrow.names)}")
    kind = file.schema_arrow.field(field).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise InputError("--text-field", field, f"a text column; in {path.name} it holds {kind}")
    for batch in file.iter_batches(columns=[field]):
        yield from (text for text in batch.column(0).to_pylist() if text)


class _hub_errors:
    """Turn the hub's many exceptions into one InputError that names the dataset."""

    def __init__(self, spec: str):
        self.spec = spec

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind, error, trace) -> None:
        # A dataset not found, no connection and HTTP errors are OSErrors; unknown configs and splits ValueErrors.
        if isinstance(error, OSError | ValueError):
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise InputError(
                "data", self.spec, "a public dataset of the hub with a split `train`, or a local file", first
            ) from error
