"""Tokenise once, pack into blocks of exactly the context, keep them memory-mapped, fix their order before training.

Documents are joined with EOS between them and no BOS; attention crosses documents, as in the paper (method.md §3). What
is cached depends on the source's content, the tokenizer and the context alone; the order is drawn anew from the seed.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from drope.data.sources import EpisodeSource, Mixture, Source, open_source
from drope.errors import InputError
from drope.files import fingerprint, new_folder, write_json
from drope.progress import track

if TYPE_CHECKING:
    from datasets import Dataset

_log = logging.getLogger(__name__)
_VERSION = 2  # raise when the packing itself changes, so that old caches are not taken
_WHOLE = 64 << 20  # bytes: smaller texts are packed whole, larger ones as far as a run needs
_HELDOUT_BLOCKS = 64
_PIECE = 1 << 20  # characters tokenised at once

_Row = tuple[np.ndarray, np.ndarray]  # token ids and which of them are trained, each (context,)


@dataclass(frozen=True)
class Blocks:
    """Packed tokens in training order.

    dataset : `datasets.Dataset` with columns `input_ids` and `trained` (whether the token is to be predicted), rows of
        shape (context,); row i is sample i of a run
    fingerprint : digest of content and order
    epochs : times that the most repeated source is seen
    """

    dataset: Dataset
    fingerprint: str
    context: int
    epochs: float

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def tokens(self) -> int:
        """Tokens in all, repeats included."""
        return len(self.dataset) * self.context


def pack(
    spec: str | Path | Source,
    tokenizer: Any,
    context: int,
    *,
    tokens: int | None = None,
    cache_dir: str | Path | None = None,
    seed: int = 0,
    heldout: bool = False,
    text_field: str = "text",
    bos: bool = False,
) -> Blocks:
    """Blocks of `context` tokens from `spec` (see `drope.data.sources`), in the order in which a run sees them.

    Parameters
    ----------
    tokens : how many to return, rounded down to whole blocks; None: each block once. More than exist are repeated in
        further epochs, each in a new order, with a warning.
    cache_dir : where packed blocks are kept; by default `$DROPE_CACHE`, else `~/.cache/drope`
    bos : begin each document with the tokenizer's BOS; the paper does not, and neither do episodes
    heldout : the blocks that training never sees, at most 64 of each source: its own held-out split where it has one,
        else its first blocks, one in fifty

    Raises
    ------
    InputError : the tokenizer has no EOS, the text is too short for one block, or the amount is missing or too small
    """
    source = spec if isinstance(spec, Source) else open_source(spec, text_field=text_field)
    tokenising = Tokenising(tokenizer, bos)
    if context < 2:
        raise InputError("context", context, "at least 2 tokens")
    wanted = None if tokens is None else tokens // context
    if wanted == 0:
        raise InputError("tokens", tokens, f"at least one block of {context} tokens")
    packer = _Packer(tokenising, context, Path(cache_dir) if cache_dir else default_cache(), seed, heldout)
    parts = source.parts if isinstance(source, Mixture) else ((source, 1.0),)
    if wanted is None:
        wanted = packer.everything(parts)
    counts = _shares([share for _, share in parts], wanted)
    return packer.order([(packer.blocks(s, n), n, s) for (s, _), n in zip(parts, counts, strict=True) if n])


def default_cache() -> Path:
    """`$DROPE_CACHE`, else `$XDG_CACHE_HOME/drope`, else `~/.cache/drope`."""
    if folder := os.environ.get("DROPE_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "drope"


@dataclass(frozen=True)
class _Cached:
    dataset: Dataset
    key: str
    ordered: bool  # generated blocks are random already


class Tokenising:
    """Documents to ids: text, then EOS, after a BOS if asked for.

    Raises
    ------
    InputError : the tokenizer has no EOS, or no BOS where one is asked for
    """

    def __init__(self, tokenizer: Any, bos: bool = False):
        self.tokenizer, self.bos = tokenizer, bos
        name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        if tokenizer.eos_token_id is None:
            raise InputError("tokenizer", name, "a tokenizer with an EOS token, which goes between documents")
        if bos and tokenizer.bos_token_id is None:
            raise InputError("bos", bos, f"false: {name} has no BOS token")
        self.before = [tokenizer.bos_token_id] if bos else []

    def document(self, text: str) -> np.ndarray:
        """Ids of one whole document, int32 of shape (n,); none for a blank one."""
        return np.concatenate([np.empty(0, np.int32), *self.batches([text])])

    def batches(self, documents: Iterable[str]) -> Iterator[np.ndarray]:
        """Ids of many documents, in pieces."""
        # Fast tokenizers run a batch on all cores by themselves; worker processes on top were no gain.
        begins = True
        for batch in _batches(_pieces(documents)):
            texts = [text for text, _ in batch]
            encoded = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
            ids: list[int] = []
            for row, (_, ends) in zip(encoded, batch, strict=True):
                if begins:
                    ids += self.before
                ids += row
                if ends:
                    ids.append(self.tokenizer.eos_token_id)
                begins = ends
            yield np.asarray(ids, dtype=np.int32)

    @cached_property
    def digest(self) -> str:
        """Changes whenever the ids would."""
        fast = getattr(self.tokenizer, "backend_tokenizer", None)
        content = fast.to_str() if fast is not None else sorted(self.tokenizer.get_vocab().items())
        return fingerprint([content, self.tokenizer.eos_token_id, *self.before])


@dataclass
class _Packer:
    tokenising: Tokenising
    context: int
    cache: Path
    seed: int
    heldout: bool

    def everything(self, parts: tuple[tuple[Source, float], ...]) -> int:
        """Blocks of a mixture that uses as much as there is without repeating any part."""
        found = []
        for source, share in parts:
            if isinstance(source, EpisodeSource):
                if len(parts) == 1 and not self.heldout:
                    raise InputError("tokens", None, "an amount, as in --tokens 20M", "Episodes have no end.")
                found.append(_HELDOUT_BLOCKS / share if self.heldout else float("inf"))
            else:
                found.append(len(self.blocks(source, None).dataset) / share)
        return max(1, int(min(found) + 1e-6))

    def blocks(self, source: Source, wanted: int | None) -> _Cached:
        """The cached blocks of one source, made if they are not there: at least `wanted` where the source has them."""
        if isinstance(source, EpisodeSource):
            n = min(wanted or _HELDOUT_BLOCKS, _HELDOUT_BLOCKS) if self.heldout else wanted
            assert n is not None
            key = {"kind": "episodes", "blocks": n, "seed": self.seed, "heldout": self.heldout}
            return self._cached(source, key, self._episodes(source, n), n)
        own = source.heldout_documents() is not None
        if self.heldout and own:
            documents: Iterable[str] = source.heldout_documents() or ()
            return self._cached(source, {"kind": "heldout"}, self._pack(documents), _HELDOUT_BLOCKS)
        # Which blocks are held out must not hang on the amount asked for, or two calls could overlap.
        size = source.size()
        large = size is None or size > _WHOLE
        target = None
        if large and self.heldout:
            target = 2 * _HELDOUT_BLOCKS
        elif large and wanted is not None and (size is None or size > 16 * wanted * self.context):
            # Doubling targets: a slightly longer run finds its cache, and the order of a run hangs on its length alone.
            target = 1 << (wanted + _HELDOUT_BLOCKS - 1).bit_length()
        packed = self._cached(source, {"kind": "text", "target": target}, self._pack(source.documents()), target)
        if own:
            return packed
        total = len(packed.dataset)
        apart = min(_HELDOUT_BLOCKS, total // 2 if large else max(total // 50, min(1, total - 1)))
        if not (apart if self.heldout else total - apart):
            allowed = f"text of at least two blocks of {self.context} tokens, one of them to hold out"
            raise InputError("data", source.spec, allowed)
        rows = range(apart) if self.heldout else range(apart, total)
        return _Cached(packed.dataset.select(rows), packed.key, False)

    def order(self, parts: list[tuple[_Cached, int, Source]]) -> Blocks:
        """Fix the order: a new permutation of each part for each epoch, then the parts shuffled together."""
        from datasets import concatenate_datasets

        rng = np.random.default_rng(self.seed)
        sequences, start, epochs = [], 0, 0.0
        for cached, wanted, source in parts:
            have = len(cached.dataset)
            n = min(wanted, have) if self.heldout else wanted
            epochs = max(epochs, n / have)
            if n > have:
                asked, held = f"{n * self.context:,}", f"{have * self.context:,}"
                _log.warning(
                    "%s tokens of %s were asked for and it holds %s: each block is seen %.1f times.",
                    *(asked, source.spec, held, n / have),
                )
            epoch = np.arange(have) if cached.ordered else None
            rows = [epoch if epoch is not None else rng.permutation(have) for _ in range(-(-n // have))]
            sequences.append(start + np.concatenate(rows)[:n])
            start += have
        labels = np.repeat(np.arange(len(parts)), [len(s) for s in sequences])
        if len(parts) > 1:
            rng.shuffle(labels)
        streams = [iter(s) for s in sequences]
        indices = np.fromiter((next(streams[label]) for label in labels), dtype=np.int64, count=len(labels))
        dataset = concatenate_datasets([cached.dataset for cached, _, _ in parts]).select(indices)
        keys = [[cached.key, n] for cached, n, _ in parts]
        digest = fingerprint({"parts": keys, "seed": self.seed, "heldout": self.heldout})
        return Blocks(dataset.with_format("torch"), digest, self.context, epochs)

    def _cached(self, source: Source, kind: dict[str, Any], rows: Iterator[_Row], limit: int | None) -> _Cached:
        from datasets import Dataset

        identity = {"source": source.identity(), "tokenizer": self.tokenising.digest, "context": self.context}
        key = fingerprint({**identity, **kind, "version": _VERSION})
        folder = self.cache / "blocks" / key
        if not (folder / "blocks.json").exists():
            try:
                with new_folder(folder, field="cache_dir") as temporary:
                    n = self._write(temporary / "blocks.arrow", itertools.islice(rows, limit), source.spec, limit)
                    about = {"spec": source.spec, "context": self.context, "blocks": n, **kind}
                    write_json(temporary / "blocks.json", about)
            except (InputError, OSError):
                if not (folder / "blocks.json").exists():  # else another process has just made the same
                    raise
        return _Cached(Dataset.from_file(str(folder / "blocks.arrow")), key, kind["kind"] == "episodes")

    def _write(self, path: Path, rows: Iterator[_Row], spec: str, limit: int | None) -> int:
        """Stream rows (context,) into an Arrow file; the number of rows."""
        import pyarrow as pa

        types = {"input_ids": pa.int32(), "trained": pa.bool_()}
        schema = pa.schema([(name, pa.list_(kind, self.context)) for name, kind in types.items()])
        count = 0
        total = limit * self.context if limit else None
        with pa.ipc.new_stream(str(path), schema) as out, track(f"Packing {spec}", total, "tokens") as bar:
            while chunk := list(itertools.islice(rows, 256)):
                columns = [
                    pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(column), kind), self.context)
                    for column, kind in zip(zip(*chunk, strict=True), types.values(), strict=True)
                ]
                out.write_batch(pa.record_batch(columns, schema=schema))
                count += len(chunk)
                bar.advance(len(chunk) * self.context)
        if not count:
            raise InputError("data", spec, f"text of at least one block of {self.context} tokens", "Give more text.")
        return count

    def _episodes(self, source: EpisodeSource, n: int) -> Iterator[_Row]:
        from drope.data.episodes import NEEDLE, Episodes

        tokenizer = self.tokenising.tokenizer
        need = 4 * _shortest_episode(tokenizer)
        if self.context < need:
            raise InputError("context", self.context, f"at least {need} tokens for `episodes` with this tokenizer")
        # The held-out stream has seeds of its own and hides its needles in other prose.
        episodes = Episodes(tokenizer, source.sentences(self.heldout), self.context)
        stream = episodes.annotated_blocks(self.seed + (1 << 40 if self.heldout else 0))
        # Needles and questions are random draws: predicting them would teach nothing.
        yield from ((ids, kinds != NEEDLE) for ids, kinds in itertools.islice(stream, n))

    def _pack(self, documents: Iterable[str]) -> Iterator[_Row]:
        """Rows of exactly `context` tokens; what is left at the very end is dropped."""
        rest, everything = np.empty(0, dtype=np.int32), np.ones(self.context, dtype=bool)
        for ids in self.tokenising.batches(documents):
            rest = np.concatenate([rest, ids])
            whole = len(rest) // self.context * self.context
            yield from ((row, everything) for row in rest[:whole].reshape(-1, self.context))
            rest = rest[whole:]


def _shortest_episode(tokenizer: Any) -> int:
    """Tokens that one needle, its question and its answer usually take; blocks hold up to four episodes."""
    from drope.data import needles

    rng = random.Random(0)
    lengths = []
    for _ in range(50):
        key, value = needles.random_key(rng), needles.random_number(rng)
        question = "\n" + needles.ASK_KEY.format(keys=key)
        texts = [" " + needles.NEEDLE.format(key=key, value=value), f"{question} {value}."]
        lengths.append(1 + sum(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"])))
    return sorted(lengths)[len(lengths) // 2]


def _pieces(documents: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """(text, whether its document ends here): books are cut at line ends, so that memory stays flat."""
    for text in documents:
        text = text.rstrip("\n") if text.strip() else ""
        start = 0
        while len(text) - start > _PIECE:
            cut = text.rfind("\n", start, start + _PIECE) + 1 or start + _PIECE
            yield text[start:cut], False
            start = cut
        if text:
            yield text[start:], True


def _batches(pieces: Iterable[tuple[str, bool]]) -> Iterator[list[tuple[str, bool]]]:
    batch: list[tuple[str, bool]] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece[0])
        if size >= _PIECE or len(batch) >= 1000:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _shares(shares: list[float], total: int) -> list[int]:
    """Whole numbers that add up to `total`, nearest to the shares (largest remainders)."""
    exact = [share * total for share in shares]
    counts = [int(e + 1e-9) for e in exact]
    for i in sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])[: total - sum(counts)]:
        counts[i] += 1
    return counts
